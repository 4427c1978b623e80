"""What happens to per-worker state when the number of workers changes."""

from typing import Any

import jax
import numpy as np


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
    workers: M.

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
