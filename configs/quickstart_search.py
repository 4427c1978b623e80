"""LeNet-5 on MNIST, trained, and four fifths of its multiply-adds removed.

Trains for two epochs, then lets CMA-ES, begun at the solution of a dynamic
program over the errors of single layers, choose how many channels each layer
keeps; ends with the frontier and with the smaller network in a file. Two cores
take less than two minutes.

    python -m experiments.search --config configs/quickstart_search.py --workdir W
    python -m experiments.train --config configs/quickstart_search.py:policy=W/search.json --workdir W2

The second line goes on training the smaller network. `:bits` lets HAQ choose
the bits of each layer's weights and inputs; `:joint` chooses channels and
precision together, in bytes of the file.
"""  # noqa: E501

from configs import default


def get_config(mode: str = '') -> default.ConfigDict:
  config = default.begin(__file__, mode, 'bits', 'joint', 'policy=FILE')
  config.update(workers=1, cpu_devices=1, batch_size=128, log_every=50)
  config.dataset.update(default.mnist(validation=5000))
  config.model = {'name': 'lenet5', 'convolution': 'matrix'}
  config.optimizer.update(learning_rate=0.02, schedule='cosine')
  config.optimizer.weight_decay = 1e-4
  config.stages.train.epochs = 2.0
  config.search.budget = 0.2
  config.search.frontier = (0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5)
  # All numbers of channels from a twentieth on: 1 to 20, 3 to 50, and of 500
  # hidden units each multiple of ten.
  config.search.update(divisor=1, smallest=0.05, most_levels=48)
  default.train_on(config, mode, epochs=2.0, learning_rate=0.01)

  if mode == 'bits':
    config.search.searcher.name = 'haq'
    config.search.decisions.name = 'bits'
    config.search.cost.name = 'weight_bytes'
    config.search.update(budget=0.4, frontier=(0.3, 0.4, 0.5, 0.7))

  if mode == 'joint':
    config.search.decisions.name = 'joint'
    config.search.cost.name = 'file_bytes'
    config.search.update(budget=0.02, frontier=(0.01, 0.02, 0.03, 0.05, 0.1))

  if mode == 'runlocal':
    default.shorten(config, 2)
    config.dataset.validation = 300
    config.search.update(evaluations=20, images=200, frontier=(0.1, 0.3))
    config.log_every = 1
  return config
