"""What a run leaves when it ends: its files, and the report of all it used."""

import json
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import jax

from bandwidth.collectives import stack_states
from bandwidth.collectives.traffic import accounting
from bandwidth.files import replace_text
from bandwidth.report import MemoryReport, NetworkReport, Report, device
from experiments.compression.files import (
  check_shapes,
  memory_report,
  metadata_of,
  named_arrays,
  paths_of,
  write_file,
)
from experiments.runtime import provenance
from experiments.training.job import TrainingSetup
from experiments.training.loop import CompiledStage, Job, predicted_bytes
from experiments.training.stages import Stage
from experiments.training.step import TrainState
from experiments.training.workers import PER_WORKER, REPLICATED


def make_report(
  config: Mapping[str, Any],
  setup: TrainingSetup,
  directory: pathlib.Path,
  state: TrainState,
  programs: list[CompiledStage],
  *,
  seconds: Callable[[], float],
) -> Report:
  """Measures what a run left.

  Args:
    config: of the run, resolved.
    setup: what it stands for.
    directory: of the run, with its config and its files.
    state: after the last step.
    programs: of the stages that were entered.
    seconds: that the run has taken so far.

  Raises:
    ValueError: a file of the run is malformed or of another network.
  """
  job = setup.job
  params = jax.jit(
    job.stages[-1].method.decode, out_shardings=job.workers.sharding(REPLICATED)
  )(state.params)
  result = job.evaluator(params, state.model_state)
  memory = _memory(config, setup, directory)
  final = memory.stages[-1].accuracy if memory else result['accuracy']
  perplexity = result.get('perplexity')
  return Report(
    config=json.loads((directory / 'config.json').read_text('utf-8')),
    command=provenance.command(),
    commit=provenance.commit(),
    device=device(),
    seconds=seconds(),
    seed=config['seed'],
    accuracy={
      'baseline': memory.stages[0].accuracy if memory else final,
      'final': final,
    },
    perplexity=None
    if perplexity is None
    else {'baseline': perplexity, 'final': perplexity},
    network=_network(job, setup.params, programs),
    memory=memory,
    details={
      **setup.facts,
      'compile_seconds': sum(program.seconds for program in programs),
      'steps': job.stages[-1].last,
      'mapping': job.workers.mapping,
      'eval_loss': result['loss'],
    },
  )


def write_files(
  config: Mapping[str, Any],
  setup: TrainingSetup,
  directory: pathlib.Path,
  stage: Stage,
  state: TrainState,
) -> None:
  """Writes the files of a stage that is done.

  Args:
    config: of the run, resolved.
    setup: what it stands for.
    directory: of the run, which gets the files.
    stage: the one that is done.
    state: after its last step.
  """
  if not stage.files:
    return
  variables = jax.device_get(state.params)
  params = jax.device_get(jax.jit(stage.method.decode)(variables))
  model_state = jax.device_get(setup.job.evaluator.merge(state.model_state))
  if jax.process_index():
    return
  arrays = named_arrays(params, model_state)
  tensors = stage.method.export(variables, params)
  paths = paths_of(setup.files, directory)
  metadata = metadata_of(config) if config['metadata'] else None
  for name, coder in stage.files:
    write_file(paths[name], coder, arrays, tensors, metadata)


def _memory(
  config: Mapping[str, Any], setup: TrainingSetup, directory: pathlib.Path
) -> MemoryReport | None:
  """Measures the files of the run, each as it lies on disk."""
  if not setup.files:
    return None
  workers = setup.job.workers

  def accuracy(params: Any, model_state: Any) -> float:
    check_shapes(params, setup.params, str(directory))
    result = setup.job.evaluator(
      workers.place(params, REPLICATED),
      stack_states(
        model_state, workers.count, sharding=workers.sharding(PER_WORKER)
      ),
    )
    return result['accuracy']

  return memory_report(
    paths_of(setup.files, directory),
    accuracy,
    with_baselines=config['baselines'],
  )


def _network(
  job: Job, params: Any, programs: list[CompiledStage]
) -> NetworkReport:
  workers = tuple(job.workers.axes.values())
  dense = accounting.dense_wire_bytes(params, workers=workers)
  sent = [predicted_bytes(s.reducer, params, job.workers) for s in job.stages]
  steps = [stage.last - stage.first for stage in job.stages]
  total = sum(bytes_ * n for bytes_, n in zip(sent, steps, strict=True))
  return NetworkReport(
    workers=job.workers.count,
    dense_bytes_per_step=dense,
    sent_bytes_per_step=sent[-1],
    ratio_steady=_ratio(dense, sent[-1]),
    ratio_run=_ratio(dense * sum(steps), float(total)),
    hlo_bytes_per_step=programs[-1].hlo_bytes,
  )


def _ratio(dense: float, sent: float) -> float:
  return dense / sent if sent else 1.0


def write_report(report: Report, directory: pathlib.Path) -> None:
  """Writes `report.json` and `report.md`."""
  text = json.dumps(report.to_dict(), indent=2, sort_keys=True)
  replace_text(directory / 'report.json', text + '\n')
  replace_text(directory / 'report.md', report.to_markdown())
