"""What a worker keeps of the gradients that it has not sent."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from bandwidth.base import Params
from bandwidth.collectives.sparsity.units import Units
from bandwidth.collectives.wire.message import cast, pack
from bandwidth.collectives.workers.ordered import (
  axis_size,
  ordered_psum,
  rounded,
)


class Kept(NamedTuple):
  """What a worker keeps, as trees shaped as the parameters, or their vectors.

  Attributes:
    residual: float32, accumulated and not yet sent (v); () without feedback.
    momentum: float32, local momentum (u); () without it.
  """

  residual: Any
  momentum: Any


class Memory(NamedTuple):
  """How gradients accumulate until they are sent.

  Attributes:
    name: name of the method, 'none' without a memory.
    init: `params -> Kept` of zeros.
    accumulate: `(gradient, residual, momentum) -> (candidate, momentum)`, for
      one vector: what is selected from. A part that is not kept is None.
    dense: `(mean gradient, momentum) -> (update, momentum)`, for what all
      workers exchange in full.
    masks_momentum: the momentum is zeroed where it was sent (momentum factor
      masking).
    momentum: momentum factor, in [0, 1); 0: none.
  """

  name: str
  init: Callable[[Params], Kept]
  accumulate: Callable[..., tuple[jax.Array, Any]]
  dense: Callable[..., tuple[jax.Array, Any]]
  masks_momentum: bool
  momentum: float = 0.0


def _zeros(params: Params) -> Params:
  return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, jnp.float32), params)


def _unchanged(
  mean: jax.Array, momentum: jax.Array | None
) -> tuple[jax.Array, jax.Array | None]:
  return mean, momentum


def no_memory() -> Memory:
  """What is not sent is lost."""
  return Memory(
    'none',
    lambda params: Kept((), ()),
    lambda gradient, residual, momentum: (gradient, momentum),
    _unchanged,
    masks_momentum=False,
  )


def error_feedback() -> Memory:
  """What is not sent is added to the next gradient: `v = v + g`.

  Seide et al. 2014; Stich et al. 2018, arXiv 1809.07599; Aji and Heafield 2017,
  arXiv 1704.05021 ("gradient dropping").
  """
  return Memory(
    'error_feedback',
    lambda params: Kept(_zeros(params), ()),
    lambda gradient, residual, momentum: (residual + gradient, momentum),
    _unchanged,
    masks_momentum=False,
  )


def momentum_correction(
  momentum: float = 0.9, *, nesterov: bool = False, masking: bool = True
) -> Memory:
  """Local momentum, accumulated until it is sent (Lin et al. 2018).

  `u = m u + g; v = v + u`, or by Nesterov `u = m (u + g); v = v + u + g`. Where
  an element is sent, u becomes zero as well (momentum factor masking): stale
  momentum would carry it on in the old direction. Deep Gradient Compression,
  arXiv 1712.01887, sections 3.2 and 3.3. The optimizer behind it must have no
  momentum of its own.

  Args:
    momentum: momentum factor m, in [0, 1).
    nesterov: whether momentum is Nesterov's.
    masking: whether momentum is zeroed where an element is sent.

  Raises:
    ValueError: the momentum is not in [0, 1).
  """
  if not 0 <= momentum < 1:
    raise ValueError(f'momentum={momentum} is not in [0, 1)')

  def correct(gradient: jax.Array, u: jax.Array) -> tuple[jax.Array, jax.Array]:
    if nesterov:
      u = rounded(momentum * (u + gradient))
      return u + gradient, u
    u = momentum * u + gradient
    return u, u

  def accumulate(
    gradient: jax.Array, residual: jax.Array, u: jax.Array
  ) -> tuple[jax.Array, jax.Array]:
    step, u = correct(gradient, u)
    return residual + step, u

  return Memory(
    'momentum_correction',
    lambda params: Kept(_zeros(params), _zeros(params)),
    accumulate,
    correct,
    masks_momentum=masking,
    momentum=momentum,
  )


class Leaves(NamedTuple):
  """`Kept` as lists of leaves; None where nothing is kept."""

  residual: list[jax.Array] | None
  momentum: list[jax.Array] | None

  @classmethod
  def of(cls, kept: Kept, structure: Any) -> 'Leaves':
    """Takes the trees apart; `structure` is that of the parameters."""
    return cls(
      *(
        None if _is_absent(part) else structure.flatten_up_to(part)
        for part in kept
      )
    )

  def as_trees(self, structure: Any) -> Kept:
    """Puts the trees together again."""
    return Kept(
      *(() if p is None else jax.tree.unflatten(structure, p) for p in self)
    )


def _is_absent(part: Any) -> bool:
  return type(part) is tuple and not part


def accumulate(
  memory: Memory, units: Units, leaves: list[jax.Array], kept: Leaves
) -> tuple[list[jax.Array], list[jax.Array] | None]:
  """Returns the candidates of each unit, and its momentum.

  Args:
    memory: how gradients accumulate until sent.
    units: units of selection of the tree.
    leaves: gradients, in the order of `jax.tree.leaves`.
    kept: residual and momentum before the step.
  """
  grads = units.vectors(leaves)
  none = [None] * len(grads)
  residual = none if kept.residual is None else units.vectors(kept.residual)
  momentum = none if kept.momentum is None else units.vectors(kept.momentum)
  pairs = [
    memory.accumulate(g, v, u)
    for g, v, u in zip(grads, residual, momentum, strict=True)
  ]
  momenta = None if kept.momentum is None else [p[1] for p in pairs]
  return [p[0] for p in pairs], momenta


def retain(
  memory: Memory,
  units: Units,
  kept: Leaves,
  candidates: list[jax.Array],
  momenta: list[jax.Array] | None,
  places: list[jax.Array],
  rests: list[jax.Array],
  dense_momentum: jax.Array | None = None,
) -> Leaves:
  """Returns what is kept after a step.

  Args:
    memory: how gradients accumulate until sent.
    units: units of selection of the tree.
    kept: before the step; what is not sparsified stays as it is there.
    candidates: float32 vector of each unit, from `accumulate`.
    momenta: momentum of each unit, from `accumulate`. None: no momentum.
    places: int32 indices of what was sent of each unit; those beyond the end
      are padding.
    rests: rounding error of the values sent from these places.
    dense_momentum: new momentum of what is not sparsified. None: as before.
  """
  residual = momentum = None
  if kept.residual is not None:
    vectors = [
      put(v, at, rest)
      for v, at, rest in zip(candidates, places, rests, strict=True)
    ]
    residual = units.leaves(vectors, units.dense_vector(kept.residual))
  if momenta is not None and kept.momentum is not None:
    if memory.masks_momentum:
      momenta = [
        put(u, at, jnp.zeros(at.shape, jnp.float32))
        for u, at in zip(momenta, places, strict=True)
      ]
    if dense_momentum is None:
      dense_momentum = units.dense_vector(kept.momentum)
    momentum = units.leaves(momenta, dense_momentum)
  return Leaves(residual, momentum)


def put(vector: jax.Array, places: jax.Array, values: jax.Array) -> jax.Array:
  """Replaces elements at distinct places; those beyond the end are dropped."""
  return vector.at[places].set(values, mode='drop', unique_indices=True)


def mean_over(
  leaves: list[jax.Array], axes: tuple[str, ...]
) -> list[jax.Array]:
  """Averages arrays over workers in float32, in one message."""
  packed = pack(leaves)
  vector = packed.vector
  if axes and vector.size:
    vector = ordered_psum(vector, axes) / axis_size(axes)
  return packed.unpack(vector)


def flush_kept(
  kept: Kept, params: Params, axes: tuple[str, ...]
) -> tuple[Params, Kept]:
  """Averages the residuals densely, and leaves none.

  Args:
    kept: residual and momentum of this worker.
    params: tree of arrays whose dtypes the mean gets.
    axes: names of the mapped axes of the workers.
  """
  if _is_absent(kept.residual):
    return jax.tree.map(jnp.zeros_like, params), kept
  leaves, structure = jax.tree.flatten(kept.residual)
  mean = jax.tree.unflatten(structure, mean_over(leaves, axes))
  zeros = jax.tree.map(jnp.zeros_like, kept.residual)
  return cast(mean, params), kept._replace(residual=zeros)
