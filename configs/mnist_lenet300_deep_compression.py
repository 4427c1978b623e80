r"""Deep Compression of LeNet-300-100 on MNIST: dense, prune, share, code.

Reproduces the first row of table 1 of Han, Mao & Dally (arXiv 1510.00149): 40x
with 1.58 % error after 1.64 %. P, P+Q and P+Q+H are files as in the paper; the
last file lets every tensor have the coder that makes it smallest.

python -m experiments.compress \
  --config configs/mnist_lenet300_deep_compression.py --workdir W

Chosen on 5,000 held-out training examples:
`--config.dataset.validation=5000`.
Measured: results/README.md.
"""

from configs import default


def get_config(mode: str = '') -> default.ConfigDict:
  config = default.begin(__file__, mode)
  default.compress_mnist(config, pad=1)
  config.optimizer.update(schedule='cosine', weight_decay=1e-4)
  default.set_stages(config, 'epochs', dense=30.0, prune=30.0, share=5.0)
  prune = {'sparsity': 0.94, 'schedule': 'cubic', 'until': 0.5}
  default.deep_compression(config, prune, learning_rate=0.01, weight_decay=0.0)

  if mode == 'runlocal':
    default.shorten_mnist(config)
  return config
