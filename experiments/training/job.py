"""From a config to a job, before any file of the run exists."""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from bandwidth import tree
from experiments.compression.files import SAFETENSORS, check_shapes, read_file
from experiments.training.evaluation import Evaluator
from experiments.training.exchange_choice import settle_exchanges
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
    task = make_task(config)
    data = make_input(
      task.train,
      workers,
      batch_size=config['batch_size'],
      seed=config['seed'],
    )
    variables = jax.device_get(
      jax.jit(task.model.init)(jax.random.key(config['seed']), task.example)
    )
    if config['initial']:
      variables = _read(pathlib.Path(config['initial']), variables)
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
    self.files = _files_of(stages, task)
    penalized = any(stage.method.penalty for stage in stages)
    self.metrics = [*task.metrics, *(['penalty'] if penalized else [])]
    self.job = Job(
      workers=workers,
      stages=stages,
      data=data,
      loss=task.loss,
      evaluator=_evaluator(config, task, workers),
      seed=config['seed'],
      log_every=config['log_every'],
      eval_every=_steps(config, 'eval_every_epochs', epoch),
      checkpoint_every=_steps(config, 'checkpoint_every_epochs', epoch),
    )
    self.facts = {
      'parameters': tree.size(self.params),
      'flops_per_example': _forward_flops(
        task.model, variables, self.params, task.example
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


def _positive(config: Mapping[str, Any], field: str) -> None:
  if config[field] < 1:
    raise ValueError(f'{field}={config[field]} must be at least 1')


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
