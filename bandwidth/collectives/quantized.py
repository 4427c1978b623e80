"""Unbiased gradients of few bits, which need no memory of what was rounded.

Every worker rounds its gradient up or down at random, so that the expectation
is the gradient itself, packs the codes into bytes and sends them to all others;
each decodes the messages of all, one worker's after another's. Traffic grows
with the number of workers; where there are many, see `two_phase_quantized`.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from bandwidth import tree
from bandwidth.base import AxisName, GradientReducer, Params, WireBytes
from bandwidth.collectives.traffic.closed_forms import (
  all_gather_bytes,
  all_reduce_bytes,
)
from bandwidth.collectives.wire.codes import (
  pack_codes,
  pack_trits,
  packed_size,
  trits_size,
  unpack_codes,
  unpack_trits,
)
from bandwidth.collectives.wire.message import check_floating, pack
from bandwidth.collectives.wire.value_formats import from_bytes, to_bytes
from bandwidth.collectives.workers.axes import (
  axis_names,
  count_workers,
  gather_workers,
  worker_index,
)
from bandwidth.collectives.workers.ordered import (
  fixed_order_sum,
  largest_magnitude,
  pairwise_sum,
  rounded,
)

BITS = (2, 4, 8)


class RandomState(NamedTuple):
  """State of a worker that rounds at random."""

  step: jax.Array  # int32 [], calls of `reduce`, the same on all workers


def qsgd(
  axis_name: AxisName = 'data',
  *,
  bits: int = 4,
  bucket: int = 512,
  seed: int = 0,
) -> GradientReducer:
  """Rounds gradients at random to a few levels of their norm.

  The gradients of all leaves, one after another, are cut into buckets v. With
  `s = 2^(bits-1) - 1` levels, an element becomes

    `Q_s(v_i) = ||v||_2 · sgn(v_i) · ξ_i`

  where ξ_i is `(l+1)/s` with probability `s|v_i|/||v||_2 - l`, else `l/s`, and
  l is the integer below `s|v_i|/||v||_2`. So `E Q_s(v) = v` (Alistarh et al.
  2017, arXiv 1610.02132, section 3.1). A worker sends `bits` bits an element,
  of fixed length and not in Elias code, and a float32 norm a bucket.

  A gradient that is not finite comes out as a mean that is not finite, in its
  bucket, on all workers.

  Args:
    axis_name: mapped axis, or axes, of the workers. None: one worker.
    bits: bits of an element sent: 2, 4 or 8, sign included.
    bucket: elements that share a norm. Few of them add less noise.
    seed: seed of the rounding; each worker and step has its own key.

  Returns:
    A reducer with the state `RandomState`. `mean_grads` has the dtypes of
    `grads`.

  Raises:
    ValueError: an argument is out of range; at `reduce`, a gradient is not
      floating-point or an axis not bound.

  >>> reducer = qsgd(None, bits=4)
  >>> mean, _ = reducer.reduce(jnp.array([3.0, -4.0, 0.0]), reducer.init(()))
  >>> jnp.round(mean * 7 / 5, 4)  # the norm is 5, and there are 7 levels
  Array([ 4., -5.,  0.], dtype=float32)
  """
  if bits not in BITS:
    raise ValueError(f'bits={bits} is not in {BITS}')
  if bucket < 1:
    raise ValueError(f'bucket={bucket} is not positive')
  axes = axis_names(axis_name)

  def exchange(
    vector: jax.Array, sizes: tuple[int, ...], key: jax.Array
  ) -> jax.Array:
    del sizes
    width = min(bucket, vector.size)
    message = _qsgd_encode(vector, key, bits, width)
    gathered = gather_workers(message, axes)

    def add(p: jax.Array, total: jax.Array) -> jax.Array:
      return total + _qsgd_decode(gathered[p], vector.size, bits, width)

    total = lax.fori_loop(
      0, gathered.shape[0], add, jnp.zeros(vector.size, jnp.float32)
    )
    return total / gathered.shape[0]

  def wire_bytes(params: Params, workers: int | Sequence[int]) -> int:
    n = tree.size(params)
    message = packed_size(n, bits) + 4 * -(-n // bucket)
    return all_gather_bytes(message, count_workers(workers))

  return _random_reducer(axes, exchange, wire_bytes, seed)


def terngrad(
  axis_name: AxisName = 'data', *, clip: float | None = 2.5, seed: int = 0
) -> GradientReducer:
  """Rounds gradients at random to -s, 0 and s of their layer.

  In each layer, that is leaf, `g̃_i = s · sign(g_i) · b_i` where b_i is one with
  probability `|g_i| / s`, and s the largest `|g_i|` of all workers (scaler
  sharing), so that `E g̃ = g`. Before that, magnitudes are clipped at
  `c σ`, which biases a few large elements and lets s be smaller. (Wen et al.
  2017, arXiv 1705.07878, sections 3.1 and 3.3.) A worker sends five ternary
  digits a byte, after an all-reduce of the scales.

  A gradient that is not finite comes out as a mean that is not finite, in its
  leaf, on all workers.

  Args:
    axis_name: mapped axis, or axes, of the workers. None: one worker.
    clip: c. None: no clipping. σ is the root of the mean square in the leaf,
      the paper's gradients having mean zero; so a leaf of one element is not
      clipped.
    seed: seed of the rounding; each worker and step has its own key.

  Returns:
    A reducer with the state `RandomState`. `mean_grads` has the dtypes of
    `grads`.

  Raises:
    ValueError: `clip` is not positive; at `reduce`, a gradient is not
      floating-point or an axis not bound.
  """
  if clip is not None and not clip > 0:
    raise ValueError(f'clip={clip} is not positive')
  axes = axis_names(axis_name)

  def exchange(
    vector: jax.Array, sizes: tuple[int, ...], key: jax.Array
  ) -> jax.Array:
    borders = np.cumsum(sizes)[:-1].tolist()
    leaves = jnp.split(vector, borders)
    own = jnp.stack([_ternary_scale(leaf, clip) for leaf in leaves])
    scale = _spread(lax.pmax(own, axes) if axes else own, sizes)
    clipped = jnp.minimum(jnp.abs(vector), _spread(own, sizes))
    digits = jnp.where(
      _draw(clipped, scale, key), jnp.where(vector < 0, 0, 2), 1
    )
    gathered = gather_workers(pack_trits(digits.astype(jnp.uint8)), axes)

    def add(p: jax.Array, total: jax.Array) -> jax.Array:
      return total + unpack_trits(gathered[p], vector.size).astype(jnp.int32)

    workers = gathered.shape[0]
    signs = lax.fori_loop(
      0, workers, add, jnp.full(vector.size, -workers, jnp.int32)
    )
    return scale * (signs.astype(jnp.float32) / workers)

  def wire_bytes(params: Params, workers: int | Sequence[int]) -> int:
    count = count_workers(workers)
    layers = sum(math.prod(leaf.shape) > 0 for leaf in jax.tree.leaves(params))
    digits = trits_size(tree.size(params))
    return all_reduce_bytes(4 * layers, count) + all_gather_bytes(digits, count)

  return _random_reducer(axes, exchange, wire_bytes, seed)


def _random_reducer(
  axes: tuple[str, ...],
  exchange: Callable[..., jax.Array],
  wire_bytes: WireBytes,
  seed: int,
) -> GradientReducer:
  """A reducer of `(vector, sizes of its leaves, key) -> mean vector`."""

  def init(params: Params) -> RandomState:
    del params
    return RandomState(jnp.zeros((), jnp.int32))

  def reduce(
    grads: Params, state: RandomState, params: Params = None
  ) -> tuple[Params, RandomState]:
    del params
    check_floating(grads)
    packed = pack(grads)
    key = worker_key(seed, state.step, axes)
    sizes = tuple(leaf.size for leaf in jax.tree.leaves(grads) if leaf.size)
    mean = packed.vector
    if mean.size:
      mean = exchange(mean, sizes, key)
    return packed.unpack(mean), RandomState(state.step + 1)

  return GradientReducer(init, reduce, wire_bytes)


def worker_key(seed: int, step: jax.Array, axes: Sequence[str]) -> jax.Array:
  """Returns the key of a worker in a step.

  Its bits don't depend on the mapping, as those of other generators would.
  """
  key = jax.random.key(seed, impl='threefry2x32')
  return jax.random.fold_in(jax.random.fold_in(key, step), worker_index(axes))


def _qsgd_encode(
  vector: jax.Array, key: jax.Array, bits: int, bucket: int
) -> jax.Array:
  """Returns the message, uint8: codes, then a norm of each bucket."""
  levels = (1 << (bits - 1)) - 1
  padded = jnp.pad(vector, (0, -vector.size % bucket)).reshape(-1, bucket)
  # Squares of what is relative to the largest neither overflow nor vanish.
  largest = jnp.max(jnp.abs(padded), axis=1)
  relative = padded / jnp.where(largest == 0, 1, largest)[:, None]
  squares = rounded(relative * relative)
  norm = jnp.sqrt(pairwise_sum(squares.T))
  share = jnp.abs(relative) / jnp.where(norm == 0, 1, norm)[:, None]
  place = rounded(share * levels).reshape(-1)[: vector.size]
  below = jnp.floor(place)
  draws = jax.random.uniform(key, (vector.size,))
  level = below + (draws < place - below)
  # What is not finite has a norm that says so, whatever its code is.
  level = jnp.where(level <= levels, level, 0)
  codes = jnp.where(vector < 0, levels - level, levels + level)
  packed = pack_codes(codes.astype(jnp.uint8), bits)
  return jnp.concatenate([packed, to_bytes(largest * norm)])


def _qsgd_decode(
  message: jax.Array, size: int, bits: int, bucket: int
) -> jax.Array:
  levels = (1 << (bits - 1)) - 1
  codes, norms = jnp.split(message, [packed_size(size, bits)])
  level = unpack_codes(codes, bits, size).astype(jnp.float32) - levels
  unit = from_bytes(norms, jnp.float32) * np.float32(1 / levels)
  units = jnp.broadcast_to(unit[:, None], (unit.size, bucket))
  return rounded(level * units.reshape(-1)[:size])


def _ternary_scale(leaf: jax.Array, clip: float | None) -> jax.Array:
  """Largest magnitude after clipping; infinite if not finite."""
  largest = scale = largest_magnitude(leaf)
  if clip is not None:
    relative = leaf / jnp.where(largest == 0, 1, largest)
    square = fixed_order_sum(rounded(relative * relative))
    deviation = jnp.sqrt(square * np.float32(1 / leaf.size))
    scale = jnp.minimum(largest, np.float32(clip) * deviation * largest)
  return jnp.where(jnp.isfinite(largest), scale, jnp.inf)


def _spread(scales: jax.Array, sizes: tuple[int, ...]) -> jax.Array:
  return jnp.concatenate(
    [jnp.broadcast_to(scales[i], (n,)) for i, n in enumerate(sizes)]
  )


def _draw(magnitude: jax.Array, scale: jax.Array, key: jax.Array) -> jax.Array:
  """True with probability `magnitude / scale`."""
  chance = magnitude / jnp.where(scale == 0, 1, scale)
  return jax.random.uniform(key, magnitude.shape) < chance
