"""LeNet-5 (Caffe's) on MNIST, a thousandth of the gradient sent.

Deep Gradient Compression (Lin et al. 2018, arXiv 1712.01887) at density 0.1 %
against dense training of as many epochs, and against plain top-k with error
feedback ("gradient dropping"), as the paper's table 2 does it for ResNet-110.
Four workers, simulated on one device: what they would send is in the report in
closed form, and is what `pmap` sends. Measured: results/mnist_lenet5_dgc*/.

    python -m experiments.train --config configs/mnist_lenet5_dgc.py --workdir W
    python -m experiments.train --config configs/mnist_lenet5_dgc.py:dense …
    python -m experiments.train --config configs/mnist_lenet5_dgc.py:top_k …
"""

from configs import default


def get_config(mode: str = '') -> default.ConfigDict:
  config = default.begin(__file__, mode, 'dense', 'top_k')
  config.update(mapping='vmap', workers=4, cpu_devices=1, batch_size=128)
  config.dataset.update(default.mnist(mean=0.1307))
  config.model = {'name': 'lenet5', 'convolution': 'matrix'}
  # Plain top-k diverges with 0.02.
  config.optimizer.update(learning_rate=0.01, schedule='cosine', warmup=0.02)
  config.stages.train.epochs = 12.0
  local = {'momentum': 0.9, 'weight_decay': 5e-4}
  default.compress_gradients(config, mode, 'epochs', 0.25, **local)
  config.eval_every_epochs = 0.0
  config.checkpoint_every_epochs = 4.0

  if mode == 'runlocal':
    default.shorten(config, 4)
    config.batch_size = 32
  return config
