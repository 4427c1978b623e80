"""MobileNet-V1 at an eighth of the width, Fashion-MNIST, searched.

Fourteen layers of channels to choose, depthwise convolutions among them, for
`benchmark search` on a CPU. Eleven minutes of a core to train, to 87.7 % of
the validation split (results/fashion_mnist_mobilenet_amc/network.bwz). Searchers
compared on equal budgets are in results/search.md.

    python -m experiments.search --config configs/fashion_mnist_mobilenet_amc.py --workdir W
    python -m experiments.train --config configs/fashion_mnist_mobilenet_amc.py:policy=W/search.json --workdir W2

Fashion-MNIST comes from tensorflow-datasets, or from its original files through
`python -m experiments.datasets.prepare fashion_mnist --from DIR`.
"""  # noqa: E501

import ml_collections


def get_config(mode: str = '') -> ml_collections.ConfigDict:
  if mode not in ('', 'runlocal') and not mode.startswith('policy='):
    raise ValueError(
      f'fashion_mnist_mobilenet_amc.py:{mode} is unknown; known: runlocal, '
      'policy=FILE'
    )
  config = ml_collections.ConfigDict()
  config.seed = 0

  config.mapping = 'pmap'
  config.workers = 1
  config.cpu_devices = 1

  config.batch_size = 128
  config.dataset = ml_collections.ConfigDict()
  config.dataset.name = 'fashion_mnist'
  config.dataset.source = 'tfds'
  config.dataset.data_dir = ''
  config.dataset.validation = 5000
  config.dataset.mean = 0.2860
  config.dataset.std = 0.3530

  config.augment = ml_collections.ConfigDict()
  config.augment.pad = 2
  config.augment.flip = True

  config.model = ml_collections.ConfigDict()
  config.model.name = 'mobilenet_v1_cifar'
  config.model.channels = (4, 8, 16, 16, 32, 32, *(64,) * 6, 128, 128)

  config.optimizer = ml_collections.ConfigDict()
  config.optimizer.name = 'sgd'
  config.optimizer.learning_rate = 0.1
  config.optimizer.schedule = 'cosine'
  config.optimizer.momentum = 0.9
  config.optimizer.weight_decay = 1e-4

  config.stages = ml_collections.ConfigDict()
  config.stages.train = ml_collections.ConfigDict({'epochs': 6.0})
  config.stage_order = ('train',)

  config.search = ml_collections.ConfigDict()
  config.search.network = ''
  config.search.decisions = ml_collections.ConfigDict({'name': 'channels'})
  config.search.searcher = ml_collections.ConfigDict()
  config.search.searcher.name = 'cma_es_dynamic'
  config.search.evaluations = 200
  config.search.cost = ml_collections.ConfigDict({'name': 'macs'})
  config.search.budget = 0.5
  config.search.frontier = (0.2, 0.3, 0.4, 0.5, 0.6, 0.8)
  config.search.divisor = 1
  config.search.smallest = 0.1
  config.search.images = 512

  config.log_every = 50
  config.eval_every_epochs = 1.0
  config.checkpoint_every_epochs = 1.0

  if mode.startswith('policy='):
    config.policy = mode.removeprefix('policy=')
    config.dataset.validation = 0
    config.optimizer.learning_rate = 0.02
    config.stages.train.epochs = 2.0
    config.stages.train.files = (('model', 'auto'),)

  if mode == 'runlocal':
    config.stages.train.epochs = 0.0
    config.stages.train.steps = 2
    config.model.channels = (2,) * 14
    config.batch_size = 16
    config.eval_batch_size = 256
    config.dataset.validation = 300
    config.search.evaluations = 4
    config.search.smallest = 0.5
    config.search.images = 64
    config.search.frontier = (0.6, 0.8)
    config.search.budget = 0.8
    config.log_every = 1
  return config
