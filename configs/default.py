"""Every field of a config, its meaning and its default; what configs share.

A config file takes what `begin` returns and sets what differs. Every field is a
flag too, `--config.augment.pad=2`, whatever the file sets. Groups with a `name`
have the arguments of what they name beside it; where a flag changes the name,
those that the new one doesn't take are dropped.
"""

import pathlib
from typing import Any

from ml_collections import ConfigDict, FieldReference

OPEN = ('model', 'reducer', 'stages', 'searcher', 'decisions', 'cost')
"""Groups whose other fields are arguments of what they name."""


FIELDS: dict[str, Any] = {
  # Of parameters, data order, augmentation.
  'seed': 0,
  # How the step is mapped over workers: pmap, shard_map, vmap (simulated).
  'mapping': 'pmap',
  # Data-parallel workers, one device each; 0: all devices.
  'workers': 0,
  # Groups of workers joined by slow links; with more than one, the axes are
  # ('host', 'data') and the mapping must not be pmap.
  'hosts': 1,
  # Virtual CPU devices in all processes together; 0: JAX's own choice. Without
  # effect on accelerators.
  'cpu_devices': 0,
  # Examples a step, over all workers.
  'batch_size': 64,
  # Examples at a time in evaluation.
  'eval_batch_size': 1000,
  'dataset': {
    'name': 'mnist',
    # auto, bundled, tfds or text.
    'source': 'auto',
    # Of tensorflow-datasets; empty: $TFDS_DATA_DIR or ~/tensorflow_datasets. Of
    # a text, its own folder will do.
    'data_dir': '',
    # Training examples held out; evaluation is on them instead of the test set.
    # A text has a validation set of its own, which any number but 0 stands for.
    'validation': 0,
    # Shorter side after resizing, then a center crop; 0: as stored.
    'image_size': 0,
    # Splits of at most so many decoded bytes are held in memory.
    'memory_limit': 2**28,
    # Of inputs in [0, 1], one number or one a channel.
    'mean': 0.0,
    'std': 1.0,
    # Of a text: tokens that are told apart, and tokens in a window.
    'vocabulary': 10_000,
    'window': 35,
  },
  # Random shifts by up to `pad` pixels; mirroring.
  'augment': {'pad': 0, 'flip': False},
  # `name`, and arguments of the network.
  'model': {'name': 'lenet300'},
  # Weights that training begins with: a file, .bwz or .safetensors, or a run's
  # directory; empty: the network's own initializers.
  'initial': '',
  # search.json of `experiments.search`: its network, `model` and `initial`, is
  # trained on; empty: none.
  'policy': '',
  'optimizer': {
    # sgd, adam or adamw.
    'name': 'sgd',
    'learning_rate': 0.1,
    # constant, cosine (to zero), or steps: times `decay` at each of the
    # fractions `boundaries` of the steps.
    'schedule': 'constant',
    'boundaries': (0.5, 0.75),
    'decay': 0.1,
    # Fraction of the steps with a linear ramp from zero.
    'warmup': 0.0,
    # Of sgd.
    'momentum': 0.9,
    'nesterov': False,
    # Of adam and adamw.
    'b1': 0.9,
    'b2': 0.999,
    # Of arrays of two or more axes.
    'weight_decay': 0.0,
    # Largest norm of the gradient; 0: any.
    'clip_norm': 0.0,
  },
  # `name`, and arguments of the reducer.
  'reducer': {'name': 'dense_all_reduce', 'dtype': 'float32'},
  # Names of the stages in their order, and fields of each: see `STAGE`.
  'stage_order': ('train',),
  'stages': {'train': {'epochs': 1.0}},
  # Model and data set go into .bwz files, so that each can be evaluated alone.
  'metadata': True,
  # Of `experiments.search`, which shrinks the trained network.
  'search': {
    # What is shrunk: a run's directory or a file of weights; empty: the config
    # is trained first, in the directory `network` below the search's.
    'network': '',
    # `name` of a searcher, and its options.
    'searcher': {'name': 'cma_es_dynamic'},
    # What is decided, `name` and options: `channels` of each layer, and with
    # `residual` 'group' those that residual connections add (not for dynamic
    # programming, which needs a chain); `bits` of weights and activations, with
    # `mode` linear or kmeans, `bits` to choose among, and `pins`, whether first
    # and last layer have HAQ's; or `joint`, channels and, from about so many
    # `bits` a weight, precision.
    'decisions': {'name': 'channels'},
    # Candidates that a searcher evaluates, and how many times it is run.
    'evaluations': 400,
    'seeds': 1,
    # Fraction of the whole network's cost, and further ones for the frontier.
    'budget': 0.5,
    'frontier': (0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8),
    # `name` of a cost model, and its arguments: of
    # `bandwidth.search.problem.cost`; for bits of `bit_options`; for both
    # together also `file_bytes`, of model.bwz.
    'cost': {'name': 'macs'},
    # Channels kept are multiples of `divisor`, and at least `smallest` of all;
    # a layer has a choice of `most_levels`.
    'divisor': 8,
    'smallest': 0.2,
    'most_levels': 64,
    # What candidates are compared by, loss or accuracy, on `images` of the
    # examples held out (`dataset.validation`); the others choose among the
    # `finalists`, the best ones.
    'score': 'loss',
    'images': 1000,
    'finalists': 10,
    # Training images whose statistics batch normalization takes in each
    # candidate; 0: it keeps those of the whole network.
    'statistics': 0,
    # Least squares of the layers that read fewer channels.
    'refit': {
      'enabled': True,
      'batches': 10,
      'batch_size': 50,
      'points': 10,
      'ridge': 1e-4,
      'intercept': True,
    },
  },
  # fp16, int8 and 4 bits, plain or zstd, are measured beside the files.
  'baselines': False,
  # Steps between lines of metrics.
  'log_every': 100,
  # Epochs between evaluations, and between checkpoints; both also happen at the
  # end of every stage. 0: only there.
  'eval_every_epochs': 1.0,
  'checkpoint_every_epochs': 1.0,
  'keep_checkpoints': 2,
}
"""All fields with their defaults."""

