"""Dynamic sparse training: the masks move, the number of weights does not."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from bandwidth.base import Masks, Params
from bandwidth.pruning import masks as masks_lib
from bandwidth.pruning import schedules, scores, structures, transforms


def drop_and_grow(
  weight: jax.Array, mask: jax.Array, growth: jax.Array, fraction: Any
) -> jax.Array:
  r"""Exchanges the weakest weights of one parameter for new ones.

  Of A active weights, the :math:`\lfloor f A \rfloor` of least magnitude are
  dropped, then as many are grown where the growth score is highest among all
  that are inactive now. A weight that was dropped may be grown again.

  Args:
    weight: array of any shape, the weights of one parameter.
    mask: bool array of its shape, True where a weight is active.
    growth: growth scores of its shape; the highest are grown.
    fraction: f in [0, 1], a number or a traced scalar.

  Returns:
    The new mask, with as many True as the old. Ties go to the lower index.

  References:
    Evci et al., Rigging the Lottery, 2020, algorithm 1,
    https://arxiv.org/abs/1911.11134

  >>> weight = jnp.array([3.0, 1.0, 0.0, 0.0])
  >>> growth = jnp.array([0.0, 0.1, 0.2, 0.9])
  >>> drop_and_grow(weight, weight != 0, growth, 0.5).tolist()
  [True, False, False, True]
  """
  active = jnp.sum(mask, dtype=jnp.int32)
  # A decimal fraction of a round number should not lose one to rounding.
  number = jnp.float32(fraction) * active * (1 + 1e-6)
  exchanged = jnp.minimum(jnp.floor(number).astype(jnp.int32), active)
  keep = structures.top_k_mask(
    jnp.where(mask, jnp.abs(weight), -jnp.inf), active - exchanged
  )
  grown = structures.top_k_mask(jnp.where(keep, -jnp.inf, growth), exchanged)
  return keep | grown


class SparseTrainingState(NamedTuple):
  """State of `sparse_training`.

  Attributes:
    count: int32[], updates so far.
    masks: bool arrays of the parameters' shapes, or bool[] where unpruned.
    inner_state: state of the optimizer inside.
  """

  count: jax.Array
  masks: Masks
  inner_state: Any


def sparse_training(
  inner: optax.GradientTransformation,
  masks: Masks | Callable[[Params], Masks],
  *,
  end: int,
  frequency: int = 100,
  fraction: float | schedules.Schedule = 0.3,
  grow: scores.Score = scores.gradient_magnitude,
  key: jax.Array | None = None,
) -> optax.GradientTransformationExtraArgs:
  """Trains a network that is sparse from the first step (RigL, SET).

  Every `frequency` updates before `end`, each parameter exchanges a fraction
  of its weights, see `drop_and_grow`. Such an update takes no gradient step, as
  in RigL. A grown weight starts at zero, and whatever the optimizer holds for
  grown and dropped weights (momentum, moments) is set to zero. In between, the
  optimizer sees no gradient of masked weights. Statistics that are not of a
  parameter's shape, like Adafactor's factors, are left alone.

  It is the whole optimizer, not a link at its end. Give it the gradients of all
  weights, which the loss at the masked parameters has. Start from
  `apply_masks(params, masks)`; after the first update it is so anyway.

  Args:
    inner: the optimizer, any optax transformation or chain.
    masks: tree of masks, or a function that makes it from the parameters that
      `init` is given. Usually `make_masks` with `scores.random` and
      `distributions.erdos_renyi_kernel`.
    end: T_end, the update from which no weights are exchanged.
    frequency: ΔT, updates from one exchange to the next.
    fraction: exchanged at first and falling to 0 at `end` by
      `schedules.cosine_fraction`, or a schedule of one's own.
    grow: ranks the weights to grow: `scores.gradient_magnitude` is RigL,
      `scores.random` is SET.
    key: typed key, for random growth. None where the score needs none.

  Returns:
    An `optax.GradientTransformationExtraArgs`; `init` raises ValueError if
    masks or score do not fit the parameters.

  Raises:
    ValueError: a number is out of range.

  References:
    Evci et al., 2020, https://arxiv.org/abs/1911.11134;
    Mocanu et al., 2018, https://arxiv.org/abs/1707.04780

  >>> params = jnp.array([3.0, 1.0, 0.0, 0.0])
  >>> tx = sparse_training(
  ...   optax.sgd(0.1), params != 0, end=10, frequency=1, fraction=1.0
  ... )
  >>> state = tx.init(params)
  >>> for _ in range(2):
  ...   grads = jnp.array([0.0, 0.0, 0.0, 1.0])
  ...   updates, state = tx.update(grads, state, params)
  ...   params = optax.apply_updates(params, updates)
  >>> state.masks.tolist(), params.tolist()
  ([True, False, False, True], [3.0, 0.0, 0.0, 0.0])
  """
  if frequency < 1:
    raise ValueError(f'frequency={frequency!r} is not positive')
  exchanged = _fraction_schedule(fraction, end)
  inner = optax.with_extra_args_support(inner)

  def growth(params: Params, grads: Params, count: jax.Array) -> Params:
    folded = None if key is None else jax.random.fold_in(key, count)
    return grow(params, grads=grads, key=folded)

  def init_fn(params: Params) -> SparseTrainingState:
    jax.eval_shape(growth, params, params, jnp.int32(0))
    return SparseTrainingState(
      jnp.zeros((), jnp.int32),
      transforms.copied_masks(masks, params),
      inner.init(params),
    )

  def update_fn(
    updates: Params,
    state: Any,
    params: Params | None = None,
    **extra_args: Any,
  ) -> tuple[Params, SparseTrainingState]:
    if params is None:
      raise ValueError(transforms.NO_PARAMS)
    count, old, slots = state.count, state.masks, state.inner_state
    masked = masks_lib.apply_masks(updates, old)
    step, stepped = inner.update(masked, slots, params, **extra_args)

    def train() -> tuple[Params, Masks, Any]:
      return transforms.project(step, params, old), old, stepped

    def exchange() -> tuple[Params, Masks, Any]:
      grown = growth(params, updates, count)
      new = _exchanged_masks(params, old, grown, exchanged(count))
      changed = jax.tree.map(jnp.not_equal, old, new)
      held = _hold_slots(inner, slots, stepped, changed)
      return _no_step(step, params, old, new), new, held

    due = (count % frequency == 0) & (count > 0) & (count < end)
    result, masks_, inner_state = jax.lax.cond(due, exchange, train)
    next_count = jnp.asarray(optax.safe_increment(count))
    return result, SparseTrainingState(next_count, masks_, inner_state)

  return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def _fraction_schedule(
  fraction: float | schedules.Schedule, end: int
) -> schedules.Schedule:
  """Returns the schedule that was given, or the cosine from a number to 0."""
  if callable(fraction):
    return fraction
  return schedules.cosine_fraction(fraction, end=end)


def _no_step(step: Params, params: Params, old: Masks, new: Masks) -> Params:
  """Returns updates that only zero the weights that are not in both masks."""
  both = jax.tree.map(jnp.logical_and, old, new)
  still = jax.tree.map(jnp.zeros_like, step)
  return transforms.project(still, params, both)


def _exchanged_masks(
  params: Params, masks: Masks, growth: Params, fraction: jax.Array
) -> Masks:
  """Exchanges weights in every parameter that is pruned."""
  return jax.tree.map(
    lambda p, m, g: drop_and_grow(p, m, g, fraction) if m.ndim else m,
    masks_lib.apply_masks(params, masks),
    masks,
    growth,
  )


def _hold_slots(
  inner: optax.GradientTransformation, old: Any, new: Any, changed: Params
) -> Any:
  """Returns the optimizer's state after an update that took no step.

  Slots, the leaves that belong to a weight, stay as they were, and are zero
  where the mask changed. Counters move on, lest learning-rate schedules lag.
  """

  def is_masked(x: Any) -> bool:
    return isinstance(x, optax.MaskedNode)

  def reset(slot: Any, change: jax.Array) -> Any:
    if is_masked(slot) or (change.ndim and jnp.shape(slot) != change.shape):
      return slot
    return jnp.where(change, jnp.zeros((), slot.dtype), slot)

  slots = optax.tree_utils.tree_map_params(
    inner.init, reset, old, changed, is_leaf=is_masked
  )
  of_weights = optax.tree_utils.tree_map_params(
    inner.init,
    lambda slot: slot if is_masked(slot) else True,
    old,
    transform_non_params=lambda _: False,
    is_leaf=is_masked,
  )
  return jax.tree.map(
    lambda flag, slot, fresh: slot if flag else fresh, of_weights, slots, new
  )
