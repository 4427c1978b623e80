import functools
import warnings

import hypothesis
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import optax
import pytest
from hypothesis import strategies as st

from bandwidth.collectives import (
  check_momentum,
  deep_gradient_compression,
  dense_all_reduce,
  random_k,
  resplit_workers,
  stack_states,
)

counts = st.integers(1, 12)


@hypothesis.given(old=counts, new=counts, seed=st.integers(0, 99))
@hypothesis.settings(deadline=None, max_examples=60)
def test_the_mean_is_conserved(old, new, seed):
  v = np.random.default_rng(seed).normal(size=(old, 5))
  out = resplit_workers({'v': v}, new)['v']
  assert out.shape == (new, 5)
  np.testing.assert_allclose(out.mean(0), v.mean(0), atol=1e-12)


@pytest.mark.parametrize(('old', 'new'), [(8, 4), (4, 8), (8, 1), (2, 8)])
def test_powers_of_two_conserve_exactly(old, new):
  v = np.random.default_rng(0).integers(-99, 99, (old, 3)).astype(np.float32)
  out = resplit_workers(v, new)
  np.testing.assert_array_equal(out.sum(0) / new, v.sum(0) / old)


def test_groups_are_averaged_and_children_copied():
  v = np.array([[1.0], [2.0], [3.0], [6.0]])
  np.testing.assert_array_equal(resplit_workers(v, 2), [[1.5], [4.5]])
  np.testing.assert_array_equal(
    resplit_workers(v[:2], 4), [[1.0], [1.0], [2.0], [2.0]]
  )


def test_three_to_two_by_hand():
  v = np.array([3.0, 6.0, 9.0])
  # New worker 0 covers all of old 0 and half of old 1: (3 + 6/2) * 2/3.
  np.testing.assert_allclose(resplit_workers(v, 2), [4.0, 8.0])


def test_integers_are_taken_from_a_worker_and_dtypes_kept():
  state = {
    'n': np.array([7, 8, 9, 10], np.int32),
    'h': np.array([1, 3, 5, 7], ml_dtypes.bfloat16),
  }
  out = resplit_workers(state, 2)
  np.testing.assert_array_equal(out['n'], [7, 9])
  assert out['n'].dtype == np.int32
  np.testing.assert_array_equal(out['h'].astype(float), [2.0, 6.0])
  assert out['h'].dtype == ml_dtypes.bfloat16


def test_same_count_is_untouched_and_empty_state_stays_empty():
  v = np.array([0.1, 0.2], np.float32)
  np.testing.assert_array_equal(resplit_workers(v, 2), v)
  assert resplit_workers((), 3) == ()
  assert jax.tree.leaves(resplit_workers({'a': {}}, 3)) == []


def test_bad_arguments():
  with pytest.raises(ValueError, match='workers=0'):
    resplit_workers(np.zeros(2), 0)
  with pytest.raises(ValueError, match='leading axes'):
    resplit_workers([np.zeros(2), np.zeros(3)], 2)


def linear_loss(params, x, y):
  return jnp.mean((x @ params['w'] - y) ** 2)


def update(params, state, x, y):
  """A worker's step, as the README shows it."""
  reducer = deep_gradient_compression('data', density=0.1)
  grads = jax.grad(linear_loss)(params, x, y)
  mean, state = reducer.reduce(grads, state, params)
  return jax.tree.map(lambda w, g: w - 0.02 * g, params, mean), state


def shard_mapped(params, state, x, y):
  """The same for `jax.shard_map`, where arrays keep a worker axis of one."""
  state, x, y = jax.tree.map(lambda leaf: leaf[0], (state, x, y))
  params, state = update(params, state, x, y)
  return params, jax.tree.map(lambda leaf: leaf[None], state)


def test_the_example_of_the_readme_trains_alike_on_devices():
  from jax.sharding import AxisType, NamedSharding
  from jax.sharding import PartitionSpec as P

  params = {'w': jnp.zeros((64, 1))}
  one = deep_gradient_compression('data', density=0.1).init(params)
  x = jax.random.normal(jax.random.key(0), (4, 64, 64))
  y = x @ jnp.ones((64, 1))
  mesh = jax.make_mesh((4,), ('data',), axis_types=(AxisType.Auto,))
  workers = NamedSharding(mesh, P('data'))
  sharded = stack_states(one, 4, sharding=workers)
  for leaf in jax.tree.leaves(sharded):
    assert leaf.sharding == workers
    assert {s.data.shape[0] for s in leaf.addressable_shards} == {1}
  mapped = jax.vmap(
    update, in_axes=(None, 0, 0, 0), out_axes=(None, 0), axis_name='data'
  )
  on_devices = jax.shard_map(
    shard_mapped,
    mesh=mesh,
    in_specs=(P(), P('data'), P('data'), P('data')),
    out_specs=(P(), P('data')),
    check_vma=False,
  )
  trained = []
  for program, state in ((mapped, stack_states(one, 4)), (on_devices, sharded)):
    program, now = jax.jit(program), params
    for _ in range(5):
      now, state = jax.block_until_ready(program(now, state, x, y))
    trained.append(now['w'])
  losses = jax.vmap(functools.partial(linear_loss, params))(x, y)
  after = jax.vmap(functools.partial(linear_loss, {'w': trained[1]}))(x, y)
  assert float(after.mean()) < 0.9 * float(losses.mean())
  # XLA may contract the learning rate's product, but nothing else differs.
  np.testing.assert_allclose(*trained, rtol=1e-5)


@pytest.mark.parametrize('workers', [0, -2, 1.5, (2, 0)])
def test_states_of_no_workers_are_refused(workers):
  with pytest.raises(ValueError, match='workers='):
    stack_states({'v': jnp.zeros(2)}, workers)


MOMENTUM_TWICE = {
  'sgd': lambda: optax.sgd(0.1, momentum=0.9),
  'adam in a chain': lambda: optax.chain(
    optax.clip(1.0), optax.masked(optax.adam(0.1), {'w': True})
  ),
  'lion': lambda: optax.lion(0.1),
}


@pytest.mark.parametrize('optimizer', MOMENTUM_TWICE)
def test_momentum_behind_momentum_is_warned_of_once(optimizer):
  state = MOMENTUM_TWICE[optimizer]().init({'w': jnp.zeros(2)})
  reducer = deep_gradient_compression('data')
  with pytest.warns(UserWarning, match=r'momentum=0\.9') as record:
    check_momentum(reducer, state)
  assert len(record) == 1


def test_momentum_in_one_place_is_right():
  params = {'w': jnp.zeros(2)}
  adam = optax.adam(0.1).init(params)
  plain = optax.chain(optax.add_decayed_weights(0.1), optax.sgd(0.1))
  with warnings.catch_warnings():
    warnings.simplefilter('error')
    check_momentum(deep_gradient_compression('data'), plain.init(params))
    check_momentum(deep_gradient_compression('data', momentum=0.0), adam)
    check_momentum(dense_all_reduce('data'), adam)
    check_momentum(random_k('data', density=0.1), adam)


def test_a_reducer_that_does_not_know_its_workers_cannot_deal_out():
  params = {'w': jnp.zeros((8, 8))}
  reducer = deep_gradient_compression('data', density=0.05)
  state = jax.device_get(stack_states(reducer.init(params), 4))
  with pytest.raises(ValueError, match='workers=0: make the reducer'):
    reducer.resplit(state, params, workers=4)
