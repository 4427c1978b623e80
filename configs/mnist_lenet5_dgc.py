"""LeNet-5 (Caffe's) on MNIST, a thousandth of the gradient sent.

Deep Gradient Compression (Lin et al. 2018, arXiv 1712.01887) at density 0.1 %
against dense training of as many epochs, and against plain top-k with error
feedback ("gradient dropping"), as the paper's table 2 does it for ResNet-110.
Four workers, simulated on one device: what they would send is in the report in
closed form, and is what `pmap` sends. Measured: results/mnist_lenet5_dgc*/.

    python -m experiments.train --config configs/mnist_lenet5_dgc.py --workdir W
    python -m experiments.train --config configs/mnist_lenet5_dgc.py:dense …
    python -m experiments.train --config configs/mnist_lenet5_dgc.py:top_k …
"""

import ml_collections

MODES = ('', 'dense', 'top_k', 'runlocal')
WARM_UP = (0.25, 0.0625, 0.015625, 0.004)


def get_config(mode: str = '') -> ml_collections.ConfigDict:
  if mode not in MODES:
    raise ValueError(
      f'mnist_lenet5_dgc.py:{mode} is unknown; known: {", ".join(MODES[1:])}'
    )
  config = ml_collections.ConfigDict()
  config.seed = 0

  config.mapping = 'vmap'
  config.workers = 4
  config.cpu_devices = 1

  config.batch_size = 128
  config.dataset = ml_collections.ConfigDict()
  config.dataset.name = 'mnist'
  config.dataset.source = 'auto'
  config.dataset.data_dir = ''
  config.dataset.validation = 0
  config.dataset.mean = 0.1307
  config.dataset.std = 0.3081

  config.model = ml_collections.ConfigDict()
  config.model.name = 'lenet5'
  config.model.convolution = 'matrix'

  # The momentum of Deep Gradient Compression is in the reducer.
  config.optimizer = ml_collections.ConfigDict()
  config.optimizer.name = 'sgd'
  # Plain top-k diverges with 0.02.
  config.optimizer.learning_rate = 0.01
  config.optimizer.schedule = 'cosine'
  config.optimizer.warmup = 0.02
  config.optimizer.momentum = 0.0
  config.optimizer.weight_decay = 0.0

  config.reducer = ml_collections.ConfigDict()
  config.stage_order = ('train',)
  config.stages = ml_collections.ConfigDict()
  config.stages.train = ml_collections.ConfigDict({'epochs': 12.0})

  if mode == 'dense':
    config.reducer.name = 'dense_all_reduce'
    config.reducer.dtype = 'float32'
    config.optimizer.momentum = 0.9
    config.optimizer.weight_decay = 5e-4
  elif mode == 'top_k':
    config.reducer.name = 'top_k'
    config.reducer.density = 1e-3
    config.reducer.values = 'float8'
    config.optimizer.momentum = 0.9
    config.optimizer.weight_decay = 5e-4
  else:
    config.reducer.name = 'deep_gradient_compression'
    config.reducer.density = 1e-3
    config.reducer.momentum = 0.9
    config.reducer.weight_decay = 5e-4
    config.reducer.values = 'float8'
    config.reducer.exchange = 'all_gather'
    for i, density in enumerate(WARM_UP):
      stage = ml_collections.ConfigDict({'epochs': 0.25})
      stage.reducer = config.reducer.copy_and_resolve_references()
      stage.reducer.density = density
      config.stages[f'warm_up_{i + 1}'] = stage
    config.stage_order = ('warm_up_1', 'warm_up_2', 'warm_up_3', 'warm_up_4')
    config.stage_order += ('train',)
    config.stages.train.epochs = 11.0

  config.log_every = 100
  config.eval_every_epochs = 0.0
  config.checkpoint_every_epochs = 4.0

  if mode == 'runlocal':
    for name in config.stage_order:
      config.stages[name].epochs = 0.0
      config.stages[name].steps = 4
    config.batch_size = 32
    config.log_every = 2
  return config
