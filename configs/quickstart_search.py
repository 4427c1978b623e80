"""LeNet-5 on MNIST, trained, and four fifths of its multiply-adds removed.

Trains for two epochs, then lets CMA-ES, begun at the solution of a dynamic
program over the errors of single layers, choose how many channels each layer
keeps; ends with the frontier and with the smaller network in a file. Two cores
take less than two minutes.

    python -m experiments.search --config configs/quickstart_search.py --workdir W
    python -m experiments.train --config configs/quickstart_search.py:policy=W/search.json --workdir W2

The second line goes on training the smaller network.
"""  # noqa: E501

import json
import pathlib
from typing import Any

import ml_collections


def read_policy(path: pathlib.Path) -> dict[str, Any]:
  """Reads what a search has left: `model`, and `weights` beside the file.

  Raises:
    ValueError: it can't be read, or is no search.json.
  """
  prefix = f'policy={str(path)!r}'
  try:
    found = json.loads(path.read_text('utf-8'))
  except OSError as error:
    raise ValueError(f'{prefix} cannot be read: {error.strerror}') from None
  except (ValueError, RecursionError) as error:
    raise ValueError(f'{prefix} is no JSON: {error}') from None
  for key, kind in (('model', dict), ('weights', str)):
    if not isinstance(found, dict) or not isinstance(found.get(key), kind):
      raise ValueError(f'{prefix} is no search.json: {key} is missing')
  return found


def get_config(mode: str = '') -> ml_collections.ConfigDict:
  if mode not in ('', 'runlocal') and not mode.startswith('policy='):
    raise ValueError(
      f'quickstart_search.py:{mode} is unknown; known: runlocal, policy=FILE'
    )
  config = ml_collections.ConfigDict()
  config.seed = 0

  config.mapping = 'pmap'
  config.workers = 1
  config.cpu_devices = 1

  config.batch_size = 128
  config.dataset = ml_collections.ConfigDict()
  config.dataset.name = 'mnist'
  config.dataset.validation = 5000
  config.dataset.mean = 0.0
  config.dataset.std = 0.3081

  config.model = ml_collections.ConfigDict()
  config.model.name = 'lenet5'
  config.model.convolution = 'matrix'

  config.optimizer = ml_collections.ConfigDict()
  config.optimizer.name = 'sgd'
  config.optimizer.learning_rate = 0.02
  config.optimizer.schedule = 'cosine'
  config.optimizer.momentum = 0.9
  config.optimizer.weight_decay = 1e-4

  config.stages = ml_collections.ConfigDict()
  config.stages.train = ml_collections.ConfigDict({'epochs': 2.0})
  config.stage_order = ('train',)

  config.search = ml_collections.ConfigDict()
  config.search.searcher = ml_collections.ConfigDict()
  config.search.searcher.name = 'cma_es_dynamic'
  config.search.evaluations = 400
  config.search.seeds = 1
  config.search.cost = ml_collections.ConfigDict({'name': 'macs'})
  config.search.budget = 0.2
  config.search.frontier = (0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5)
  # All numbers of channels from a twentieth on: 1 to 20, 3 to 50, and of 500
  # hidden units each multiple of ten.
  config.search.divisor = 1
  config.search.smallest = 0.05
  config.search.most_levels = 48
  config.search.images = 1000

  config.log_every = 50
  config.eval_every_epochs = 1.0
  config.checkpoint_every_epochs = 1.0

  if mode.startswith('policy='):
    path = pathlib.Path(mode.removeprefix('policy='))
    found = read_policy(path)
    config.model = ml_collections.ConfigDict(found['model'])
    config.initial = str(path.parent / found['weights'])
    config.dataset.validation = 0
    config.optimizer.learning_rate = 0.01
    config.stages.train.epochs = 2.0
    config.stages.train.files = (('model', 'auto'),)

  if mode == 'runlocal':
    config.stages.train.epochs = 0.0
    config.stages.train.steps = 2
    config.search.evaluations = 20
    config.search.images = 200
    config.search.frontier = (0.1, 0.3)
    config.dataset.validation = 300
    config.log_every = 1
  return config
