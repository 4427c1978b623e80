"""Sparse gradient all-reduce: selection, memory, value format, exchange."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from bandwidth.base import AxisName, GradientReducer, Params, unknown_name
from bandwidth.collectives.dense import dense_wire_bytes
from bandwidth.collectives.sparsity import exchange as exchanges
from bandwidth.collectives.sparsity.memory import (
  Kept,
  Leaves,
  Memory,
  accumulate,
  error_feedback,
  flush_kept,
  mean_over,
  retain,
)
from bandwidth.collectives.sparsity.selection import select_each
from bandwidth.collectives.sparsity.units import Units, check_scope, plan_units
from bandwidth.collectives.wire.message import cast, check_floating
from bandwidth.collectives.wire.sparse_message import Entries
from bandwidth.collectives.wire.value_formats import value_format
from bandwidth.collectives.workers.axes import count_workers
from bandwidth.collectives.workers.ordered import axis_size, same_on_all
from bandwidth.collectives.workers.resplit import resplit_workers

EXCHANGES = ('all_gather', 'owner_sharded', 'dense')


class SparseState(NamedTuple):
  """State of a worker.

  Its shapes depend on the exchange and on the number of workers, not on the
  density, so that it goes on from one stage of a run into the next.
  """

  kept: Kept  # float32, shaped as the parameters
  owned: tuple[jax.Array, ...]  # float32 [local_size] of each unit; or ()


class SparseOptions(NamedTuple):
  """What is static in a sparse all-reduce.

  Attributes:
    density: fraction of the elements that is selected, in (0, 1].
    memory: how unsent gradients accumulate.
    values: 'float32', 'float16', 'float8' or 'sign', see `value_format`.
    exchange: 'all_gather', 'owner_sharded' or 'dense'.
    scope: 'layer' or 'global', see `plan_units`.
    dense_rules: pairs (expression, bool): whether matching parameters are sent
      in full.
    forward: for 'owner_sharded': entries that an owner sends to all, as a
      multiple of those that it gets from one worker.
    workers: number of workers on the axis; 0: unknown, which 'owner_sharded'
      and `resplit` do not accept.
  """

  density: float
  memory: Memory
  values: str = 'float16'
  exchange: str = 'all_gather'
  scope: str = 'layer'
  dense_rules: tuple[tuple[str, bool], ...] = ()
  forward: float = 2.0
  workers: int = 0

  @property
  def is_dense(self) -> bool:
    """Whether everything is sent."""
    return self.density == 1 or self.exchange == 'dense'

  @property
  def is_sharded(self) -> bool:
    """Whether workers own stripes."""
    return self.exchange == 'owner_sharded'

  def units(self, params: Params) -> Units:
    """Plans what is selected together."""
    return plan_units(
      params,
      scope=self.scope,
      dense_rules=self.dense_rules,
      owners=self.workers if self.is_sharded else 1,
    )


def check_options(options: SparseOptions) -> SparseOptions:
  """Returns the options.

  Raises:
    ValueError: one is out of range or unknown.
  """
  if not 0 < options.density <= 1:
    raise ValueError(f'density={options.density} is not in (0, 1]')
  if options.exchange not in EXCHANGES:
    raise ValueError(unknown_name('exchange', options.exchange, EXCHANGES))
  check_scope(options.scope)
  if options.forward <= 0:
    raise ValueError(f'forward={options.forward} is not positive')
  if options.is_sharded and options.workers < 1:
    raise ValueError(
      f"workers={options.workers}: exchange='owner_sharded' needs the number "
      'of workers'
    )
  value_format(options.values)
  return options


def sparse_all_reduce(
  axis_name: AxisName = 'data',
  *,
  density: float,
  memory: Memory | None = None,
  values: str = 'float16',
  exchange: str = 'all_gather',
  scope: str = 'layer',
  dense_rules: Sequence[tuple[str, bool]] = (),
  forward: float = 2.0,
  workers: int = 0,
) -> GradientReducer:
  """Averages the largest elements of what workers accumulate.

  Each worker adds its gradient to what it keeps, selects the `ceil(density n)`
  elements of largest magnitude of each unit, exactly, and sends them as one
  message of bytes: indices in Elias–Fano code, values in a format whose
  rounding error goes back into the memory. The mean over the workers of what
  was sent is returned, zero elsewhere. A gradient that is not finite comes out
  as a mean that is not finite, on all workers.

  With `density=1` or `exchange='dense'` the gradients themselves are averaged
  in float32, and the residual stays as it is.

  Args:
    axis_name: mapped axis of the workers. None: one worker. For a fast and a
      slow axis see `hierarchical`.
    density: fraction of the elements that is selected, in (0, 1].
    memory: how unsent gradients accumulate. None: `error_feedback()`.
    values: 'float32', 'float16', 'float8' or 'sign', see `value_format`.
    exchange: 'all_gather', whose traffic grows with the number of workers, or
      'owner_sharded', whose does not; or 'dense'.
    scope: 'layer' selects from each leaf, 'global' from all leaves together.
    dense_rules: pairs (expression, bool): parameters that travel in full in the
      same message, biases and norms, say. Where all do, they are all-reduced.
    forward: for 'owner_sharded': entries that an owner sends to all, as a
      multiple of those that it gets from one worker.
    workers: number of workers, which 'owner_sharded' and `resplit` need.

  Returns:
    A reducer with the state `SparseState`.

  Raises:
    ValueError: an argument is out of range or unknown; at `init`, a rule is
      wrong; at `reduce`, the axis is not bound or has another size.

  >>> reducer = sparse_all_reduce('data', density=0.25, values='float32')
  >>> grads = jnp.array([[1.0, 2.0, 0.0, 3.0], [8.0, 0.0, 0.0, 1.0]])
  >>> state = jax.vmap(lambda g: reducer.init(g))(grads)
  >>> mean, state = jax.vmap(reducer.reduce, axis_name='data')(grads, state)
  >>> mean[0], state.kept.residual[0]
  (Array([4. , 0. , 0. , 1.5], dtype=float32), Array([1., 2., 0., 0.],
  dtype=float32))
  """
  if isinstance(axis_name, tuple):
    if len(axis_name) > 1:
      raise ValueError(
        f'axis_name={axis_name} has several axes; see `hierarchical`'
      )
    axis_name = axis_name[0]
  options = check_options(
    SparseOptions(
      density=density,
      memory=memory or error_feedback(),
      values=values,
      exchange=exchange,
      scope=scope,
      dense_rules=tuple((str(p), bool(v)) for p, v in dense_rules),
      forward=forward,
      workers=workers,
    )
  )
  return _make(options, axis_name)


def _make(options: SparseOptions, axis: str | None) -> GradientReducer:
  def init(params: Params) -> SparseState:
    owned = options.units(params).local_sizes if options.is_sharded else ()
    return SparseState(
      options.memory.init(params),
      tuple(jnp.zeros(size, jnp.float32) for size in owned),
    )

  def reduce(
    grads: Params, state: SparseState, params: Params = None
  ) -> tuple[Params, SparseState]:
    del params
    _check_axis(options, axis)
    return _reduce(options, axis, grads, state)

  def wire_bytes(params: Params, workers: int | Sequence[int]) -> int:
    return _wire_bytes(options, params, workers)

  def flush(state: SparseState, params: Params) -> tuple[Params, SparseState]:
    return _flush(options, axis, state, params)

  def resplit(
    state: SparseState, params: Params, *, workers: int | Sequence[int]
  ) -> SparseState:
    return _resplit(options, state, params, count_workers(workers))

  return GradientReducer(
    init, reduce, wire_bytes, flush, resplit, options.memory.momentum
  )


def _check_axis(options: SparseOptions, axis: str | None) -> None:
  size = axis_size(axis)
  if options.is_sharded and size != options.workers:
    raise ValueError(
      f'workers={options.workers}, but axis {axis!r} has {size} workers'
    )


def _reduce(
  options: SparseOptions, axis: str | None, grads: Params, state: SparseState
) -> tuple[Params, SparseState]:
  check_floating(grads)
  leaves, structure = jax.tree.flatten(grads)
  kept = Leaves.of(state.kept, structure)
  units = None if options.is_dense else options.units(grads)
  if units is None or not units.groups:
    update, new = _dense_update(options.memory, axis, leaves, kept)
    owned = state.owned
  else:
    update, new, owned = _sparse_update(
      options, axis, units, leaves, kept, state.owned
    )
  return (
    cast(jax.tree.unflatten(structure, update), grads),
    SparseState(new.as_trees(structure), owned),
  )


def _dense_update(
  memory: Memory, axis: str | None, leaves: list[jax.Array], kept: Leaves
) -> tuple[list[jax.Array], Leaves]:
  leaves = [leaf.astype(jnp.float32) for leaf in leaves]
  mean = mean_over(leaves, (axis,) if axis else ())
  if kept.momentum is None:
    return [memory.dense(m, None)[0] for m in mean], kept
  pairs = [memory.dense(m, u) for m, u in zip(mean, kept.momentum, strict=True)]
  momentum = [p[1] for p in pairs]
  update = [same_on_all(p[0], axis) for p in pairs]
  return update, kept._replace(momentum=momentum)


def _sparse_update(
  options: SparseOptions,
  axis: str | None,
  units: Units,
  leaves: list[jax.Array],
  kept: Leaves,
  owned: tuple[jax.Array, ...],
) -> tuple[list[jax.Array], Leaves, tuple[jax.Array, ...]]:
  memory = options.memory
  candidates, momenta = accumulate(memory, units, leaves, kept)
  entries, places = _select(units, candidates, options.density)
  rounded, done = _exchange(
    options, axis, units, entries, units.dense_vector(leaves), owned
  )
  rests = [
    value - sent for value, sent in zip(entries.values, rounded, strict=True)
  ]
  dense_momentum = None
  if kept.momentum is not None:
    dense_momentum = units.dense_vector(kept.momentum)
  dense, dense_momentum = memory.dense(done.dense, dense_momentum)
  dense = same_on_all(dense, axis)
  new = retain(
    memory, units, kept, candidates, momenta, places, rests, dense_momentum
  )
  return units.leaves(done.mean, dense), new, done.owned


def _select(
  units: Units, candidates: list[jax.Array], density: float
) -> tuple[Entries, list[jax.Array]]:
  """Each owner's largest elements, [owners, count] a unit, and their places."""
  indices, places, values = [], [], []
  selected = select_each(candidates, units.layouts, units.counts(density))
  for vector, layout, local in zip(
    candidates, units.layouts, selected, strict=True
  ):
    owners = jnp.arange(layout.count, dtype=jnp.int32)[:, None]
    at = layout.places(local, owners)
    indices.append(local)
    places.append(at)
    values.append(vector.at[at].get(mode='fill', fill_value=0))
  return Entries(indices, values), places


