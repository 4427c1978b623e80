"""How a command ends: with a status, and one line where something is wrong."""

import argparse
import pathlib
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from typing import Any, NoReturn


class Parser(argparse.ArgumentParser):
  """Raises ValueError where argparse prints how to call it, and exits."""

  def error(self, message: str) -> NoReturn:
    """Raises ValueError."""
    raise ValueError(message)


def make_parser(
  program: str, description: str | None
) -> argparse.ArgumentParser:
  """Returns a parser whose help shows the description as it is."""
  return argparse.ArgumentParser(
    prog=program,
    description=description,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )


class Terminated(KeyboardInterrupt):
  """SIGTERM, so that what cleans up after Ctrl-C does after it too."""


def cli(program: str, main: Callable[[], int | None]) -> int:
  """Runs a command, and says in one line on stderr how it ended, if badly.

  Args:
    program: its name, for messages.
    main: it; what it returns is the status, None being 0.

  Returns:
    The exit status: 2 for an error of what the user gave, a ValueError or an
    OSError; 130 after Ctrl-C, 143 after SIGTERM.
  """
  try:
    with _terminable():
      return main() or 0
  except (ValueError, OSError) as error:
    return _say(f'{program}: error: {one_line(error)}', 2)
  except Terminated as error:
    return _say(f'{program}: {one_line(error) or "terminated"}', 143)
  except KeyboardInterrupt as error:
    return _say(f'{program}: {one_line(error) or "interrupted"}', 130)


def one_line(error: BaseException) -> str:
  r"""Returns the message of an error in one line.

  >>> one_line(ValueError('two\n  lines'))
  'two lines'
  """
  return ' '.join(str(error).split())


def _say(line: str, status: int) -> int:
  sys.stdout.flush()
  print(line, file=sys.stderr, flush=True)
  return status


@contextmanager
def _terminable() -> Generator[None]:
  """Raises Terminated at SIGTERM, where this is the main thread."""
  if threading.current_thread() is not threading.main_thread():
    yield
    return

  def terminate(number: int, frame: Any) -> NoReturn:
    del number, frame
    raise Terminated

  before = signal.signal(signal.SIGTERM, terminate)
  try:
    yield
  finally:
    signal.signal(signal.SIGTERM, before)


def run(
  program: str,
  parser: argparse.ArgumentParser,
  act: Callable[[argparse.Namespace], int | None],
  argv: Sequence[str],
) -> int:
  """Runs a command on its arguments; as `cli`, whose status it returns.

  Args:
    program: its name, for messages.
    parser: what its arguments are.
    act: the command; what it returns is the status, None being 0.
    argv: the arguments, without the program's own name.
  """
  options = parser.parse_args(argv)
  return cli(program, lambda: act(options))


def run_python(
  arguments: Sequence[str], what: str, *, cwd: pathlib.Path | None = None
) -> str:
  """Runs Python in a process that ends when this one is stopped.

  Args:
    arguments: of the interpreter.
    what: it does, for messages.
    cwd: its working directory; None: this one's.

  Returns:
    What it prints.

  Raises:
    ValueError: it failed; the message ends with the last line that it said.
  """
  with subprocess.Popen(
    [sys.executable, *arguments],
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
    cwd=cwd,
  ) as child:
    try:
      printed, said = child.communicate()
    except KeyboardInterrupt:
      child.terminate()
      raise
  if child.returncode:
    last = said.strip().splitlines()[-1:] or ['no word']
    raise ValueError(f'{what}: {last[0]}')
  return printed
