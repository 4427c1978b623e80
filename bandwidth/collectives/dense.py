"""Dense gradient reducers: every worker sends every element."""

import functools
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike

from bandwidth import tree
from bandwidth.base import AxisName, GradientReducer, Params, unknown_name
from bandwidth.collectives.traffic.closed_forms import (
  all_gather_bytes,
  all_reduce_bytes,
  all_to_all_bytes,
)
from bandwidth.collectives.wire.message import pack
from bandwidth.collectives.workers.axes import axis_names, axis_sizes
from bandwidth.collectives.workers.ordered import (
  axis_size,
  ordered_psum,
  pairwise_sum,
)

WIRE_DTYPES = ('float32', 'bfloat16', 'float16')


def dense_all_reduce(
  axis_name: AxisName = 'data', *, dtype: DTypeLike = jnp.float32
) -> GradientReducer:
  """Averages gradients over workers, `g = (1/P) sum_p g_p`, without a state.

  All leaves travel as one message. In float32 that is one all-reduce. In 16
  bits it is a reduce-scatter and an all-gather of 16-bit words with the sum
  between them in float32: a 16-bit `psum` would round after every addition, and
  XLA:CPU would widen it to 32 bits on the wire. Each element is then rounded
  twice, once on its worker and once after the mean. Elements beyond the range
  of float16 (65,504) become infinite; bfloat16 has the range of float32.

  Args:
    axis_name: mapped axis, or axes, of the workers, the slowest link first.
      None: one worker.
    dtype: dtype of the elements sent: float32, bfloat16 or float16.

  Returns:
    A reducer. `mean_grads` has the dtypes of `grads`.

  Raises:
    ValueError: `dtype` is none of the three; at `reduce`, a gradient is not
      floating-point or an axis not bound.

  >>> reducer = dense_all_reduce('data')
  >>> grads = jnp.array([[1.0, 2.0], [3.0, 6.0]])
  >>> jax.vmap(lambda g: reducer.reduce(g, ())[0], axis_name='data')(grads)
  Array([[2., 4.],
         [2., 4.]], dtype=float32)
  """
  on_wire = wire_dtype(dtype)
  axes = axis_names(axis_name)

  def init(params: Params) -> tuple[()]:
    del params
    return ()

  def reduce(
    grads: Params, state: tuple[()], params: Params = None
  ) -> tuple[Params, tuple[()]]:
    del params
    workers = axis_size(axes)
    packed = pack(grads)
    mean = packed.vector
    if axes and mean.size:
      mean = (
        ordered_psum(mean, axes) / workers
        if on_wire == jnp.float32
        else _two_phase_mean(mean, axes, on_wire)
      )
    return packed.unpack(mean), state

  return GradientReducer(
    init, reduce, functools.partial(dense_wire_bytes, dtype=on_wire)
  )


def wire_dtype(dtype: DTypeLike) -> jnp.dtype:
  """Returns a dtype of elements on the wire.

  Raises:
    ValueError: it is none of `WIRE_DTYPES`.
  """
  known = f'known: {", ".join(WIRE_DTYPES)}'
  try:
    found = jnp.dtype(dtype)
  except TypeError:
    raise ValueError(f'dtype={dtype!r} is no dtype; {known}') from None
  if found.name not in WIRE_DTYPES:
    raise ValueError(f'dtype={found.name!r} is not for the wire; {known}')
  return found


def dense_wire_bytes(
  params: Params,
  workers: int | Sequence[int],
  *,
  dtype: DTypeLike = jnp.float32,
) -> int:
  """Returns the bytes that a worker sends in a step of `dense_all_reduce`.

  With n elements and P workers, `2 (P-1)/P · 4 n` in float32. In 16 bits the
  vector is padded to P chunks of `c = chunk_size(n, P)` elements, and each of
  two phases, all-to-all and all-gather, sends P-1 chunks: `2 (P-1) · 2 c`. Over
  several axes, the last one goes first, and the next one carries its chunks.

  Args:
    params: a tree; the leaves may be abstract, and their dtypes don't matter.
    workers: P, or the sizes of several mesh axes.
    dtype: on the wire: float32, bfloat16 or float16.

  Raises:
    ValueError: `workers` is not positive, or `dtype` none of the three.

  >>> dense_wire_bytes({'w': jnp.zeros(4096)}, workers=8)
  28672
  >>> dense_wire_bytes({'w': jnp.zeros(10)}, workers=4, dtype=jnp.bfloat16)
  36
  """
  sizes = axis_sizes(workers)
  dtype = jnp.dtype(dtype)
  if dtype.name not in WIRE_DTYPES:
    raise ValueError(unknown_name('dtype', dtype.name, WIRE_DTYPES))
  n, itemsize = tree.size(params), dtype.itemsize
  if itemsize == 4:
    return all_reduce_bytes(n * itemsize, math.prod(sizes))
  sent = 0
  for p in reversed(sizes):
    n = chunk_size(n, p)
    sent += all_to_all_bytes(p * n * itemsize, p)
    sent += all_gather_bytes(n * itemsize, p)
  return sent


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
