"""Per-worker state: of all workers, and when their number changes."""

import warnings
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bandwidth.base import Flush, GradientReducer, Params, Resplit
from bandwidth.collectives.workers.axes import count_workers


def stack_states(
  state: Any,
  workers: int | Sequence[int],
  *,
  sharding: jax.sharding.Sharding | None = None,
) -> Any:
  """Gives every worker, along a new first axis, what one worker has.

  Args:
    state: a tree of arrays: what `GradientReducer.init` returns.
    workers: their number, or the sizes of their axes.
    sharding: where the workers are, for `jax.shard_map`:
      `NamedSharding(mesh, PartitionSpec('data'))`. Each device then holds what
      its workers have, and no device that of all. None: an array on the default
      device, which `jax.vmap` and `jax.pmap` take.

  Returns:
    The tree with leaves [workers, ...].

  Raises:
    ValueError: `workers` is no positive integer.

  >>> stack_states({'residual': jnp.zeros(3)}, 2)['residual'].shape
  (2, 3)
  """
  count = count_workers(workers)

  def stack(leaf: Any) -> jax.Array:
    shape = (count, *np.shape(leaf))
    if sharding is None:
      return jnp.broadcast_to(leaf, shape)
    copies = np.broadcast_to(np.asarray(leaf), shape)
    return jax.make_array_from_callback(
      shape, sharding, lambda index: copies[index]
    )

  return jax.tree.map(stack, state)


def check_momentum(reducer: GradientReducer, opt_state: Any) -> None:
  """Warns where momentum stands behind a reducer that has it already.

  Momentum of momentum makes steps `1 / (1 - m)` times as long, and training
  diverges. Moments of Adam count as momentum; what a state of a momentum 0
  does, too, because the factor is not in it.

  Args:
    reducer: the reducer before the optimizer; one without momentum passes.
    opt_state: state of the optimizer that gets its mean gradients; may be
      abstract.

  >>> import optax
  >>> from bandwidth.collectives import dense_all_reduce
  >>> check_momentum(dense_all_reduce(), optax.adam(1e-3).init(jnp.zeros(2)))
  """
  if not reducer.momentum:
    return
  found = [
    type(node).__name__
    for node in jax.tree.leaves(opt_state, is_leaf=_has_momentum)
    if _has_momentum(node)
  ]
  if found:
    warnings.warn(
      f'momentum={reducer.momentum} is in the reducer, and the optimizer has '
      f'its own ({found[0]}): use plain SGD, or momentum=0 in the reducer',
      stacklevel=2,
    )


def _has_momentum(node: Any) -> bool:
  """Whether a state of optax holds a running mean of updates."""
  return hasattr(node, '_fields') and bool({'trace', 'mu'} & {*node._fields})


def flush_of(reducer: GradientReducer) -> Flush:
  """Returns the flush of a reducer, or one that finds nothing pending."""

  def nothing(state: Any, params: Params) -> tuple[Params, Any]:
    return jax.tree.map(jnp.zeros_like, params), state

  return reducer.flush or nothing


def resplit_of(reducer: GradientReducer, workers: int) -> Resplit:
  """Returns the resplit of a reducer, or `resplit_workers`.

  Args:
    reducer: made for the workers that the state is dealt out to.
    workers: number of workers that the reducer was made for.
  """

  def resplit(
    state: Any, params: Params, *, workers: int | Sequence[int]
  ) -> Any:
    del params, workers
    return resplit_workers(state, new)

  new = workers
  return reducer.resplit or resplit


def resplit_workers(state: Any, workers: int) -> Any:
  """Deals the state of N workers out to M, so that its mean stays the same.

  Place the N old workers, and the M new ones, side by side on the unit
  interval. New worker j then gets the average of the old ones that it overlaps:

    `v'_j = M sum_i |[i/N, (i+1)/N] ∩ [j/M, (j+1)/M]| v_i`

  so that `(1/M) sum_j v'_j = (1/N) sum_i v_i`. A reducer averages over workers,
  so a residual's mean is the update still pending, and it is conserved: exactly
  where N and M are powers of two, to rounding otherwise. Shrinking to a divisor
  averages groups; growing to a multiple copies each worker's state to its
  children. Values that are not floating-point (counters, packed words) can't be
  averaged: new worker j takes those of old worker floor(j N / M).

  Args:
    state: a tree of arrays with the N workers along the first axis. Fetched to
      the host.
    workers: number of workers M after the resplit, positive.

  Returns:
    The tree as NumPy arrays with M workers along the first axis, dtypes kept.

  Raises:
    ValueError: `workers` is not positive, or leaves disagree about N.

  >>> resplit_workers({'v': np.array([1.0, 3.0, 5.0, 7.0])}, 2)
  {'v': array([2., 6.])}
  >>> resplit_workers({'v': np.array([2.0, 6.0])}, 4)
  {'v': array([2., 2., 6., 6.])}
  """
  if workers < 1:
    raise ValueError(f'workers={workers} is not positive')
  counts = {np.shape(leaf)[:1] for leaf in jax.tree.leaves(state)}
  if len(counts) > 1 or () in counts:
    raise ValueError(f'state: leaves have leading axes {sorted(counts)}')
  if not counts:
    return state
  ((old,),) = counts
  overlap = _overlap(old, workers)
  source = np.arange(workers) * old // workers

  def resplit(leaf: Any) -> np.ndarray:
    leaf = np.asarray(leaf)
    if old == workers:
      return leaf
    if not jax.numpy.issubdtype(leaf.dtype, np.floating):
      return leaf[source]
    mixed = np.tensordot(overlap, leaf.astype(np.float64), axes=1)
    return mixed.astype(leaf.dtype)

  return jax.tree.map(resplit, state)


def _overlap(old: int, new: int) -> np.ndarray:
  """Weights [new, old]: each row sums to one, each column to new / old."""
  i, j = np.arange(old), np.arange(new)[:, None]
  # In units of 1 / (old * new) all borders are integers.
  low = np.maximum(i * new, j * old)
  high = np.minimum((i + 1) * new, (j + 1) * old)
  return np.maximum(high - low, 0) / old
