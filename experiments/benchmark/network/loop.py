"""What the training loop and its input cost beside the compiled step.

Times of one step, in one process, interleaved: the compiled step called in a
bare Python loop on a batch that lies on the devices; the same with the batch
gathered on the device from the resident set, as training does; and the training
loop itself, with the order of epochs, metrics, event files and log lines. All
three wait for steps as the training loop does.
"""

import functools
import pathlib
import tempfile
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np

from experiments.benchmark.harness import Benchmark
from experiments.benchmark.network.one_batch import OneBatch
from experiments.config import resolve
from experiments.measuring.limits import matmul_rate
from experiments.measuring.turns import spent_by, take_turns
from experiments.runtime import options, startup
from experiments.runtime.metrics import MetricsWriter, Progress
from experiments.training.checkpoints import Checkpoints
from experiments.training.job import make_setup
from experiments.training.loop import (
  CompiledStage,
  Job,
  Sinks,
  compile_stage,
  run_steps,
)
from experiments.training.stages import Stage, first_state
from experiments.training.step import TrainState
from experiments.training.workers import PER_WORKER


def _fixed(job: Job, batch_size: int) -> Any:
  """One batch, on the devices, for every step."""
  data = np.random.default_rng(0)
  rows = (job.workers.count, batch_size // job.workers.count)
  batch = {
    'image': data.integers(0, 256, (*rows, 28, 28, 1)).astype(np.uint8),
    'label': data.integers(0, 10, rows).astype(np.int32),
  }
  return OneBatch(job.workers.place(batch, PER_WORKER))


def _bare(
  program: CompiledStage, data: Any, steps: int, *, on_host: bool
) -> Callable[[TrainState], TrainState]:
  """A bare Python loop over the compiled step."""

  def run(state: TrainState) -> TrainState:
    flying = None
    for step in range(steps):
      state, window = program.call(state, data.feed(step))
      if flying is not None:
        jax.block_until_ready(flying.steps)
      flying = window
      if on_host:
        jax.block_until_ready(window.steps)
        flying = None
    return jax.block_until_ready(state)

  return run


def _config(batch_size: int) -> Mapping[str, Any]:
  return resolve(
    {
      'workers': 4,
      'batch_size': batch_size,
      'dataset': {'mean': 0.1307, 'std': 0.3081},
      'optimizer': {'learning_rate': 0.01},
      'stages': {'train': {'steps': 10**9}},
      'eval_every_epochs': 0.0,
      'checkpoint_every_epochs': 0.0,
    }
  )


def _rows_of(batch_size: int, steps: int, repeats: int) -> list[dict[str, Any]]:
  setup = make_setup(_config(batch_size))
  job, stage = setup.job, setup.job.stages[0]
  fixed = job._replace(data=_fixed(job, batch_size))

  def fresh() -> TrainState:
    return first_state(
      stage, setup.params, setup.model_state, job.workers, setup.metrics
    )

  def timer(run: Callable[[TrainState], TrainState]) -> Callable[[], float]:
    def once() -> float:
      state = fresh()
      return spent_by(lambda: run(state))

    return once

  with tempfile.TemporaryDirectory() as directory:
    sinks = _sinks(pathlib.Path(directory))
    programs = [compile_stage(j, stage, fresh()) for j in (fixed, job)]
    bare = functools.partial(_bare, on_host=job.workers.on_host)
    runs = {
      'bare, fixed batch': bare(programs[0], fixed.data, steps),
      'bare, gathered batch': bare(programs[1], job.data, steps),
      'training loop': _loop(job, stage, programs[1], sinks, steps),
    }
    timers = {name: timer(run) for name, run in runs.items()}
    turns = take_turns(timers, repeats)
    sinks.checkpoints.close()
  # The backward pass costs twice the forward pass.
  operations = 3 * (setup.facts['flops_per_example'] or 0) * batch_size
  limit = operations / matmul_rate()
  return [
    {
      'batch': batch_size,
      'what': name,
      'us_per_step': round(1e6 * turns.median(name) / steps, 1),
      'by_bare': round(turns.ratio(name, 'bare, gathered batch'), 3),
      'by_fixed_batch': round(turns.ratio(name, 'bare, fixed batch'), 3),
      'compute_limit_us': round(1e6 * limit, 1),
    }
    for name in runs
  ]


def _loop(
  job: Job, stage: Stage, program: CompiledStage, sinks: Sinks, steps: int
) -> Callable[[TrainState], TrainState]:
  def run(state: TrainState) -> TrainState:
    state = run_steps(job, stage, program, state, sinks, step=0, until=steps)
    return jax.block_until_ready(state)

  return run


def _sinks(directory: pathlib.Path) -> Sinks:
  return Sinks(
    checkpoints=Checkpoints(directory / 'checkpoints'),
    writer=MetricsWriter(directory, step=0),
    progress=Progress(steps=1, step=0, silent=True),
    info=lambda: {'seconds': 0.0},
    done=lambda stage, state: None,
  )


def _rows(given: Any) -> Iterator[list[dict[str, Any]]]:
  startup.prepare_devices({'cpu_devices': 4}, startup.Processes())
  for batch in given.batch:
    yield _rows_of(batch, given.steps, given.repeats)


main = Benchmark(
  name='loop',
  about=__doc__,
  options={
    'batch': options.integer([64, 1024]),
    'steps': options.integer(400),
    'repeats': options.integer(9),
  },
  measure=_rows,
  parts=lambda given: len(given.batch),
  seed=0,
).main
