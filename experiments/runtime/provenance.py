"""Where a number comes from: command, commit, device."""

import os
import pathlib
import platform
import shlex
import subprocess
import sys
from collections.abc import Mapping

import jax

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


def device() -> str:
  """Returns the devices of this run in words."""
  devices = jax.devices()
  kind = devices[0].device_kind
  if devices[0].platform == 'cpu':
    kind = f'virtual CPU devices on {_processor()}'
  return f'{len(devices)} x {kind}'


def _processor() -> str:
  try:
    text = pathlib.Path('/proc/cpuinfo').read_text('utf-8')
  except OSError:
    return platform.processor() or platform.machine()
  models = [line for line in text.splitlines() if line.startswith('model name')]
  if not models:
    return platform.machine()
  cores = len(os.sched_getaffinity(0))
  plural = 's' if cores > 1 else ''
  return f'{cores} core{plural} of {models[0].split(":", 1)[1].strip()}'
