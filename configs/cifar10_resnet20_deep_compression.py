r"""Deep Compression of ResNet-20 on CIFAR-10: dense, prune, share, code.

The target is no loss against its own dense network. Convolutions have codes of
6 bits, the classifier of 5. Its accuracy here is not measured yet: the run is
for a GPU.

python -m experiments.compress \
  --config configs/cifar10_resnet20_deep_compression.py --workdir W
"""

import ml_collections


def get_config(mode: str = '') -> ml_collections.ConfigDict:
  if mode not in ('', 'runlocal'):
    raise ValueError(
      f'cifar10_resnet20_deep_compression.py:{mode} is unknown; known: runlocal'
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

  config.stage_order = ('dense', 'prune', 'share')
  config.stages = ml_collections.ConfigDict()
  config.stages.dense = ml_collections.ConfigDict()
  config.stages.dense.steps = 64_000
  config.stages.dense.optimizer = ml_collections.ConfigDict()
  config.stages.dense.files = (('dense', 'safetensors'),)

  config.stages.prune = ml_collections.ConfigDict()
  config.stages.prune.steps = 64_000
  config.stages.prune.optimizer = ml_collections.ConfigDict()
  config.stages.prune.method = ml_collections.ConfigDict()
  config.stages.prune.method.name = 'prune'
  config.stages.prune.method.sparsity = 0.7
  config.stages.prune.method.distribution = 'erdos_renyi_kernel'
  config.stages.prune.method.until = 0.4
  config.stages.prune.files = (('P', 'fixed'),)

  config.stages.share = ml_collections.ConfigDict()
  config.stages.share.steps = 8_000
  config.stages.share.optimizer = ml_collections.ConfigDict()
  config.stages.share.optimizer.learning_rate = 0.001
  config.stages.share.optimizer.weight_decay = 0.0
  config.stages.share.method = ml_collections.ConfigDict()
  config.stages.share.method.name = 'share'
  config.stages.share.method.rules = (
    ('Dense_0/kernel', 5),
    ('.*/kernel', 6),
    ('.*', None),
  )
  config.stages.share.files = (
    ('P+Q', 'fixed'),
    ('P+Q+H', 'huffman'),
    ('P+Q+auto', 'auto'),
  )

  config.baselines = True
  config.log_every = 100
  config.eval_every_epochs = 0.0
  config.checkpoint_every_epochs = 5.0

  if mode == 'runlocal':
    config.stages.dense.steps = 2
    config.stages.prune.steps = 2
    config.stages.prune.method.frequency = 1
    config.stages.share.steps = 2
    config.dataset.validation = 256
    config.batch_size = 16
    config.eval_batch_size = 256
    config.log_every = 1
  return config
