"""LeNet-300-100 on Fashion-MNIST: channels and precision within a file's bytes.

The second network of `benchmark search_joint`, beside the quickstart's LeNet-5:
dense layers alone, a harder data set. Three seeds, test set, at 1.5 and 3 % of
the float32 bytes: 86.46 and 88.18 %, where channels come first 86.24 and 87.86,
precision alone 56.28 and 87.04 (results/search.md). Four minutes of a core.

    python -m experiments.search --config configs/fashion_mnist_lenet300_joint.py --workdir W
    python -m experiments.benchmark search_joint --networks quickstart_search fashion_mnist_lenet300_joint

Fashion-MNIST comes from tensorflow-datasets, or from its original files through
`python -m experiments.datasets.prepare fashion_mnist --from DIR`.
"""  # noqa: E501

import ml_collections


def get_config(mode: str = '') -> ml_collections.ConfigDict:
  if mode not in ('', 'runlocal'):
    raise ValueError(
      f'fashion_mnist_lenet300_joint.py:{mode} is unknown; known: runlocal'
    )
  config = ml_collections.ConfigDict()
  config.seed = 0

  config.mapping = 'pmap'
  config.workers = 1
  config.cpu_devices = 1

  config.batch_size = 128
  config.dataset = ml_collections.ConfigDict()
  config.dataset.name = 'fashion_mnist'
  config.dataset.source = 'tfds'
  config.dataset.data_dir = ''
  config.dataset.validation = 5000
  config.dataset.mean = 0.2860
  config.dataset.std = 0.3530

  config.model = ml_collections.ConfigDict()
  config.model.name = 'lenet300'

  config.optimizer = ml_collections.ConfigDict()
  config.optimizer.name = 'sgd'
  config.optimizer.learning_rate = 0.05
  config.optimizer.schedule = 'cosine'
  config.optimizer.momentum = 0.9
  config.optimizer.weight_decay = 1e-4

  config.stages = ml_collections.ConfigDict()
  config.stages.train = ml_collections.ConfigDict({'epochs': 10.0})
  config.stage_order = ('train',)

  config.search = ml_collections.ConfigDict()
  config.search.network = ''
  config.search.decisions = ml_collections.ConfigDict({'name': 'joint'})
  config.search.searcher = ml_collections.ConfigDict()
  config.search.searcher.name = 'cma_es_dynamic'
  config.search.evaluations = 200
  config.search.cost = ml_collections.ConfigDict({'name': 'file_bytes'})
  config.search.budget = 0.05
  config.search.frontier = (0.03, 0.05, 0.1)
  config.search.divisor = 1
  config.search.smallest = 0.05
  config.search.most_levels = 48
  config.search.images = 1000

  config.log_every = 50
  config.eval_every_epochs = 1.0
  config.checkpoint_every_epochs = 1.0

  if mode == 'runlocal':
    config.stages.train.epochs = 0.0
    config.stages.train.steps = 2
    config.dataset.validation = 300
    config.search.evaluations = 4
    config.search.images = 64
    config.search.frontier = (0.2,)
    config.search.budget = 0.2
    config.log_every = 1
  return config
