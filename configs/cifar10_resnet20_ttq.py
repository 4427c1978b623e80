r"""Trained ternary ResNet-20 on CIFAR-10 (Zhu et al., arXiv 1612.01064).

Published: 8.23 % error dense, 8.87 % ternary, table 1. First and last layer
stay in full precision, the threshold is 0.05 of the largest weight, and
training goes on from the dense network. Its accuracy here is not measured yet:
the run is for a GPU.

python -m experiments.compress --config configs/cifar10_resnet20_ttq.py \
  --workdir W
"""

from configs import default


def get_config(mode: str = '') -> default.ConfigDict:
  config = default.begin(__file__, mode)
  default.train_resnet(config)
  default.set_stages(config, 'steps', dense=64_000, ternary=64_000)
  ternary = config.stages.ternary
  ternary.optimizer.learning_rate = 0.05
  kinds = ('(Conv_0|Dense_0)/kernel', False), ('.*/kernel', True), ('.*', False)
  ternary.method = {'name': 'ternary', 'threshold': 0.05, 'rules': kinds}
  ternary.files = (('TTQ', 'fixed'), ('TTQ+auto', 'auto'))
  default.write_files(config, checkpoint_every_epochs=5.0)

  if mode == 'runlocal':
    default.shorten_images(config)
  return config
