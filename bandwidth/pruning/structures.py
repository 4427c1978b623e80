"""Structures: masks from scores, for one parameter.

A structure is a function `(scores, sparsity) -> mask` for one array. The mask
has the scores' shape; True keeps a weight. The number of groups kept (weights,
blocks or channels) is exactly `kept_count`, ties go to the lower index, and the
sparsity may be traced, so that one compiled step serves a whole schedule. No
sort is needed: the threshold is found bit by bit.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

Structure = Callable[[jax.Array, Any], jax.Array]
"""`(scores, sparsity) -> mask`, for one array."""


def is_static(value: Any) -> bool:
  """Tells whether a sparsity is a plain number, known before compilation."""
  return isinstance(value, int | float | np.number)


def check_sparsity(sparsity: Any, *, argument: str = 'sparsity') -> Any:
  """Returns the sparsity if it is traced, or a number in [0, 1].

  Args:
    sparsity: fraction of the weights to remove; a scalar array passes unseen.
    argument: the caller's name of it, for the error message.

  Raises:
    ValueError: it is None, a NaN, of another type, or outside of [0, 1].

  >>> check_sparsity(0.9)
  0.9
  """
  if is_static(sparsity):
    if isinstance(sparsity, bool) or not 0 <= sparsity <= 1:
      raise ValueError(f'{argument}={sparsity!r} is not in [0, 1]')
  elif not isinstance(sparsity, jax.Array | np.ndarray) or sparsity.ndim:
    raise ValueError(f'{argument}={sparsity!r} is not a number in [0, 1]')
  elif not isinstance(sparsity, jax.core.Tracer):
    check_sparsity(float(sparsity), argument=argument)
  return sparsity


def kept_count(size: int, sparsity: Any) -> Any:
  r"""Returns how many of `size` weights stay.

  .. math:: k = \mathrm{round}((1 - s) n)

  Halves go to the even number. 0.9 is no binary fraction, so a product within
  rounding error of a half counts as that half; otherwise the kept count would
  depend on whether the sparsity was known at compile time.

  Args:
    size: number of weights, n.
    sparsity: s in [0, 1], a number or a traced scalar.

  Returns:
    An int, or int32[] for a traced sparsity. Traced sparsities are float32: of
    more than 2^23 weights the count is then exact to 1e-7 of n.

  >>> kept_count(10, 0.9), kept_count(15, 0.9), kept_count(5, 0.5)
  (1, 2, 2)
  """
  if is_static(sparsity):
    kept = size * (1 - float(sparsity))
    half = round(2 * kept) / 2
    return round(half if abs(kept - half) <= 1e-9 * size else kept)
  kept = size * (1 - jnp.asarray(sparsity, jnp.float32))
  half = jnp.round(2 * kept) / 2
  near = jnp.abs(kept - half) <= min(1.2e-7 * size, 0.01)
  kept = jnp.round(jnp.where(near, half, kept)).astype(jnp.int32)
  return jnp.minimum(kept, size)


def top_k_mask(scores: jax.Array, count: Any) -> jax.Array:
  """Keeps the `count` highest scores; ties go to the lower flat index.

  Args:
    scores: array of any shape. A NaN ranks above infinity, so that it stays
      visible.
    count: number kept, an int or int32[], traced or not.

  Returns:
    bool array of the scores' shape, with exactly `count` True.

  >>> top_k_mask(jnp.array([1.0, 3.0, 1.0, 1.0]), 2).tolist()
  [True, True, False, False]
  """
  return _top_k_mask(jnp.asarray(scores), jnp.asarray(count, jnp.int32))


# Compiled once per shape, also where a caller works without jit.
@jax.jit
def _top_k_mask(scores: jax.Array, count: jax.Array) -> jax.Array:
  keys = sort_keys(scores)
  cut = kth_largest_key([keys], count)
  above, tie = keys > cut, keys == cut
  rest = count - jnp.sum(above, dtype=jnp.int32)
  order = jnp.cumsum(tie.reshape(-1), dtype=jnp.int32).reshape(tie.shape)
  return above | (tie & (order <= rest))


def sort_keys(scores: jax.Array) -> jax.Array:
  """Maps scores to unsigned integers of the same order.

  Args:
    scores: array; all but floating dtypes are cast to float32.

  Returns:
    uint16, uint32 or uint64 array. -0.0 and 0.0 share a key, so do all NaNs.

  >>> sort_keys(jnp.array([-1.0, -0.0, 0.0, 1.0])).argsort().tolist()
  [0, 1, 2, 3]
  """
  scores = jnp.asarray(scores)
  if scores.dtype.itemsize < 2 or not jnp.issubdtype(
    scores.dtype, jnp.floating
  ):
    scores = scores.astype(jnp.float32)
  bits = 8 * scores.dtype.itemsize
  unsigned = jnp.dtype(f'uint{bits}')
  scores = jnp.where(scores == 0, jnp.zeros_like(scores), scores)
  raw = jax.lax.bitcast_convert_type(scores, unsigned)
  sign = jnp.asarray(1 << (bits - 1), unsigned)
  keys = jnp.where(raw >= sign, ~raw, raw | sign)
  return jnp.where(jnp.isnan(scores), ~jnp.zeros_like(keys), keys)


@jax.jit
def kth_largest_key(keys: list[jax.Array], k: Any) -> jax.Array:
  """Returns the k-th largest key of several arrays together.

  Bit by bit from the highest: a bit stays if at least k keys reach the value.
  That is as many passes as bits, without moving or copying a key, and so needs
  no communication but a sum where the arrays are sharded.

  Args:
    keys: unsigned arrays of one dtype, any shapes.
    k: 0 to the number of keys, an int or int32[]. For 0 the largest number of
      the dtype is returned.

  Returns:
    A scalar of the keys' dtype.

  >>> int(kth_largest_key([jnp.array([5, 1, 9], jnp.uint32)], 2))
  5
  """
  dtype = keys[0].dtype
  bits = 8 * dtype.itemsize

  def body(i: jax.Array, cut: jax.Array) -> jax.Array:
    candidate = cut | (jnp.ones((), dtype) << (bits - 1 - i).astype(dtype))
    reach = sum(jnp.sum(key >= candidate, dtype=jnp.int32) for key in keys)
    return jnp.where(reach >= k, candidate, cut)

  return jax.lax.fori_loop(0, bits, body, jnp.zeros((), dtype))


def unstructured(scores: jax.Array, sparsity: Any) -> jax.Array:
  """Keeps the weights of highest score, wherever they lie.

  Args:
    scores: array of any shape; the highest scores are kept.
    sparsity: fraction removed, in [0, 1], a number or a traced scalar.

  Returns:
    bool array with exactly `kept_count(scores.size, sparsity)` True.

  Raises:
    ValueError: `sparsity` is a number outside of [0, 1].

  >>> unstructured(jnp.array([[0.1, 4.0], [2.0, 0.3]]), 0.5).tolist()
  [[False, True], [True, False]]
  """
  check_sparsity(sparsity)
  return top_k_mask(scores, kept_count(jnp.size(scores), sparsity))


def n_m(n: int, m: int, *, axis: int = -2) -> Structure:
  """Keeps n of every m consecutive weights along the input axis.

  The default axis is the one that a product sums over: rows of `[in, out]`,
  channels in of `[height, width, in, out]`; hardware reads the groups there.
  A traced sparsity below 1 - n/m keeps `kept_count(m, sparsity)` of every
  m, so that a schedule reaches n:m by way of (m-1):m and so on.

  Args:
    n: weights kept in a group, 1 to m.
    m: number of weights in a group.
    axis: the axis that is cut in groups.

  Returns:
    A structure. Its sparsity is 1 - n/m; it raises ValueError for another
    number, or if the axis is not a multiple of m.

  Raises:
    ValueError: n or m is out of range.

  References:
    Mishra et al., Accelerating Sparse Deep Neural Networks, 2021,
    https://arxiv.org/abs/2104.08378

  >>> scores = jnp.array([[1.0], [3.0], [2.0], [0.0]])
  >>> n_m(2, 4)(scores, 0.5)[:, 0].tolist()
  [False, True, True, False]
  """
  if not 1 <= n <= m:
    raise ValueError(f'n={n!r}, m={m!r}: n must be in [1, m]')

  def structure(scores: jax.Array, sparsity: Any) -> jax.Array:
    check_sparsity(sparsity)
    if is_static(sparsity):
      if sparsity > 0 and not math.isclose(sparsity, 1 - n / m, abs_tol=1e-6):
        raise ValueError(f'sparsity={sparsity!r} is not that of {n}:{m}')
      count = n if sparsity > 0 else m
    else:
      count = jnp.maximum(kept_count(m, sparsity), n)
    axis_ = _axis(scores, axis)
    if scores.shape[axis_] % m:
      raise ValueError(
        f'axis {axis} of shape {scores.shape} is not a multiple of m={m}'
      )
    return _n_m_mask(jnp.asarray(scores), count, m=m, axis=axis_)

  return structure


def block(height: int, width: int) -> Structure:
  """Keeps whole blocks of the matrix of the last two axes, by mean score.

  The last two axes are (in, out) in kernels of dense and convolutional layers,
  so a block is `height` inputs by `width` outputs at one spatial position. A
  block cut short by the edge counts as a block.

  Args:
    height: b0, number of rows of a block.
    width: b1, number of columns of a block.

  Returns:
    A structure that keeps exactly `kept_count(blocks, sparsity)` blocks. It
    raises ValueError for an array of fewer than two axes.

  Raises:
    ValueError: a side is not positive.

  >>> scores = jnp.array([[1.0, 1.0, 0.0, 0.0], [1.0, 1.0, 0.0, 2.0]])
  >>> block(2, 2)(scores, 0.5)[0].tolist()
  [True, True, False, False]
  """
  if height < 1 or width < 1:
    raise ValueError(
      f'block of {height!r} by {width!r}: sides must be positive'
    )

  def structure(scores: jax.Array, sparsity: Any) -> jax.Array:
    check_sparsity(sparsity)
    if scores.ndim < 2:
      raise ValueError(f'blocks need two axes, the shape is {scores.shape}')
    rows, columns = scores.shape[-2:]
    means = _block_means(jnp.asarray(scores), height=height, width=width)
    mask = unstructured(means, sparsity)
    mask = jnp.repeat(jnp.repeat(mask, height, -2), width, -1)
    return mask[..., :rows, :columns]

  return structure


def channel(*, axis: int = -1, order: int = 1) -> Structure:
  r"""Keeps whole output channels, those of largest norm.

  .. math:: S_c = (\sum_i s_{ic}^p)^{1/p}

  Args:
    axis: the axis of the channels; the last, for `[..., in, out]`. A depthwise
      kernel `[height, width, 1, channels]` has them there too.
    order: p of the norm, 1 or 2.

  Returns:
    A structure that keeps exactly `kept_count(channels, sparsity)` channels.

  Raises:
    ValueError: the order is neither 1 nor 2.

  References:
    Li et al., Pruning Filters for Efficient ConvNets, 2017,
    https://arxiv.org/abs/1608.08710 (order 1)

  >>> channel()(jnp.array([[1.0, 0.5], [1.0, 0.0]]), 0.5).tolist()
  [[True, False], [True, False]]
  """
  if order not in (1, 2):
    raise ValueError(f'order={order!r} is neither 1 nor 2')

  def structure(scores: jax.Array, sparsity: Any) -> jax.Array:
    check_sparsity(sparsity)
    axis_ = _axis(scores, axis)
    norms = _channel_norms(jnp.asarray(scores), axis=axis_, order=order)
    mask = unstructured(norms, sparsity)
    others = tuple(i for i in range(scores.ndim) if i != axis_)
    return jnp.broadcast_to(jnp.expand_dims(mask, others), scores.shape)

  return structure


@functools.partial(jax.jit, static_argnames=('m', 'axis'))
def _n_m_mask(scores: jax.Array, count: Any, *, m: int, axis: int) -> jax.Array:
  """Keeps the first `count` by rank of every m along an axis."""
  length = scores.shape[axis]
  cut = (*scores.shape[:axis], length // m, m, *scores.shape[axis + 1 :])
  keys = jnp.moveaxis(sort_keys(scores).reshape(cut), axis + 1, 0)
  index = jnp.arange(m).reshape(m, *[1] * scores.ndim)
  # Rank within the group: how many of the m weights come before this one.
  rank = sum(_before(keys[i : i + 1], keys, i < index) for i in range(m))
  return jnp.moveaxis(rank < count, 0, axis + 1).reshape(scores.shape)


@functools.partial(jax.jit, static_argnames=('height', 'width'))
def _block_means(scores: jax.Array, *, height: int, width: int) -> jax.Array:
  """Returns mean scores of the blocks: float32 [..., rows, columns]."""
  rows, columns = scores.shape[-2:]
  pad = [(0, 0)] * (scores.ndim - 2) + [(0, -rows % height)]
  pad += [(0, -columns % width)]
  tiles = (-(-rows // height), height, -(-columns // width), width)
  padded = jnp.pad(scores.astype(jnp.float32), pad)
  total = padded.reshape(*scores.shape[:-2], *tiles).sum((-3, -1))
  inside = np.outer(_sides(rows, height), _sides(columns, width))
  return total / np.broadcast_to(inside, total.shape)


@functools.partial(jax.jit, static_argnames=('axis', 'order'))
def _channel_norms(scores: jax.Array, *, axis: int, order: int) -> jax.Array:
  """Returns norms along an axis to the power of the order, float32."""
  others = tuple(i for i in range(scores.ndim) if i != axis)
  scores = scores.astype(jnp.float32)
  total = jnp.sum(scores if order == 1 else scores**2, axis=others)
  # A score of -inf marks what is pruned already; a square would revive it.
  gone = jnp.any(jnp.isneginf(scores), axis=others)
  return jnp.where(gone, -jnp.inf, total)


def _before(key: jax.Array, keys: jax.Array, earlier: jax.Array) -> jax.Array:
  """Returns 1 where the key precedes: it is higher, or ties and is earlier."""
  tie = (key == keys) & jnp.broadcast_to(earlier, keys.shape)
  return ((key > keys) | tie).astype(jnp.int32)


def _sides(length: int, side: int) -> np.ndarray:
  """Returns the lengths of the pieces of an axis, the last one cut short."""
  starts = np.arange(0, length, side)
  return np.minimum(length - starts, side).astype(np.float32)


def _axis(scores: jax.Array, axis: int) -> int:
  if not -scores.ndim <= axis < scores.ndim:
    raise ValueError(f'axis {axis} is none of shape {scores.shape}')
  return axis % scores.ndim
