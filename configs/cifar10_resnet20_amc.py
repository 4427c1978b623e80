"""ResNet-20 on CIFAR-10, and half of its multiply-adds removed by a search.

AutoML for Model Compression (He et al., ECCV 2018, arXiv 1802.03494) takes half
of ResNet-56 and loses 0.9 points after fine-tuning, 92.8 to 91.9 %. Residual
connections keep their channels; each block's inner ones are chosen. For a CPU:
twelve epochs, 85 minutes of a core that was shared, where He et al. (arXiv
1512.03385) train 164. Seed 0, test set: 86.28 % whole, 77.98 % with half of the
multiply-adds, 85.96 % fine-tuned for 29 minutes (results/README.md).

    python -m experiments.search --config configs/cifar10_resnet20_amc.py --workdir W
    python -m experiments.train --config configs/cifar10_resnet20_amc.py:policy=W/search.json --workdir W2

The second line goes on training the smaller network, for six epochs. To
compare, `:whole=W/network` does the same to the whole one.

`:narrow` is the network at half the width, a quarter of the multiply-adds, for
`benchmark search`, which trains many; results/search.md has what it found.
"""  # noqa: E501

from configs import default


def get_config(mode: str = '') -> default.ConfigDict:
  config = default.begin(__file__, mode, 'narrow', 'policy=FILE', 'whole=DIR')
  config.workers = config.cpu_devices = 1
  default.train_resnet(config)
  config.dataset.validation = 5000
  if mode == 'narrow':
    config.model.channels = (8, 16, 32)
  config.optimizer.update(schedule='cosine', weight_decay=5e-4)
  config.stages.train.epochs = 12.0
  config.search.update(divisor=1, smallest=0.1, images=512)
  config.search.update(evaluations=100, finalists=5)
  config.search.frontier = (0.2, 0.3, 0.4, 0.5, 0.6, 0.8)
  config.log_every = 50
  default.train_on(config, mode, epochs=6.0, learning_rate=0.05)

  if mode == 'runlocal':
    default.shorten_search(config, evaluations=8)
    config.model.channels = (4, 8, 8)
  return config
