"""LeNet-5 on MNIST, trained, and four fifths of its multiply-adds removed.

Trains for two epochs, then lets CMA-ES, begun at the solution of a dynamic
program over the errors of single layers, choose how many channels each layer
keeps; ends with the frontier and with the smaller network in a file. Two cores
take less than two minutes.

    python -m experiments.search --config configs/quickstart_search.py --workdir W
    python -m experiments.train --config configs/quickstart_search.py:policy=W/search.json --workdir W2

The second line goes on training the smaller network. `:bits` lets HAQ choose
the bits of each layer's weights and inputs; `:joint` chooses channels and
precision together, in bytes of the file.
"""  # noqa: E501

import ml_collections

MODES = ('', 'bits', 'joint', 'runlocal')


def get_config(mode: str = '') -> ml_collections.ConfigDict:
  if mode not in MODES and not mode.startswith('policy='):
    raise ValueError(
      f'quickstart_search.py:{mode} is unknown; known: '
      f'{", ".join(MODES[1:])}, policy=FILE'
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
  config.search.network = ''
  config.search.searcher = ml_collections.ConfigDict()
  config.search.searcher.name = 'cma_es_dynamic'
  config.search.evaluations = 400
  config.search.seeds = 1
  config.search.decisions = ml_collections.ConfigDict({'name': 'channels'})
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

  if mode == 'bits':
    config.search.searcher.name = 'haq'
    config.search.decisions.name = 'bits'
    config.search.cost.name = 'weight_bytes'
    config.search.budget = 0.4
    config.search.frontier = (0.3, 0.4, 0.5, 0.7)

  if mode == 'joint':
    config.search.decisions.name = 'joint'
    config.search.cost.name = 'file_bytes'
    config.search.budget = 0.02
    config.search.frontier = (0.01, 0.02, 0.03, 0.05, 0.1)

  if mode.startswith('policy='):
    config.policy = mode.removeprefix('policy=')
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
