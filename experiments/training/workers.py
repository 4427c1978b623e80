"""The one place where a worker's function becomes the program of all workers.

A function is written for one worker: no leading worker axis, collectives over
the names of the workers' axes. `Workers.compile` maps it with `jax.pmap`,
`jax.shard_map` or `jax.vmap` and compiles it. Arguments and results are of two
kinds: `REPLICATED`, the same for all workers, and `PER_WORKER`. Outside of the
mapped function these have the workers along their first axis, and inside not.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from bandwidth.base import check_known

REPLICATED = 'replicated'
PER_WORKER = 'per_worker'
MAPPINGS = ('pmap', 'shard_map', 'vmap')


@dataclasses.dataclass(frozen=True, kw_only=True)
class Workers:
  """Workers of data-parallel training, and the devices that they are."""

  # 'pmap', 'shard_map' or 'vmap'. With 'vmap' all workers are simulated on one
  # device.
  mapping: str
  # axis names and sizes, the slowest link first. The number of workers is the
  # product of the sizes.
  axes: dict[str, int]
  # of the devices; one device along each axis where workers are simulated
  mesh: Mesh

  @property
  def count(self) -> int:
    """Number of workers."""
    return math.prod(self.axes.values())

  @property
  def axis_name(self) -> str | tuple[str, ...]:
    """What collectives are called with."""
    names = tuple(self.axes)
    return names if len(names) > 1 else names[0]

  @property
  def simulated(self) -> bool:
    """Whether one device plays all workers, so that nothing is sent."""
    return self.mapping == 'vmap'

  @property
  def on_host(self) -> bool:
    """Whether the devices are the cores that Python runs on.

    Then nothing is won by dispatching ahead, and donating memory blocks the
    caller: on two cores, four workers took 17 ms a step with donation, 6 ms
    without, and 4 ms waiting for each step.
    """
    return self.mesh.devices.flat[0].platform == 'cpu'

  def sharding(self, kind: str) -> NamedSharding:
    """Where arrays of a kind lie outside of mapped functions."""
    return NamedSharding(self.mesh, _specs(kind, self.axes))

  @property
  def local_rows(self) -> slice:
    """The workers whose data this process has to provide."""
    if self.simulated:
      return slice(0, self.count)
    process = jax.process_index()
    mine = [
      i
      for i, device in enumerate(self.mesh.devices.flat)
      if device.process_index == process
    ]
    return slice(mine[0], mine[-1] + 1)

  def place(self, tree: Any, kind: str) -> Any:
    """Puts whole host arrays, equal on all processes, where `kind` lives."""
    sharding = self.sharding(kind)

    def put(leaf: Any) -> jax.Array:
      leaf = np.asarray(leaf)
      return jax.make_array_from_callback(
        leaf.shape, sharding, lambda index: leaf[index]
      )

    return jax.tree.map(put, tree)

  def place_local(self, tree: Any) -> Any:
    """Puts arrays whose first axis holds only this process's workers."""
    sharding = self.sharding(PER_WORKER)
    return jax.tree.map(
      lambda leaf: jax.make_array_from_process_local_data(sharding, leaf), tree
    )

  def local_gradients(self, fn: Callable[..., Any]) -> Callable[..., Any]:
    """Wraps the part of a step that workers do alone.

    `jax.pmap` and `jax.shard_map` run it on a device each. Simulated workers on
    a CPU take turns: XLA:CPU is slow at the grouped convolutions that batching
    over workers gives, and their rounding differs; laid out one after another,
    the same operations give gradients of the same bits as on devices of their
    own.
    """
    if self.simulated and jax.default_backend() == 'cpu':
      return _taking_turns(fn)
    return fn

  def compile(
    self,
    fn: Callable[..., Any],
    arguments: Sequence[Any],
    *,
    kinds: tuple[Any, ...],
    out_kinds: Any,
    donate: tuple[int, ...] = (),
  ) -> jax.stages.Compiled:
    """Maps a worker's function over all workers and compiles it.

    Args:
      fn: the function of one worker.
      arguments: what the compiled function will be called with, as global
        arrays (or abstract ones with shardings).
      kinds: for each argument a kind, or a tree prefix of kinds.
      out_kinds: likewise for the results.
      donate: positions of arguments whose memory the results may take; not on
        CPUs.
    """
    if self.on_host:
      donate = ()
    mapped = self._map(fn, kinds, out_kinds, donate)
    return mapped.lower(*arguments).compile()

  def _map(
    self,
    fn: Callable[..., Any],
    kinds: tuple[Any, ...],
    out_kinds: Any,
    donate: tuple[int, ...],
  ) -> Any:
    if self.mapping == 'shard_map':
      return jax.jit(
        jax.shard_map(
          _without_worker_axis(fn, kinds, out_kinds),
          mesh=self.mesh,
          in_specs=_specs(kinds, self.axes),
          out_specs=_specs(out_kinds, self.axes),
          # With the check on, gradients with respect to replicated parameters
          # arrive already summed, and there is nothing left to compress.
          check_vma=False,
        ),
        donate_argnums=donate,
      )
    axes_in = jax.tree.map(_mapped_axis, kinds)
    axes_out = jax.tree.map(_mapped_axis, out_kinds)
    if self.mapping == 'pmap':
      return jax.pmap(
        fn,
        axis_name=self.axis_name,
        in_axes=axes_in,
        out_axes=axes_out,
        devices=list(self.mesh.devices.flat),
        donate_argnums=donate,
      )
    for name, size in reversed(self.axes.items()):
      fn = jax.vmap(
        fn,
        axis_name=name,
        axis_size=size,
        in_axes=axes_in,
        out_axes=axes_out,
      )
    return jax.jit(
      _axis_by_axis(fn, tuple(self.axes.values()), kinds, out_kinds),
      donate_argnums=donate,
    )


