"""LeNet-5 (Caffe's) on MNIST, dense.

The baseline of Deep Compression's table 3. Published reference error 0.80 %
(Han et al., arXiv 1510.00149, table 1); here images are shifted at random by up
to two pixels. Measured: results/mnist_lenet5/.

    python -m experiments.train --config configs/mnist_lenet5.py --workdir W
"""

import ml_collections


def get_config(mode: str = '') -> ml_collections.ConfigDict:
  if mode not in ('', 'runlocal'):
    raise ValueError(f'mnist_lenet5.py:{mode} is unknown; known: runlocal')
  config = ml_collections.ConfigDict()
  config.seed = 0

  config.mapping = 'pmap'
  config.workers = 2
  config.cpu_devices = 2

  config.batch_size = 128
  config.dataset = ml_collections.ConfigDict()
  config.dataset.name = 'mnist'
  config.dataset.source = 'auto'
  config.dataset.data_dir = ''
  config.dataset.validation = 0
  config.dataset.mean = 0.1307
  config.dataset.std = 0.3081

  config.augment = ml_collections.ConfigDict()
  config.augment.pad = 2

  config.model = ml_collections.ConfigDict()
  config.model.name = 'lenet5'

  config.optimizer = ml_collections.ConfigDict()
  config.optimizer.name = 'sgd'
  config.optimizer.learning_rate = 0.02
  config.optimizer.schedule = 'cosine'
  config.optimizer.warmup = 0.02
  config.optimizer.momentum = 0.9
  config.optimizer.weight_decay = 5e-4

  config.reducer = ml_collections.ConfigDict()
  config.reducer.name = 'dense_all_reduce'
  config.reducer.dtype = 'float32'

  config.stage_order = ('train',)
  config.stages = ml_collections.ConfigDict()
  config.stages.train = ml_collections.ConfigDict({'epochs': 12.0})

  config.log_every = 100
  config.eval_every_epochs = 1.0
  config.checkpoint_every_epochs = 1.0

  if mode == 'runlocal':
    config.stages.train = ml_collections.ConfigDict({'steps': 4})
    config.batch_size = 32
    config.log_every = 2
  return config
