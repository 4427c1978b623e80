"""ResNet-20 on CIFAR-10, a thousandth of the gradient sent, 4 to 32 workers.

Deep Gradient Compression (Lin et al. 2018, arXiv 1712.01887), table 2: there
ResNet-110, 164 epochs, of which the first four warm up, batches of 32 a worker;
93.87 % with 4 workers, 93.28 with 8, 93.20 with 16, 93.18 with 32, and dense
93.75, 92.92, 93.14, 93.10. The learning rate grows with the batch from 0.1 at
128 images, after a ramp of five epochs where the batch is larger. Workers are
simulated on one device. For a GPU; its accuracy is not measured yet.

`short` is for a CPU: 4 workers of 8 images and 4 epochs, 0.4 of them warm-up,
so that there are 6,250 steps; the learning rate shrinks with the batch. Nothing
of it was tuned. Compression costs 3.7 points here (results/gradient.md). On the
validation split (`--config.dataset.validation=5000`), seed 0, compressed: 73.6 %
with `--config.optimizer.schedule=cosine`, 74.7 % also with `--config.workers=2
--config.batch_size=16 --config.optimizer.learning_rate=0.0125`. A quarter of an
hour of a core dense, half an hour compressed:

    python -m experiments.reproduce cifar10_resnet20_dgc:{short,dense_short,top_k_short} --seeds 0 1 2

A parameter is sent some 25 times in all there, and some 100 times in `small`:
two images a worker, 25,000 steps, a cosine. There compression costs nothing:
69.38 % compressed, 67.88 % dense (test, seed 0; 43 and 31 minutes of a core that
was shared).

    python -m experiments.train --config configs/cifar10_resnet20_dgc.py --workdir W
    python -m experiments.train --config configs/cifar10_resnet20_dgc.py:dense …
    python -m experiments.train --config configs/cifar10_resnet20_dgc.py:top_k …
    python -m experiments.train --config configs/cifar10_resnet20_dgc.py:8 …
    python -m experiments.train --config configs/cifar10_resnet20_dgc.py:dense_8 …

Likewise for 16 and 32. All of them, three seeds each:

    python -m experiments.reproduce cifar10_resnet20_dgc{,:dense,:top_k} cifar10_resnet20_dgc:{,dense_,top_k_}{8,16,32} --seeds 0 1 2
"""  # noqa: E501

from configs import default

# Images of each of 4 workers, and how the learning rate falls, on a CPU.
FOR_CPU = {'short': (8, 'steps'), 'small': (2, 'cosine')}
WAYS = ('dense', 'top_k')
MODES = tuple(
  way + size
  for size in ('8', '16', '32', *FOR_CPU)
  for way in ('', 'dense_', 'top_k_')
)


def get_config(mode: str = '') -> default.ConfigDict:
  config = default.begin(__file__, mode, *WAYS, *MODES)
  way, _, size = mode.rpartition('_') if mode in MODES else (mode, '', '')
  short = size in FOR_CPU
  workers = 4 if short else int(size or 4)
  config.update(mapping='vmap', workers=workers, cpu_devices=1)
  default.train_resnet(config)
  images, config.optimizer.schedule = FOR_CPU.get(size, (32, 'steps'))
  config.batch_size = images * workers
  config.optimizer.learning_rate = 0.1 * config.batch_size / 128
  config.optimizer.warmup = 5 / 164 if workers > 4 else 0.0
  config.optimizer.weight_decay = 0.0
  config.stages.train.epochs = 4.0 if short else 164.0
  each, local = 0.1 if short else 1.0, {'momentum': 0.9, 'weight_decay': 1e-4}
  default.compress_gradients(config, way, 'epochs', each, **local)
  config.eval_every_epochs = 1.0 if short else 4.0
  config.checkpoint_every_epochs = 1.0 if short else 20.0

  if mode == 'runlocal':
    default.shorten_images(config)
  return config
