"""Pruning as optax transformations: projections placed last in a chain.

A projection replaces the update of a masked weight by the one that makes the
weight exactly zero, whatever momentum, moments or weight decay did before it.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from bandwidth.base import Masks, Params
from bandwidth.pruning import distributions, schedules, scores, structures
from bandwidth.pruning import masks as masks_lib

NO_PARAMS = 'params=None: the update of a pruned weight depends on the weight'


def project(updates: Params, params: Params, masks: Masks) -> Params:
  r"""Returns updates after which masked weights are exactly zero.

  .. math:: u' = u \text{ where the mask is True, else } -w

  w + (-w) is 0 in any floating type, provided that -w is exact. An update of a
  narrower type than its parameter is therefore widened to the parameter's.

  Args:
    updates: what would be added to the parameters.
    params: tree of arrays, the parameters, finite where masked.
    masks: tree of bool masks of their shapes; scalar True where unpruned.

  >>> w, u = jnp.array([0.1, 0.2]), jnp.array([1.0, 1.0])
  >>> (w + project(u, w, jnp.array([True, False]))).tolist()[1]
  0.0
  """

  def leaf(u: jax.Array, p: jax.Array, mask: jax.Array) -> jax.Array:
    dtype = jnp.promote_types(jnp.result_type(u), jnp.result_type(p))
    return jnp.where(mask, jnp.asarray(u, dtype), -jnp.asarray(p, dtype))

  return jax.tree.map(leaf, updates, params, masks)


def copied_masks(
  masks: Masks | Callable[[Params], Masks], params: Params
) -> Masks:
  """Returns masks for a state: copies, lest donating it delete the originals.

  Args:
    masks: tree of masks, or a function that makes it from the parameters.
    params: tree of arrays that the masks have to fit.

  Raises:
    ValueError: the masks do not fit the parameters.

  >>> copied_masks(lambda p: p > 1, jnp.array([1.0, 2.0])).tolist()
  [False, True]
  """
  # A tree may be callable, too, as modules of Equinox are.
  is_function = callable(masks) and jax.tree_util.all_leaves([masks])
  made = masks(params) if is_function else masks
  masks_lib.check_masks(params, made)
  return jax.tree.map(jnp.array, made)


class KeepMasksState(NamedTuple):
  """State of `keep_masks`.

  Attributes:
    masks: bool arrays of the parameters' shapes, or bool[] where unpruned.
  """

  masks: Masks


def keep_masks(
  masks: Masks | Callable[[Params], Masks],
) -> optax.GradientTransformation:
  """Keeps pruned weights at zero. Place it last in `optax.chain`.

  Parameters need not be pruned before: after the first update they are. The
  masks are in the state, so checkpoints carry them. Moments of pruned weights
  go on moving, unseen; give the chain `apply_masks(grads, masks)` to still
  them, and to keep dead gradients out of a global norm.

  Args:
    masks: tree of masks, or a function that makes it from the parameters that
      `init` is given, like `lambda p: magnitude_masks(p, 0.9)`.

  Returns:
    An `optax.GradientTransformation`; `init` raises ValueError if the masks do
    not fit the parameters.

  >>> params, masks = jnp.array([1.0, 2.0]), jnp.array([True, False])
  >>> tx = optax.chain(optax.adamw(0.1), keep_masks(masks))
  >>> updates, _ = tx.update(jnp.ones(2), tx.init(params), params)
  >>> optax.apply_updates(params, updates)[1].item()
  0.0
  """

  def init_fn(params: Params) -> KeepMasksState:
    return KeepMasksState(copied_masks(masks, params))

  def update_fn(
    updates: Params, state: Any, params: Params | None = None
  ) -> tuple[Params, KeepMasksState]:
    if params is None:
      raise ValueError(NO_PARAMS)
    return project(updates, params, state.masks), state

  return optax.GradientTransformation(init_fn, update_fn)


class PruneState(NamedTuple):
  """State of `prune`.

  Attributes:
    count: int32[], updates so far.
    sparsity: float32[], the target that the masks were made for.
    masks: bool arrays of the parameters' shapes, or bool[] where unpruned.
  """

  count: jax.Array
  sparsity: jax.Array
  masks: Masks


def prune(
  sparsity: float | schedules.Schedule,
  *,
  score: scores.Score = scores.magnitude,
  distribution: distributions.Distribution = distributions.uniform,
  structure: structures.Structure = structures.unstructured,
  rules: distributions.Rules | None = None,
  key: jax.Array | None = None,
) -> optax.GradientTransformationExtraArgs:
  """Prunes while training goes on. Place it last in `optax.chain`.

  Masks are made anew, inside the compiled step, whenever the schedule's value
  changes: hold it with `schedules.every` to save work. They rank the weights as
  this update would leave them. What is pruned stays pruned, unless the target
  falls, as in dense-sparse-dense training.

  Args:
    sparsity: target as a function of the update's number, or a constant.
    score: ranks the weights. A score of gradients needs them as an extra
      argument, `tx.update(grads, state, params, grads=grads)`, because what
      arrives at the end of a chain is no gradient.
    distribution: function that shares the target among parameters, as in
      `distributions`.
    structure: function that makes one parameter's mask, as in `structures`.
    rules: what is prunable, see `distributions.prunable`.
    key: typed key, for a random score.

  Returns:
    An `optax.GradientTransformationExtraArgs`. `init` raises ValueError if
    rules, structure or score do not fit the parameters, and names them.

  Raises:
    ValueError: a constant sparsity is not in [0, 1].

  >>> schedule = schedules.cubic(0.5, end=2)
  >>> tx = optax.chain(optax.sgd(0.0), prune(schedule))
  >>> params = jnp.array([[1.0, 4.0, 2.0, 3.0]])
  >>> state = tx.init(params)
  >>> for _ in range(3):
  ...   updates, state = tx.update(jnp.ones((1, 4)), state, params)
  ...   params = optax.apply_updates(params, updates)
  >>> params.tolist()
  [[0.0, 4.0, 0.0, 3.0]]
  """
  schedule = sparsity if callable(sparsity) else schedules.one_shot(sparsity)
  remask = functools.partial(
    _remask,
    score=score,
    distribution=distribution,
    structure=structure,
    rules=rules,
    key=key,
  )

  def init_fn(params: Params) -> PruneState:
    ones = jax.tree.map(lambda _: jnp.ones((), bool), params)
    shapes = jax.eval_shape(
      remask, params, params, ones, jnp.int32(0), jnp.float32(0)
    )
    masks = jax.tree.map(
      lambda p, m: jnp.ones_like(p if m.ndim else True, dtype=bool),
      params,
      shapes,
    )
    return PruneState(
      jnp.zeros((), jnp.int32), jnp.zeros((), jnp.float32), masks
    )

  def update_fn(
    updates: Params,
    state: Any,
    params: Params | None = None,
    *,
    grads: Params | None = None,
    **extra_args: Any,
  ) -> tuple[Params, PruneState]:
    del extra_args
    if params is None:
      raise ValueError(NO_PARAMS)
    target = jnp.asarray(schedule(state.count), jnp.float32)
    after = optax.apply_updates(params, project(updates, params, state.masks))
    masks = jax.lax.cond(
      target != state.sparsity,
      lambda: remask(after, grads, state.masks, state.count, target),
      lambda: state.masks,
    )
    count = jnp.asarray(optax.safe_increment(state.count))
    return project(updates, params, masks), PruneState(count, target, masks)

  return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def _remask(
  params: Params,
  grads: Params | None,
  masks: Masks,
  count: jax.Array,
  target: jax.Array,
  *,
  score: scores.Score,
  key: jax.Array | None,
  **options: Any,
) -> Masks:
  """Makes masks anew, those of now considered."""
  folded = None if key is None else jax.random.fold_in(key, count)
  ranked = score(params, grads=grads, key=folded)
  # What is pruned ranks last, so it returns only if the target falls.
  ranked = jax.tree.map(
    lambda s, m: jnp.where(m, s, jnp.asarray(-jnp.inf, s.dtype)), ranked, masks
  )
  return masks_lib.masks_from_scores(params, ranked, target, **options)
