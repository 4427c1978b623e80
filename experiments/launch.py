"""Several real processes of the main job on this machine.

    python -m experiments.launch --processes 2 -- --config C --workdir W

What follows `--` goes to `experiments.train`. The processes find each other
through `jax.distributed` on a free port of this machine and exchange gradients
over sockets (gloo on CPUs). Each has its share of `config.cpu_devices`.
"""

import argparse
import pathlib
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from typing import IO, NamedTuple

_GRACE_SECONDS = 10.0


class _Process(NamedTuple):
  child: subprocess.Popen[bytes]
  errors: IO[bytes] | None  # of all but process 0, whose errors are shown


def free_port() -> int:
  """Returns a port of this machine on which nothing listens."""
  with socket.socket() as probe:
    probe.bind(('localhost', 0))
    return probe.getsockname()[1]


def _start(arguments: Sequence[str], count: int) -> list[_Process]:
  coordinator = f'localhost:{free_port()}'
  root = pathlib.Path(__file__).parent.parent
  processes = []
  for index in range(count):
    # Open until the process has ended.
    errors = tempfile.TemporaryFile() if index else None  # noqa: SIM115
    child = subprocess.Popen(
      [
        sys.executable,
        '-m',
        'experiments.train',
        *arguments,
        f'--coordinator={coordinator}',
        f'--num_processes={count}',
        f'--process_id={index}',
      ],
      stdout=None if index == 0 else subprocess.DEVNULL,
      stderr=errors,
      cwd=None if _importable() else root,
    )
    processes.append(_Process(child, errors))
  return processes


def _importable() -> bool:
  return pathlib.Path('experiments', 'train.py').exists()


def _wait(processes: list[_Process]) -> int:
  """Waits for all; when one fails the others, which would wait for it, end."""
  running = list(range(len(processes)))
  while running:
    for index in list(running):
      status = processes[index].child.poll()
      if status is None:
        continue
      running.remove(index)
      if status:
        return _stop(processes, index, status)
    time.sleep(0.05)
  return 0


def _stop(processes: list[_Process], failed: int, status: int) -> int:
  # The others may be about to fail for the same reason, and say it better.
  deadline = time.monotonic() + (1.0 if status == 2 else 0.0)
  for process in processes:
    try:
      process.child.wait(max(deadline - time.monotonic(), 0.0))
    except subprocess.TimeoutExpired:
      process.child.terminate()
  deadline = time.monotonic() + _GRACE_SECONDS
  for process in processes:
    try:
      process.child.wait(max(deadline - time.monotonic(), 0.1))
    except subprocess.TimeoutExpired:
      process.child.kill()
      process.child.wait()
  errors = processes[failed].errors
  if errors is not None and processes[0].child.returncode != status:
    errors.seek(0)
    tail = errors.read().decode('utf-8', 'replace').splitlines()[-20:]
    print('\n'.join(tail), file=sys.stderr)
  how = f'signal {-status}' if status < 0 else f'status {status}'
  print(
    f'launch: error: process {failed} of {len(processes)} ended with {how}; '
    'the others were stopped',
    file=sys.stderr,
  )
  return status if status > 0 else 128 - status


def main(argv: Sequence[str]) -> int:
  """Starts the processes and returns the exit status of the first to fail."""
  parser = argparse.ArgumentParser(
    prog='launch', description='Several processes of experiments.train.'
  )
  parser.add_argument('--processes', type=int, required=True)
  parser.add_argument('arguments', nargs=argparse.REMAINDER, metavar='-- …')
  parsed = parser.parse_args(argv)
  if parsed.processes < 1:
    parser.error(f'argument --processes: {parsed.processes} is not positive')
  arguments = parsed.arguments
  if arguments[:1] == ['--']:
    arguments = arguments[1:]
  if not arguments:
    parser.error('after -- the arguments of experiments.train are missing')
  processes = _start(arguments, parsed.processes)
  try:
    return _wait(processes)
  except KeyboardInterrupt:
    for process in processes:
      process.child.send_signal(signal.SIGINT)
    return _stop(processes, 0, -signal.SIGINT)


if __name__ == '__main__':
  sys.exit(main(sys.argv[1:]))
