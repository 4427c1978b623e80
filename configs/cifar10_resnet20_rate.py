r"""Rate-aware training of ResNet-20, four times as wide, on CIFAR-10.

Published for this width: 128 KB at 8.8 % error (Oktay et al., arXiv
1906.06624), 66 KB at 8.5 % (LilNetX, as printed elsewhere). Normalization is
stored as it is. Size and accuracy here are not measured yet: the run is for a
GPU, and the weight is to be chosen on held-out examples,
`--config.dataset.validation=5000`.

python -m experiments.compress --config configs/cifar10_resnet20_rate.py \
  --workdir W
"""

from configs import default


def get_config(mode: str = '') -> default.ConfigDict:
  config = default.begin(__file__, mode)
  default.train_resnet(config, channels=(64, 128, 256))
  default.set_stages(config, 'steps', dense=64_000, prune=20_000, rate=80_000)
  prune, rate = config.stages.prune, config.stages.rate
  prune.optimizer.learning_rate = 0.05
  prune.method = {'name': 'prune', 'sparsity': 0.9, 'until': 0.6}
  rate.optimizer.update({'name': 'adam', 'learning_rate': 0.01})
  rate.optimizer.update(schedule='cosine', weight_decay=0.0)
  rules = (('.*/scale', False), ('.*/bias', False), ('.*/kernel', None))
  rate.method = {'name': 'rate', 'weight': 2.0, 'step': 4.0, 'rules': rules}
  rate.files = (('rate', 'auto'),)
  default.write_files(config, checkpoint_every_epochs=5.0)

  if mode == 'runlocal':
    default.shorten_images(config)
  return config
