"""Flags of programs with a config, and one line for what users get wrong."""

import ast
import re
import sys
from collections.abc import Callable, Sequence
from typing import Any

from absl import app, flags, logging
from ml_collections import config_flags

from experiments.config import resolve
from experiments.program.overrides import FileParser
from experiments.runtime.startup import (
  InputError,
  Processes,
  fail,
  prepare_devices,
)


def define_flags(
  values: flags.FlagValues = flags.FLAGS, argv: list[str] | None = None
) -> None:
  """Defines the flags that all programs with a config share.

  Args:
    values: that they become part of.
    argv: with the flags; None: the program's.
  """
  config_flags.DEFINE_config_file(
    'config', None,
    'FILE[:MODE] of the config. Every field of configs/default.py is a flag: '
    '--config.optimizer.learning_rate=0.05.',
    flag_values=values, sys_argv=argv,
  )  # fmt: skip
  argv = values.read_flags_from_files(sys.argv if argv is None else argv)
  values['config'].parser = FileParser(files=values['config'].parser, argv=argv)
  several = 'Several processes; a pod finds out about itself.'
  others: tuple[tuple[Any, str, Any, str], ...] = (
    (flags.DEFINE_string, 'workdir', None, 'Directory of the run.'),
    (flags.DEFINE_bool, 'distributed', False, several),
    (flags.DEFINE_string, 'coordinator', '', 'host:port of process 0.'),
    (flags.DEFINE_integer, 'num_processes', 0, 'Number of processes.'),
    (flags.DEFINE_integer, 'process_id', -1, 'Index of this process.'),
  )
  for define, name, default, text in others:
    define(name, default, text, flag_values=values)
  for name in ('config', *(name for _, name, _, _ in others)):
    # What --help shows are those of the module that was started.
    values.register_key_flag_for_module(sys.argv[0], values[name])


def config_from_flags(values: flags.FlagValues = flags.FLAGS) -> dict[str, Any]:
  """Reads the config, with defaults where it is silent.

  Raises:
    InputError: it is missing, or has a value that can't be used.
  """
  if values.config is None:
    raise InputError('--config is missing')
  try:
    return resolve(values.config)
  except ValueError as error:
    raise InputError(str(error)) from error


def processes_from_flags() -> Processes:
  """Reads how processes find each other.

  Raises:
    InputError: the flags do not fit together.
  """
  values = flags.FLAGS
  given = (values.coordinator, values.num_processes, values.process_id)
  if not (values.distributed or values.coordinator):
    if given != ('', 0, -1):
      raise InputError(
        'num_processes and process_id need coordinator=host:port'
      )
    return Processes()
  if values.coordinator and not (0 <= values.process_id < values.num_processes):
    raise InputError(
      f'process_id={values.process_id} is not in [0, num_processes='
      f'{values.num_processes})'
    )
  return Processes(True, *given)


def run(act: Callable[[dict[str, Any], str], object], *, program: str) -> None:
  """Runs a program, with one line and exit status 2 for what users get wrong.

  After Ctrl-C it is one line and status 130.

  Args:
    act: called with the resolved config and the directory of the run, when the
      devices are there.
    program: its name, for messages.
  """

  def parse(argv: Sequence[str]) -> Sequence[str]:
    try:
      return flags.FLAGS(argv)
    except flags.Error as error:
      fail(program, _message(error))
    except (
      AttributeError,
      KeyError,
      OSError,
      SyntaxError,
      TypeError,
      ValueError,
    ) as error:
      # Raised by a config file or by an override of one of its fields.
      fail(program, f'config: {_message(error)}')
    return argv

  def main(argv: Sequence[str]) -> None:
    if not flags.FLAGS['verbosity'].present:
      # Orbax reports every file that it writes as information.
      logging.set_verbosity(logging.WARNING)
    try:
      if len(argv) > 1:
        raise InputError(f'{argv[1]!r} is no flag; see --help')
      config = config_from_flags()
      if not flags.FLAGS.workdir:
        raise InputError('--workdir is missing')
      prepare_devices(config, processes_from_flags())
      act(config, flags.FLAGS.workdir)
    except InputError as error:
      fail(program, str(error))
    except KeyboardInterrupt:
      fail(program, 'interrupted', 130)

  define_flags()
  app.run(main, flags_parser=parse)


def _message(error: BaseException) -> str:
  text = str(error)
  if text[:1] in ('"', "'") and text[-1:] == text[:1]:
    # The text of a KeyError, passed on as a repr.
    text = str(ast.literal_eval(text))
  # What a config file can't set; all other fields would be listed.
  text = re.sub(
    r' Other fields present: ".*"(?=\nDid|$)', '', text, flags=re.DOTALL
  )
  lines = [line.strip() for line in text.splitlines() if line.strip()]
  if 'Traceback' in text:
    lines = [lines[0].split('Traceback')[0], lines[-1]]
  return ' '.join(lines) or type(error).__name__
