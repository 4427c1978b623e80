"""Two links: dense inside of a group, compressed between groups.

The chips of a slice, or the devices of a host, average their gradients over the
fast link, and each of them then has a stripe of the average: it keeps the state
of that stripe alone, exchanges it with the chips of the other groups that have
the same stripe, and the group puts the stripes together. What a group sends
over the slow link is thereby sent once, and not by each of its chips.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from bandwidth import tree
from bandwidth.base import GradientReducer, Params
from bandwidth.collectives.sparsity.units import Units, plan_units
from bandwidth.collectives.traffic.closed_forms import (
  all_gather_bytes,
  all_reduce_bytes,
)
from bandwidth.collectives.wire.message import pack
from bandwidth.collectives.workers.axes import axis_sizes
from bandwidth.collectives.workers.ordered import axis_size, ordered_psum
from bandwidth.collectives.workers.resplit import flush_of, resplit_of


def hierarchical(
  axis_name: Sequence[str],
  between: Callable[[str, int], GradientReducer],
  *,
  workers: Sequence[int],
) -> GradientReducer:
  """Averages densely over a fast axis, and as another reducer over a slow one.

  Args:
    axis_name: the slow axis and the fast one.
    between: `(slow axis, its size) -> GradientReducer`. It sees a dictionary of
      vectors, the stripes of this worker: one for each large leaf, by name, and
      one, 'rest', of all small ones.
    workers: sizes of the two axes.

  Returns:
    A reducer whose state is that of `between` for the stripes of a worker.

  Raises:
    ValueError: there are not two axes, or `workers` are not their sizes.
  """
  axes, sizes = tuple(axis_name), tuple(workers)
  if len(axes) != 2 or len(sizes) != 2 or min(sizes) < 1:
    raise ValueError(
      f'axis_name={axes}, workers={sizes}: two axes and their sizes are needed'
    )
  slow, fast = axes
  inner = between(slow, sizes[0])

  def init(params: Params) -> Any:
    return inner.init(stripe_shapes(params, sizes[1]))

  def reduce(
    grads: Params, state: Any, params: Params = None
  ) -> tuple[Params, Any]:
    del params
    if axis_size(fast) != sizes[1]:
      raise ValueError(
        f'workers={sizes}, but axis {fast!r} has {axis_size(fast)} workers'
      )
    packed = pack(grads)
    mean = ordered_psum(packed.vector, (fast,)) / sizes[1]
    plan = _plan(grads, sizes[1])
    mine = _stripes(packed.unpack(mean), plan, lax.axis_index(fast))
    stripes, state = inner.reduce(mine, state, None)
    return _gathered(stripes, plan, fast, grads), state

  def flush(state: Any, params: Params) -> tuple[Params, Any]:
    plan = _plan(params, sizes[1])
    mine = _stripes(params, plan, lax.axis_index(fast))
    stripes, state = flush_of(inner)(state, mine)
    return _gathered(stripes, plan, fast, params), state

  def wire_bytes(params: Params, workers: int | Sequence[int]) -> int:
    return hierarchical_wire_bytes(inner, params, workers)

  def resplit(
    state: Any, params: Params, *, workers: int | Sequence[int]
  ) -> Any:
    old = _two_sizes(workers)
    dealt = _between_groups(inner, state, params, old, sizes[0])
    if old[1] != sizes[1]:
      dealt = _restriped(dealt, init(params), params, old, sizes)
    return jax.tree.map(
      lambda leaf: np.reshape(leaf, (-1, *np.shape(leaf)[2:])), dealt
    )

  return GradientReducer(
    init, reduce, wire_bytes, flush, resplit, inner.momentum
  )


def _two_sizes(workers: int | Sequence[int]) -> tuple[int, int]:
  sizes = axis_sizes(workers)
  if len(sizes) != 2:
    raise ValueError(f'workers={workers}: sizes of two axes are needed')
  return sizes[0], sizes[1]


def _between_groups(
  inner: GradientReducer,
  state: Any,
  params: Params,
  old: Sequence[int],
  groups: int,
) -> Any:
  """Deals each stripe's state out to other groups: leaves [groups, old F]."""
  slow, fast = old
  like = stripe_shapes(params, fast)

  def of_stripe(index: int) -> Any:
    mine = jax.tree.map(
      lambda leaf: np.asarray(leaf).reshape(slow, fast, *leaf.shape[1:])[
        :, index
      ],
      state,
    )
    return resplit_of(inner, groups)(mine, like, workers=slow)

  return jax.tree.map(
    lambda *parts: np.stack(jax.device_get(parts), axis=1),
    *[of_stripe(index) for index in range(fast)],
  )


