r"""Rate-aware training of ResNet-20, four times as wide, on CIFAR-10.

Published for this width: 128 KB at 8.8 % error (Oktay et al., arXiv
1906.06624), 66 KB at 8.5 % (LilNetX, as printed elsewhere). Normalization is
stored as it is. Size and accuracy here are not measured yet: the run is for a
GPU, and the weight is to be chosen on held-out examples,
`--config.dataset.validation=5000`.

python -m experiments.compress --config configs/cifar10_resnet20_rate.py \
  --workdir W
"""

import ml_collections


def get_config(mode: str = '') -> ml_collections.ConfigDict:
  if mode not in ('', 'runlocal'):
    raise ValueError(
      f'cifar10_resnet20_rate.py:{mode} is unknown; known: runlocal'
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
  config.model.channels = (64, 128, 256)

  config.optimizer = ml_collections.ConfigDict()
  config.optimizer.name = 'sgd'
  config.optimizer.learning_rate = 0.1
  config.optimizer.schedule = 'steps'
  config.optimizer.boundaries = (0.5, 0.75)
  config.optimizer.momentum = 0.9
  config.optimizer.weight_decay = 1e-4

  config.stage_order = ('dense', 'prune', 'rate')
  config.stages = ml_collections.ConfigDict()
  config.stages.dense = ml_collections.ConfigDict()
  config.stages.dense.steps = 64_000
  config.stages.dense.optimizer = ml_collections.ConfigDict()
  config.stages.dense.files = (('dense', 'safetensors'),)

  config.stages.prune = ml_collections.ConfigDict()
  config.stages.prune.steps = 20_000
  config.stages.prune.optimizer = ml_collections.ConfigDict()
  config.stages.prune.optimizer.learning_rate = 0.05
  config.stages.prune.method = ml_collections.ConfigDict()
  config.stages.prune.method.name = 'prune'
  config.stages.prune.method.sparsity = 0.9
  config.stages.prune.method.until = 0.6

  config.stages.rate = ml_collections.ConfigDict()
  config.stages.rate.steps = 80_000
  config.stages.rate.optimizer = ml_collections.ConfigDict()
  config.stages.rate.optimizer.name = 'adam'
  config.stages.rate.optimizer.learning_rate = 0.01
  config.stages.rate.optimizer.schedule = 'cosine'
  config.stages.rate.optimizer.weight_decay = 0.0
  config.stages.rate.method = ml_collections.ConfigDict()
  config.stages.rate.method.name = 'rate'
  config.stages.rate.method.weight = 2.0
  config.stages.rate.method.step = 4.0
  config.stages.rate.method.rules = (
    ('.*/scale', False),
    ('.*/bias', False),
    ('.*/kernel', None),
  )
  config.stages.rate.files = (('rate', 'auto'),)

  config.baselines = True
  config.log_every = 100
  config.eval_every_epochs = 0.0
  config.checkpoint_every_epochs = 5.0

  if mode == 'runlocal':
    config.stages.dense.steps = 2
    config.stages.prune.steps = 2
    config.stages.prune.method.frequency = 1
    config.stages.rate.steps = 2
    config.dataset.validation = 256
    config.batch_size = 16
    config.eval_batch_size = 256
    config.log_every = 1
  return config
