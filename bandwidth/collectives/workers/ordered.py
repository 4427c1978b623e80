"""Sums over workers whose rounding does not depend on the mapping.

Floating-point addition is not associative, and XLA reduces an array in an order
of its choosing. Where simulated and real workers must agree to the bit, the
order is written down.
"""

from collections.abc import Callable, Sequence
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
    x: array of any shape, one worker's.
    axes: names of the mapped axes, the slowest link first.

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


def same_on_all(x: jax.Array, axis: AxisName) -> jax.Array:
  """Returns its argument, which is the same on all workers.

  Nothing is sent, and nothing is checked. `jax.vmap` can't know that values
  which come from the workers' own states are equal; here the first worker's
  stand for all, so that what follows is computed once.

  Args:
    x: array that is equal on all workers.
    axis: name, or names, of the mapped axes of the workers.
  """
  axes = (axis,) if isinstance(axis, str) else tuple(axis or ())
  if not axes:
    return x

  @jax.custom_batching.custom_vmap
  def same(x: jax.Array, *indices: jax.Array) -> jax.Array:
    del indices
    return x

  @same.def_vmap
  def rule(
    size: int, in_batched: Any, x: jax.Array, *indices: jax.Array
  ) -> tuple[jax.Array, bool]:
    del size
    x_batched, *index_batched = in_batched
    if not any(index_batched):
      return same(x, *indices), x_batched
    mine = axes[index_batched.index(True)]
    others = tuple(other for other in axes if other != mine)
    return same_on_all(x[0] if x_batched else x, others), False

  return same(x, *(lax.axis_index(name) for name in axes))


def axis_size(axis: AxisName) -> int:
  """Returns the number of workers along mapped axes; one where there is none.

  Raises:
    ValueError: an axis is not bound, or bound by `jax.shard_map` with
      `check_vma=True`, under which gradients with respect to replicated
      parameters arrive summed over the workers, and would be summed again.
  """
  if not axis:
    return 1
  try:
    size = lax.axis_size(axis)
  except NameError:
    raise ValueError(
      f'axis_name={axis!r} is not bound: call reduce inside jax.pmap, '
      'jax.shard_map or jax.vmap over it'
    ) from None
  if _tracks_varying(lax.axis_index(axis)):
    raise ValueError(
      f'axis_name={axis!r} is mapped by jax.shard_map with check_vma=True, '
      'where gradients arrive already summed: pass check_vma=False'
    )
  return size


def _tracks_varying(index: jax.Array) -> bool:
  """Whether the type of a worker's index says that it varies."""
  aval = jax.typeof(index)
  if hasattr(aval, 'manual_axis_type'):
    return bool(aval.manual_axis_type.varying)
  return bool(aval.vma)


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


def largest_magnitude(x: jax.Array, axis: int | None = None) -> jax.Array:
  """Returns the maximum of |x|; infinity where an element is not a number.

  A maximum over many elements may lose NaN (XLA:CPU does), but not infinity.

  >>> largest_magnitude(jax.numpy.array([1.0, -3.0, jax.numpy.nan]))
  Array(inf, dtype=float32)
  """
  inf = jax.numpy.asarray(jax.numpy.inf, x.dtype)
  magnitudes = jax.numpy.where(jax.numpy.isnan(x), inf, jax.numpy.abs(x))
  return jax.numpy.max(magnitudes, axis)


def rounded(product: jax.Array) -> jax.Array:
  """Returns its argument, which no compiler contracts with a sum behind it.

  A product and the sum that it goes into may become a multiply-add that rounds
  once, not twice, and whether they do depends on what else uses the product and
  so on the mapping. A selection between them is in the way.
  """
  return jax.numpy.where(product == product, product, jax.numpy.nan)


def in_turns(fn: Callable[..., Any]) -> Callable[..., Any]:
  """Gives a function the same bits under `jax.vmap` as without it.

  `jax.vmap` turns a product of matrices, or a reduction, into a batched one,
  which adds in another order. Here the batch elements go through `fn` one after
  another, so that the operations compiled are those of one element; and no
  compiler fuses them with what comes before and after, which may change their
  rounding too.

  Args:
    fn: function from trees of arrays to a tree of floating-point arrays. If the
      first element of its first floating-point argument is NaN, so is all of
      the result.

  >>> total = in_turns(lambda x: jax.numpy.sum(x))
  >>> jax.vmap(total)(jax.numpy.ones((2, 3)))
  Array([3., 3.], dtype=float32)
  """
  turns = jax.custom_batching.custom_vmap(lambda *args: _apart(fn, args))

  @turns.def_vmap
  def rule(size: int, in_batched: Any, *args: Any) -> tuple[Any, Any]:
    del size
    leaves, structure = jax.tree.flatten(args)
    batched = jax.tree.leaves(in_batched)

    def one(rows: list[jax.Array]) -> Any:
      of_element = iter(rows)
      mine = [
        next(of_element) if is_batched else leaf
        for leaf, is_batched in zip(leaves, batched, strict=True)
      ]
      return turns(*jax.tree.unflatten(structure, mine))

    pairs = zip(leaves, batched, strict=True)
    out = lax.map(one, [leaf for leaf, is_batched in pairs if is_batched])
    return out, jax.tree.map(lambda _: True, out)

  return turns


def _apart(fn: Callable[..., Any], args: tuple[Any, ...]) -> Any:
  """Calls a function where no compiler fuses it with anything else.

  XLA:CPU drops an `optimization_barrier` too early, so there the function is
  the branch of a conditional whose outcome no compiler knows.
  """
  if not any(_has_floats(leaf) for leaf in jax.tree.leaves(args)):
    return fn(*args)

  def branch(*args: Any) -> Any:
    probe = next(leaf for leaf in jax.tree.leaves(args) if _has_floats(leaf))
    unknown = jax.numpy.isnan(probe.ravel()[0])
    return lax.cond(unknown, _not_a_number(fn), fn, *args)

  def behind_barriers(*args: Any) -> Any:
    return lax.optimization_barrier(fn(*lax.optimization_barrier(args)))

  return lax.platform_dependent(*args, cpu=branch, default=behind_barriers)


def _has_floats(leaf: jax.Array) -> bool:
  return jax.numpy.issubdtype(leaf.dtype, jax.numpy.floating) and leaf.size > 0


def _not_a_number(fn: Callable[..., Any]) -> Callable[..., Any]:
  def all_nan(*args: Any) -> Any:
    return jax.tree.map(
      lambda leaf: jax.numpy.full(leaf.shape, jax.numpy.nan, leaf.dtype),
      jax.eval_shape(fn, *args),
    )

  return all_nan
