r"""Rate-aware training of LeNet-5 on MNIST: small files from training.

The loss counts the bits of the file (Oktay et al., arXiv 1906.06624: 606x at
1.0 % error). A dense network is pruned, so that most latents begin at zero, and
then trained for accuracy and bits at once; `model.bwz` holds its integers.
The modes `small` and `accurate` are other points of the curve of rate and
error, along which `stages.rate.method.weight` moves.

python -m experiments.compress --config configs/mnist_lenet5_rate.py \
  --workdir W

Chosen on 5,000 held-out training examples:
`--config.dataset.validation=5000`.
Measured: results/README.md.
"""

from configs import default

# Bits a parameter, against nats of cross-entropy an example.
WEIGHTS = {'': 1.25, 'small': 2.0, 'accurate': 1.0}


def get_config(mode: str = '') -> default.ConfigDict:
  default.check_mode(__file__, mode, 'small', 'accurate')
  config = default.get_config()
  config.update(workers=1, cpu_devices=1, batch_size=128)
  config.dataset.update(default.mnist())
  config.augment.pad = 1
  # On CPUs; 'xla' on accelerators.
  config.model = {'name': 'lenet5', 'convolution': 'matrix'}
  config.optimizer.update(name='adam', learning_rate=2e-3, schedule='cosine')
  default.set_stages(config, 'epochs', dense=8.0, prune=5.0, rate=50.0)
  config.stages.rate.optimizer.learning_rate = 1e-2
  # The grid at first is of `step` root mean squares of the pruned layer.
  weight = WEIGHTS.get(mode, WEIGHTS[''])
  default.rate_aware(
    config, {'sparsity': 0.98, 'until': 0.6}, weight=weight, step=6.0
  )
  default.write_files(config, metadata=False)

  if mode == 'runlocal':
    default.shorten(config, 4, rate=2)
    config.update(batch_size=32, log_every=2)
  return config
