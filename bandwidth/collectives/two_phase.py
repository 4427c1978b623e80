"""Few bits in both directions, with traffic that does not grow with workers.

The gradient, as one vector, is cut into a chunk for each worker. Every worker
sends its codes of chunk p to worker p (all-to-all); worker p adds them up in
float32, encodes the sum, and sends it to all (all-gather). What either side
rounds off it keeps and adds the next time.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from bandwidth import tree
from bandwidth.base import AxisName, GradientReducer, Params, unknown_name
from bandwidth.collectives.traffic.closed_forms import (
  all_gather_bytes,
  all_to_all_bytes,
)
from bandwidth.collectives.wire.chunks import FORMATS, Chunks
from bandwidth.collectives.wire.message import cast, check_floating, pack
from bandwidth.collectives.workers.axes import (
  axis_names,
  count_workers,
  gather_workers,
  worker_index,
)
from bandwidth.collectives.workers.ordered import (
  axis_size,
  ordered_psum,
  pairwise_sum,
)
from bandwidth.collectives.workers.resplit import resplit_workers


class TwoPhaseState(NamedTuple):
  """State of a worker."""

  residual: Params  # float32, shaped as the parameters
  owned: jax.Array  # float32 [chunk], what was rounded off this worker's sums


def two_phase_quantized(
  axis_name: AxisName = 'data',
  *,
  format: str = 'int8',
  bucket: int = 1024,
  workers: int | Sequence[int],
) -> GradientReducer:
  """Averages gradients of 8, 4 or 1 bits, with error feedback on both sides.

  With worker residuals e_p, owner residuals E and a rounding C,

    `v_p = g_p + e_p;  e_p = v_p - C(v_p)`, each worker
    `V = sum_p C(v_p) + E;  E = V - C(V)`, each owner, for its chunk

  and the mean gradient is `C(V) / P`. Nothing is lost: the sum of all
  residuals and of what was returned is that of the gradients.

  Elements of a bucket share a float32 scale. 'int8' and 'int4' round to the
  nearest of 255 and 15 multiples of `max|v| / 127` and `max|v| / 7`; 'sign'
  sends `v < 0`, and stands for `sign(v) mean|v|`, zero being positive
  (Karimireddy et al. 2019, arXiv 1901.09847, algorithm 1; both directions as in
  Zheng et al. 2019, arXiv 1905.10936).

  A gradient that is not finite comes out as a mean that is not finite, in its
  bucket, on all workers; neither are the residuals finite then, so go on from
  the state before.

  Args:
    axis_name: mapped axis, or axes, of the workers. None: one worker.
    format: 'int8', 'int4' or 'sign'.
    bucket: elements that share a scale; buckets don't reach over chunks.
    workers: their number, or the sizes of the axes.

  Returns:
    A reducer with the state `TwoPhaseState`. `mean_grads` has the dtypes of
    `grads`.

  Raises:
    ValueError: an argument is out of range or unknown; at `reduce`, a gradient
      is not floating-point, or the axis is not bound or has another size.

  >>> reducer = two_phase_quantized(None, format='sign', workers=1)
  >>> grads = jnp.array([1.0, -2.0, 6.0])
  >>> mean, state = reducer.reduce(grads, reducer.init(grads))
  >>> mean, state.residual
  (Array([ 3., -3.,  3.], dtype=float32), Array([-2.,  1.,  3.],
  dtype=float32))
  """
  if format not in FORMATS:
    raise ValueError(unknown_name('format', format, FORMATS))
  if bucket < 1:
    raise ValueError(f'bucket={bucket} is not positive')
  count, axes = count_workers(workers), axis_names(axis_name)

  def chunks(params: Params, workers: int = count) -> Chunks:
    return Chunks(tree.size(params), workers, bucket, format)

  def init(params: Params) -> TwoPhaseState:
    return TwoPhaseState(
      _zeros(params), jnp.zeros(chunks(params).size, jnp.float32)
    )

  def reduce(
    grads: Params, state: TwoPhaseState, params: Params = None
  ) -> tuple[Params, TwoPhaseState]:
    del params
    _check_workers(axes, count)
    check_floating(grads)
    packed, kept = pack(grads), pack(state.residual)
    pending = packed.vector + kept.vector
    if not pending.size:
      return grads, state
    mean, rest, owned = _exchange(chunks(grads), axes, pending, state.owned)
    return packed.unpack(mean), TwoPhaseState(kept.unpack(rest), owned)

  def wire_bytes(params: Params, workers: int | Sequence[int]) -> int:
    sent_to = count_workers(workers)
    message = chunks(params, sent_to).nbytes
    return all_to_all_bytes(sent_to * message, sent_to) + all_gather_bytes(
      message, sent_to
    )

  def flush(
    state: TwoPhaseState, params: Params
  ) -> tuple[Params, TwoPhaseState]:
    _check_workers(axes, count)
    return _flush(chunks(params), axes, state, params)

  def resplit(
    state: TwoPhaseState, params: Params, *, workers: int | Sequence[int]
  ) -> TwoPhaseState:
    return _resplit(chunks(params), state, count_workers(workers))

  return GradientReducer(init, reduce, wire_bytes, flush, resplit)


def sign_error_feedback(
  axis_name: AxisName = 'data',
  *,
  workers: int | Sequence[int],
  bucket: int = 1024,
) -> GradientReducer:
  """Averages signs with error feedback: one bit in either direction.

  EF-signSGD (Karimireddy et al. 2019, arXiv 1901.09847) with
  `two_phase_quantized(format='sign')`, which see.

  Args:
    axis_name: mapped axis, or axes, of the workers. None: one worker.
    workers: their number, or the sizes of the axes.
    bucket: elements that share a scale.
  """
  return two_phase_quantized(
    axis_name, format='sign', bucket=bucket, workers=workers
  )


def _zeros(params: Params) -> Params:
  return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, jnp.float32), params)


def _check_workers(axes: tuple[str, ...], workers: int) -> None:
  size = axis_size(axes)
  if size != workers:
    raise ValueError(f'workers={workers}, but axes {axes} have {size} workers')


def _exchange(
  chunks: Chunks, axes: tuple[str, ...], pending: jax.Array, owned: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """Returns the mean, and what worker and owner keep: all float32 vectors."""
  split, shares = chunks.split(pending), jnp.asarray(chunks.shares())
  messages, seen = chunks.encode(split, shares)
  if axes:
    messages = lax.all_to_all(messages, axes, split_axis=0, concat_axis=0)
  owner = worker_index(axes)
  # A sign is never zero, so that what others decode of the padding is not.
  padding = jnp.asarray(chunks.is_padding())[owner]
  total = pairwise_sum(chunks.decode(messages)) + owned
  total = jnp.where(padding, 0, total)
  message, forwarded = chunks.encode(total[None], shares[owner][None])
  means = chunks.decode(gather_workers(message[0], axes)) / chunks.workers
  kept = jnp.where(padding, 0, total - forwarded[0])
  return chunks.join(means), chunks.join(split - seen), kept


def _flush(
  chunks: Chunks, axes: tuple[str, ...], state: TwoPhaseState, params: Params
) -> tuple[Params, TwoPhaseState]:
  kept = pack(state.residual)
  mine = jnp.arange(chunks.workers, dtype=jnp.int32) == worker_index(axes)
  owned = jnp.where(mine[:, None], state.owned[None, :], 0.0)
  pending = kept.vector + chunks.join(owned)
  if axes and pending.size:
    pending = ordered_psum(pending, axes) / chunks.workers
  return cast(kept.unpack(pending), params), jax.tree.map(jnp.zeros_like, state)


def _resplit(chunks: Chunks, state: TwoPhaseState, old: int) -> TwoPhaseState:
  residual, owned = jax.device_get(state)
  before = chunks._replace(workers=old)
  leaves, structure = jax.tree.flatten(residual)
  flat = [np.asarray(leaf).reshape(old, -1) for leaf in leaves]
  pending = np.concatenate([np.zeros((old, 0), np.float32), *flat], axis=1)
  for owner in range(old):
    start = owner * before.size
    mine = pending[owner, start : start + before.size]
    mine += owned[owner, : mine.size]
  borders = np.cumsum([leaf.shape[1] for leaf in flat])[:-1]
  folded = [
    part.reshape(leaf.shape)
    for part, leaf in zip(np.split(pending, borders, 1), leaves, strict=True)
  ]
  dealt = resplit_workers(jax.tree.unflatten(structure, folded), chunks.workers)
  zeros = jnp.zeros((chunks.workers, chunks.size), jnp.float32)
  return TwoPhaseState(dealt, zeros)
