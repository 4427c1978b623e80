"""Several real processes of the main job on this machine.

    python -m experiments.launch --processes 2 -- --config C --workdir W

What follows `--` goes to `experiments.train`. The processes find each other
through `jax.distributed` on a free port of this machine and exchange gradients
over sockets (gloo on CPUs). Each has its share of `config.cpu_devices`.

With `--rate 100mbit` each process has a network interface of that rate, and
none besides; what it sent is printed at the end. See `runtime.links`.
"""

import argparse
import contextlib
import os
import pathlib
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from typing import IO, Any, NamedTuple

from experiments.runtime import provenance
from experiments.runtime.links import Links, parse_rate, shaped_links

# To die of a first Ctrl-C; and of a failure elsewhere, when a process may hang
# in a collective that never completes, and JAX may have taken SIGTERM as notice
# of a preemption that it looks at between steps.
_INTERRUPTED_SECONDS, _FAILED_SECONDS = 10.0, 1.0
_RESUME = (
  'the same command, also with another --processes, resumes from the last '
  'checkpoint'
)


class _Process(NamedTuple):
  child: subprocess.Popen[bytes]
  errors: IO[bytes] | None  # of all but process 0, whose errors are shown


def free_port() -> int:
  """Returns a port of this machine on which nothing listens."""
  with socket.socket() as probe:
    probe.bind(('localhost', 0))
    return probe.getsockname()[1]


def _start(
  arguments: Sequence[str],
  count: int,
  links: Links | None,
  processes: list[_Process],
) -> None:
  """Starts all processes; `processes` gets each as soon as it is there.

  Raises:
    ValueError: one can't be started.
  """
  coordinator = links.coordinator if links else f'localhost:{free_port()}'
  root = pathlib.Path(__file__).parent.parent
  directory = os.getcwd() if _importable() else str(root)
  for index in range(count):
    # Open until the process has ended.
    errors = tempfile.TemporaryFile() if index else None  # noqa: SIM115
    # A prefix enters a mount namespace, and comes out in another directory.
    enter = (
      [*links.prefixes[index], 'env', f'--chdir={directory}'] if links else []
    )
    command = [
      *enter, sys.executable, '-m', 'experiments.train', *arguments,
      f'--coordinator={coordinator}', f'--num_processes={count}',
      f'--process_id={index}',
    ]  # fmt: skip
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
        f'processes={count}: number {index} cannot be started: {error}'
      ) from None
    processes.append(_Process(child, errors))


def _importable() -> bool:
  return pathlib.Path('experiments', 'train.py').exists()


def _wait(processes: list[_Process], signals: Sequence[int] = ()) -> int:
  """Waits for all; when one fails the others, which would wait for it, end.

  Args:
    processes: that were started.
    signals: that this program has received; it may grow meanwhile.
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


def _rank(process: _Process) -> bool:
  """Puts what a killed process did to the others behind it.

  They abort, or end with an exception, when they lose it.
  """
  status = process.child.returncode
  return status > 0 or status == -signal.SIGABRT


def _fail(processes: list[_Process], failed: int) -> int:
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


def _join(processes: list[_Process], seconds: float) -> bool:
  """Waits for all processes; returns whether they ended in time."""
  deadline = time.monotonic() + seconds
  for process in processes:
    try:
      process.child.wait(max(deadline - time.monotonic(), 0.0))
    except subprocess.TimeoutExpired:
      return False
  return True


def _stop(processes: list[_Process], number: int, seconds: float) -> None:
  """Signals all processes, and kills those that don't end in time."""
  for process in processes:
    process.child.send_signal(number)
  if not _join(processes, seconds):
    for process in processes:
      process.child.kill()
    for process in processes:
      process.child.wait()


def _interrupt(processes: list[_Process], number: int) -> int:
  """Passes a signal on to all; says so, and returns the exit status."""
  _stop(processes, number, _INTERRUPTED_SECONDS)
  print(
    f'launch: error: stopped by {_signal_name(number)}; {_RESUME}',
    file=sys.stderr,
  )
  return 128 + number


@contextlib.contextmanager
def _noted_signals() -> Iterator[list[int]]:
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


def _start_and_wait(
  arguments: Sequence[str],
  count: int,
  links: Links | None,
  signals: Sequence[int],
) -> int:
  processes: list[_Process] = []
  try:
    _start(arguments, count, links, processes)
    return _wait(processes, signals)
  except ValueError:
    _stop(processes, signal.SIGTERM, _FAILED_SECONDS)
    raise
  finally:
    for process in processes:
      if process.errors is not None:
        process.errors.close()


def _run(
  arguments: Sequence[str], count: int, rate: str | None, signals: list[int]
) -> int:
  """Runs the processes; returns the exit status of the first to fail."""
  if rate is None:
    return _start_and_wait(arguments, count, None, signals)
  with shaped_links(count, parse_rate(rate)) as links:
    status = _start_and_wait(arguments, count, links, signals)
    if status == 0:
      for index, traffic in enumerate(links.traffic()):
        print(
          f'launch: process {index} sent {traffic.sent:,} bytes, received '
          f'{traffic.received:,} ({rate})'
        )
    return status


def main(argv: Sequence[str]) -> int:
  """Starts the processes and returns the exit status of the first to fail."""
  parser = argparse.ArgumentParser(
    prog='launch', description='Several processes of experiments.train.'
  )
  parser.add_argument('--processes', type=int, required=True)
  parser.add_argument(
    '--rate',
    help="of each process's link, like 100mbit, 1gbit or unshaped; needs root",
  )
  parser.add_argument('arguments', nargs=argparse.REMAINDER, metavar='-- …')
  parsed = parser.parse_args(argv)
  count, arguments = parsed.processes, parsed.arguments
  if count < 1:
    parser.error(f'argument --processes: {count} is not positive')
  if arguments[:1] == ['--']:
    arguments = arguments[1:]
  if not arguments:
    parser.error('after -- the arguments of experiments.train are missing')
  with _noted_signals() as signals:
    try:
      return _run(arguments, count, parsed.rate, signals)
    except ValueError as error:
      print(f'launch: error: {error}', file=sys.stderr)
      # A Ctrl-C may have hit the commands that make links.
      return 128 + signals[0] if signals else 2


if __name__ == '__main__':
  sys.exit(main(sys.argv[1:]))
