"""Sparse all-reduce with the same support on all workers.

Where all workers send the same coordinates, values alone are added up, by a
dense all-reduce of k elements: no traffic that grows with the number of
workers, no second selection. The coordinates are random, from a key that all
share, or the choice of a leader, the workers taking turns. A gradient that is
not finite is seen by all when its place is sent, not before.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike

from bandwidth.base import AxisName, GradientReducer, Params
from bandwidth.collectives.dense import (
  dense_all_reduce,
  dense_wire_bytes,
  wire_dtype,
)
from bandwidth.collectives.sparsity.memory import (
  Kept,
  Leaves,
  Memory,
  accumulate,
  error_feedback,
  flush_kept,
  put,
  retain,
)
from bandwidth.collectives.sparsity.selection import top_k_indices
from bandwidth.collectives.sparsity.units import Units, check_scope, plan_units
from bandwidth.collectives.traffic.closed_forms import all_reduce_bytes
from bandwidth.collectives.wire.elias_fano import EliasFano
from bandwidth.collectives.wire.message import cast, check_floating
from bandwidth.collectives.workers.axes import axis_names, count_workers
from bandwidth.collectives.workers.ordered import axis_size, same_on_all


class AlignedState(NamedTuple):
  """State of a worker."""

  kept: Kept  # float32, shaped as the parameters
  step: jax.Array  # int32 [], calls of `reduce`, the same on all workers


_Choose = Callable[[list[jax.Array], Sequence[int], jax.Array], list[jax.Array]]


def random_k(
  axis_name: AxisName = 'data',
  *,
  density: float,
  memory: Memory | None = None,
  dtype: DTypeLike = jnp.float32,
  scope: str = 'layer',
  seed: int = 0,
) -> GradientReducer:
  """Averages random elements, the same ones of all workers.

  Each unit of n elements is cut into k strata, and of each one element is
  drawn: no index is sent. With a memory, what is not drawn waits. Without one
  (`no_memory()`), drawn elements are multiplied by the size of their stratum,
  so that the mean is unbiased (Wangni et al. 2018, arXiv 1710.09854; Stich et
  al. 2018, arXiv 1809.07599).

  Args:
    axis_name: mapped axis, or axes, of the workers. None: one worker.
    density: fraction of elements that is drawn, in (0, 1].
    memory: what keeps elements until drawn. None: `error_feedback()`.
    dtype: dtype of the values sent: float32, bfloat16 or float16.
    scope: 'layer' draws from each leaf, 'global' from all together.
    seed: seed of the draws, an int; the same on all workers.

  Returns:
    A reducer with the state `AlignedState`.

  Raises:
    ValueError: an argument is out of range or unknown.
  """
  memory = memory or error_feedback()

  def choose(
    candidates: list[jax.Array], counts: Sequence[int], step: jax.Array
  ) -> list[jax.Array]:
    key = jax.random.fold_in(jax.random.key(seed), step)
    keys = jax.random.split(key, max(len(candidates), 1))
    return [
      one_of_each_stratum(k, v.size, count)
      for k, v, count in zip(keys, candidates, counts, strict=False)
    ]

  return _aligned(
    axis_name,
    choose,
    index_bytes=lambda units, counts, workers: 0,
    density=density,
    memory=memory,
    dtype=dtype,
    scope=scope,
    scaled=memory.name == 'none',
  )


def strata(size: int, count: int) -> jax.Array:
  """Returns the borders of `count` strata of `size` elements, [count + 1].

  >>> strata(10, 3)
  Array([ 0,  4,  7, 10], dtype=int32)
  """
  width, rest = divmod(size, max(count, 1))
  order = jnp.arange(count + 1, dtype=jnp.int32)
  return order * width + jnp.minimum(order, rest)


def one_of_each_stratum(key: jax.Array, size: int, count: int) -> jax.Array:
  """Draws one element of each of `count` strata: int32 [count], increasing."""
  borders = strata(size, count)
  return jax.random.randint(key, (count,), borders[:-1], borders[1:])


def shared_mask(
  axis_name: AxisName = 'data',
  *,
  density: float,
  memory: Memory | None = None,
  dtype: DTypeLike = jnp.float32,
  scope: str = 'layer',
) -> GradientReducer:
  """Averages the elements that a leader selects, the workers taking turns.

  In step t worker `t mod P` selects the largest elements of what it has
  accumulated, and all workers send theirs at the same places: cyclic local
  top-k of ScaleCom (Chen et al. 2020, arXiv 2104.11125). The leader's indices
  travel in Elias–Fano code, in a sum to which the others add zeros.

  Args:
    axis_name: mapped axis, or axes, of the workers. None: one worker.
    density: fraction of elements that is selected, in (0, 1].
    memory: what keeps elements until sent. None: `error_feedback()`.
    dtype: dtype of the values sent: float32, bfloat16 or float16.
    scope: 'layer' selects from each leaf, 'global' from all together.

  Returns:
    A reducer with the state `AlignedState`.

  Raises:
    ValueError: an argument is out of range or unknown.
  """
  axes = axis_names(axis_name)

  def choose(
    candidates: list[jax.Array], counts: Sequence[int], step: jax.Array
  ) -> list[jax.Array]:
    pairs = list(zip(candidates, counts, strict=True))
    chosen = [top_k_indices(v, k) for v, k in pairs]
    if not axes:
      return chosen
    leads = lax.axis_index(axes) == step % axis_size(axes)
    codes = [EliasFano(v.size, k) for v, k in pairs]
    words = [
      code.encode(index) for code, index in zip(codes, chosen, strict=True)
    ]
    joined = jnp.concatenate([jnp.zeros(0, jnp.uint32), *words])
    shared = lax.psum(jnp.where(leads, joined, jnp.uint32(0)), axes)
    found, start = [], 0
    for code in codes:
      found.append(code.decode(shared[start : start + code.words]))
      start += code.words
    return found

  def index_bytes(units: Units, counts: Sequence[int], workers: int) -> int:
    words = sum(
      EliasFano(n, k).words for n, k in zip(units.sizes, counts, strict=True)
    )
    return all_reduce_bytes(4 * words, workers)

  return _aligned(
    axis_name,
    choose,
    index_bytes=index_bytes,
    density=density,
    memory=memory or error_feedback(),
    dtype=dtype,
    scope=scope,
  )


def _aligned(
  axis_name: AxisName,
  choose: _Choose,
  *,
  index_bytes: Callable[[Units, Sequence[int], int], int],
  density: float,
  memory: Memory,
  dtype: DTypeLike,
  scope: str,
  scaled: bool = False,
) -> GradientReducer:
  """Averages what `choose` picks, the same places on all workers."""
  if not 0 < density <= 1:
    raise ValueError(f'density={density} is not in (0, 1]')
  check_scope(scope)
  axes, wire = axis_names(axis_name), wire_dtype(dtype)
  mean_of = dense_all_reduce(axes or None, dtype=wire)

  def init(params: Params) -> AlignedState:
    return AlignedState(memory.init(params), jnp.zeros((), jnp.int32))

  def reduce(
    grads: Params, state: AlignedState, params: Params = None
  ) -> tuple[Params, AlignedState]:
    del params
    axis_size(axes)
    check_floating(grads)
    units = plan_units(grads, scope=scope)
    leaves, structure = jax.tree.flatten(grads)
    kept = Leaves.of(state.kept, structure)
    candidates, momenta = accumulate(memory, units, leaves, kept)
    counts = units.counts(density)
    places = choose(candidates, counts, same_on_all(state.step, axes))
    picked = [v[at] for v, at in zip(candidates, places, strict=True)]
    sent = [_on_wire(v, wire) for v in picked]
    means, _ = mean_of.reduce(sent, ())
    update = _as_leaves(means, places, units, leaves, scaled)
    rests = [p - s for p, s in zip(picked, sent, strict=True)]
    new = retain(memory, units, kept, candidates, momenta, places, rests)
    average = cast(jax.tree.unflatten(structure, update), grads)
    return average, AlignedState(new.as_trees(structure), state.step + 1)

  def wire_bytes(params: Params, workers: int | Sequence[int]) -> int:
    units = plan_units(params, scope=scope)
    counts = units.counts(density)
    values = jax.ShapeDtypeStruct((sum(counts),), jnp.float32)
    indices = index_bytes(units, counts, count_workers(workers))
    return indices + dense_wire_bytes(values, workers=workers, dtype=wire)

  def flush(state: AlignedState, params: Params) -> tuple[Params, AlignedState]:
    mean, kept = flush_kept(state.kept, params, axes)
    return mean, state._replace(kept=kept)

  return GradientReducer(
    init, reduce, wire_bytes, flush, momentum=memory.momentum
  )


def _as_leaves(
  means: list[jax.Array],
  places: list[jax.Array],
  units: Units,
  leaves: list[jax.Array],
  scaled: bool,
) -> list[jax.Array]:
  """Returns leaves with the means at their places, and zeros elsewhere.

  Args:
    means: float32, of each unit.
    places: int32 indices of the means in each unit.
    units: what is selected from.
    leaves: gradients, of which the dense ones are returned as they are.
    scaled: whether each mean is multiplied by the size of its stratum.
  """
  dense = []
  for n, at, m in zip(units.sizes, places, means, strict=True):
    if scaled:
      m = m * jnp.diff(strata(n, at.size)).astype(jnp.float32)
    dense.append(put(jnp.zeros(n, jnp.float32), at, m))
  return units.leaves(dense, units.dense_vector(leaves))


def _on_wire(values: jax.Array, wire: jnp.dtype) -> jax.Array:
  """What the others see of a worker's values; the rest is kept."""
  info = jnp.finfo(wire)
  return lax.reduce_precision(values, info.nexp, info.nmant)
