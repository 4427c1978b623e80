"""LeNet-300-100 on MNIST, four workers: the first thing to run.

Trains, prunes, shares weights and ends with a compressed file, `model.bwz`, and
its table: P (pruned), P+Q (shared as well), P+Q+H (Huffman-coded as well). On
the way the workers send a thousandth of their gradients (Deep Gradient
Compression), after one epoch of warm-up.

python -m experiments.train --config configs/quickstart.py --workdir W
"""

import ml_collections

WARM_UP = (0.25, 0.0625, 0.015625, 0.004)


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
  config.dataset.mean = 0.0
  config.dataset.std = 0.3081

  config.model = ml_collections.ConfigDict()
  config.model.name = 'lenet300'

  # Momentum and weight decay are in the reducer.
  config.optimizer = ml_collections.ConfigDict()
  config.optimizer.name = 'sgd'
  config.optimizer.learning_rate = 0.1
  config.optimizer.schedule = 'cosine'
  config.optimizer.momentum = 0.0
  config.optimizer.weight_decay = 0.0

  config.reducer = ml_collections.ConfigDict()
  config.reducer.name = 'deep_gradient_compression'
  config.reducer.density = 1e-3
  config.reducer.momentum = 0.9
  config.reducer.weight_decay = 1e-4
  config.reducer.values = 'float8'
  config.reducer.exchange = 'all_gather'

  config.stages = ml_collections.ConfigDict()
  for i, density in enumerate(WARM_UP):
    stage = ml_collections.ConfigDict({'epochs': 0.25})
    stage.reducer = config.reducer.copy_and_resolve_references()
    stage.reducer.density = density
    config.stages[f'warm_up_{i + 1}'] = stage
  config.stage_order = ('warm_up_1', 'warm_up_2', 'warm_up_3', 'warm_up_4')
  config.stage_order += ('dense', 'prune', 'share')

  config.stages.dense = ml_collections.ConfigDict()
  config.stages.dense.epochs = 11.0
  config.stages.dense.optimizer = ml_collections.ConfigDict()
  config.stages.dense.files = (('dense', 'safetensors'),)

  config.stages.prune = ml_collections.ConfigDict()
  config.stages.prune.epochs = 12.0
  config.stages.prune.optimizer = ml_collections.ConfigDict()
  config.stages.prune.method = ml_collections.ConfigDict()
  config.stages.prune.method.name = 'prune'
  config.stages.prune.method.sparsity = 0.94
  config.stages.prune.files = (('P', 'fixed'),)

  config.stages.share = ml_collections.ConfigDict()
  config.stages.share.epochs = 2.0
  config.stages.share.optimizer = ml_collections.ConfigDict()
  config.stages.share.optimizer.learning_rate = 0.01
  config.stages.share.reducer = config.reducer.copy_and_resolve_references()
  config.stages.share.reducer.weight_decay = 0.0
  config.stages.share.method = ml_collections.ConfigDict()
  config.stages.share.method.name = 'share'
  config.stages.share.method.rules = (('.*/kernel', 5), ('.*', None))
  config.stages.share.files = (
    ('P+Q', 'fixed'),
    ('P+Q+H', 'huffman'),
    ('P+Q+auto', 'auto'),
  )

  config.log_every = 100
  config.eval_every_epochs = 0.0
  config.checkpoint_every_epochs = 1.0

  if mode == 'runlocal':
    for i in range(len(WARM_UP)):
      config.stages[f'warm_up_{i + 1}'].epochs = 0.0
      config.stages[f'warm_up_{i + 1}'].steps = 2
    config.stages.dense.epochs = 0.0
    config.stages.dense.steps = 20
    config.stages.prune.epochs = 0.0
    config.stages.prune.steps = 10
    config.stages.prune.method.frequency = 2
    config.stages.share.epochs = 0.0
    config.stages.share.steps = 5
    config.log_every = 5
  return config
