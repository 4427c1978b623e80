"""ResNet-56 on CIFAR-10, and half of its multiply-adds removed by a search.

AutoML for Model Compression (He et al., ECCV 2018, arXiv 1802.03494), table 3:
92.8 % before, 91.9 % with half of the multiply-adds, fine-tuned. Residual
connections keep their channels; each block's inner ones are chosen. For a GPU;
its accuracy is not measured yet, see cifar10_resnet20_amc.py for a CPU.

    python -m experiments.search --config configs/cifar10_resnet56_amc.py --workdir W
    python -m experiments.train --config configs/cifar10_resnet56_amc.py:policy=W/search.json --workdir W2

The second line goes on training the smaller network, for forty epochs. To
compare, `:whole=W/network` does the same to the whole one.
"""  # noqa: E501

from configs import default


def get_config(mode: str = '') -> default.ConfigDict:
  config = default.begin(__file__, mode, 'policy=FILE', 'whole=DIR')
  config.workers = config.cpu_devices = 1
  default.train_resnet(config, name='resnet56')
  config.dataset.validation = 5000
  config.stages.train.epochs = 164.0
  config.search.update(divisor=1, smallest=0.1, images=3000, evaluations=800)
  config.search.frontier = (0.2, 0.3, 0.4, 0.5, 0.6, 0.8)
  config.eval_every_epochs = 4.0
  config.checkpoint_every_epochs = 20.0
  default.train_on(
    config, mode, epochs=40.0, learning_rate=0.02, schedule='cosine'
  )

  if mode == 'runlocal':
    default.shorten_search(config, evaluations=8)
    config.model.update(depth=8, channels=(4, 8, 8))
  return config
