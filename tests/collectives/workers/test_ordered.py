import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bandwidth.collectives import dense_all_reduce
from bandwidth.collectives.workers.ordered import ordered_psum, pairwise_sum

pytestmark = pytest.mark.compiler


def rows(workers, size, seed=0):
  return np.random.default_rng(seed).normal(size=(workers, size)).astype('f4')


@pytest.mark.parametrize('workers', [1, 2, 8, 70])
@pytest.mark.parametrize('size', [3, 10_000])
def test_simulated_workers_are_added_in_order(workers, size):
  x = rows(workers, size)
  expected = functools.reduce(np.add, x)
  mapped = jax.vmap(lambda x: ordered_psum(x, ['data']), axis_name='data')
  np.testing.assert_array_equal(
    jax.jit(mapped)(x), np.broadcast_to(expected, x.shape)
  )


@pytest.mark.parametrize('size', [100, 10_000, 266_610])
@pytest.mark.parametrize('dtype', ['float32', 'bfloat16', 'float16'])
def test_compiled_simulation_has_the_bits_of_devices(size, dtype):
  reducer = dense_all_reduce('data', dtype=dtype)
  x = rows(8, size)

  def mean(x):
    return reducer.reduce(x, ())[0]

  on_devices = jax.pmap(mean, axis_name='data')(x)
  simulated = jax.jit(jax.vmap(mean, axis_name='data'))(x)
  np.testing.assert_array_equal(on_devices, simulated)


def test_other_vmaps_are_left_alone():
  x = rows(4 * 3, 5).reshape(4, 3, 5)

  def sums(x):
    return jax.vmap(lambda y: ordered_psum(y, ['data']))(x)

  inside = jax.vmap(sums, axis_name='data')(x)
  one = jax.vmap(lambda y: ordered_psum(y, ['data']), axis_name='data')
  outside = jax.vmap(one, in_axes=1, out_axes=1)(x)
  expected = np.broadcast_to(functools.reduce(np.add, x), x.shape)
  np.testing.assert_array_equal(inside, expected)
  np.testing.assert_array_equal(outside, expected)


def test_two_simulated_axes_and_unmapped_values():
  x = rows(6, 4).reshape(2, 3, 4)
  one = lambda x: ordered_psum(x, ['slow', 'fast'])  # noqa: E731
  both = jax.vmap(jax.vmap(one, axis_name='fast'), axis_name='slow')(x)
  fast = [functools.reduce(np.add, block) for block in x]
  np.testing.assert_array_equal(both[1, 2], fast[0] + fast[1])
  same = jax.vmap(
    lambda x: ordered_psum(jnp.ones(2), ['data']) + x, axis_name='data'
  )(jnp.zeros((5, 2)))
  np.testing.assert_array_equal(same, np.full((5, 2), 5.0))


def test_on_devices_it_is_one_all_reduce():
  fn = jax.pmap(lambda x: ordered_psum(x, ['data']), axis_name='data')
  text = fn.lower(jnp.zeros((8, 16))).compile().as_text()
  assert text.count(' all-reduce(') == 1


@pytest.mark.parametrize('count', [1, 2, 3, 5, 8])
def test_pairwise_sum_by_hand(count):
  x = rows(count, 7)
  out = pairwise_sum(jnp.asarray(x))
  np.testing.assert_allclose(out, x.sum(0), rtol=1e-5, atol=1e-6)
  if count == 4:
    np.testing.assert_array_equal(out, (x[0] + x[2]) + (x[1] + x[3]))
