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
from bandwidth.collectives.closed_forms import (
  all_gather_bytes,
  all_reduce_bytes,
)
from bandwidth.collectives.message import pack
from bandwidth.collectives.ordered import axis_size, ordered_psum
from bandwidth.collectives.units import Units, plan_units


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
    if inner.flush is None:
      return jax.tree.map(jnp.zeros_like, params), state
    plan = _plan(params, sizes[1])
    mine = _stripes(params, plan, lax.axis_index(fast))
    stripes, state = inner.flush(state, mine)
    return _gathered(stripes, plan, fast, params), state

  def wire_bytes(params: Params, *, workers: Sequence[int]) -> int:
    return hierarchical_wire_bytes(inner, params, workers=workers)

  return GradientReducer(init, reduce, wire_bytes, flush, _refuse_to_resplit)


def _refuse_to_resplit(state: Any, params: Params) -> Any:
  """Stripes of other groups are not dealt out."""
  del state, params
  raise ValueError(
    'workers: the state of two axes cannot be dealt out to other workers; '
    'resume with as many as before'
  )


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
  between: GradientReducer, params: Params, *, workers: Sequence[int]
) -> int:
  """Returns the bytes that a worker sends, over both links together.

  `2 (F-1)/F 4n` and `(F-1) 4 n/F` over the fast one, F workers, and what
  `between` says of a stripe over the slow one.

  Args:
    between: the reducer of the slow axis.
    params: a tree; leaves may be abstract.
    workers: sizes of the slow and the fast axis.
  """
  slow, fast = workers
  plan = _plan(params, fast)
  inside = all_reduce_bytes(4 * tree.size(params), fast)
  inside += all_gather_bytes(4 * sum(plan.local_sizes), fast)
  if between.wire_bytes is None:
    return inside
  stripes = stripe_shapes(params, fast)
  return inside + between.wire_bytes(stripes, workers=slow)
