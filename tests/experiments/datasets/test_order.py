import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from experiments.datasets import epoch_order, held_out, step_indices

SMALL = st.integers(0, 1000)


@given(SMALL, SMALL, st.integers(0, 200))
def test_order_is_a_permutation_and_a_pure_function(seed, epoch, length):
  order = epoch_order(seed, epoch, length)
  assert order.dtype == np.int32
  assert sorted(order) == list(range(length))
  np.testing.assert_array_equal(order, epoch_order(seed, epoch, length))


def test_order_is_numpys_for_the_pair():
  expected = np.random.default_rng([7, 3]).permutation(100)
  np.testing.assert_array_equal(epoch_order(7, 3, 100), expected)


def test_orders_of_seeds_and_epochs_differ():
  orders = {
    tuple(epoch_order(seed, epoch, 50))
    for seed in range(4)
    for epoch in range(4)
  }
  assert len(orders) == 16


@given(SMALL, st.integers(1, 40), st.integers(0, 40), st.integers(0, 3))
def test_steps_of_an_epoch_follow_its_order(seed, batch, extra, epoch):
  length = batch + extra
  steps = length // batch
  seen = [
    step_indices(seed=seed, step=step, batch_size=batch, length=length)
    for step in range(epoch * steps, (epoch + 1) * steps)
  ]
  expected = epoch_order(seed, epoch, length)[: steps * batch]
  np.testing.assert_array_equal(np.concatenate(seen), expected)


def test_kept_orders_cannot_be_written_to():
  indices = step_indices(seed=0, step=0, batch_size=2, length=8)
  with pytest.raises(ValueError, match='read-only'):
    indices[0] = 1
  epoch_order(0, 0, 8)[0] = 1


@pytest.mark.parametrize(
  ('arguments', 'message'),
  [
    ({'batch_size': 9}, r'batch_size=9 is not in 1 to 8'),
    ({'batch_size': 0}, r'batch_size=0 is not in 1 to 8'),
    ({'step': -1}, r'step=-1 is negative'),
    ({'seed': -1}, r'seed=-1 is negative'),
  ],
)
def test_bad_step_arguments(arguments, message):
  good = {'seed': 0, 'step': 0, 'batch_size': 2, 'length': 8}
  with pytest.raises(ValueError, match=message):
    step_indices(**(good | arguments))


@given(st.integers(1, 300), st.data())
def test_held_out_divides_and_nests(length, data):
  validation = data.draw(st.integers(0, length - 1))
  kept, held = held_out(length, validation)
  assert len(held) == validation
  assert kept.dtype == held.dtype == np.int32
  np.testing.assert_array_equal(
    np.sort(np.concatenate([kept, held])), np.arange(length)
  )
  assert (np.diff(kept) > 0).all()
  assert (np.diff(held) > 0).all()
  smaller = held_out(length, validation // 2)[1]
  assert set(smaller) <= set(held)


@pytest.mark.parametrize('validation', [-1, 10, 11])
def test_held_out_of_range(validation):
  with pytest.raises(ValueError, match=rf'validation={validation} is not in 0'):
    held_out(10, validation)
