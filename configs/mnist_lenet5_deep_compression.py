r"""Deep Compression of LeNet-5 on MNIST: dense, prune, share, code.

Reproduces the second row of table 1 of Han, Mao & Dally (arXiv 1510.00149): 39x
with 0.74 % error after 0.80 %. P, P+Q and P+Q+H are files as in the paper; the
last file lets every tensor have the coder that makes it smallest.

python -m experiments.compress \
  --config configs/mnist_lenet5_deep_compression.py --workdir W

Chosen on 5,000 held-out training examples:
`--config.dataset.validation=5000`.
Measured: results/README.md.
"""

import ml_collections


def get_config(mode: str = '') -> ml_collections.ConfigDict:
  if mode not in ('', 'runlocal'):
    raise ValueError(
      f'mnist_lenet5_deep_compression.py:{mode} is unknown; known: runlocal'
    )
  config = ml_collections.ConfigDict()
  config.seed = 0

  config.mapping = 'pmap'
  config.workers = 1
  config.cpu_devices = 1

  config.batch_size = 128
  config.dataset = ml_collections.ConfigDict()
  config.dataset.name = 'mnist'
  config.dataset.source = 'auto'
  config.dataset.data_dir = ''
  config.dataset.validation = 0
  # Zero stays zero: a border pixel that is not zero would act as a bias.
  config.dataset.mean = 0.0
  config.dataset.std = 0.3081

  config.augment = ml_collections.ConfigDict()
  config.augment.pad = 2

  config.model = ml_collections.ConfigDict()
  config.model.name = 'lenet5'
  # On CPUs; 'xla' on accelerators.
  config.model.convolution = 'matrix'

  config.optimizer = ml_collections.ConfigDict()
  config.optimizer.name = 'sgd'
  config.optimizer.learning_rate = 0.02
  config.optimizer.schedule = 'cosine'
  config.optimizer.momentum = 0.9
  config.optimizer.warmup = 0.05
  config.optimizer.weight_decay = 5e-4

  config.stage_order = ('dense', 'prune', 'share')
  config.stages = ml_collections.ConfigDict()
  config.stages.dense = ml_collections.ConfigDict()
  config.stages.dense.epochs = 12.0
  config.stages.dense.optimizer = ml_collections.ConfigDict()
  config.stages.dense.files = (('dense', 'safetensors'),)

  config.stages.prune = ml_collections.ConfigDict()
  config.stages.prune.epochs = 14.0
  config.stages.prune.optimizer = ml_collections.ConfigDict()
  config.stages.prune.method = ml_collections.ConfigDict()
  config.stages.prune.method.name = 'prune'
  config.stages.prune.method.sparsity = 0.95
  config.stages.prune.method.schedule = 'cubic'
  config.stages.prune.method.until = 0.5
  config.stages.prune.files = (('P', 'fixed'),)

  config.stages.share = ml_collections.ConfigDict()
  config.stages.share.epochs = 2.0
  config.stages.share.optimizer = ml_collections.ConfigDict()
  config.stages.share.optimizer.learning_rate = 0.003
  config.stages.share.optimizer.weight_decay = 0.0
  config.stages.share.method = ml_collections.ConfigDict()
  config.stages.share.method.name = 'share'
  config.stages.share.method.rules = (('.*/kernel', 5), ('.*', None))
  config.stages.share.files = (
    ('P+Q', 'fixed'),
    ('P+Q+H', 'huffman'),
    ('P+Q+auto', 'auto'),
  )

  config.metadata = False
  config.baselines = True
  config.log_every = 100
  config.eval_every_epochs = 0.0
  config.checkpoint_every_epochs = 0.0

  if mode == 'runlocal':
    config.stages.dense.update({'epochs': 0.0, 'steps': 4})
    config.stages.prune.update({'epochs': 0.0, 'steps': 4})
    config.stages.prune.method.frequency = 1
    config.stages.share.update({'epochs': 0.0, 'steps': 2})
    config.batch_size = 32
    config.log_every = 2
  return config