def make_workers(mapping: str, axes: dict[str, int]) -> Workers:
  """Takes as many devices as there are workers.

  Args:
    mapping: 'pmap', 'shard_map' or 'vmap'.
    axes: axis names and sizes, the slowest link first.

  Raises:
    ValueError: the mapping is unknown, a size is not positive, `pmap` is given
      several axes, there are fewer devices than workers, or a process would
      have no worker.
  """
  check_known('mapping', mapping, MAPPINGS)
  count = math.prod(axes.values())
  if not axes or min(axes.values()) < 1:
    raise ValueError(f'workers={axes or 0} must be at least 1')
  if mapping == 'pmap' and len(axes) > 1:
    raise ValueError(
      f"mapping='pmap' has one axis, not {list(axes)}; use mapping='shard_map'"
    )
  devices = jax.devices()
  if mapping == 'vmap':
    if jax.process_count() > 1:
      raise ValueError(
        f"mapping='vmap' simulates workers in one process, not in "
        f'{jax.process_count()}'
      )
    devices = jax.local_devices()[:1]
  elif count > len(devices):
    raise ValueError(_too_few_devices(count, devices))
  else:
    devices = devices[:count]
    _check_every_process_has_one(count, devices)
  shape = [1] * len(axes) if mapping == 'vmap' else list(axes.values())
  mesh = Mesh(
    np.array(devices).reshape(shape),
    tuple(axes),
    axis_types=(AxisType.Auto,) * len(axes),
  )
  return Workers(mapping=mapping, axes=dict(axes), mesh=mesh)


def _too_few_devices(count: int, devices: Sequence[Any]) -> str:
  platform = devices[0].platform
  more = {'cpu': f'--config.cpu_devices={count} makes virtual CPU devices'}.get(
    platform, f'start more processes or use a machine with {count} devices'
  )
  return (
    f'workers={count} but there are {len(devices)} {platform} devices; {more}, '
    f'--config.mapping=vmap simulates {count} workers on one device'
  )


