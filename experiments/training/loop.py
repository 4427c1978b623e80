"""The training loop: stages, steps, and what happens between them.

The loop knows no method. It dispatches a step before it waits for the one
before, so that the device never waits for Python, and never has more than two
steps in flight. Where the devices are the host's own cores it waits for each
step: XLA:CPU is slower with two, and deadlocks on a long queue of collective
programs.
"""

import time
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from bandwidth.base import GradientReducer
from bandwidth.collectives.traffic import accounting
from experiments.compression.methods import wrap_loss_with_method
from experiments.runtime.metrics import MetricsWriter, Progress
from experiments.runtime.startup import InputError
from experiments.training.checkpoints import Checkpoints
from experiments.training.evaluation import Evaluator
from experiments.training.stages import Stage, next_state, stage_of
from experiments.training.step import (
  STATE_KINDS,
  TrainState,
  Window,
  make_flush,
  make_train_step,
  wrap_train_step_with_input,
  wrap_train_step_with_log,
)
from experiments.training.workers import REPLICATED, Workers


class Data(Protocol):
  """Training batches, on the devices when a step begins."""

  kinds: Any  # REPLICATED or PER_WORKER, of each leaf of a feed
  steps_per_epoch: int  # steps of a pass over the set

  def feed(self, step: int) -> Any:
    """Returns what the step after `step` steps takes its batch from."""
    ...

  def select(self, feed: Any, step: jax.Array) -> Any:
    """Takes a worker's batch out of its feed, inside the step."""
    ...


class Job(NamedTuple):
  """A run, built from its config, before any file of it exists."""

  workers: Workers  # and their devices
  stages: list[Stage]  # in their order
  data: Data  # training batches
  loss: Callable[..., Any]  # of the network's parameters, local to a worker
  evaluator: Evaluator  # on the split that the config chose
  seed: int  # of the run
  log_every: int  # steps
  eval_every: int  # steps; 0: at the ends of stages only
  checkpoint_every: int  # likewise


class Sinks(NamedTuple):
  """Where a run leaves what it does."""

  checkpoints: Checkpoints  # of all processes
  writer: MetricsWriter | None  # of process 0, else None
  progress: Progress  # silent except in process 0
  # Of the run so far, `seconds` among it, saved with each checkpoint.
  info: Callable[[], dict[str, Any]]
  # Called with each stage that is done and the state after it, before that is
  # saved.
  done: Callable[[Stage, TrainState], None]


class CompiledStage(NamedTuple):
  """The program of a stage."""

  # `(state, feed) -> (state, window)`. The state's memory is reused.
  call: jax.stages.Compiled
  seconds: float  # that the compiler took
  predicted_bytes: int  # on the wire, a worker and a step, in closed form
  hlo_bytes: int  # the same, read from the compiled program


def compile_stage(job: Job, stage: Stage, state: TrainState) -> CompiledStage:
  """Builds the step of a stage, maps it over the workers and compiles it."""
  loss = wrap_loss_with_method(job.loss, stage.method)
  step = make_train_step(
    job.workers.local_gradients(jax.value_and_grad(loss, has_aux=True)),
    stage.reducer,
    stage.optimizer,
    axis_name=job.workers.axis_name,
    seed=job.seed,
  )
  step = wrap_train_step_with_input(step, job.data.select)
  step = wrap_train_step_with_log(step, job.log_every)
  start = time.monotonic()
  compiled = job.workers.compile(
    step,
    (state, job.data.feed(stage.first)),
    kinds=(STATE_KINDS, job.data.kinds),
    out_kinds=(STATE_KINDS, STATE_KINDS.window),
    donate=(0,),
  )
  return CompiledStage(
    call=compiled,
    seconds=time.monotonic() - start,
    predicted_bytes=predicted_bytes(stage.reducer, state.params, job.workers),
    hlo_bytes=accounting.wire_bytes(compiled),
  )


def predicted_bytes(
  reducer: GradientReducer, params: Any, workers: Workers
) -> int:
  """Returns what a worker sends a step, in closed form."""
  return reducer.wire_bytes(params, tuple(workers.axes.values()))


def train(
  job: Job, state: TrainState, sinks: Sinks, *, step: int
) -> tuple[TrainState, list[CompiledStage]]:
  """Runs the stages of a job from where a state stands to the end.

  Args:
    job: the run, as its config has it.
    state: after `step` steps, of the stage that made the last of them.
    sinks: where metrics and checkpoints go.
    step: number of steps that are done.

  Returns:
    The last state, and the programs of the stages that were entered.

  Raises:
    InputError: the loss or a parameter is not finite any more. The last good
      checkpoint is kept.
  """
  current = stage_of(job.stages, max(step, 1))
  programs = []
  for index, stage in enumerate(job.stages):
    done = step >= stage.last and index < len(job.stages) - 1
    if index < current or done:
      continue
    if index > current:
      state = next_state(stage, job.stages[index - 1], state, job.workers)
    program = compile_stage(job, stage, state)
    programs.append(program)
    sinks.progress.say(_describe(stage, program))
    state = run_steps(
      job,
      stage,
      program,
      state,
      sinks,
      step=max(step, stage.first),
      until=stage.last,
    )
    step = stage.last
  return state, programs


def flush_pending(job: Job, stage: Stage, state: TrainState) -> TrainState:
  """Applies what is still pending in the workers' residuals, in one update."""
  reducer = stage.reducer
  if reducer.flush is None:
    return state
  apply = make_flush(reducer, stage.optimizer)
  compiled = job.workers.compile(
    apply, (state,), kinds=(STATE_KINDS,), out_kinds=STATE_KINDS, donate=(0,)
  )
  return compiled(state)


