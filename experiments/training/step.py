"""One training step of one worker.

Loss, local gradients, reducer, optax chain, parameters. The step knows neither
how many workers there are nor how it is mapped over them (`workers.py`), nor
any method: what a method does, it does in the reducer and in the chain.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from bandwidth.base import AxisName, GradientReducer
from experiments.training.workers import PER_WORKER, REPLICATED

NEVER = jnp.iinfo(jnp.int32).max
"""The step at which a loss that was always finite stopped being so."""


class Window(NamedTuple):
  """Metrics of one worker, summed since the last time they were logged.

  Kept on the device, so that logging every n steps fetches once in n steps.
  """

  steps: jax.Array  # int32 []
  sums: dict[str, jax.Array]  # float32 [] each
  first_nonfinite: jax.Array  # int32 [], step of the first bad loss, or NEVER


class TrainState(NamedTuple):
  """All that training goes on from."""

  step: Any  # int32 [], steps done
  params: Any
  opt_state: optax.OptState
  reducer_state: Any
  model_state: Any  # batch-norm statistics and the like
  window: Any  # Window


STATE_KINDS = TrainState(
  step=REPLICATED,
  params=REPLICATED,
  opt_state=REPLICATED,
  reducer_state=PER_WORKER,
  model_state=PER_WORKER,
  window=PER_WORKER,
)


def empty_window(metrics: list[str]) -> Window:
  """Returns a window before its first step."""
  return Window(
    steps=jnp.zeros((), jnp.int32),
    sums={name: jnp.zeros((), jnp.float32) for name in metrics},
    first_nonfinite=jnp.array(NEVER, jnp.int32),
  )


def make_train_step(
  loss_gradients: Callable[..., Any],
  reducer: GradientReducer,
  optimizer: optax.GradientTransformation,
  *,
  axis_name: AxisName,
  seed: int,
) -> Callable[[TrainState, Any], TrainState]:
  """Returns the step of one worker.

  Args:
    loss_gradients: `(params, model_state, batch, key) -> ((loss, (model_state,
      metrics)), grads)`, local to the worker, as of `jax.value_and_grad(...,
      has_aux=True)`. No collective inside.
    reducer: averages the gradients over the workers.
    optimizer: applied by all workers alike.
    axis_name: the workers' axis or axes.
    seed: of the run. The key of a step is a function of (seed, step, worker),
      so a resumed run needs no generator state.

  Returns:
    `(state, batch) -> state`.
  """
  optimizer = optax.with_extra_args_support(optimizer)

  def train_step(state: TrainState, batch: Any) -> TrainState:
    key = jax.random.fold_in(jax.random.key(seed), state.step)
    key = jax.random.fold_in(key, jax.lax.axis_index(axis_name))
    (loss, (model_state, metrics)), grads = loss_gradients(
      state.params, state.model_state, batch, key
    )
    mean_grads, reducer_state = reducer.reduce(
      grads, state.reducer_state, state.params
    )
    # Whether a compiler contracts the mean's last product into the optimizer's
    # sums would depend on how the step is mapped.
    mean_grads = jax.lax.optimization_barrier(mean_grads)
    return _updated(optimizer, state, mean_grads)._replace(
      step=state.step + 1,
      reducer_state=reducer_state,
      model_state=model_state,
      window=_add(state.window, state.step + 1, {'loss': loss, **metrics}),
    )

  return train_step


def make_flush(
  reducer: GradientReducer, optimizer: optax.GradientTransformation
) -> Callable[[TrainState], TrainState]:
  """Returns `state -> state` that applies what a reducer has pending.

  Args:
    reducer: one that has a `flush`.
    optimizer: makes an update of it, as of a gradient.
  """
  optimizer = optax.with_extra_args_support(optimizer)
  flush = reducer.flush
  if flush is None:
    return lambda state: state

  def apply(state: TrainState) -> TrainState:
    mean, reducer_state = flush(state.reducer_state, state.params)
    mean = jax.lax.optimization_barrier(mean)
    updated = _updated(optimizer, state, mean)
    return updated._replace(reducer_state=reducer_state)

  return apply


def _updated(
  optimizer: optax.GradientTransformationExtraArgs,
  state: TrainState,
  mean_grads: Any,
) -> TrainState:
  # What arrives at the end of a chain is no gradient; scores may want one.
  updates, opt_state = optimizer.update(
    mean_grads, state.opt_state, state.params, grads=mean_grads
  )
  params = optax.apply_updates(state.params, updates)
  return state._replace(params=params, opt_state=opt_state)


def _add(window: Window, step: jax.Array, metrics: dict[str, Any]) -> Window:
  bad = jnp.where(jnp.isfinite(metrics['loss']), NEVER, step)
  return Window(
    steps=window.steps + 1,
    sums={
      name: total + metrics.get(name, 0.0)
      for name, total in window.sums.items()
    },
    first_nonfinite=jnp.minimum(window.first_nonfinite, bad),
  )


def wrap_train_step_with_input(
  step: Callable[..., TrainState], select: Callable[[Any, jax.Array], Any]
) -> Callable[[TrainState, Any], TrainState]:
  """Lets a step take its batch out of what the input feeds to the device.

  Args:
    step: `(state, batch) -> state`.
    select: `(feed, step) -> batch`, with the number of steps done before.
  """

  def with_input(state: TrainState, feed: Any) -> TrainState:
    return step(state, select(feed, state.step))

  return with_input


def wrap_train_step_with_log(
  step: Callable[[TrainState, Any], TrainState], log_every: int
) -> Callable[[TrainState, Any], tuple[TrainState, Window]]:
  """Lets a step return its window, and begin a new one every `log_every` steps.

  Returns:
    `(state, feed) -> (state, window)`, where the window is complete after steps
    that are multiples of `log_every`.
  """

  def with_log(state: TrainState, feed: Any) -> tuple[TrainState, Window]:
    state = step(state, feed)
    window = state.window
    full = state.step % log_every == 0
    fresh = empty_window(list(window.sums))
    state = state._replace(
      window=jax.tree.map(
        lambda new, old: jnp.where(full, new, old), fresh, window
      )
    )
    return state, window

  return with_log
