"""What the training loop and its input cost beside the compiled step.

Times of one step, in one process, interleaved: the compiled step called in a
bare Python loop on a batch that lies on the devices; the same with the batch
gathered on the device from the resident set, as training does; and the training
loop itself, with the order of epochs, metrics, event files and log lines. All
three wait for steps as the training loop does.
"""

import argparse
import pathlib
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from experiments.benchmark.measuring.limits import matmul_rate
from experiments.config import resolve
from experiments.runtime import startup, table
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


class FixedInput:
  """One batch, on the devices, for every step."""

  kinds = PER_WORKER

  def __init__(self, job: Job, batch_size: int):
    data = np.random.default_rng(0)
    rows = (job.workers.count, batch_size // job.workers.count)
    self.steps_per_epoch = 1
    self._batch = job.workers.place(
      {
        'image': data.integers(0, 256, (*rows, 28, 28, 1)).astype(np.uint8),
        'label': data.integers(0, 10, rows).astype(np.int32),
      },
      PER_WORKER,
    )

  def feed(self, step: int) -> Any:
    """Returns the batch."""
    del step
    return self._batch

  def select(self, feed: Any, step: jax.Array) -> Any:
    """The feed is the batch."""
    del step
    return feed


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


def _rows(batch_size: int, steps: int, repeats: int) -> list[dict[str, Any]]:
  config = resolve(
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
  setup = make_setup(config)
  job, stage = setup.job, setup.job.stages[0]
  fixed = job._replace(data=FixedInput(job, batch_size))

  def fresh() -> TrainState:
    return first_state(
      stage, setup.params, setup.model_state, job.workers, setup.metrics
    )

  with tempfile.TemporaryDirectory() as directory:
    sinks = _sinks(pathlib.Path(directory))
    programs = [compile_stage(j, stage, fresh()) for j in (fixed, job)]
    runs = {
      'bare, fixed batch': _bare(
        programs[0], fixed.data, steps, on_host=job.workers.on_host
      ),
      'bare, gathered batch': _bare(
        programs[1], job.data, steps, on_host=job.workers.on_host
      ),
      'training loop': _loop(job, stage, programs[1], sinks, steps),
    }
    times = _interleave(runs, fresh, repeats)
    sinks.checkpoints.close()
  gathered = times['bare, gathered batch']
  limit = _compute_limit(setup.facts['flops_per_example'] or 0, batch_size)
  return [
    {
      'batch': batch_size,
      'what': name,
      'us_per_step': round(1e6 * np.median(seconds) / steps, 1),
      'by_bare': _ratio(seconds, gathered),
      'by_fixed_batch': _ratio(seconds, times['bare, fixed batch']),
      'compute_limit_us': round(1e6 * limit, 1),
    }
    for name, seconds in times.items()
  ]


def _ratio(seconds: list[float], others: list[float]) -> float:
  """The median of ratios within a repeat, which share the machine's mood."""
  ratios = [a / b for a, b in zip(seconds, others, strict=True)]
  return round(float(np.median(ratios)), 3)


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


def _interleave(
  runs: dict[str, Callable[[TrainState], TrainState]],
  fresh: Callable[[], TrainState],
  repeats: int,
) -> dict[str, list[float]]:
  times: dict[str, list[float]] = {name: [] for name in runs}
  for repeat in range(repeats + 1):
    for name, run in runs.items():
      state = fresh()
      start = time.perf_counter()
      run(state)
      if repeat:
        times[name].append(time.perf_counter() - start)
  return times


def _compute_limit(flops_per_example: int, batch_size: int) -> float:
  """Seconds of a step's products at the rate of a large matrix product."""
  # The backward pass costs twice the forward pass.
  return 3 * flops_per_example * batch_size / matmul_rate()


def main(argv: Sequence[str]) -> int:
  """Runs the benchmark; returns the exit status."""
  parser = argparse.ArgumentParser(prog='benchmark loop', description=__doc__)
  parser.add_argument('--batch', type=int, nargs='+', default=[64, 1024])
  parser.add_argument('--steps', type=int, default=400)
  parser.add_argument('--repeats', type=int, default=9)
  parser.add_argument('--output', help='JSON file of the rows')
  options = parser.parse_args(argv)
  startup.prepare_devices({'cpu_devices': 4}, startup.Processes())
  try:
    rows = [
      row
      for batch in options.batch
      for row in _rows(batch, options.steps, options.repeats)
    ]
    table.show(rows)
    if options.output:
      table.write(options.output, 'loop', rows)
  except ValueError as error:
    print(f'benchmark loop: error: {error}', file=sys.stderr)
    return 2
  return 0
