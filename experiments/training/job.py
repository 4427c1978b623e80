"""From a config to a job, before any file of the run exists."""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from bandwidth import tree
from experiments.compression.files import SAFETENSORS, check_shapes, read_file
from experiments.training.evaluation import Evaluator
from experiments.training.exchange_choice import (
  ExchangeChoices,
  settle_exchanges,
)
from experiments.training.input import EvaluationInput, make_input
from experiments.training.loop import Job
from experiments.training.stages import Stage, make_stages
from experiments.training.tasks import Task, make_task
from experiments.training.workers import Workers, make_workers


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


class TrainingSetup(NamedTuple):
  """What a config stands for."""

  job: Job  # what the loop runs
  params: Any  # of the network before step 1, on the host
  model_state: Any  # statistics of batch norm and the like, on the host
  facts: dict[str, Any]  # that are logged before step 1
  files: list[tuple[str, str]]  # that the run writes: pairs (name, coder)
  metrics: list[str]  # that a step returns beside the loss
  exchanges: ExchangeChoices  # where the config leaves them open


def make_setup(
  config: Mapping[str, Any], *, directory: pathlib.Path | None = None
) -> TrainingSetup:
  """Builds what a config stands for.

  Args:
    config: of the run, resolved.
    directory: of the run, where exchanges that were chosen before are kept.

  Raises:
    ValueError: a field can't be used, or the data can't be read.
  """
  _check_numbers(config)
  workers = build_workers(config)
  task = make_task(config)
  data = make_input(
    task.train, workers, batch_size=config['batch_size'], seed=config['seed']
  )
  params, model_state = _first_variables(config, task)
  exchanges = settle_exchanges(config, workers, params, directory=directory)
  stages = make_stages(
    exchanges.config,
    steps_per_epoch=data.steps_per_epoch,
    axis_name=workers.axis_name,
    workers=tuple(workers.axes.values()),
  )
  every = {
    field: _steps(config, f'{field}_epochs', data.steps_per_epoch)
    for field in ('eval_every', 'checkpoint_every')
  }
  penalized = any(stage.method.penalty for stage in stages)
  return TrainingSetup(
    job=Job(
      workers=workers,
      stages=stages,
      data=data,
      loss=task.loss,
      evaluator=_evaluator(config, task, workers),
      seed=config['seed'],
      log_every=config['log_every'],
      **every,
    ),
    params=params,
    model_state=model_state,
    facts=_facts(task, params, model_state),
    files=_files_of(stages, task),
    metrics=[*task.metrics, *(['penalty'] if penalized else [])],
    exchanges=exchanges,
  )


def _check_numbers(config: Mapping[str, Any]) -> None:
  for field in ('log_every', 'eval_batch_size', 'keep_checkpoints'):
    if config[field] < 1:
      raise ValueError(f'{field}={config[field]} must be at least 1')
  if config['seed'] < 0:
    raise ValueError(f'seed={config["seed"]} is negative')


def _first_variables(config: Mapping[str, Any], task: Task) -> tuple[Any, Any]:
  """Parameters and model state before step 1, on the host."""
  key = jax.random.key(config['seed'])
  variables = jax.device_get(jax.jit(task.model.init)(key, task.example))
  if config['initial']:
    variables = _read(pathlib.Path(config['initial']), variables)
  return variables.pop('params'), variables


def _facts(task: Task, params: Any, model_state: Any) -> dict[str, Any]:
  return {
    'parameters': tree.size(params),
    'flops_per_example': _forward_flops(
      task.model, model_state, params, task.example
    ),
    'train_examples': len(task.train),
    'eval_examples': len(task.evaluated),
    'evaluated_on': task.evaluated_on,
  }


def _read(path: pathlib.Path, like: Any) -> Any:
  """Returns the variables of a file, which must be those of the network."""
  try:
    params, model_state = read_file(path)
    variables = {'params': params, **model_state}
    check_shapes(variables, like, str(path))
  except (ValueError, OSError) as error:
    raise ValueError(f'initial: {error}') from error
  # A file may keep them in fewer bits.
  dtypes = {name: leaf.dtype for name, leaf in tree.named_leaves(like)}
  return tree.map_named(
    lambda name, leaf: np.asarray(leaf, dtypes[name]), variables
  )


def _evaluator(
  config: Mapping[str, Any], task: Task, workers: Workers
) -> Evaluator:
  batches = EvaluationInput(
    task.evaluated, workers, batch_size=config['eval_batch_size']
  )
  return Evaluator(task.counts, batches, workers, scores=task.scores)


def _files_of(stages: Sequence[Stage], task: Task) -> list[tuple[str, str]]:
  """Returns the files of a run in order, the model last."""
  files = [pair for stage in stages for pair in stage.files]
  if files and not task.writes_files:
    raise ValueError(
      f'files={files} cannot be measured in {task.name}: leave files empty'
    )
  if files and not stages[-1].files:
    raise ValueError(
      f'stages.{stages[-1].name}.files is empty: the last stage must write the '
      'model'
    )
  if files and files[-1][1] == SAFETENSORS:
    raise ValueError(f'files: the last one, {files[-1]}, must be a .bwz')
  return files


def _steps(config: Mapping[str, Any], field: str, steps_per_epoch: int) -> int:
  epochs = float(config[field])
  if epochs < 0:
    raise ValueError(f'{field}={epochs} is negative')
  return max(round(epochs * steps_per_epoch), 1) if epochs else 0


def _forward_flops(
  model: Any, model_state: Any, params: Any, example: jax.Array
) -> int | None:
  """Operations of one forward pass, a multiply-add counted as two."""
  lowered = jax.jit(model.apply).lower(
    {'params': params, **model_state}, example
  )
  cost = lowered.cost_analysis()
  flops = cost.get('flops') if isinstance(cost, dict) else None
  return None if flops is None else round(flops)
