"""What a config says where it is silent, and what it said.

Every field is in `configs/default.py`, with its meaning and its default.
"""

import difflib
import hashlib
import importlib
import json
import pathlib
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import ml_collections
import numpy as np

from bandwidth.base import check_known, check_type
from bandwidth.files import replace_text
from configs import default

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


def config_names() -> list[str]:
  """Returns the names of all files that `named_config` takes."""
  files = pathlib.Path(default.__file__).parent.glob('*.py')
  return sorted({path.stem for path in files} - {'__init__', 'default'})


def named_config(name: str, mode: str = '') -> ml_collections.ConfigDict:
  """Returns the config of a file of `configs/`, as `--config` does.

  Args:
    name: of the file, without its suffix.
    mode: that it is called with.

  Raises:
    ValueError: there is no such file, or it knows no such mode.
  """
  check_known('config', name, config_names())
  return importlib.import_module(f'configs.{name}').get_config(mode)


def resolve(config: Mapping[str, Any]) -> dict[str, Any]:
  """Fills in what a config leaves out.

  A reducer of a stage that has no name is that of the run, but for the
  arguments that it has.

  Raises:
    ValueError: it has a field that does not exist; the nearest one is
      suggested. Or a value is of another type, or its `policy` is no
      search.json.
  """
  filled = fill(config).to_dict()
  for stage in filled['stages'].values():
    if 'reducer' in stage and 'name' not in stage['reducer']:
      stage['reducer'] = {**filled['reducer'], **stage['reducer']}
  if filled['policy']:
    filled |= _of_policy(pathlib.Path(filled['policy']))
  return filled


def fill(config: Mapping[str, Any]) -> ml_collections.ConfigDict:
  """Returns all fields, those that a config leaves out with their defaults.

  Raises:
    ValueError: it has a field that does not exist, or a value of another type.
  """
  filled = default.get_config()
  _set(filled, ml_collections.ConfigDict(config).to_dict(), '')
  for name, stage in filled.stages.items():
    _check_stage(f'stages.{name}', stage, filled.optimizer)
  return filled


def _set(group: ml_collections.ConfigDict, given: Any, path: str) -> None:
  for key, value in given.items():
    field = f'{path}{key}'
    check_field(field, group)
    if not isinstance(group[key], ml_collections.ConfigDict):
      check_type(f'config: {field}', value, group.get_type(key))
      group[key] = value
    elif not isinstance(value, dict):
      raise ValueError(f'config: {field}={value!r} is not a group of fields')
    elif key in default.OPEN:
      group[key] = value
    else:
      _set(group[key], value, f'{field}.')


def _check_stage(
  path: str, stage: Any, optimizer: ml_collections.ConfigDict
) -> None:
  if not isinstance(stage, ml_collections.ConfigDict):
    raise ValueError(f'config: {path}={stage!r} is not a group of fields')
  for key, value in stage.items():
    check_field(f'{path}.{key}', default.STAGE)
    kind = default.STAGE[key]
    if kind is not dict:
      check_type(f'config: {path}.{key}', value, kind)
    elif not isinstance(value, ml_collections.ConfigDict):
      raise ValueError(
        f'config: {path}.{key}={value!r} is not a group of fields'
      )
    elif key == 'optimizer':
      for name, inner in value.items():
        field = f'{path}.optimizer.{name}'
        check_field(field, optimizer)
        check_type(f'config: {field}', inner, optimizer.get_type(name))


def check_field(path: str, group: Iterable[str]) -> None:
  """Checks that a field exists in its group.

  Raises:
    ValueError: it does not; the nearest one is suggested.
  """
  parents, _, key = path.rpartition('.')
  if key not in group:
    close = difflib.get_close_matches(key, group, n=1)
    above = f'{parents}.' if parents else ''
    hint = f'; did you mean {above}{close[0]}?' if close else ''
    raise ValueError(f'config: there is no field {path}{hint}')


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
  check_config(directory, config)
  replace_text(directory / 'config.json', to_json(config))


def check_config(directory: pathlib.Path, config: Mapping[str, Any]) -> None:
  """Does what `keep_config` does, without writing."""
  path = directory / 'config.json'
  if not path.exists():
    return
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
