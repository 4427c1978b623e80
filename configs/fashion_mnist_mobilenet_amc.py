"""MobileNet-V1 at an eighth of the width, Fashion-MNIST, searched.

Fourteen layers of channels to choose, depthwise convolutions among them, for
`benchmark search` on a CPU. Eleven minutes of a core to train, to 87.7 % of
the validation split (results/fashion_mnist_mobilenet_amc/network.bwz). Searchers
compared on equal budgets are in results/search.md.

    python -m experiments.search --config configs/fashion_mnist_mobilenet_amc.py --workdir W
    python -m experiments.train --config configs/fashion_mnist_mobilenet_amc.py:policy=W/search.json --workdir W2

Fashion-MNIST comes from tensorflow-datasets, or from its original files through
`python -m experiments.datasets.prepare fashion_mnist --from DIR`.
"""  # noqa: E501

from configs import default


def get_config(mode: str = '') -> default.ConfigDict:
  config = default.begin(__file__, mode, 'policy=FILE')
  config.update(workers=1, cpu_devices=1, batch_size=128, log_every=50)
  config.dataset.update(default.fashion_mnist(validation=5000))
  config.augment.update(pad=2, flip=True)
  config.model = {'name': 'mobilenet_v1_cifar'}
  config.model.channels = (4, 8, 16, 16, 32, 32, *(64,) * 6, 128, 128)
  config.optimizer.update(schedule='cosine', weight_decay=1e-4)
  config.stages.train.epochs = 6.0
  config.search.update(divisor=1, smallest=0.1, images=512, evaluations=200)
  config.search.frontier = (0.2, 0.3, 0.4, 0.5, 0.6, 0.8)
  default.train_on(config, mode, epochs=2.0, learning_rate=0.02)

  if mode == 'runlocal':
    default.shorten_search(config, evaluations=4)
    config.model.channels = (2,) * 14
  return config
