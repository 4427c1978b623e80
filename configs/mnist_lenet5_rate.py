r"""Rate-aware training of LeNet-5 on MNIST: small files from training.

As mnist_lenet300_rate.py, with the same modes. Published: 606x at 1.0 % error
(Oktay et al., arXiv 1906.06624).

python -m experiments.compress --config configs/mnist_lenet5_rate.py \
  --workdir W

Chosen on held-out examples (`--config.dataset.validation=5000`). Measured:
results/README.md.
"""

from configs import default


def get_config(mode: str = '') -> default.ConfigDict:
  config = default.begin(__file__, mode, 'small', 'accurate')
  weight = {'small': 2.0, 'accurate': 1.0}.get(mode, 1.25)
  epochs = {'dense': 8.0, 'prune': 5.0, 'rate': 50.0}
  # On CPUs; 'xla' on accelerators.
  config.model = {'name': 'lenet5', 'convolution': 'matrix'}
  default.rate_aware_lenet(config, weight=weight, sparsity=0.98, **epochs)

  if mode == 'runlocal':
    default.shorten_mnist(config)
  return config
