"""The main job: trains a network over several workers, and says what it sent.

    python -m experiments.train --config configs/quickstart.py --workdir W

The run resumes from its last checkpoint if the directory has one. What it
leaves there: config.json, metrics.jsonl, TensorBoard event files, checkpoints/,
report.json and report.md.
"""

import functools
import json
import pathlib
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bandwidth import tree
from bandwidth.collectives import accounting
from bandwidth.report import MemoryReport, NetworkReport, Report
from experiments import datasets, provenance, startup
from experiments.checkpoints import Checkpoints
from experiments.config import (
  check_config,
  keep_config,
  resolve,
  same_in_all_processes,
)
from experiments.evaluation import Evaluator
from experiments.files import make_writable, replace_text
from experiments.input import EvaluationInput, make_input
from experiments.loop import (
  CompiledStage,
  Job,
  Sinks,
  predicted_bytes,
  train,
)
from experiments.mapping import (
  PER_WORKER,
  REPLICATED,
  Workers,
  make_workers,
)
from experiments.metrics import MetricsWriter, Progress
from experiments.model_files import (
  SAFETENSORS,
  check_shapes,
  memory_report,
  metadata_of,
  named_arrays,
  paths_of,
  write_file,
)
from experiments.models import make_model
from experiments.objectives import (
  make_augment,
  make_classification_counts,
  make_classification_loss,
  make_preprocess,
)
from experiments.speeds import (
  keep_exchanges,
  saved_exchanges,
  settle_exchanges,
)
from experiments.stages import (
  Stage,
  first_state,
  make_stages,
  saved_reducer_state,
  stage_of,
)
from experiments.startup import InputError
from experiments.step import TrainState

_STARTED = time.monotonic()


