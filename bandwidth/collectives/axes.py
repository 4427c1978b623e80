"""Workers along several mapped axes, as if they lay along one."""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import lax

from bandwidth.base import AxisName
from bandwidth.collectives.ordered import axis_size


def axis_names(axis_name: AxisName) -> tuple[str, ...]:
  """Returns the axes as a tuple, an empty one where there is one worker.

  >>> axis_names('data'), axis_names(('slow', 'fast')), axis_names(None)
  (('data',), ('slow', 'fast'), ())
  """
  return (axis_name,) if isinstance(axis_name, str) else tuple(axis_name or ())


def count_workers(workers: int | Sequence[int]) -> int:
  """Returns the number of workers, given as such or as sizes of axes.

  Raises:
    ValueError: one is not positive.

  >>> count_workers(4), count_workers((2, 3))
  (4, 6)
  """
  sizes = (workers,) if isinstance(workers, int) else tuple(workers)
  if any(size < 1 for size in sizes):
    raise ValueError(f'workers={workers} is not positive')
  return math.prod(sizes)


def worker_index(axes: Sequence[str]) -> jax.Array:
  """Returns a worker's place among all, int32 []; the last axis runs fastest.

  Raises:
    ValueError: an axis is not bound.
  """
  axis_size(tuple(axes))
  return lax.axis_index(tuple(axes)) if axes else jnp.zeros((), jnp.int32)


def gather_workers(x: jax.Array, axes: Sequence[str]) -> jax.Array:
  """Gathers the arrays of all workers, [workers, *x.shape], in their order.

  One axis goes after another, the last one first: of S·F workers, each sends
  `(F-1) + (S-1) F = S F - 1` times its array, as it would in one all-gather,
  which `jax.vmap` does not know for several axes. The result is the same on
  all workers, and under `jax.vmap` it is not batched.
  """
  gathered = x[None]
  for axis in reversed(axes):
    gathered = lax.all_gather(gathered, axis).reshape(-1, *x.shape)
  return gathered
