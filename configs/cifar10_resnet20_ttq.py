r"""Trained ternary ResNet-20 on CIFAR-10 (Zhu et al., arXiv 1612.01064).

Published: 8.23 % error dense, 8.87 % ternary, table 1. First and last layer
stay in full precision, the threshold is 0.05 of the largest weight, and
training goes on from the dense network. Its accuracy here is not measured yet:
the run is for a GPU.

python -m experiments.compress --config configs/cifar10_resnet20_ttq.py \
  --workdir W
"""

import ml_collections


def get_config(mode: str = '') -> ml_collections.ConfigDict:
  if mode not in ('', 'runlocal'):
    raise ValueError(
      f'cifar10_resnet20_ttq.py:{mode} is unknown; known: runlocal'
    )
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

  config.stage_order = ('dense', 'ternary')
  config.stages = ml_collections.ConfigDict()
  config.stages.dense = ml_collections.ConfigDict()
  config.stages.dense.steps = 64_000
  config.stages.dense.optimizer = ml_collections.ConfigDict()
  config.stages.dense.files = (('dense', 'safetensors'),)

  config.stages.ternary = ml_collections.ConfigDict()
  config.stages.ternary.steps = 64_000
  config.stages.ternary.optimizer = ml_collections.ConfigDict()
  config.stages.ternary.optimizer.learning_rate = 0.05
  config.stages.ternary.method = ml_collections.ConfigDict()
  config.stages.ternary.method.name = 'ternary'
  config.stages.ternary.method.threshold = 0.05
  config.stages.ternary.method.rules = (
    ('(Conv_0|Dense_0)/kernel', False),
    ('.*/kernel', True),
    ('.*', False),
  )
  config.stages.ternary.files = (('TTQ', 'fixed'), ('TTQ+auto', 'auto'))

  config.baselines = True
  config.log_every = 100
  config.eval_every_epochs = 0.0
  config.checkpoint_every_epochs = 5.0

  if mode == 'runlocal':
    config.stages.dense.steps = 2
    config.stages.ternary.steps = 2
    config.dataset.validation = 256
    config.batch_size = 16
    config.eval_batch_size = 256
    config.log_every = 1
  return config
