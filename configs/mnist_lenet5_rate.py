r"""Rate-aware training of LeNet-5 on MNIST: small files from training.

The loss counts the bits of the file (Oktay et al., arXiv 1906.06624: 606x at
1.0 % error). A dense network is pruned, so that most latents begin at zero, and
then trained for accuracy and bits at once; `model.bwz` holds its integers.
The modes `small` and `accurate` are other points of the curve of rate and
error, along which `stages.rate.method.weight` moves.

python -m experiments.compress --config configs/mnist_lenet5_rate.py \
  --workdir W

Chosen on 5,000 held-out training examples:
`--config.dataset.validation=5000`.
Measured: results/README.md.
"""

import ml_collections

# Bits a parameter, against nats of cross-entropy an example.
WEIGHTS = {'': 1.25, 'small': 2.0, 'accurate': 1.0, 'runlocal': 1.25}


def get_config(mode: str = '') -> ml_collections.ConfigDict:
  if mode not in WEIGHTS:
    raise ValueError(
      f'mnist_lenet5_rate.py:{mode} is unknown; known: '
      'small, accurate, runlocal'
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
  config.augment.pad = 1

  config.model = ml_collections.ConfigDict()
  config.model.name = 'lenet5'
  # On CPUs; 'xla' on accelerators.
  config.model.convolution = 'matrix'

  config.optimizer = ml_collections.ConfigDict()
  config.optimizer.name = 'adam'
  config.optimizer.learning_rate = 2e-3
  config.optimizer.schedule = 'cosine'
  config.optimizer.weight_decay = 0.0

  config.stage_order = ('dense', 'prune', 'rate')
  config.stages = ml_collections.ConfigDict()
  config.stages.dense = ml_collections.ConfigDict()
  config.stages.dense.epochs = 8.0
  config.stages.dense.optimizer = ml_collections.ConfigDict()
  config.stages.dense.files = (('dense', 'safetensors'),)

  config.stages.prune = ml_collections.ConfigDict()
  config.stages.prune.epochs = 5.0
  config.stages.prune.optimizer = ml_collections.ConfigDict()
  config.stages.prune.method = ml_collections.ConfigDict()
  config.stages.prune.method.name = 'prune'
  config.stages.prune.method.sparsity = 0.98
  config.stages.prune.method.until = 0.6

  config.stages.rate = ml_collections.ConfigDict()
  config.stages.rate.epochs = 50.0
  config.stages.rate.optimizer = ml_collections.ConfigDict()
  config.stages.rate.optimizer.learning_rate = 1e-2
  config.stages.rate.method = ml_collections.ConfigDict()
  config.stages.rate.method.name = 'rate'
  config.stages.rate.method.weight = WEIGHTS[mode]
  # Of the grid at first, in root mean squares of the pruned layer.
  config.stages.rate.method.step = 6.0
  config.stages.rate.files = (('rate', 'auto'),)

  config.metadata = False
  config.baselines = True
  config.log_every = 100
  config.eval_every_epochs = 0.0
  config.checkpoint_every_epochs = 0.0

  if mode == 'runlocal':
    config.stages.dense.update({'epochs': 0.0, 'steps': 4})
    config.stages.prune.update({'epochs': 0.0, 'steps': 4})
    config.stages.prune.method.frequency = 1
    config.stages.rate.update({'epochs': 0.0, 'steps': 2})
    config.batch_size = 32
    config.log_every = 2
  return config
