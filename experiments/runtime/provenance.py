"""Where a number comes from: command and commit."""

import os
import pathlib
import shlex
import subprocess
import sys
from collections.abc import Mapping

_LAUNCHED_BY = 'BANDWIDTH_COMMAND'


def commit() -> str | None:
  """Returns the commit of this code, with '+' if it was changed since."""
  root = pathlib.Path(__file__).parents[2]

  def git(*arguments: str) -> str:
    return subprocess.run(
      ['git', '-C', str(root), *arguments],
      capture_output=True,
      text=True,
      check=True,
    ).stdout.strip()

  try:
    if pathlib.Path(git('rev-parse', '--show-toplevel')).resolve() != root:
      return None
    changed = git('status', '--porcelain', '--untracked-files=no')
    return git('rev-parse', 'HEAD') + ('+' if changed else '')
  except (OSError, subprocess.CalledProcessError):
    return None


def command() -> str:
  """Returns the command line of this program, to be typed again."""
  if _LAUNCHED_BY in os.environ:
    return os.environ[_LAUNCHED_BY]
  spec = getattr(sys.modules['__main__'], '__spec__', None)
  program = sys.argv[:1]
  if spec:
    program = ['-m', spec.name.removesuffix('.__main__')]
  return shlex.join(['python', *program, *sys.argv[1:]])


def as_child(environment: Mapping[str, str]) -> dict[str, str]:
  """Returns the environment of a process that this program starts.

  What it records as `command` is the one that started this program: its own,
  with the port of a coordinator that is gone, can't be typed again.
  """
  return {**environment, _LAUNCHED_BY: command()}
