import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from bandwidth.collectives import dense_all_reduce
from bandwidth.collectives.traffic import accounting
from bandwidth.collectives.wire.message import pack


def reduce_over(grads, dtype, axis='data'):
  reducer = dense_all_reduce(axis, dtype=dtype)
  # Compiled, so that roundings a compiler might drop are seen to stay.
  one = jax.vmap(lambda g: reducer.reduce(g, ())[0], axis_name='data')
  return jax.jit(one)(grads)


@pytest.mark.parametrize('workers', [1, 2, 3, 8])
def test_float32_is_the_mean(workers):
  grads = np.random.default_rng(0).normal(size=(workers, 11)).astype('f4')
  out = reduce_over(jnp.asarray(grads), 'float32')
  np.testing.assert_allclose(out[0], grads.mean(0), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
  ('name', 'dtype'), [('bfloat16', ml_dtypes.bfloat16), ('float16', np.float16)]
)
@pytest.mark.parametrize('workers', [2, 3, 8])
def test_sixteen_bits_round_before_and_after_a_float32_sum(
  name, dtype, workers
):
  grads = np.random.default_rng(1).normal(size=(workers, 13)).astype('f4')
  # Added by halves: rows 0 and P/2, 1 and P/2 + 1, …
  rows = [row.astype(dtype).astype(np.float32) for row in grads]
  while len(rows) > 1:
    half = len(rows) // 2
    rows = [rows[i] + rows[half + i] for i in range(half)] + rows[2 * half :]
  (total,) = rows
  expected = (total / np.float32(workers)).astype(dtype).astype(np.float32)
  np.testing.assert_array_equal(
    reduce_over(jnp.asarray(grads), name)[0], expected
  )


def test_float16_overflow_is_infinite_not_clipped():
  out = reduce_over(jnp.full((2, 1), 1e5), 'float16')
  assert np.isinf(out).all()


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16', 'float16'])
def test_two_axes(dtype):
  grads = jnp.arange(8.0).reshape(2, 2, 2)
  reducer = dense_all_reduce(('slow', 'fast'), dtype=dtype)
  one = lambda g: reducer.reduce(g, ())[0]  # noqa: E731
  both = jax.vmap(jax.vmap(one, axis_name='fast'), axis_name='slow')(grads)
  np.testing.assert_array_equal(both, np.broadcast_to([3.0, 4.0], (2, 2, 2)))


@pytest.mark.parametrize(
  ('dtype', 'itemsize'), [('float32', 4), ('bfloat16', 2), ('float16', 2)]
)
@pytest.mark.parametrize('size', [1024, 1001, 20_000])
def test_compiled_bytes_are_the_predicted_ones(dtype, itemsize, size):
  reducer = dense_all_reduce('data', dtype=dtype)
  params = {'w': jnp.zeros(size - 1), 'b': jnp.zeros(1)}
  grads = jax.tree.map(lambda p: jnp.zeros((8, *p.shape)), params)
  mapped = jax.pmap(lambda g: reducer.reduce(g, ())[0], axis_name='data')
  compiled = mapped.lower(grads).compile()
  sent = accounting.wire_bytes(compiled)
  assert sent == accounting.dense_wire_bytes(params, workers=8, dtype=dtype)
  padded = {1024: 1024, 1001: 1008, 20_000: 8 * 2560}[size]
  if itemsize == 4:
    padded = size
  assert sent == -(-2 * 7 * padded * itemsize // 8)


@pytest.mark.parametrize('dtype', ['int8', 'float64', 'nonsense'])
def test_other_wire_dtypes_are_refused(dtype):
  with pytest.raises(ValueError, match=f"dtype='{dtype}'.*known: float32"):
    dense_all_reduce('data', dtype=dtype)


def test_pack_keeps_order_shapes_and_dtypes():
  tree = {
    'a': jnp.array([[1.0, 2.0]]),
    'b': jnp.array(3.0, jnp.bfloat16),
    'c': jnp.zeros((0,)),
  }
  packed = pack(tree)
  np.testing.assert_array_equal(packed.vector, [1.0, 2.0, 3.0])
  back = packed.unpack(packed.vector * 2)
  assert back['b'].dtype == jnp.bfloat16
  np.testing.assert_array_equal(back['a'], [[2.0, 4.0]])
  assert back['c'].shape == (0,)
  assert pack({}).vector.shape == (0,)


def test_pack_refuses_integers_by_name():
  with pytest.raises(ValueError, match='Dense_0/steps is int32'):
    pack({'Dense_0': {'steps': jnp.zeros(1, jnp.int32)}})
