"""Workers along several mapped axes, as if they lay along one."""

import functools
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from bandwidth.base import AxisName
from bandwidth.collectives.workers.ordered import axis_size, same_on_all


def axis_names(axis_name: AxisName) -> tuple[str, ...]:
  """Returns the axes as a tuple, an empty one where there is one worker.

  >>> axis_names('data'), axis_names(('slow', 'fast')), axis_names(None)
  (('data',), ('slow', 'fast'), ())
  """
  return (axis_name,) if isinstance(axis_name, str) else tuple(axis_name or ())


def axis_sizes(workers: int | Sequence[int]) -> tuple[int, ...]:
  """Returns the sizes of the axes of the workers, one for a mere number.

  Raises:
    ValueError: one is no integer, or not positive.

  >>> axis_sizes(4), axis_sizes((2, 3))
  ((4,), (2, 3))
  """
  sizes = tuple(workers) if isinstance(workers, Sequence) else (workers,)
  for size in sizes:
    if isinstance(size, bool) or not isinstance(size, int | np.integer):
      raise ValueError(f'workers={workers!r} is no number of workers')
    if size < 1:
      raise ValueError(f'workers={workers} is not positive')
  return tuple(int(size) for size in sizes)


def count_workers(workers: int | Sequence[int]) -> int:
  """Returns the number of workers, given as such or as sizes of axes.

  Raises:
    ValueError: as `axis_sizes`.

  >>> count_workers(4), count_workers((2, 3))
  (4, 6)
  """
  return math.prod(axis_sizes(workers))


def worker_index(axes: Sequence[str]) -> jax.Array:
  """Returns a worker's place among all, int32 []; the last axis runs fastest.

  Raises:
    ValueError: an axis is not bound.
  """
  axis_size(tuple(axes))
  return lax.axis_index(tuple(axes)) if axes else jnp.zeros((), jnp.int32)


def gather_workers(x: jax.Array, axes: Sequence[str]) -> jax.Array:
  """Gathers the arrays of all workers, [workers, *x.shape], in their order.

  Each worker sends its array to all others, and the result is the same on all;
  under `jax.vmap` it is not batched.

  The TPU compiler may make an all-reduce of an all-gather, which sends twice as
  much (of the messages of QSGD it does, for v5e 4x4), but leaves an all-to-all
  of copies alone. Elsewhere an all-gather it is, which does not cross the link
  between two hosts once for every pair of their devices.

  Args:
    x: array of any shape, one worker's.
    axes: names of the mapped axes, the slowest link first.
  """
  if not axes:
    return x[None]
  return lax.platform_dependent(
    x,
    tpu=functools.partial(_exchanged, axes=tuple(axes)),
    default=functools.partial(_gathered, axes=tuple(axes)),
  )


def _gathered(x: jax.Array, axes: tuple[str, ...]) -> jax.Array:
  """One axis after another: `jax.vmap` has no all-gather over several.

  Of S·F workers, each sends `(F-1) + (S-1) F = S F - 1` times its array.
  """
  gathered = x[None]
  for axis in reversed(axes):
    gathered = lax.all_gather(gathered, axis).reshape(-1, *x.shape)
  return gathered


def _exchanged(x: jax.Array, axes: tuple[str, ...]) -> jax.Array:
  copies = jnp.broadcast_to(x[None], (axis_size(axes), *x.shape))
  received = lax.all_to_all(copies, axes, split_axis=0, concat_axis=0)
  return same_on_all(received, axes)