def build_workers(config: Mapping[str, Any]) -> Workers:
  """Finds the devices of a config's workers.

  Raises:
    ValueError: there are not enough, or they can't be grouped as asked.
  """
  count, hosts = int(config['workers']), int(config['hosts'])
  if count < 0 or hosts < 1:
    raise ValueError(f'workers={count}, hosts={hosts} must be at least 1')
  count = count or len(jax.devices())
  if count % hosts:
    raise ValueError(f'workers={count} is not divisible by hosts={hosts}')
  axes = (
    {'host': hosts, 'data': count // hosts} if hosts > 1 else {'data': count}
  )
  return make_workers(config['mapping'], axes)


class Built:
  """What a config stands for.

  Attributes:
    job: what the loop runs.
    params: of the network before step 1, on the host.
    model_state: likewise.
    facts: what is logged before step 1.
    files: that the run writes, pairs (name, coder) in order.
    metrics: that a step returns beside the loss.
    exchanges: chosen for these workers, where the config leaves them open.
  """

  def __init__(
    self,
    config: Mapping[str, Any],
    *,
    directory: pathlib.Path | None = None,
  ):
    for field in ('log_every', 'eval_batch_size', 'keep_checkpoints'):
      _positive(config, field)
    if config['seed'] < 0:
      raise ValueError(f'seed={config["seed"]} is negative')
    workers = build_workers(config)
    dataset = _load(config['dataset'])
    _check_channels(config['dataset'], dataset.image_shape[-1])
    data = make_input(
      dataset.train,
      workers,
      batch_size=config['batch_size'],
      seed=config['seed'],
    )
    model = make_model(config['model'], num_classes=dataset.num_classes)
    preprocess = make_preprocess(config['dataset'])
    loss = make_classification_loss(
      model, preprocess, make_augment(config['augment'])
    )
    counts = make_classification_counts(model, preprocess)
    evaluated = dataset.validation or dataset.test
    image = jnp.zeros((1, *dataset.image_shape), jnp.float32)
    variables = jax.device_get(
      jax.jit(model.init)(jax.random.key(config['seed']), image)
    )
    self.params = variables.pop('params')
    self.model_state = variables
    epoch = data.steps_per_epoch
    self.exchanges = settle_exchanges(
      config, workers, self.params, directory=directory
    )
    config = self.exchanges.config
    stages = make_stages(
      config,
      steps_per_epoch=epoch,
      axis_name=workers.axis_name,
      workers=tuple(workers.axes.values()),
    )
    self.files = _files_of(stages)
    penalized = any(stage.method.penalty for stage in stages)
    self.metrics = ['accuracy', *(['penalty'] if penalized else [])]
    self.job = Job(
      workers=workers,
      stages=stages,
      data=data,
      loss=loss,
      evaluator=Evaluator(
        counts,
        EvaluationInput(
          evaluated, workers, batch_size=config['eval_batch_size']
        ),
        workers,
      ),
      seed=config['seed'],
      log_every=config['log_every'],
      eval_every=_steps(config, 'eval_every_epochs', epoch),
      checkpoint_every=_steps(config, 'checkpoint_every_epochs', epoch),
    )
    self.facts = {
      'parameters': tree.size(self.params),
      'flops_per_example': _forward_flops(model, variables, self.params, image),
      'train_examples': len(dataset.train),
      'eval_examples': len(evaluated),
      'evaluated_on': 'validation' if dataset.validation else 'test',
    }


def _files_of(stages: Sequence[Stage]) -> list[tuple[str, str]]:
  """Returns the files of a run in order, the model last."""
  files = [pair for stage in stages for pair in stage.files]
  if files and not stages[-1].files:
    raise ValueError(
      f'stages.{stages[-1].name}.files is empty: the last stage must write the '
      'model'
    )
  if files and files[-1][1] == SAFETENSORS:
    raise ValueError(f'files: the last one, {files[-1]}, must be a .bwz')
  return files


def _load(config: Mapping[str, Any]) -> datasets.Dataset:
  names = ('name', 'source', 'data_dir', 'validation', 'image_size')
  return datasets.load(
    memory_limit=config['memory_limit'],
    **{name: config[name] for name in names},
  )


def _positive(config: Mapping[str, Any], field: str) -> None:
  if config[field] < 1:
    raise ValueError(f'{field}={config[field]} must be at least 1')


def _check_channels(config: Mapping[str, Any], channels: int) -> None:
  for field in ('mean', 'std'):
    if np.size(config[field]) not in (1, channels):
      raise ValueError(
        f'dataset.{field}={config[field]} is for {np.size(config[field])} '
        f'channels; the images have {channels}'
      )


def _steps(config: Mapping[str, Any], field: str, steps_per_epoch: int) -> int:
  epochs = float(config[field])
  if epochs < 0:
    raise ValueError(f'{field}={epochs} is negative')
  return max(round(epochs * steps_per_epoch), 1) if epochs else 0


def _forward_flops(
  model: Any, model_state: Any, params: Any, image: jax.Array
) -> int | None:
  """Operations of one forward pass, a multiply-add counted as two."""
  lowered = jax.jit(model.apply).lower({'params': params, **model_state}, image)
  cost = lowered.cost_analysis()
  flops = cost.get('flops') if isinstance(cost, dict) else None
  return None if flops is None else round(flops)


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
    config = resolve(config)
    same_in_all_processes(config)
    built = Built(config, directory=pathlib.Path(workdir))
    directory = make_writable(workdir)
    check_config(directory, config)
  except (ValueError, OSError) as error:
    raise InputError(' '.join(str(error).split())) from error
  first = jax.process_index() == 0
  if first:
    keep_config(directory, config)
    keep_exchanges(directory, built.job.workers.count, built.exchanges.chosen)
  checkpoints = Checkpoints(
    directory / 'checkpoints', keep=config['keep_checkpoints']
  )
  try:
    return _run(
      config, built, directory, checkpoints, started=started, writes=first
    )
  finally:
    checkpoints.close()


def _run(
  config: Mapping[str, Any],
  built: Built,
  directory: pathlib.Path,
  checkpoints: Checkpoints,
  *,
  started: float,
  writes: bool,
) -> Report:
  job = built.job
  state, step, earlier = _begin(built, checkpoints, directory)
  progress = Progress(steps=job.stages[-1].last, step=step, silent=not writes)
  _announce(built, progress, step)
  sinks = Sinks(
    checkpoints=checkpoints,
    writer=MetricsWriter(directory, step=step) if writes else None,
    progress=progress,
    info=lambda: {
      'workers': job.workers.count,
      'axes': dict(job.workers.axes),
      'seconds': earlier + time.monotonic() - started,
    },
    done=functools.partial(_write_files, config, built, directory),
  )
  try:
    state, programs = train(job, state, sinks, step=step)
  finally:
    progress.close()
    if sinks.writer is not None:
      sinks.writer.close()
  checkpoints.wait()
  report = _report(
    config, built, directory, state, programs,
    seconds=lambda: earlier + time.monotonic() - started,
  )  # fmt: skip
  if writes:
    write_report(report, directory)
    progress.say(report.to_markdown())
  return report


def _report(
  config: Mapping[str, Any],
  built: Built,
  directory: pathlib.Path,
  state: TrainState,
  programs: list[CompiledStage],
  *,
  seconds: Callable[[], float],
) -> Report:
  """Measures what a run left."""
  job = built.job
  params = jax.jit(
    job.stages[-1].method.decode,
    out_shardings=job.workers.sharding(REPLICATED),
  )(state.params)
  result = job.evaluator(params, state.model_state)
  memory = _memory(config, built, directory)
  final = memory.stages[-1].accuracy if memory else result['accuracy']
  return Report(
    config=json.loads((directory / 'config.json').read_text('utf-8')),
    command=provenance.command(),
    commit=provenance.commit(),
    device=provenance.device(),
    seconds=seconds(),
    seed=config['seed'],
    accuracy={
      'baseline': memory.stages[0].accuracy if memory else final,
      'final': final,
    },
    network=_network(job, built.params, programs),
    memory=memory,
    details={
      **built.facts,
      'compile_seconds': sum(program.seconds for program in programs),
      'steps': job.stages[-1].last,
      'mapping': job.workers.mapping,
      'eval_loss': result['loss'],
    },
  )


def _write_files(
  config: Mapping[str, Any],
  built: Built,
  directory: pathlib.Path,
  stage: Stage,
  state: TrainState,
) -> None:
  """Writes the files of a stage that is done."""
  if not stage.files:
    return
  variables = jax.device_get(state.params)
  params = jax.device_get(jax.jit(stage.method.decode)(variables))
  model_state = jax.device_get(built.job.evaluator.merge(state.model_state))
  if jax.process_index():
    return
  arrays = named_arrays(params, model_state)
  tensors = stage.method.export(variables, params)
  paths = paths_of(built.files, directory)
  metadata = metadata_of(config) if config['metadata'] else None
  for name, coder in stage.files:
    write_file(paths[name], coder, arrays, tensors, metadata)


def _memory(
  config: Mapping[str, Any], built: Built, directory: pathlib.Path
) -> MemoryReport | None:
  """Measures the files of the run, each as it lies on disk."""
  if not built.files:
    return None
  workers = built.job.workers

  def accuracy(params: Any, model_state: Any) -> float:
    check_shapes(params, built.params, str(directory))
    copies = jax.tree.map(
      lambda leaf: np.broadcast_to(leaf, (workers.count, *np.shape(leaf))),
      model_state,
    )
    result = built.job.evaluator(
      workers.place(params, REPLICATED), workers.place(copies, PER_WORKER)
    )
    return result['accuracy']

  return memory_report(
    paths_of(built.files, directory),
    accuracy,
    with_baselines=config['baselines'],
  )


def _begin(
  built: Built,
  checkpoints: Checkpoints,
  directory: pathlib.Path | None = None,
) -> tuple[TrainState, int, float]:
  """Returns the state to start from, its step, and the seconds spent before."""
  job = built.job
  step = checkpoints.latest() or 0
  stage = job.stages[stage_of(job.stages, max(step, 1))]
  state = first_state(
    stage, built.params, built.model_state, job.workers, built.metrics
  )
  if not step:
    return state, 0, 0.0
  info = checkpoints.info(step)
  state = checkpoints.restore(
    step,
    state,
    workers=job.workers,
    saved_workers=info['workers'],
    saved_reducer_state=saved_reducer_state(
      stage,
      state.params,
      info.get('axes', {'data': info['workers']}),
      saved_exchanges(directory, info['workers']),
    ),
    resplit=stage.reducer.resplit,
  )
  return state, step, info['seconds']


def _announce(built: Built, progress: Progress, step: int) -> None:
  workers = built.job.workers
  simulated = ' simulated on one device' if workers.simulated else ''
  flops = built.facts['flops_per_example']
  progress.say(
    f'{built.facts["parameters"]:,} parameters, '
    f'{"unknown" if flops is None else format(flops, ",")} FLOPs per example; '
    f'{workers.count} workers{simulated} ({workers.mapping}), '
    f'{built.job.data.steps_per_epoch} steps an epoch'
  )
  for line in built.exchanges.lines:
    progress.say(line)
  if step:
    progress.say(f'resumed after step {step}')


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


def main(argv: Sequence[str]) -> None:
  """Trains as the flags say."""
  if len(argv) > 1:
    raise InputError(f'{argv[1]!r} is no flag; see --help')
  values = startup.flags.FLAGS
  config = startup.config_from_flags()
  if not values.workdir:
    raise InputError('--workdir is missing')
  startup.prepare_devices(config, startup.processes_from_flags())
  run(config, values.workdir, started=_STARTED)


if __name__ == '__main__':
  startup.define_flags()
  startup.run(main, program='train')