def _exchange(
  options: SparseOptions,
  axis: str | None,
  units: Units,
  entries: Entries,
  dense: jax.Array,
  owned: tuple[jax.Array, ...],
) -> tuple[list[jax.Array], exchanges.Exchanged]:
  """What the others see of the values of `entries`, and what comes of them."""
  if options.is_sharded:
    messages = exchanges.owner_messages(
      units, options.density, options.values, options.forward
    )
    done = exchanges.owner_sharded(
      entries, dense, owned, units=units, messages=messages, axis=axis
    )
    return jax.vmap(messages[0].rounded)(entries.values), done
  message = exchanges.gather_message(units, options.density, options.values)
  mine = Entries(
    [index[0] for index in entries.indices], [v[0] for v in entries.values]
  )
  done = exchanges.all_gather(
    mine, dense, units=units, message=message, axis=axis
  )
  return [r[None] for r in message.rounded(mine.values)], done


def _wire_bytes(
  options: SparseOptions, params: Params, workers: int | Sequence[int]
) -> int:
  count = count_workers(workers)
  if options.is_dense:
    return dense_wire_bytes(params, count)
  units = options._replace(workers=count).units(params)
  if not units.groups:
    return dense_wire_bytes(params, count)
  if options.is_sharded:
    messages = exchanges.owner_messages(
      units, options.density, options.values, options.forward
    )
    return exchanges.owner_sharded_traffic(messages, count)
  message = exchanges.gather_message(units, options.density, options.values)
  return exchanges.all_gather_traffic(message, count)


