"""An MLP of 11.6 million parameters on MNIST: what a slow link costs.

Four processes, a worker each, over links of a chosen rate (root needed): half
an epoch of dense training, and three times as many steps with a thousandth of
the gradient. Measured: results/benchmark/training.json.

    python -m experiments.benchmark training --rates 100mbit 1gbit
    python -m experiments.launch --processes 4 --rate 1gbit -- --config configs/mnist_mlp_dgc.py --workdir W
    python -m experiments.launch --processes 4 --rate 1gbit -- --config configs/mnist_mlp_dgc.py:dense …
"""  # noqa: E501

from configs import default


def get_config(mode: str = '') -> default.ConfigDict:
  config = default.begin(__file__, mode, 'dense')
  config.update(workers=4, cpu_devices=4, batch_size=256)
  config.dataset.update(default.mnist())
  config.model.features = (4096, 2048)
  config.optimizer.update(learning_rate=0.02, schedule='cosine')
  config.stages.train = {'steps': 117 if mode == 'dense' else 351}
  default.compress_gradients(config, mode, 'steps', 10, momentum=0.9)
  config.log_every = 10
  config.eval_every_epochs = 0.125
  config.checkpoint_every_epochs = 0.0

  if mode == 'runlocal':
    config.model.features = (32, 16)
    default.shorten(config, 2)
  return config