def _check_every_process_has_one(count: int, devices: Sequence[Any]) -> None:
  idle = set(range(jax.process_count())) - {d.process_index for d in devices}
  if idle:
    raise ValueError(
      f'workers={count} leave process {min(idle)} of {jax.process_count()} '
      'without one; start fewer processes or set cpu_devices to the workers'
    )


def _mapped_axis(kind: str) -> int | None:
  return None if kind == REPLICATED else 0


def _specs(kinds: Any, axes: dict[str, int]) -> Any:
  workers = PartitionSpec(tuple(axes))
  return jax.tree.map(
    lambda kind: PartitionSpec() if kind == REPLICATED else workers, kinds
  )


def _map_kinds(kinds: Any, fn: Callable[..., Any], tree: Any) -> Any:
  """Maps over the leaves of `tree` that `kinds`, a prefix, says are local."""
  return jax.tree.map(
    lambda kind, subtree: (
      jax.tree.map(fn, subtree) if kind == PER_WORKER else subtree
    ),
    kinds,
    tree,
  )


def _without_worker_axis(
  fn: Callable[..., Any], kinds: tuple[Any, ...], out_kinds: Any
) -> Callable[..., Any]:
  """`shard_map` leaves each worker a first axis of size one; `fn` has none."""

  def wrapped(*args: Any) -> Any:
    out = fn(*_map_kinds(kinds, lambda leaf: leaf[0], args))
    return _map_kinds(out_kinds, lambda leaf: leaf[None], out)

  return wrapped


def _axis_by_axis(
  mapped: Callable[..., Any],
  shape: tuple[int, ...],
  kinds: tuple[Any, ...],
  out_kinds: Any,
) -> Callable[..., Any]:
  """Gives arguments an axis for each of the workers' axes, not one for all."""

  def split(leaf: jax.Array) -> jax.Array:
    return leaf.reshape(shape + leaf.shape[1:])

  def join(leaf: jax.Array) -> jax.Array:
    return leaf.reshape((-1, *leaf.shape[len(shape) :]))

  def wrapped(*args: Any) -> Any:
    return _map_kinds(out_kinds, join, mapped(*_map_kinds(kinds, split, args)))

  return wrapped


def _taking_turns(fn: Callable[..., Any]) -> Callable[..., Any]:
  """Gives `fn` a batching rule that lays out one call after another."""
  batched = jax.custom_batching.custom_vmap(
    lambda *args: _kept_apart(fn(*_kept_apart(args)))
  )

  @batched.def_vmap
  def rule(size: int, in_batched: Any, *args: Any) -> tuple[Any, Any]:
    turns = []
    for i in range(size):
      mine = jax.tree.map(
        lambda is_batched, leaf, i=i: leaf[i] if is_batched else leaf,
        list(in_batched),
        list(args),
      )
      turns.append(batched(*mine))
    out = jax.tree.map(lambda *leaves: jnp.stack(leaves), *turns)
    return out, jax.tree.map(lambda _: True, out)

  return batched


def _kept_apart(tree: Any) -> Any:
  """Keeps XLA:CPU from fusing what computes `tree` with what uses it.

  Fused, a product and a sum become a multiply-add that rounds once, not twice,
  and the bits differ from those of workers with devices of their own. XLA:CPU
  drops `optimization_barrier` too early in jax 0.10, so the boundary is that of
  a conditional whose outcome no compiler knows: whether the first leaf of
  floating-point numbers begins with NaN. If it does, everything else is NaN.
  """
  leaves = jax.tree.leaves(tree)
  probe = next(x for x in leaves if jnp.issubdtype(x.dtype, jnp.floating))
  return jax.lax.cond(
    jnp.isnan(probe.ravel()[0]),
    lambda tree: jax.tree.map(_not_a_number, tree),
    lambda tree: tree,
    tree,
  )


def _not_a_number(leaf: jax.Array) -> jax.Array:
  if jnp.issubdtype(leaf.dtype, jnp.floating):
    return jnp.full_like(leaf, jnp.nan)
  return leaf
