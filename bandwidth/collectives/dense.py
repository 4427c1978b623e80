"""Dense gradient reducers: every worker sends every element."""

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike

from bandwidth.base import AxisName, GradientReducer, Params
from bandwidth.collectives.message import pack
from bandwidth.collectives.ordered import ordered_psum, pairwise_sum

WIRE_DTYPES = ('float32', 'bfloat16', 'float16')


def dense_all_reduce(
  axis_name: AxisName = 'data', *, dtype: DTypeLike = jnp.float32
) -> GradientReducer:
  """Averages gradients over workers, `g = (1/P) sum_p g_p`, without a state.

  All leaves travel as one message. In float32 that is one all-reduce. In 16
  bits it is a reduce-scatter and an all-gather of 16-bit words with the sum
  between them in float32: a 16-bit `psum` would round after every addition, and
    XLA:CPU
  would widen it to 32 bits on the wire. Each element is then rounded twice,
  once on its worker and once after the mean. Elements beyond the range of
  float16 (65,504) become infinite; bfloat16 has the range of float32.

  Args:
    axis_name: mapped axis, or axes, of the workers, the slowest link first.
      None: one worker.
    dtype: of the elements on the wire: float32, bfloat16 or float16.

  Returns:
    A reducer. `mean_grads` has the dtypes of `grads`.

  Raises:
    ValueError: `dtype` is none of the three.

  >>> reducer = dense_all_reduce('data')
  >>> grads = jnp.array([[1.0, 2.0], [3.0, 6.0]])
  >>> jax.vmap(lambda g: reducer.reduce(g, ())[0], axis_name='data')(grads)
  Array([[2., 4.],
         [2., 4.]], dtype=float32)
  """
  wire_dtype = _wire_dtype(dtype)
  axes = (axis_name,) if isinstance(axis_name, str) else tuple(axis_name or ())

  def init(params: Params) -> tuple[()]:
    del params
    return ()

  def reduce(
    grads: Params, state: tuple[()], params: Params = None
  ) -> tuple[Params, tuple[()]]:
    del params
    packed = pack(grads)
    mean = packed.vector
    if axes and mean.size:
      mean = (
        ordered_psum(mean, axes) / lax.axis_size(axes)
        if wire_dtype == jnp.float32
        else _two_phase_mean(mean, axes, wire_dtype)
      )
    return packed.unpack(mean), state

  return GradientReducer(init, reduce)


def _wire_dtype(dtype: DTypeLike) -> jnp.dtype:
  known = f'known: {", ".join(WIRE_DTYPES)}'
  try:
    wire_dtype = jnp.dtype(dtype)
  except TypeError:
    raise ValueError(f'dtype={dtype!r} is no dtype; {known}') from None
  if wire_dtype.name not in WIRE_DTYPES:
    raise ValueError(f'dtype={wire_dtype.name!r} is not for the wire; {known}')
  return wire_dtype


def chunk_size(elements: int, workers: int) -> int:
  """Returns how many 16-bit words of a vector a worker averages.

  Large chunks are a multiple of 128 words: of some other sizes the TPU compiler
  turns an all-gather into an all-reduce of the whole vector, which sends twice
  as much (seen for v5e 4x4; for 16x16 it does so up to 32 KiB a chip whatever
  the size).

  >>> chunk_size(1000, 8), chunk_size(10_000, 8)
  (125, 1280)
  """
  chunk = -(-elements // workers)
  return chunk if chunk < 1024 else -(-chunk // 128) * 128


def _two_phase_mean(
  vector: jax.Array, axes: tuple[str, ...], dtype: jnp.dtype
) -> jax.Array:
  """Reduce-scatter and all-gather of `dtype` words, summed in float32.

  Between the two phases over the last axis, the means of the chunks take the
  other axes: a slow link carries a part of the vector, not all of it.
  """
  if not axes:
    return vector
  *others, axis = axes
  workers = lax.axis_size(axis)
  chunk = chunk_size(vector.size, workers)
  padded = jnp.pad(vector, (0, chunk * workers - vector.size))
  words = _to_words(padded.reshape(workers, chunk), dtype)
  mine = lax.all_to_all(words, axis, split_axis=0, concat_axis=0)
  mean = pairwise_sum(_from_words(mine, dtype)) / workers
  mean = _two_phase_mean(mean, tuple(others), dtype)
  gathered = lax.all_gather(_to_words(mean, dtype), axis)
  return _from_words(gathered, dtype).reshape(-1)[: vector.size]


def _to_words(values: jax.Array, dtype: jnp.dtype) -> jax.Array:
  # Rounded explicitly: between two casts XLA may keep excess precision, and
  # does so where simulated workers send nothing. As integers, no compiler pass
  # may widen what travels.
  info = jnp.finfo(dtype)
  rounded = lax.reduce_precision(values, info.nexp, info.nmant)
  return lax.bitcast_convert_type(rounded.astype(dtype), jnp.uint16)


def _from_words(words: jax.Array, dtype: jnp.dtype) -> jax.Array:
  return lax.bitcast_convert_type(words, dtype).astype(jnp.float32)
