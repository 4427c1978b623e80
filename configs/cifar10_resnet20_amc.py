"""ResNet-20 on CIFAR-10, and half of its multiply-adds removed by a search.

AutoML for Model Compression (He et al., ECCV 2018, arXiv 1802.03494) takes half
of ResNet-56 and loses 0.9 points after fine-tuning, 92.8 to 91.9 %. Residual
connections keep their channels; each block's inner ones are chosen. For a CPU:
twelve epochs, 85 minutes of a core that was shared, where He et al. (arXiv
1512.03385) train 164. Seed 0, test set: 86.28 % whole, 77.98 % with half of the
multiply-adds, 85.96 % fine-tuned for 29 minutes (results/README.md).

    python -m experiments.search --config configs/cifar10_resnet20_amc.py --workdir W
    python -m experiments.train --config configs/cifar10_resnet20_amc.py:policy=W/search.json --workdir W2

The second line goes on training the smaller network, for six epochs. To
compare, `:whole=W/network` does the same to the whole one.

`:narrow` is the network at half the width, a quarter of the multiply-adds, for
`benchmark search`, which trains many; results/search.md has what it found.
"""  # noqa: E501

import ml_collections

MODES = ('', 'narrow', 'runlocal')
FILES = ('policy=', 'whole=')


def get_config(mode: str = '') -> ml_collections.ConfigDict:
  if mode not in MODES and not mode.startswith(FILES):
    raise ValueError(
      f'cifar10_resnet20_amc.py:{mode} is unknown; known: '
      f'{", ".join(MODES[1:])}, policy=FILE, whole=DIR'
    )
  config = ml_collections.ConfigDict()
  config.seed = 0

  config.mapping = 'pmap'
  config.workers = 1
  config.cpu_devices = 1

  config.batch_size = 128
  config.dataset = ml_collections.ConfigDict()
  config.dataset.name = 'cifar10'
  config.dataset.source = 'tfds'
  config.dataset.data_dir = ''
  config.dataset.validation = 5000
  config.dataset.mean = (0.4914, 0.4822, 0.4465)
  config.dataset.std = (0.2470, 0.2435, 0.2616)

  config.augment = ml_collections.ConfigDict()
  config.augment.pad = 4
  config.augment.flip = True

  config.model = ml_collections.ConfigDict()
  config.model.name = 'resnet20'
  if mode == 'narrow':
    config.model.channels = (8, 16, 32)

  config.optimizer = ml_collections.ConfigDict()
  config.optimizer.name = 'sgd'
  config.optimizer.learning_rate = 0.1
  config.optimizer.schedule = 'cosine'
  config.optimizer.momentum = 0.9
  config.optimizer.weight_decay = 5e-4

  config.stages = ml_collections.ConfigDict()
  config.stages.train = ml_collections.ConfigDict({'epochs': 12.0})
  config.stage_order = ('train',)

  config.search = ml_collections.ConfigDict()
  config.search.network = ''
  config.search.decisions = ml_collections.ConfigDict({'name': 'channels'})
  config.search.searcher = ml_collections.ConfigDict()
  config.search.searcher.name = 'cma_es_dynamic'
  config.search.evaluations = 100
  config.search.cost = ml_collections.ConfigDict({'name': 'macs'})
  config.search.budget = 0.5
  config.search.frontier = (0.2, 0.3, 0.4, 0.5, 0.6, 0.8)
  config.search.divisor = 1
  config.search.smallest = 0.1
  config.search.images = 512
  config.search.finalists = 5

  config.log_every = 50
  config.eval_every_epochs = 1.0
  config.checkpoint_every_epochs = 1.0

  if mode.startswith(FILES):
    kind, _, path = mode.partition('=')
    config['policy' if kind == 'policy' else 'initial'] = path
    config.dataset.validation = 0
    config.optimizer.learning_rate = 0.05
    config.stages.train.epochs = 6.0
    config.stages.train.files = (('model', 'auto'),)

  if mode == 'runlocal':
    config.stages.train.epochs = 0.0
    config.stages.train.steps = 2
    config.model.channels = (4, 8, 8)
    config.batch_size = 16
    config.eval_batch_size = 256
    config.dataset.validation = 300
    config.search.evaluations = 8
    config.search.smallest = 0.5
    config.search.images = 64
    config.search.frontier = (0.6, 0.8)
    config.search.budget = 0.8
    config.log_every = 1
  return config
