"""A run: from a config to its report, or on from where it stopped."""

import functools
import pathlib
import time
from collections.abc import Mapping
from typing import Any

import jax

from bandwidth.files import local_path
from bandwidth.report import Report
from experiments.config import (
  check_config,
  keep_config,
  resolve,
  same_in_all_processes,
)
from experiments.runtime.files import make_writable
from experiments.runtime.metrics import MetricsWriter, Progress
from experiments.runtime.startup import InputError
from experiments.training.checkpoints import Checkpoints
from experiments.training.exchange_choice import keep_exchanges, saved_exchanges
from experiments.training.job import TrainingSetup, make_setup
from experiments.training.loop import Sinks, train
from experiments.training.report import make_report, write_files, write_report
from experiments.training.stages import (
  first_state,
  saved_reducer_state,
  stage_of,
)
from experiments.training.step import TrainState


def run(
  config: Mapping[str, Any], workdir: str, *, started: float | None = None
) -> Report:
  """Trains as a config says, or goes on where the directory's run stopped.

  Args:
    config: as of a config file; silent fields get their defaults.
    workdir: of the run, the same for all processes.
    started: `time.monotonic()` when the program began; None: now.

  Returns:
    The report, as written to `report.json`.

  Raises:
    InputError: something in the config, the data or the directory can't be
      used.
  """
  started = time.monotonic() if started is None else started
  try:
    local_path(workdir, argument='workdir')
    config = resolve(config)
    same_in_all_processes(config)
    setup = make_setup(config, directory=pathlib.Path(workdir))
    directory = make_writable(workdir)
    check_config(directory, config)
  except (ValueError, OSError) as error:
    raise InputError(' '.join(str(error).split())) from error
  first = jax.process_index() == 0
  if first:
    keep_config(directory, config)
    keep_exchanges(directory, setup.job.workers.count, setup.exchanges.chosen)
  checkpoints = Checkpoints(
    directory / 'checkpoints', keep=config['keep_checkpoints']
  )
  try:
    return _run(
      config, setup, directory, checkpoints, started=started, writes=first
    )
  finally:
    checkpoints.close()


def _run(
  config: Mapping[str, Any],
  setup: TrainingSetup,
  directory: pathlib.Path,
  checkpoints: Checkpoints,
  *,
  started: float,
  writes: bool,
) -> Report:
  job = setup.job
  state, step, earlier = _begin(setup, checkpoints, directory)
  progress = Progress(steps=job.stages[-1].last, step=step, silent=not writes)
  _announce(setup, progress, step)
  sinks = Sinks(
    checkpoints=checkpoints,
    writer=MetricsWriter(directory, step=step) if writes else None,
    progress=progress,
    info=lambda: {
      'workers': job.workers.count,
      'axes': dict(job.workers.axes),
      'seconds': earlier + time.monotonic() - started,
    },
    done=functools.partial(write_files, config, setup, directory),
  )
  try:
    state, programs = train(job, state, sinks, step=step)
  finally:
    progress.close()
    if sinks.writer is not None:
      sinks.writer.close()
  checkpoints.wait()
  report = make_report(
    config, setup, directory, state, programs,
    seconds=lambda: earlier + time.monotonic() - started,
  )  # fmt: skip
  if writes:
    write_report(report, directory)
    progress.say(report.to_markdown())
  return report


def _begin(
  setup: TrainingSetup,
  checkpoints: Checkpoints,
  directory: pathlib.Path | None = None,
) -> tuple[TrainState, int, float]:
  """Returns the state to start from, its step, and the seconds spent before."""
  job = setup.job
  step = checkpoints.latest() or 0
  stage = job.stages[stage_of(job.stages, max(step, 1))]
  state = first_state(
    stage, setup.params, setup.model_state, job.workers, setup.metrics
  )
  if not step:
    return state, 0, 0.0
  info = checkpoints.info(step)
  axes = info.get('axes', {'data': info['workers']})
  state = checkpoints.restore(
    step,
    state,
    workers=job.workers,
    saved_axes=axes,
    saved_reducer_state=saved_reducer_state(
      stage, state.params, axes, saved_exchanges(directory, info['workers'])
    ),
    resplit=stage.reducer.resplit,
  )
  return state, step, info['seconds']


def _announce(setup: TrainingSetup, progress: Progress, step: int) -> None:
  workers = setup.job.workers
  simulated = ' simulated on one device' if workers.simulated else ''
  flops = setup.facts['flops_per_example']
  progress.say(
    f'{setup.facts["parameters"]:,} parameters, '
    f'{"unknown" if flops is None else format(flops, ",")} FLOPs per example; '
    f'{workers.count} workers{simulated} ({workers.mapping}), '
    f'{setup.job.data.steps_per_epoch} steps an epoch'
  )
  for line in setup.exchanges.lines:
    progress.say(line)
  if step:
    progress.say(f'resumed after step {step}')
