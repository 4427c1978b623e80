"""Sums over workers whose rounding does not depend on the mapping.

Floating-point addition is not associative, and XLA reduces an array in an order
of its choosing. Where simulated and real workers must agree to the bit, the
order is written down.
"""

from collections.abc import Sequence
from typing import Any

import jax
from jax import lax

from bandwidth.base import AxisName


def ordered_psum(x: jax.Array, axes: Sequence[str]) -> jax.Array:
  """Sums over workers; simulated ones are added in the order of XLA:CPU.

  On devices this is one `lax.psum`. `jax.vmap` would turn that into a reduction
  that rounds differently; here it becomes `((x_0 + x_1) + x_2) + …`, which is
  what the all-reduce of XLA:CPU computes along one axis.

  Args:
    x: array of one worker.
    axes: mapped axes, the slowest link first.

  >>> x = jax.numpy.array([1.0, 2.0, 4.0])
  >>> jax.vmap(lambda x: ordered_psum(x, ['data']), axis_name='data')(x)
  Array([7., 7., 7.], dtype=float32)
  """
  axes = tuple(axes)

  @jax.custom_batching.custom_vmap
  def psum(x: jax.Array, *indices: jax.Array) -> jax.Array:
    del indices
    return lax.psum(x, axes)

  @psum.def_vmap
  def rule(
    size: int, in_batched: Any, x: jax.Array, *indices: jax.Array
  ) -> tuple[jax.Array, bool]:
    # A worker's index along an axis is batched in the vmap of that axis alone:
    # any other vmap is no business of the sum.
    x_batched, *index_batched = in_batched
    if not any(index_batched):
      return psum(x, *indices), x_batched
    mine = axes[index_batched.index(True)]
    total = _in_order(x) if x_batched else x * size
    others = tuple(axis for axis in axes if axis != mine)
    return (ordered_psum(total, others) if others else total), False

  return psum(x, *(lax.axis_index(axis) for axis in axes))


def _in_order(rows: jax.Array) -> jax.Array:
  if rows.shape[0] > 64:
    return lax.fori_loop(
      1, rows.shape[0], lambda i, total: total + rows[i], rows[0]
    )
  total = rows[0]
  for row in rows[1:]:
    total = total + row
  return total


def pairwise_sum(rows: jax.Array) -> jax.Array:
  """Sums along the first axis by halves: `(x_0 + x_2) + (x_1 + x_3)` for four.

  The additions are elementwise operations of the program, so no compiler
  reorders them; the error grows with the logarithm of the number of rows.

  >>> pairwise_sum(jax.numpy.arange(5.0))
  Array(10., dtype=float32)
  """
  while rows.shape[0] > 1:
    half = rows.shape[0] // 2
    added = rows[:half] + rows[half : 2 * half]
    rest = rows[2 * half :]
    rows = jax.numpy.concatenate([added, rest]) if rest.shape[0] else added
  return rows[0]


def axis_size(axis: AxisName) -> int:
  """Returns the number of workers along mapped axes; one where there is none.

  Raises:
    ValueError: an axis is not bound.
  """
  if not axis:
    return 1
  try:
    return lax.axis_size(axis)
  except NameError:
    raise ValueError(
      f'axis_name={axis!r} is not bound: call reduce inside jax.pmap, '
      'jax.shard_map or jax.vmap over it'
    ) from None


def fixed_order_sum(x: jax.Array) -> jax.Array:
  """Sums a vector, in one pass over memory and an order that is written down.

  Rows of 128 elements are added up by halves, then rows of 128 of such sums.

  >>> fixed_order_sum(jax.numpy.arange(1000.0))
  Array(499500., dtype=float32)
  """
  while x.size > 1:
    width = min(_ROW, 1 << (x.size - 1).bit_length())
    rows = jax.numpy.pad(x, (0, -x.size % width)).reshape(-1, width)
    while rows.shape[1] > 1:
      half = rows.shape[1] // 2
      rows = rows[:, :half] + rows[:, half:]
    x = rows.ravel()
  return x.reshape(-1)[0] if x.size else jax.numpy.zeros((), x.dtype)


_ROW = 128
