"""Fields by flags: all that exist, whatever a config file sets.

`ml_collections` lets a flag change a field that a config has. Before it reads
the flags, the config gets all fields with their defaults, and those arguments
that flags give to what the config, or a flag, names.
"""

import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from absl import flags
from ml_collections import ConfigDict, config_dict

from bandwidth.base import arguments_of, check_argument, check_name
from bandwidth.search.searchers import ALL as SEARCHERS
from configs.default import OPEN, STAGE
from experiments import models
from experiments.compression.methods import METHODS
from experiments.config import check_field, fill
from experiments.policy.kinds import KINDS
from experiments.training.reducers import REDUCERS

_FLAG = re.compile(r'--?(?:no)?config\.([^=]+)(?:=(.*))?', re.DOTALL)
# What a flag is read as; all else is a literal of Python, or a string.
_PLAIN = (bool, int, float, str)


class _Named(NamedTuple):
  """A group of fields with a name."""

  path: str  # of the group
  group: ConfigDict  # its fields
  name: Any  # of what it stands for, after all flags
  renamed: bool  # whether a flag has given it


class FileParser(flags.ArgumentParser):
  """Makes room for flags in what another parser has read of a file."""

  def __init__(self, *, files: flags.ArgumentParser, argv: Sequence[str]):
    self._files, self._argv = files, argv

  def parse(self, argument: str) -> ConfigDict:
    """Returns the config of a file, all fields of the flags in it.

    Raises:
      flags.Error: it can't be read, or a field does not exist.
    """
    config: Any = self._files.parse(argument)
    try:
      return make_room(config, given_fields(self._argv))
    except OSError as error:
      # Of a file that can't be read; ml_collections raises it late.
      line = str(error).splitlines()[-1].strip()
      raise flags.Error(f'config: {line}') from None
    except ValueError as error:
      raise flags.Error(str(error)) from None

  def flag_type(self) -> str:
    """Returns what the help of the program calls it."""
    return self._files.flag_type()


def given_fields(argv: Sequence[str]) -> dict[str, str]:
  """Returns the fields that flags set, and their texts.

  >>> given_fields(['x', '--config.seed=3', '--config.mapping', 'vmap'])
  {'seed': '3', 'mapping': 'vmap'}
  """
  found = {}
  for argument, after in zip(argv, [*argv[1:], ''], strict=True):
    match = _FLAG.fullmatch(argument)
    if match:
      found[match[1]] = after if match[2] is None else match[2]
  return found


def make_room(
  config: Mapping[str, Any], given: Mapping[str, str]
) -> ConfigDict:
  """Returns a config with every field that flags are going to set.

  Where a flag changes the name of a group, the arguments go that only the old
  one had; those of which a flag speaks stay.

  Args:
    config: as a file has it.
    given: texts of flags, by field.

  Raises:
    ValueError: the config or a flag has a field that does not exist.
  """
  filled = fill(config)
  for path in given:
    _check_path(filled, path, new_stages='stage_order' in given)
  for named in _named_groups(filled, given):
    prefix = f'{named.path}.'
    asked = [p.removeprefix(prefix) for p in given if p.startswith(prefix)]
    if named.renamed or asked:
      _make_room_for_arguments(filled, given, named, asked)
  return filled


def _check_path(filled: ConfigDict, path: str, *, new_stages: bool) -> None:
  """Checks a path up to the first group with a name; stages get its fields."""
  parts = path.split('.')
  if parts[0] == 'stages' and len(parts) > 1:
    _add_stage_field(filled, parts, new_stages=new_stages)
    return
  group: Any = filled
  for i, part in enumerate(parts):
    check_field('.'.join(parts[: i + 1]), group)
    group = group[part]
    if part in OPEN:
      return
    if not isinstance(group, ConfigDict) and parts[i + 1 :]:
      raise ValueError(f'config: {".".join(parts[: i + 1])} has no fields')


def _add_stage_field(
  filled: ConfigDict, parts: Sequence[str], *, new_stages: bool
) -> None:
  _, name, *rest = parts
  path = f'stages.{name}'
  if not new_stages:
    check_field(path, filled.stages)
  if name not in filled.stages:
    filled.stages[name] = {}
  if not rest:
    return
  check_field(f'{path}.{rest[0]}', STAGE)
  stage, kind = filled.stages[name], STAGE[rest[0]]
  if rest[0] not in stage:
    stage[rest[0]] = {} if kind is dict else config_dict.placeholder(kind)
  if rest[0] == 'optimizer' and rest[1:]:
    field = '.'.join(rest[1:])
    check_field(f'{path}.optimizer.{field}', filled.optimizer)
    if field not in stage.optimizer:
      kind = filled.optimizer.get_type(field)
      stage.optimizer[field] = config_dict.placeholder(kind)


def _named_groups(
  filled: ConfigDict, given: Mapping[str, str]
) -> Iterator[_Named]:
  def named(path: str, group: ConfigDict, run: str = '') -> _Named:
    # A reducer of a stage without a name has that of the run.
    own = 'name' in group or f'{path}.name' in given
    source = path if own or not run else run
    name = given.get(f'{source}.name')
    holder = group if source == path else filled[run]
    return _Named(path, group, name or holder.get('name'), name is not None)

  for path in ('model', 'reducer'):
    yield named(path, filled[path])
  for field in ('decisions', 'searcher', 'cost'):
    yield named(f'search.{field}', filled.search[field])
  for stage, fields in filled.stages.items():
    if 'reducer' in fields:
      yield named(f'stages.{stage}.reducer', fields.reducer, 'reducer')
    if 'method' in fields:
      yield named(f'stages.{stage}.method', fields.method)


def _make_room_for_arguments(
  filled: ConfigDict,
  given: Mapping[str, str],
  named: _Named,
  asked: Collection[str],
) -> None:
  path, group, name, renamed = named
  makers, own = _makers(filled, given, path.rpartition('.')[-1])
  check_name(path, name, makers)
  known = arguments_of(makers[name], own)
  if renamed:
    for field in set(group) - {'name', *known, *asked}:
      del group[field]
  for field in asked:
    if field != 'name':
      check_argument(path, name, makers[name], field, own)
    # What is named like a method of the group, `values`, is read as a literal:
    # else its flag would find the method.
    method = hasattr(ConfigDict, field)
    if method or group.get(field) is None:
      kind = known[field].annotation if field in known else object
      kind = str if field == 'name' else kind
      with group.ignore_type():
        group[field] = config_dict.placeholder(
          kind if kind in _PLAIN and not method else object
        )


def _makers(
  filled: ConfigDict, given: Mapping[str, str], kind: str
) -> tuple[Mapping[str, Callable[..., Any]], tuple[str, ...]]:
  """What a group may name, and arguments of it that are not for users."""
  if kind == 'model':
    both = {**models.MODELS, **models.LANGUAGE_MODELS}
    return both, (*models.OWN, 'num_classes', 'vocabulary')
  if kind == 'reducer':
    return REDUCERS, ('axis_name', 'workers')
  if kind == 'method':
    return METHODS, ('steps',)
  if kind == 'searcher':
    return SEARCHERS, ('problem', 'evaluations')
  if kind == 'decisions':
    return {name: kind.options for name, kind in KINDS.items()}, ()
  decisions = filled.search.decisions.get('name')
  decisions = given.get('search.decisions.name', decisions)
  check_name('search.decisions', decisions, KINDS)
  return KINDS[decisions].costs, ()
