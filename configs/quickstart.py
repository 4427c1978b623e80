"""LeNet-300-100 on MNIST, four workers: the first thing to run.

python -m experiments.train --config configs/quickstart.py --workdir W
"""

import ml_collections


def get_config(mode: str = '') -> ml_collections.ConfigDict:
  if mode not in ('', 'runlocal'):
    raise ValueError(f'quickstart.py:{mode} is unknown; known: runlocal')
  config = ml_collections.ConfigDict()
  config.seed = 0

  # Workers: one virtual CPU device each, where there is no accelerator.
  config.mapping = 'pmap'
  config.workers = 4
  config.cpu_devices = 4

  config.batch_size = 256
  config.dataset = ml_collections.ConfigDict()
  config.dataset.name = 'mnist'
  config.dataset.source = 'auto'
  config.dataset.data_dir = ''
  config.dataset.validation = 0
  config.dataset.mean = 0.1307
  config.dataset.std = 0.3081

  config.model = ml_collections.ConfigDict()
  config.model.name = 'lenet300'

  config.optimizer = ml_collections.ConfigDict()
  config.optimizer.name = 'sgd'
  config.optimizer.learning_rate = 0.1
  config.optimizer.schedule = 'cosine'
  config.optimizer.momentum = 0.9
  config.optimizer.nesterov = False
  config.optimizer.weight_decay = 1e-4

  config.reducer = ml_collections.ConfigDict()
  config.reducer.name = 'dense_all_reduce'
  config.reducer.dtype = 'float32'

  config.stage_order = ('train',)
  config.stages = ml_collections.ConfigDict()
  config.stages.train = ml_collections.ConfigDict({'epochs': 20.0})

  config.log_every = 100
  config.eval_every_epochs = 1.0
  config.checkpoint_every_epochs = 1.0

  if mode == 'runlocal':
    config.stages.train = ml_collections.ConfigDict({'steps': 20})
    config.log_every = 5
  return config
