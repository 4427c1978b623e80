"""Several real processes of the main job on this machine.

    python -m experiments.launch --processes 2 -- --config C --workdir W

What follows `--` goes to `experiments.train`. The processes find each other
through `jax.distributed` on a free port of this machine and exchange gradients
over sockets (gloo on CPUs). Each has its share of `config.cpu_devices`.

With `--rate 100mbit` each process has a network interface of that rate, and
none besides; what it sent is printed at the end. See `runtime.links`.
"""

import argparse
import os
import pathlib
import sys
from collections.abc import Sequence

from experiments.runtime import processes
from experiments.runtime.links import parse_rate, shaped_links

_ROOT = pathlib.Path(__file__).parent.parent


def _run(
  arguments: Sequence[str], count: int, rate: str | None, signals: list[int]
) -> int:
  """Runs the processes; returns the exit status of the first to fail."""
  importable = pathlib.Path('experiments', 'train.py').exists()
  directory = os.getcwd() if importable else str(_ROOT)
  if rate is None:
    port = f'localhost:{processes.free_port()}'
    commands = _commands(arguments, port, [[]] * count)
    return processes.start_and_wait(commands, directory, signals)
  with shaped_links(count, parse_rate(rate)) as links:
    # A prefix enters a mount namespace, and comes out in another directory.
    enter = [[*each, 'env', f'--chdir={directory}'] for each in links.prefixes]
    commands = _commands(arguments, links.coordinator, enter)
    status = processes.start_and_wait(commands, directory, signals)
    if status == 0:
      for index, traffic in enumerate(links.traffic()):
        print(
          f'launch: process {index} sent {traffic.sent:,} bytes, received '
          f'{traffic.received:,} ({rate})'
        )
    return status


def _commands(
  arguments: Sequence[str], coordinator: str, prefixes: Sequence[Sequence[str]]
) -> list[list[str]]:
  return [
    [
      *prefix, sys.executable, '-m', 'experiments.train', *arguments,
      f'--coordinator={coordinator}', f'--num_processes={len(prefixes)}',
      f'--process_id={index}',
    ]
    for index, prefix in enumerate(prefixes)
  ]  # fmt: skip


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
  with processes.noted_signals() as signals:
    try:
      return _run(arguments, count, parsed.rate, signals)
    except ValueError as error:
      print(f'launch: error: {error}', file=sys.stderr)
      # A Ctrl-C may have hit the commands that make links.
      return 128 + signals[0] if signals else 2


if __name__ == '__main__':
  sys.exit(main(sys.argv[1:]))
