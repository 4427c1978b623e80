"""LeNet-300-100 on MNIST, four workers: the first thing to run.

Trains, prunes, shares weights and ends with a compressed file, `model.bwz`, and
its table: P (pruned), P+Q (shared as well), P+Q+H (Huffman-coded as well). On
the way the workers send a thousandth of their gradients (Deep Gradient
Compression), after one epoch of warm-up.

python -m experiments.train --config configs/quickstart.py --workdir W
"""

from configs import default


def get_config(mode: str = '') -> default.ConfigDict:
  config = default.begin(__file__, mode)
  # Workers: one virtual CPU device each, where there is no accelerator.
  config.update(workers=4, cpu_devices=4, batch_size=256)
  config.dataset.update(default.mnist())
  config.optimizer.schedule = 'cosine'
  default.set_stages(config, 'epochs', dense=12.0, prune=12.0, share=2.0)
  default.deep_compression(config, {'sparsity': 0.94}, learning_rate=0.01)
  config.stages.share.reducer = {'weight_decay': 0.0}
  local = {'momentum': 0.9, 'weight_decay': 1e-4}
  default.compress_gradients(config, mode, 'epochs', 0.25, **local)
  config.eval_every_epochs = 0.0

  if mode == 'runlocal':
    default.shorten(config, 2, dense=20, prune=10, share=5)
    config.stages.prune.method.frequency = 2
    config.log_every = 5
  return config
