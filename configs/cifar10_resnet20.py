"""ResNet-20 on CIFAR-10, dense (He et al., arXiv 1512.03385, section 4.2).

Published: 8.75 % error after 64,000 steps of batch 128 with the learning rate
divided by ten at 32,000 and 48,000. Its accuracy here is not measured yet: the
run is for a GPU.

    python -m experiments.train --config configs/cifar10_resnet20.py --workdir W

CIFAR-10 comes from tensorflow-datasets, or from its original files through
`python -m experiments.datasets.prepare cifar10 --from DIR`.
"""

import ml_collections


def get_config(mode: str = '') -> ml_collections.ConfigDict:
  if mode not in ('', 'runlocal'):
    raise ValueError(f'cifar10_resnet20.py:{mode} is unknown; known: runlocal')
  config = ml_collections.ConfigDict()
  config.seed = 0

  config.mapping = 'pmap'
  config.workers = 0
  config.cpu_devices = 0

  config.batch_size = 128
  config.dataset = ml_collections.ConfigDict()
  config.dataset.name = 'cifar10'
  config.dataset.source = 'tfds'
  config.dataset.data_dir = ''
  config.dataset.validation = 0
  config.dataset.mean = (0.4914, 0.4822, 0.4465)
  config.dataset.std = (0.2470, 0.2435, 0.2616)

  config.augment = ml_collections.ConfigDict()
  config.augment.pad = 4
  config.augment.flip = True

  config.model = ml_collections.ConfigDict()
  config.model.name = 'resnet20'

  config.optimizer = ml_collections.ConfigDict()
  config.optimizer.name = 'sgd'
  config.optimizer.learning_rate = 0.1
  config.optimizer.schedule = 'steps'
  config.optimizer.boundaries = (0.5, 0.75)
  config.optimizer.momentum = 0.9
  config.optimizer.weight_decay = 1e-4

  config.reducer = ml_collections.ConfigDict()
  config.reducer.name = 'dense_all_reduce'
  config.reducer.dtype = 'float32'

  config.stage_order = ('train',)
  config.stages = ml_collections.ConfigDict()
  config.stages.train = ml_collections.ConfigDict({'steps': 64_000})

  config.log_every = 100
  config.eval_every_epochs = 1.0
  config.checkpoint_every_epochs = 5.0

  if mode == 'runlocal':
    config.stages.train = ml_collections.ConfigDict({'steps': 2})
    config.dataset.validation = 256
    config.batch_size = 16
    config.eval_batch_size = 256
    config.log_every = 1
  return config
