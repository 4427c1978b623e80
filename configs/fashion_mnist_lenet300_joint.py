"""LeNet-300-100 on Fashion-MNIST: channels and precision within a file's bytes.

The second network of `benchmark search_joint`, beside the quickstart's LeNet-5:
dense layers alone, a harder data set. Three seeds, test set, at 1.5 and 3 % of
the float32 bytes: 86.65 and 88.05 %, where channels come first 86.37 and 87.79,
precision alone 59.04 and 87.65 (results/search.md). Four minutes of a core.

    python -m experiments.search --config configs/fashion_mnist_lenet300_joint.py --workdir W
    python -m experiments.benchmark search_joint --networks quickstart_search fashion_mnist_lenet300_joint

Fashion-MNIST comes from tensorflow-datasets, or from its original files through
`python -m experiments.datasets.prepare fashion_mnist --from DIR`.
"""  # noqa: E501

from configs import default


def get_config(mode: str = '') -> default.ConfigDict:
  config = default.begin(__file__, mode)
  config.update(workers=1, cpu_devices=1, batch_size=128, log_every=50)
  config.dataset.update(default.fashion_mnist(validation=5000))
  config.optimizer.update(learning_rate=0.05, schedule='cosine')
  config.optimizer.weight_decay = 1e-4
  config.stages.train.epochs = 10.0
  config.search.decisions.name = 'joint'
  config.search.cost.name = 'file_bytes'
  config.search.update(evaluations=200, budget=0.05, frontier=(0.03, 0.05, 0.1))
  config.search.update(divisor=1, smallest=0.05, most_levels=48)

  if mode == 'runlocal':
    default.shorten(config, 2)
    config.dataset.validation = 300
    config.search.update(evaluations=4, images=64, budget=0.2, frontier=(0.2,))
    config.log_every = 1
  return config