def _restriped(
  state: Any,
  fresh: Any,
  params: Params,
  old: Sequence[int],
  new: Sequence[int],
) -> Any:
  """Cuts what has stripes into those of another number of workers.

  Only what is shaped as the stripes is cut anew. With other stripes the rest
  begins as in `fresh`, the state of one worker: what an owner keeps has been
  added to the residuals by then.
  """
  before, after = _plan(params, old[1]), _plan(params, new[1])
  names, new_names = _names(params, before), _names(params, after)

  def cut(part: dict[str, Any]) -> dict[str, Any]:
    """From leaves [groups, old F, size] to [groups, new F, size]."""
    vectors = [
      jax.vmap(layout.join)(part[name])
      for name, layout in zip(names, before.layouts, strict=True)
    ]
    empty = jnp.zeros((new[0], before.dense_size), jnp.float32)
    leaves = jax.vmap(before.leaves)(vectors, empty)
    return {
      name: jax.vmap(layout.split)(vector)
      for name, layout, vector in zip(
        new_names, after.layouts, jax.vmap(after.vectors)(leaves), strict=True
      )
    }

  cut_anew = [
    cut(node)
    for node in jax.tree.leaves(state, is_leaf=_has(names))
    if _has(names)(node)
  ]
  nodes, structure = jax.tree.flatten(fresh, is_leaf=_has(new_names))
  filled = [
    cut_anew.pop(0)
    if _has(new_names)(node)
    else np.broadcast_to(node, (*new, *np.shape(node)))
    for node in nodes
  ]
  return jax.tree.unflatten(structure, filled)


def _has(names: Sequence[str]) -> Callable[[Any], bool]:
  """Whether a node of a state holds stripes of these names."""
  return lambda node: isinstance(node, dict) and sorted(node) == sorted(names)


def _plan(params: Params, owners: int) -> Units:
  return plan_units(params, owners=owners)


def stripe_shapes(params: Params, owners: int) -> dict[str, Any]:
  """Returns zeros of the shapes of one worker's stripes, by name."""
  plan = _plan(params, owners)
  return {
    name: jnp.zeros(layout.local_size, jnp.float32)
    for name, layout in zip(_names(params, plan), plan.layouts, strict=True)
  }


def _names(params: Params, plan: Units) -> list[str]:
  names = tree.names(params)
  return [
    names[group[0]] if len(group) == 1 else 'rest' for group in plan.groups
  ]


def _stripes(
  params: Params, plan: Units, owner: jax.Array
) -> dict[str, jax.Array]:
  vectors = plan.vectors(jax.tree.leaves(params))
  return {
    name: layout.split(vector)[owner]
    for name, layout, vector in zip(
      _names(params, plan), plan.layouts, vectors, strict=True
    )
  }


def _gathered(
  stripes: dict[str, jax.Array], plan: Units, fast: str, like: Params
) -> Params:
  parts = [stripes[name] for name in _names(like, plan)]
  joined = jnp.concatenate(parts) if parts else jnp.zeros(0, jnp.float32)
  gathered = lax.all_gather(joined, fast)
  borders = np.cumsum(plan.local_sizes)[:-1].tolist()
  vectors = [
    layout.join(part)
    for layout, part in zip(
      plan.layouts, jnp.split(gathered, borders, axis=1), strict=True
    )
  ]
  empty = jnp.zeros(plan.dense_size, jnp.float32)
  leaves, structure = jax.tree.flatten(like)
  return jax.tree.unflatten(
    structure,
    [
      out.astype(leaf.dtype)
      for out, leaf in zip(plan.leaves(vectors, empty), leaves, strict=True)
    ],
  )


def hierarchical_wire_bytes(
  between: GradientReducer, params: Params, workers: int | Sequence[int]
) -> int:
  """Returns the bytes that a worker sends, over both links together.

  `2 (F-1)/F 4n` and `(F-1) 4 n/F` over the fast one, F workers, and what
  `between` says of a stripe over the slow one.

  Args:
    between: the reducer of the slow axis.
    params: tree of arrays or abstract shapes.
    workers: sizes of the slow and the fast axis.

  Raises:
    ValueError: `workers` are not two positive integers.
  """
  slow, fast = _two_sizes(workers)
  plan = _plan(params, fast)
  inside = all_reduce_bytes(4 * tree.size(params), fast)
  inside += all_gather_bytes(4 * sum(plan.local_sizes), fast)
  stripes = stripe_shapes(params, fast)
  return inside + between.wire_bytes(stripes, slow)
