r"""Rate-aware training of LeNet-300-100 on MNIST: small files from training.

The loss counts the bits of the file (Oktay et al., arXiv 1906.06624: 124x at
1.9 % error). A dense network is pruned, so that most latents begin at zero, and
then trained for accuracy and bits at once; `model.bwz` holds its integers.
The modes `small` and `accurate` are other points of the curve of rate and
error, along which `stages.rate.method.weight` moves.

python -m experiments.compress --config configs/mnist_lenet300_rate.py \
  --workdir W

Chosen on 5,000 held-out training examples:
`--config.dataset.validation=5000`.
Measured: results/README.md.
"""

from configs import default


def get_config(mode: str = '') -> default.ConfigDict:
  config = default.begin(__file__, mode, 'small', 'accurate')
  weight = {'small': 2.5, 'accurate': 0.4}.get(mode, 1.0)
  epochs = {'dense': 20.0, 'prune': 10.0, 'rate': 100.0}
  default.rate_aware_lenet(config, weight=weight, sparsity=0.96, **epochs)

  if mode == 'runlocal':
    default.shorten_mnist(config)
  return config