def _describe(stage: Stage, program: CompiledStage) -> str:
  return (
    f'stage {stage.name}: steps {stage.first + 1} to {stage.last}, compiled in '
    f'{program.seconds:.1f} s; bytes on the wire, a worker and a step: '
    f'{program.predicted_bytes:,} predicted, {program.hlo_bytes:,} in the '
    'compiled program'
  )


def run_steps(
  job: Job,
  stage: Stage,
  program: CompiledStage,
  state: TrainState,
  sinks: Sinks,
  *,
  step: int,
  until: int,
) -> TrainState:
  """Runs steps `step + 1` to `until` of a stage."""
  between = _Between(job, stage, sinks)
  flying: Window | None = None
  for current in range(step + 1, until + 1):
    state, window = program.call(state, job.data.feed(current - 1))
    if flying is not None:
      between.steps(current - 1, flying)
    flying = window
    if job.workers.on_host or between.is_due(current):
      between.steps(current, window)
      flying = None
    if between.is_due(current):
      if current == stage.last and stage.flush:
        state = flush_pending(job, stage, state)
      between.checkpoint_and_evaluate(current, state)
  if flying is not None:
    between.steps(until, flying)
  return state


class _Between:
  """What happens between the steps of a stage."""

  def __init__(self, job: Job, stage: Stage, sinks: Sinks):
    self._job, self._stage, self._sinks = job, stage, sinks
    self._finite = jax.jit(
      _all_finite, out_shardings=job.workers.sharding(REPLICATED)
    )
    self._decode = jax.jit(
      stage.method.decode, out_shardings=job.workers.sharding(REPLICATED)
    )
    self._since = time.monotonic()
    self._logged = -1

  def is_due(self, step: int) -> bool:
    """Whether the state after a step is needed before the next step."""
    return self._evaluates(step) or self._saves(step)

  def _evaluates(self, step: int) -> bool:
    return self._is_turn(self._job.eval_every, step)

  def _saves(self, step: int) -> bool:
    return self._is_turn(self._job.checkpoint_every, step)

  def _is_turn(self, every: int, step: int) -> bool:
    return step == self._stage.last or (every > 0 and step % every == 0)

  def steps(self, step: int, window: Window) -> None:
    """Waits for a step, and logs it if it is its turn."""
    jax.block_until_ready(window.steps)
    if not (self.is_due(step) or step % self._job.log_every == 0):
      return
    metrics, bad = _fetch(window)
    if bad <= step:
      raise _not_finite(bad, 'the loss', self._sinks)
    if step % self._job.log_every == 0:
      now, stepped = time.monotonic(), step - max(self._logged, 0)
      if self._logged >= 0:
        metrics['steps_per_second'] = stepped / (now - self._since)
      self._since, self._logged = now, step
      self._write(step, metrics)

  def checkpoint_and_evaluate(self, step: int, state: TrainState) -> None:
    """Does what is due after a step; the state is not used meanwhile."""
    if not bool(self._finite(state.params)):
      raise _not_finite(step, 'a parameter', self._sinks)
    if self._evaluates(step):
      params = self._decode(state.params)
      result = self._job.evaluator(params, state.model_state)
      scores = {f'eval_{k}': v for k, v in result.items()}
      self._write(step, {**scores, 'seconds': self._sinks.info()['seconds']})
    if step == self._stage.last:
      self._sinks.done(self._stage, state)
    if self._saves(step):
      self._sinks.checkpoints.save(step, state, self._sinks.info())
    self._logged = -1 if step % self._job.log_every else step
    self._since = time.monotonic()

  def _write(self, step: int, metrics: dict[str, float]) -> None:
    if self._sinks.writer is not None:
      self._sinks.writer.write(step, self._stage.name, metrics)
    self._sinks.progress.update(step, self._stage.name, metrics)


def _all_finite(params: Any) -> jax.Array:
  leaves = [jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(params)]
  return jnp.stack(leaves).all()


def _not_finite(step: int, what: str, sinks: Sinks) -> InputError:
  sinks.checkpoints.wait()
  kept = sinks.checkpoints.latest()
  good = 'no checkpoint' if kept is None else f'the checkpoint of step {kept}'
  return InputError(
    f'{what} is not finite at step {step}; {good} is kept. A lower '
    'optimizer.learning_rate or optimizer.clip_norm may help'
  )


def _fetch(window: Window) -> tuple[dict[str, float], int]:
  """Returns means over steps and workers, and the first bad step."""
  names = sorted(window.sums)
  columns = [window.sums[n] for n in names]
  columns += [window.steps, window.first_nonfinite]
  local = np.stack([_local(column) for column in columns]).astype(np.float64)
  if jax.process_count() > 1:
    from jax.experimental import multihost_utils

    # int32 pairs hold a float64 where 64-bit arrays are off.
    words = multihost_utils.process_allgather(local.view(np.int32))
    local = np.concatenate(list(words.view(np.float64)), axis=1)
  steps = max(local[-2].max(), 1.0)
  means = local[:-2].mean(axis=1) / steps
  return dict(zip(names, means.tolist(), strict=True)), int(local[-1].min())


def _local(column: jax.Array) -> np.ndarray:
  if column.is_fully_addressable:
    return np.asarray(column)
  shards = sorted(column.addressable_shards, key=lambda s: s.index[0].start)
  return np.concatenate([np.asarray(shard.data) for shard in shards])