STAGE: dict[str, type] = {
  # How long it is; one of them is positive.
  'epochs': float,
  'steps': int,
  # What differs from the run's; a reducer with a `name` is another one.
  'reducer': dict,
  # Likewise. With one, even an empty one, the schedule spans the stage.
  'optimizer': dict,
  # `name`, and arguments: of `experiments.compression.methods`.
  'method': dict,
  # Written at the end, pairs (name, coder); the last one of the last stage is
  # model.bwz.
  'files': tuple,
  # Whether what is pending in the residuals is applied at the end.
  'flush': bool,
}
"""Fields of a stage and their types; all but its length may be left out."""


def get_config() -> ConfigDict:
  """Returns all fields with their defaults; there are no others."""
  config = ConfigDict(FIELDS)
  for name in ('mean', 'std'):
    either = FieldReference(config.dataset[name], field_type=object)
    config.dataset[name] = either
  config.lock()
  for group in (config, config.search):
    for name in set(OPEN) & set(group):
      group[name].unlock()
  return config


def begin(file: str, mode: str, *known: str) -> ConfigDict:
  """Returns all fields with their defaults, for a mode that a config knows.

  Args:
    file: of the config.
    mode: as in `--config FILE:MODE`; '' and 'runlocal' are known to all.
    *known: other modes; those that end in a value are spelled 'policy=FILE'.

  Raises:
    ValueError: the mode is unknown.
  """
  known = (*known, 'runlocal')
  prefixes = tuple(
    name.partition('=')[0] + '=' for name in known if '=' in name
  )
  if mode not in ('', *known) and not mode.startswith(prefixes):
    name = f'{pathlib.Path(file).name}:{mode}'
    raise ValueError(f'{name} is unknown; known: {", ".join(known)}')
  return get_config()


def mnist(**fields: Any) -> dict[str, Any]:
  """MNIST. Zero stays zero: another border would act as a bias."""
  return {'name': 'mnist', 'std': 0.3081, **fields}


def fashion_mnist(**fields: Any) -> dict[str, Any]:
  """Fashion-MNIST, standardized."""
  standard = {'mean': 0.2860, 'std': 0.3530}
  return {'name': 'fashion_mnist', 'source': 'tfds', **standard, **fields}


def train_resnet(config: ConfigDict, **model: Any) -> None:
  """CIFAR-10 as He et al. train on it (arXiv 1512.03385, section 4.2)."""
  config.batch_size = 128
  config.dataset.update(name='cifar10', source='tfds')
  config.dataset.mean = (0.4914, 0.4822, 0.4465)
  config.dataset.std = (0.2470, 0.2435, 0.2616)
  config.augment.update(pad=4, flip=True)
  config.model = {'name': 'resnet20', **model}
  config.optimizer.update(schedule='steps', weight_decay=1e-4)


def compress_gradients(
  config: ConfigDict, way: str, unit: str, length: float, **local: float
) -> None:
  """Sends a thousandth of the gradient, or does what that is compared with.

  Args:
    config: with its stages; the first one gives time to four that warm up.
    way: 'dense'; 'top_k', with error feedback; any other: Deep Gradient
      Compression (Lin et al. 2018, arXiv 1712.01887).
    unit: of the length, 'epochs' or 'steps'.
    length: of each stage that warms up.
    **local: momentum, weight_decay, clip_norm: before compression where that
      is Deep Gradient Compression, else of the optimizer.
  """
  sent = {'density': 1e-3, 'values': 'float8'}
  if way in ('dense', 'top_k'):
    config.optimizer.update(local)
    if way == 'top_k':
      config.reducer = {'name': 'top_k', **sent}
    return
  config.optimizer.momentum = 0.0
  config.reducer = {'name': 'deep_gradient_compression', **sent, **local}
  config.reducer.exchange = 'all_gather'
  config.stages[config.stage_order[0]][unit] -= 4 * length
  names = ('warm_up_1', 'warm_up_2', 'warm_up_3', 'warm_up_4')
  for name, density in zip(names, (0.25, 0.0625, 0.015625, 0.004), strict=True):
    config.stages[name] = {unit: length, 'reducer': {'density': density}}
  config.stage_order = names + config.stage_order


