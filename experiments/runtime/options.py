"""Options of a command, each declared with what its values may be.

>>> given = parse(
...   'plan',
...   'Plans.',
...   {'batches': integer([1, 16]), 'density': fraction(1e-3)},
...   ['--batches', '4', '8'],
... )
>>> given.batches, given.density
([4, 8], 0.001)
"""

import argparse
import math
import pathlib
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, NamedTuple

from bandwidth.base import check_known
from experiments.runtime.command import Parser

REQUIRED = object()
"""The default of an option that has none."""


class Option(NamedTuple):
  """An option."""

  # `(name, text) -> value`, ValueError naming both; None: a flag
  read: Callable[[str, str], Any] | None
  default: Any = None  # where it is not given
  help: str = ''  # what it is
  many: bool = False  # whether it is a list of values
  fewest: int = 1  # of them
  positional: bool = False  # whether it is given without its name


def flag(help: str = '') -> Option:
  """False, or True where it is given."""
  return Option(None, False, help)


def text(
  default: Any = None,
  help: str = '',
  *,
  check: Callable[[str], Any] = str,
  **more: Any,
) -> Option:
  """Words that a check accepts; several where the default is a list."""

  def read(_: str, given: str) -> str:
    check(given)
    return given

  return _option(read, default, help, **more)


def path(default: Any = None, help: str = '', **more: Any) -> Option:
  """A path of a file or folder, ~ expanded."""
  if isinstance(default, pathlib.Path):
    default = str(default)
  return _option(
    lambda _, given: pathlib.Path(given).expanduser(), default, help, **more
  )


def choice(
  known: Collection[str], default: Any = None, help: str = '', **more: Any
) -> Option:
  """One of some names, or several where the default is a list."""

  def read(name: str, given: str) -> str:
    check_known(name, given, known)
    return given

  return _option(read, default, f'{help} ({", ".join(known)})', **more)


def integer(
  default: Any = None,
  help: str = '',
  *,
  least: int = 1,
  fits: Callable[[int], bool] | None = None,
  otherwise: str = '',
  **more: Any,
) -> Option:
  """An integer; several where the default is a list.

  Args:
    default: where it is not given.
    help: what it is.
    least: that it may be; not with `fits`.
    fits: see `number`.
    otherwise: see `number`.
    **more: fields of `Option`.
  """
  if fits is None:
    words = {0: 'negative', 1: 'not positive'}
    otherwise = words.get(least, f'less than {least}')
  accepts = fits or (lambda value: value >= least)
  read = _reader(int, 'integer', accepts, otherwise)
  return _option(read, default, help, **more)


def number(
  default: Any = None,
  help: str = '',
  *,
  fits: Callable[[float], bool] = lambda value: 0 < value < math.inf,
  otherwise: str = 'not positive and finite',
  **more: Any,
) -> Option:
  """A float; several where the default is a list.

  Args:
    default: where it is not given.
    help: what it is.
    fits: whether a value can be used.
    otherwise: what one is that can't, for the message.
    **more: fields of `Option`.
  """
  read = _reader(float, 'number', fits, otherwise)
  return _option(read, default, help, **more)


def _reader(
  kind: Callable[[str], Any],
  what: str,
  fits: Callable[[Any], bool],
  otherwise: str,
) -> Callable[[str, str], Any]:
  def read(name: str, given: str) -> Any:
    try:
      value = kind(given)
    except ValueError:
      raise ValueError(f'{name}={given!r} is no {what}') from None
    if not fits(value):
      raise ValueError(f'{name}={value} is {otherwise}')
    return value

  return read


def fraction(default: Any = None, help: str = '', **more: Any) -> Option:
  """A float in (0, 1]; several where the default is a list."""
  read = _reader(float, 'number', lambda x: 0 < x <= 1, 'not in (0, 1]')
  return _option(read, default, help, **more)


def shape_of(given: str, name: str = 'shapes') -> tuple[int, int]:
  """Reads inputs x outputs.

  Raises:
    ValueError: the text is no shape.

  >>> shape_of('784x300')
  (784, 300)
  """
  inputs, _, outputs = given.partition('x')
  if not (inputs.isdigit() and outputs.isdigit()):
    raise ValueError(f'{name}={given!r} is not INPUTSxOUTPUTS')
  if not (int(inputs) and int(outputs)):
    raise ValueError(f'{name}={given!r} is empty')
  return int(inputs), int(outputs)


def shape(default: Any = None, help: str = '', **more: Any) -> Option:
  """Inputs x outputs of a matrix; several where the default is a list."""
  return _option(
    lambda name, given: shape_of(given, name), default, help, **more
  )


def _option(read: Any, default: Any, help: str, **more: Any) -> Option:
  more.setdefault('many', isinstance(default, list | tuple))
  return Option(read, default, help, **more)


def parse(
  program: str,
  description: str | None,
  options: Mapping[str, Option],
  argv: Sequence[str],
) -> Any:
  """Reads a command line.

  Args:
    program: its name.
    description: of what it does.
    options: by name.
    argv: what the user gave.

  Returns:
    A namespace of values; those of several are lists.

  Raises:
    ValueError: an argument is unknown or missing, or a value can't be used.
  """
  parser = Parser(
    prog=program,
    description=description,
    formatter_class=argparse.RawDescriptionHelpFormatter,
    argument_default=argparse.SUPPRESS,
  )
  for name, option in options.items():
    _add(parser, name, option)
  texts = vars(parser.parse_args(argv))
  given = argparse.Namespace()
  for name, option in options.items():
    setattr(given, name, _value(name, option, texts.get(name)))
  return given


def _add(parser: Parser, name: str, option: Option) -> None:
  words = option.help
  if option.default not in (None, False, REQUIRED, (), []):
    defaults = option.default if option.many else [option.default]
    words += f' [{" ".join(map(str, defaults))}]'
  more: dict[str, Any] = {'help': words.strip().replace('%', '%%')}
  if option.read is None:
    more['action'] = 'store_true'
  elif option.many:
    more['nargs'] = '+' if option.fewest else '*'
  if option.positional:
    parser.add_argument(name, **more)
    return
  if option.read is not None:
    more['metavar'] = name.upper()
  if option.default is REQUIRED:
    more['required'] = True
  parser.add_argument(f'--{name}', **more)


def _value(name: str, option: Option, texts: Any) -> Any:
  """Reads words; a default may be words, or values already."""
  read = option.read
  if read is None:
    return bool(texts)
  given = option.default if texts is None else texts
  if given is None or not option.many:
    return read(name, given) if isinstance(given, str) else given
  return [read(name, each) if isinstance(each, str) else each for each in given]
