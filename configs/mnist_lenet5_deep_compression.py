r"""Deep Compression of LeNet-5 on MNIST: dense, prune, share, code.

As mnist_lenet300_deep_compression.py, the second row of table 1 of Han, Mao &
Dally (arXiv 1510.00149): 39x with 0.74 % error after 0.80 %.

python -m experiments.compress \
  --config configs/mnist_lenet5_deep_compression.py --workdir W

Chosen on held-out examples (`--config.dataset.validation=5000`). Measured:
results/README.md.
"""

from configs import default


def get_config(mode: str = '') -> default.ConfigDict:
  config = default.begin(__file__, mode)
  default.compress_mnist(config, pad=2)
  config.optimizer.update(learning_rate=0.02, schedule='cosine', warmup=0.05)
  config.optimizer.weight_decay = 5e-4
  default.set_stages(config, 'epochs', dense=12.0, prune=14.0, share=2.0)
  # On CPUs; 'xla' on accelerators.
  config.model = {'name': 'lenet5', 'convolution': 'matrix'}
  prune = {'sparsity': 0.95, 'schedule': 'cubic', 'until': 0.5}
  default.deep_compression(config, prune, learning_rate=0.003, weight_decay=0.0)

  if mode == 'runlocal':
    default.shorten_mnist(config)
  return config
