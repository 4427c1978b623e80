"""ResNet-20 on CIFAR-10, dense (He et al., arXiv 1512.03385, section 4.2).

Published: 8.75 % error after 64,000 steps of batch 128 with the learning rate
divided by ten at 32,000 and 48,000. Its accuracy here is not measured yet: the
run is for a GPU.

    python -m experiments.train --config configs/cifar10_resnet20.py --workdir W

CIFAR-10 comes from tensorflow-datasets, or from its original files through
`python -m experiments.datasets.prepare cifar10 --from DIR`.
"""

from configs import default


def get_config(mode: str = '') -> default.ConfigDict:
  config = default.begin(__file__, mode)
  default.train_resnet(config)
  config.stages.train = {'steps': 64_000}
  config.checkpoint_every_epochs = 5.0

  if mode == 'runlocal':
    default.shorten_images(config)
  return config
