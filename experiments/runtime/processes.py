"""Several processes of one program on this machine, which end together."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Generator, Sequence
from typing import IO, Any, NamedTuple

from experiments.runtime import provenance

# To die of a first Ctrl-C; and of a failure elsewhere, when a process may hang
# in a collective that never completes, and JAX may have taken SIGTERM as notice
# of a preemption that it looks at between steps.
_INTERRUPTED_SECONDS, _FAILED_SECONDS = 10.0, 1.0
_RESUME = (
  'the same command, also with another --processes, resumes from the last '
  'checkpoint'
)


class Process(NamedTuple):
  """A process that has been started."""

  child: subprocess.Popen[bytes]
  errors: IO[bytes] | None  # of all but process 0, whose errors are shown


def free_port() -> int:
  """Returns a port of this machine on which nothing listens."""
  with socket.socket() as probe:
    probe.bind(('localhost', 0))
    return probe.getsockname()[1]


def _start(
  commands: Sequence[Sequence[str]], directory: str, processes: list[Process]
) -> None:
  """Starts all processes; `processes` gets each as soon as it is there.

  Raises:
    ValueError: one can't be started.
  """
  for index, command in enumerate(commands):
    # Open until the process has ended.
    errors = tempfile.TemporaryFile() if index else None  # noqa: SIM115
    try:
      child = subprocess.Popen(
        command,
        stdout=None if index == 0 else subprocess.DEVNULL,
        stderr=errors,
        cwd=directory,
        env=provenance.as_child(os.environ),
      )
    except OSError as error:
      if errors is not None:
        errors.close()
      raise ValueError(
        f'processes={len(commands)}: number {index} cannot be started: {error}'
      ) from None
    processes.append(Process(child, errors))


def wait(processes: list[Process], signals: Sequence[int] = ()) -> int:
  """Waits for all; when one fails the others, which would wait for it, end.

  Args:
    processes: those that were started, in order.
    signals: that this program has received; it may grow meanwhile.

  Returns:
    The exit status: 0, that of the first to fail, or 128 and a signal.
  """
  running = list(range(len(processes)))
  while running:
    if signals:
      return _interrupt(processes, signals[0])
    ended = [i for i in running if processes[i].child.poll() is not None]
    failed = [i for i in ended if processes[i].child.returncode]
    if failed:
      return _fail(processes, min(failed, key=lambda i: _rank(processes[i])))
    running = [i for i in running if i not in ended]
    time.sleep(0.05)
  return 0


def _rank(process: Process) -> bool:
  """Puts what a killed process did to the others behind it.

  They abort, or end with an exception, when they lose it.
  """
  status = process.child.returncode
  return status > 0 or status == -signal.SIGABRT


def _fail(processes: list[Process], failed: int) -> int:
  """Stops all because one failed; says how, and returns the exit status."""
  status = processes[failed].child.returncode
  # The others may be about to fail for the same reason, and say it better.
  _join(processes, 1.0 if status == 2 else 0.0)
  _stop(processes, signal.SIGTERM, _FAILED_SECONDS)
  errors = processes[failed].errors
  if errors is not None and processes[0].child.returncode != status:
    errors.seek(0)
    tail = errors.read().decode('utf-8', 'replace').splitlines()[-20:]
    print('\n'.join(tail), file=sys.stderr)
  how = f'status {status}' if status > 0 else _signal_name(-status)
  # Status 2: what the user gave can't be used, and won't be the next time.
  hint = '' if status == 2 else f'; {_RESUME}'
  print(
    f'launch: error: process {failed} of {len(processes)} ended with {how}; '
    f'the others were stopped{hint}',
    file=sys.stderr,
  )
  return status if status > 0 else 128 - status


def _signal_name(number: int) -> str:
  try:
    return f'signal {number} ({signal.Signals(number).name})'
  except ValueError:
    return f'signal {number}'


def _join(processes: list[Process], seconds: float) -> bool:
  """Waits for all processes; returns whether they ended in time."""
  deadline = time.monotonic() + seconds
  for process in processes:
    try:
      process.child.wait(max(deadline - time.monotonic(), 0.0))
    except subprocess.TimeoutExpired:
      return False
  return True


def _stop(processes: list[Process], number: int, seconds: float) -> None:
  """Signals all processes, and kills those that don't end in time."""
  for process in processes:
    process.child.send_signal(number)
  if not _join(processes, seconds):
    for process in processes:
      process.child.kill()
    for process in processes:
      process.child.wait()


def _interrupt(processes: list[Process], number: int) -> int:
  """Passes a signal on to all; says so, and returns the exit status."""
  _stop(processes, number, _INTERRUPTED_SECONDS)
  print(
    f'launch: error: stopped by {_signal_name(number)}; {_RESUME}',
    file=sys.stderr,
  )
  return 128 + number


@contextlib.contextmanager
def noted_signals() -> Generator[list[int]]:
  """Yields a list to which the signals that ask for an end are added.

  An exception could come between the start of a process and the note of it,
  and leave the process behind.
  """
  received: list[int] = []

  def note(number: int, frame: Any) -> None:
    del frame
    received.append(number)

  numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
  before = [(number, signal.signal(number, note)) for number in numbers]
  try:
    yield received
  finally:
    for number, handler in before:
      signal.signal(number, handler)


def start_and_wait(
  commands: Sequence[Sequence[str]], directory: str, signals: Sequence[int]
) -> int:
  """Runs commands until all have ended, or one has failed.

  Args:
    commands: of the processes, the arguments of each.
    directory: that they run in.
    signals: that this program has received; it may grow meanwhile.

  Returns:
    The exit status: 0, that of the first to fail, or 128 and a signal.

  Raises:
    ValueError: a process can't be started; the others are stopped.
  """
  processes: list[Process] = []
  try:
    _start(commands, directory, processes)
    return wait(processes, signals)
  except ValueError:
    _stop(processes, signal.SIGTERM, _FAILED_SECONDS)
    raise
  finally:
    for process in processes:
      if process.errors is not None:
        process.errors.close()
