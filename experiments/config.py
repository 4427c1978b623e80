"""What a config may say, what it says where it is silent, and what it said.

Every field is in `DEFAULTS`, with its meaning. A config file sets what differs.
"""

import difflib
import hashlib
import importlib.util
import json
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import ml_collections
import numpy as np

from bandwidth.files import replace_text

DEFAULTS: dict[str, Any] = {
  # Of parameters, data order, augmentation.
  'seed': 0,
  # How the step is mapped over workers: pmap, shard_map or vmap (simulated).
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
    'name': 'sgd',
    'learning_rate': 0.1,
    'schedule': 'constant',
    'warmup': 0.0,
    'boundaries': (0.5, 0.75),
    'decay': 0.1,
    'momentum': 0.9,
    'nesterov': False,
    'b1': 0.9,
    'b2': 0.999,
    'weight_decay': 0.0,
    'clip_norm': 0.0,
  },
  # `name`, and arguments of the reducer.
  'reducer': {'name': 'dense_all_reduce', 'dtype': 'float32'},
  # Names of the stages in their order. Of each, `stages.<name>` has `epochs` or
  # `steps`, and what differs from the run: `reducer`, `optimizer`; a `method`,
  # see `methods.py`; and `files` that are written at its end, pairs (name,
  # coder). The last file of the last stage is model.bwz.
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
    # programming, which needs a chain); `bits` of weights and activations,
    # with `mode` linear or kmeans, `bits` to choose among, and `pins`, whether
    # first and last layer have HAQ's; or `joint`, channels and, from about so
    # many `bits` a weight, precision.
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

# Sub-configs whose fields are the arguments of what they name.
_OPEN = ('model', 'reducer', 'stages', 'searcher', 'cost', 'decisions')

# What may change between a run and its resumption.
ELASTIC = (
  'workers',
  'hosts',
  'cpu_devices',
  'mapping',
  'dataset.data_dir',
  'dataset.source',
  'keep_checkpoints',
)


def named_config(name: str, mode: str = '') -> ml_collections.ConfigDict:
  """Returns the config of a file of `configs/`, as `--config` does.

  Args:
    name: of the file, without its suffix.
    mode: that it is called with.

  Raises:
    ValueError: there is no such file, or it knows no such mode.
  """
  path = pathlib.Path(__file__).parent.parent / 'configs' / f'{name}.py'
  spec = importlib.util.spec_from_file_location(name, path)
  if not path.is_file() or spec is None or spec.loader is None:
    raise ValueError(f'config={name!r} is no file of configs/')
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module.get_config(mode)


def resolve(config: Mapping[str, Any]) -> Mapping[str, Any]:
  """Fills in what a config leaves out.

  Raises:
    ValueError: it has a field that does not exist; the nearest one is
      suggested. Or its `policy` is no search.json.
  """
  given = ml_collections.ConfigDict(config).to_dict()
  filled = _fill(given, DEFAULTS, '')
  if filled['policy']:
    filled |= _of_policy(pathlib.Path(filled['policy']))
  return filled


def _of_policy(path: pathlib.Path) -> dict[str, Any]:
  """The network that a search has left, and where its weights are."""
  prefix = f'policy={str(path)!r}'
  try:
    found = json.loads(path.read_text('utf-8'))
  except OSError as error:
    raise ValueError(f'{prefix} cannot be read: {error.strerror}') from None
  except (ValueError, RecursionError) as error:
    raise ValueError(f'{prefix} is no JSON: {error}') from None
  for key, kind in (('model', dict), ('weights', str)):
    if not isinstance(found, dict) or not isinstance(found.get(key), kind):
      raise ValueError(f'{prefix} is no search.json: {key} is missing')
  weights = str(path.parent / found['weights'])
  return {'model': found['model'], 'initial': weights}


def _fill(given: Any, defaults: dict[str, Any], path: str) -> dict[str, Any]:
  filled = dict(defaults)
  for key, value in given.items():
    if key not in defaults:
      close = difflib.get_close_matches(key, defaults, n=1)
      hint = f'; did you mean {path}{close[0]}?' if close else ''
      raise ValueError(f'config: there is no field {path}{key}{hint}')
    if not isinstance(defaults[key], dict):
      filled[key] = value
    elif not isinstance(value, dict):
      raise ValueError(
        f'config: {path}{key}={value!r} is not a group of fields'
      )
    elif key in _OPEN:
      filled[key] = value
    else:
      filled[key] = _fill(value, defaults[key], f'{path}{key}.')
  return filled


def flatten(config: Mapping[str, Any]) -> dict[str, Any]:
  """Returns `{'optimizer.learning_rate': 0.1, …}` as JSON sees the values."""
  flat: dict[str, Any] = {}

  def walk(value: Any, path: str) -> None:
    if isinstance(value, dict):
      for key, child in value.items():
        walk(child, f'{path}.{key}' if path else str(key))
    else:
      flat[path] = value

  walk(json.loads(to_json(config)), '')
  return flat


def to_json(config: Mapping[str, Any]) -> str:
  """Returns the config as readable JSON."""
  plain = ml_collections.ConfigDict(config).to_dict()
  return json.dumps(plain, indent=2, sort_keys=True, default=list) + '\n'


def keep_config(directory: pathlib.Path, config: Mapping[str, Any]) -> None:
  """Writes `config.json`, or checks that the one there says the same.

  Raises:
    ValueError: the directory belongs to a run of another config; the message
      names the fields that differ. Where a run may go on with another value
      (`ELASTIC`), the new one is written.
  """
  path = directory / 'config.json'
  if path.exists():
    _check_same(path, config)
  replace_text(path, to_json(config))


def check_config(directory: pathlib.Path, config: Mapping[str, Any]) -> None:
  """Does what `keep_config` does, without writing."""
  path = directory / 'config.json'
  if path.exists():
    _check_same(path, config)


def _check_same(path: pathlib.Path, config: Mapping[str, Any]) -> None:
  try:
    old = flatten(json.loads(path.read_text('utf-8')))
  except json.JSONDecodeError as error:
    raise ValueError(f'workdir: {path} is not JSON: {error}') from None
  new = flatten(config)
  missing = object()
  differences = [
    f'{field} was {old.get(field, "absent")!r}, is {new.get(field, "absent")!r}'
    for field in sorted(old.keys() | new.keys())
    if old.get(field, missing) != new.get(field, missing)
    and field not in ELASTIC
  ]
  if differences:
    raise ValueError(
      f'workdir={str(path.parent)!r} holds a run of another config: '
      f'{"; ".join(differences)}. Use another --workdir or the old values'
    )


def same_in_all_processes(config: Mapping[str, Any]) -> None:
  """Checks that all processes of a run were given one config.

  Programs that differ would wait for each other's collectives for ever.

  Raises:
    ValueError: another process has another config.
  """
  if jax.process_count() == 1:
    return
  from jax.experimental import multihost_utils

  text = to_json(config).encode('utf-8')
  mine = np.frombuffer(hashlib.sha256(text).digest(), np.uint8)
  all_digests = multihost_utils.process_allgather(mine)
  different = np.flatnonzero((all_digests != all_digests[:1]).any(axis=1))
  if different.size:
    raise ValueError(
      f'config: process {different[0]} was given another one than process 0'
    )
