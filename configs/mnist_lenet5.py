"""LeNet-5 (Caffe's) on MNIST, dense.

The baseline of Deep Compression's table 3. Published reference error 0.80 %
(Han et al., arXiv 1510.00149, table 1); here images are shifted at random by up
to two pixels. Measured: results/mnist_lenet5/.

    python -m experiments.train --config configs/mnist_lenet5.py --workdir W
"""

from configs import default


def get_config(mode: str = '') -> default.ConfigDict:
  config = default.begin(__file__, mode)
  config.update(workers=2, cpu_devices=2, batch_size=128)
  config.dataset.update(default.mnist(mean=0.1307))
  config.augment.pad = 2
  config.model = {'name': 'lenet5'}
  config.optimizer.update(learning_rate=0.02, schedule='cosine', warmup=0.02)
  config.optimizer.weight_decay = 5e-4
  config.stages.train.epochs = 12.0

  if mode == 'runlocal':
    config.stages.train = {'steps': 4}
    config.update(batch_size=32, log_every=2)
  return config