def _flush(
  options: SparseOptions, axis: str | None, state: SparseState, params: Params
) -> tuple[Params, SparseState]:
  kept = state.kept
  if options.is_sharded:
    owner = jax.lax.axis_index(axis) if axis else jnp.zeros((), jnp.int32)
    kept = owned_into_residual(options.units(params), state, owner)
  mean, kept = flush_kept(kept, params, (axis,) if axis else ())
  return mean, SparseState(kept, jax.tree.map(jnp.zeros_like, state.owned))


def owned_into_residual(
  units: Units, state: SparseState, owner: jax.Array
) -> Kept:
  """Adds what an owner keeps to its residual.

  Both are pending parts of a sum over workers, so the sum stays.
  """
  leaves, structure = jax.tree.flatten(state.kept.residual)
  vectors = [
    vector + _embedded(layout, part, owner)
    for vector, layout, part in zip(
      units.vectors(leaves), units.layouts, state.owned, strict=True
    )
  ]
  dense = units.dense_vector(leaves)
  residual = jax.tree.unflatten(structure, units.leaves(vectors, dense))
  return state.kept._replace(residual=residual)


def _embedded(layout: Any, part: jax.Array, owner: jax.Array) -> jax.Array:
  mine = jnp.arange(layout.count, dtype=jnp.int32)[:, None] == owner
  return layout.join(jnp.where(mine, part[None, :], 0.0))


def _resplit(
  options: SparseOptions, state: SparseState, params: Params, old: int
) -> SparseState:
  new = options.workers
  if not new:
    raise ValueError(
      'workers=0: make the reducer with the number of workers to deal out to'
    )
  kept, owned = state
  if owned:
    units = options._replace(exchange='owner_sharded', workers=old).units(
      params
    )
    kept = jax.vmap(lambda s, owner: owned_into_residual(units, s, owner))(
      state, jnp.arange(old, dtype=jnp.int32)
    )
  sizes = options.units(params).local_sizes if options.is_sharded else ()
  zeros = tuple(jnp.zeros((new, size), jnp.float32) for size in sizes)
  return SparseState(resplit_workers(jax.device_get(kept), new), zeros)