def set_stages(config: ConfigDict, unit: str, **lengths: float) -> None:
  """Gives a run other stages in their order, each with its own schedule.

  `dense` writes the dense network. The unit is 'epochs' or 'steps'.
  """
  config.stage_order = tuple(lengths)
  config.stages = {
    name: {unit: length, 'optimizer': {}} for name, length in lengths.items()
  }
  config.stages.dense.files = (('dense', 'safetensors'),)


def write_files(config: ConfigDict, **fields: Any) -> None:
  """Measures files beside what others make; checkpoints at ends alone."""
  ends = {'eval_every_epochs': 0.0, 'checkpoint_every_epochs': 0.0}
  config.update({'baselines': True, **ends, **fields})


def compress_mnist(config: ConfigDict, *, pad: int) -> None:
  """A network of MNIST whose files are to be small, by one worker."""
  config.update(workers=1, cpu_devices=1, batch_size=128)
  config.dataset.update(mnist())
  config.augment.pad = pad
  write_files(config, metadata=False)


def deep_compression(
  config: ConfigDict,
  pruning: dict[str, Any],
  *,
  rules: tuple[tuple[str, int | None], ...] = (('.*/kernel', 5), ('.*', None)),
  **optimizer: float,
) -> None:
  """Sets arguments, methods and files of the stages `prune` and `share`.

  `rules` are bits of codes; `optimizer` is of the training of centroids.
  """
  config.stages.prune.method = {'name': 'prune', **pruning}
  config.stages.prune.files = (('P', 'fixed'),)
  config.stages.share.optimizer = optimizer
  config.stages.share.method = {'name': 'share', 'rules': rules}
  files = ('P+Q', 'fixed'), ('P+Q+H', 'huffman'), ('P+Q+auto', 'auto')
  config.stages.share.files = files


def rate_aware_lenet(
  config: ConfigDict, *, sparsity: float, weight: float, **epochs: float
) -> None:
  """Counts the bits of the file in the loss, beginning at a pruned network.

  `weight` is of bits a parameter, against nats of cross-entropy an example;
  `epochs` are of the stages `dense`, `prune` and `rate`.
  """
  compress_mnist(config, pad=1)
  config.optimizer.update(name='adam', learning_rate=2e-3, schedule='cosine')
  set_stages(config, 'epochs', **epochs)
  prune, rate = config.stages.prune, config.stages.rate
  prune.method = {'name': 'prune', 'sparsity': sparsity, 'until': 0.6}
  rate.optimizer.learning_rate = 1e-2
  # The grid at first is of `step` root mean squares of the pruned layer.
  rate.method = {'name': 'rate', 'weight': weight, 'step': 6.0}
  rate.files = (('rate', 'auto'),)


def train_on(
  config: ConfigDict, mode: str, *, epochs: float, **optimizer: Any
) -> None:
  """Trains on what a search has left, if the mode is policy=search.json.

  Or the whole network, to compare, if it is whole=DIR.
  """
  kind, _, path = mode.partition('=')
  if path:
    config['policy' if kind == 'policy' else 'initial'] = path
    config.dataset.validation = 0
    config.optimizer.update(optimizer)
    config.stages.train.update(epochs=epochs, files=(('model', 'auto'),))


def shorten(config: ConfigDict, steps: int, **others: int) -> None:
  """Makes a run one of seconds: so many steps a stage; others by name."""
  for name, stage in config.stages.items():
    if 'epochs' in stage:
      stage.epochs = 0.0
    stage.steps = others.get(name, steps)
    if stage.get('method', {}).get('name') == 'prune':
      stage.method.frequency = 1
  config.log_every = 2


def shorten_images(config: ConfigDict, *, validation: int = 256) -> None:
  """Does so with small batches, and an evaluation on few examples."""
  shorten(config, 2)
  config.update(batch_size=16, eval_batch_size=256, log_every=1)
  config.dataset.validation = validation


def shorten_mnist(config: ConfigDict) -> None:
  """Does so with small batches, and the last stage half as long."""
  shorten(config, 4, **{config.stage_order[-1]: 2})
  config.batch_size = 32


def shorten_search(config: ConfigDict, *, evaluations: int) -> None:
  """Does so with a search of so many evaluations, of large networks."""
  shorten_images(config, validation=300)
  config.search.update(evaluations=evaluations, images=64)
  config.search.update(budget=0.8, frontier=(0.6, 0.8), smallest=0.5)
