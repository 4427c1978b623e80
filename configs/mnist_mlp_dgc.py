"""An MLP of 11.6 million parameters on MNIST: what a slow link costs.

Four processes, a worker each, over links of a chosen rate (root needed): half
an epoch of dense training, and three times as many steps with a thousandth of
the gradient. Measured: results/benchmark/training.json.

    python -m experiments.benchmark training --rates 100mbit 1gbit
    python -m experiments.launch --processes 4 --rate 1gbit -- --config configs/mnist_mlp_dgc.py --workdir W
    python -m experiments.launch --processes 4 --rate 1gbit -- --config configs/mnist_mlp_dgc.py:dense …
"""  # noqa: E501

import ml_collections

MODES = ('', 'dense', 'runlocal')
WARM_UP = (0.25, 0.0625, 0.015625, 0.004)


def get_config(mode: str = '') -> ml_collections.ConfigDict:
  if mode not in MODES:
    raise ValueError(
      f'mnist_mlp_dgc.py:{mode} is unknown; known: {", ".join(MODES[1:])}'
    )
  config = ml_collections.ConfigDict()
  config.seed = 0

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
  config.model.features = (4096, 2048)

  config.optimizer = ml_collections.ConfigDict()
  config.optimizer.name = 'sgd'
  config.optimizer.learning_rate = 0.02
  config.optimizer.schedule = 'cosine'
  config.optimizer.momentum = 0.0
  config.optimizer.weight_decay = 0.0

  config.reducer = ml_collections.ConfigDict()
  config.stage_order = ('train',)
  config.stages = ml_collections.ConfigDict()
  config.stages.train = ml_collections.ConfigDict({'steps': 117})

  if mode == 'dense':
    config.reducer.name = 'dense_all_reduce'
    config.reducer.dtype = 'float32'
    config.optimizer.momentum = 0.9
  else:
    config.reducer.name = 'deep_gradient_compression'
    config.reducer.density = 1e-3
    config.reducer.momentum = 0.9
    config.reducer.values = 'float8'
    config.reducer.exchange = 'all_gather'
    for i, density in enumerate(WARM_UP):
      stage = ml_collections.ConfigDict({'steps': 10})
      stage.reducer = config.reducer.copy_and_resolve_references()
      stage.reducer.density = density
      config.stages[f'warm_up_{i + 1}'] = stage
    config.stage_order = ('warm_up_1', 'warm_up_2', 'warm_up_3', 'warm_up_4')
    config.stage_order += ('train',)
    config.stages.train.steps = 311

  config.log_every = 10
  config.eval_every_epochs = 0.125
  config.checkpoint_every_epochs = 0.0

  if mode == 'runlocal':
    config.model.features = (32, 16)
    for name in config.stage_order:
      config.stages[name].steps = 2
    config.log_every = 2
  return config
