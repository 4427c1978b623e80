"""Reducers on real links: processes in network namespaces, shaped to a rate.

    python -m experiments.benchmark wire [--rates 100mbit 1gbit] [--plot F.png]

Every process has a namespace, an interface and a TCP stack of its own, so bytes
are what the interface counted, and seconds include selection, coding, exchange
and putting the mean together, on cores that all processes share. The limit is
the bytes of the closed form over the rate. Needs root.
"""

import argparse
import concurrent.futures
import json
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

from bandwidth.base import unknown_name
from experiments.benchmark.measuring.shapes import NETWORKS
from experiments.reports.wire_plot import plot_wire
from experiments.runtime import table
from experiments.runtime.links import Links, parse_rate, shaped_links

NAME = 'wire'
_DGC = {'name': 'deep_gradient_compression', 'density': 1e-3}
REDUCERS: dict[str, dict[str, Any]] = {
  'dense': {'name': 'dense_all_reduce', 'dtype': 'float32'},
  'dense bfloat16': {'name': 'dense_all_reduce', 'dtype': 'bfloat16'},
  'dgc all_gather': {**_DGC, 'exchange': 'all_gather'},
  'dgc owner_sharded': {**_DGC, 'exchange': 'owner_sharded'},
  'dgc dense': {**_DGC, 'exchange': 'dense'},
  'dgc auto': {**_DGC, 'exchange': 'auto'},
  'shared_mask': {'name': 'shared_mask', 'density': 1e-3},
  'random_k': {'name': 'random_k', 'density': 1e-3},
  'sign': {'name': 'sign_error_feedback'},
  'int8': {'name': 'two_phase_quantized', 'format': 'int8'},
  'power_sgd': {'name': 'power_sgd', 'rank': 2},
}
"""Configs of the reducers, by name."""

_DEFAULT = ('dense', 'dgc dense', 'dgc all_gather', 'dgc owner_sharded')
_DEFAULT += ('dgc auto',)


def run_workers(
  links: Links, reducers: Sequence[str], network: str, repeats: int
) -> list[dict[str, Any]]:
  """Starts a worker in each namespace and returns the rows of process 0.

  Raises:
    ValueError: a worker failed; the message is the end of what it said.
  """
  configs = json.dumps({name: REDUCERS[name] for name in reducers})
  children = [
    subprocess.Popen(
      [
        *prefix, sys.executable, '-m',
        'experiments.benchmark.network.wire_worker',
        f'--coordinator={links.coordinator}',
        f'--num_processes={len(links.prefixes)}',
        f'--process_id={index}',
        f'--reducers={configs}', f'--network={network}',
        f'--repeats={repeats}',
      ],
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      text=True,
    )
    for index, prefix in enumerate(links.prefixes)
  ]  # fmt: skip
  try:
    outputs = _outputs(children)
  finally:
    for child in children:
      child.kill()
  # gloo says something too.
  lines = outputs[0].splitlines()
  return [json.loads(line) for line in lines if line.startswith('{')]


def _outputs(children: Sequence[subprocess.Popen[str]]) -> list[str]:
  """What the workers print; when one fails, the others would wait for it."""

  def finish(child: subprocess.Popen[str]) -> tuple[str, str]:
    said = child.communicate()
    if child.returncode:
      for other in children:
        other.kill()
    return said

  with concurrent.futures.ThreadPoolExecutor(len(children)) as pool:
    said = list(pool.map(finish, children))
  failed = [i for i, child in enumerate(children) if child.returncode > 0]
  failed += [i for i, child in enumerate(children) if child.returncode < 0]
  if failed:
    last = said[failed[0]][1].strip().splitlines()[-1:] or ['no word']
    raise ValueError(f'process {failed[0]} of {len(children)}: {last[0]}')
  return [out for out, _ in said]


def _rows(given: argparse.Namespace) -> list[dict[str, Any]]:
  rows = []
  for text in given.rates:
    rate = parse_rate(text)
    with shaped_links(given.processes, rate) as links:
      found = run_workers(links, given.reducers, given.network, given.repeats)
    dense = next((r for r in found if r['reducer'] == 'dense'), found[0])
    for row in found:
      limit = 8 * row['closed_form'] / rate if rate else 0.0
      rows.append(
        {
          'rate': text,
          'reducer': row['reducer'],
          'choice': row.get('choice', ''),
          'ms': round(1e3 * row['seconds'], 1),
          'fastest_ms': round(1e3 * row['fastest'], 1),
          'slowest_ms': round(1e3 * row['slowest'], 1),
          'speedup': round(dense['seconds'] / row['seconds'], 2),
          'closed_form': row['closed_form'],
          'compiled_bytes': row['compiled_bytes'],
          'interface_bytes': row['interface_bytes'],
          'framing': round(
            row['interface_bytes'] / max(row['closed_form'], 1) - 1, 4
          ),
          'limit_ms': round(1e3 * limit, 1) if limit else None,
          'by_limit': round(row['seconds'] / limit, 2) if limit else None,
          'predicted': row.get('predicted', {}),
          'processes': given.processes,
          'network': given.network,
        }
      )
    table.show(rows[-len(found) :])
    if given.output:
      table.write(given.output, NAME, rows)
    print(flush=True)
  return rows


def main(argv: Sequence[str]) -> int:
  """Measures; returns the exit status."""
  given = _parser().parse_args(argv)
  try:
    for name in given.reducers:
      if name not in REDUCERS:
        raise ValueError(unknown_name('reducers', name, REDUCERS))
    for name in ('processes', 'repeats'):
      if getattr(given, name) < 1:
        raise ValueError(f'{name}={getattr(given, name)} is not positive')
    for rate in given.rates:
      parse_rate(rate)
    rows = _rows(given)
    if given.plot:
      plot_wire(rows, given.plot)
  except ValueError as error:
    print(f'benchmark {NAME}: error: {error}', file=sys.stderr)
    return 2
  return 0


def _parser() -> argparse.ArgumentParser:
  parser = argparse.ArgumentParser(prog='benchmark wire')
  add = parser.add_argument
  add('--processes', type=int, default=4)
  add('--rates', nargs='+', default=['100mbit', '1gbit', '10gbit', 'unshaped'])
  add('--reducers', nargs='+', default=list(_DEFAULT))
  add('--network', choices=sorted(NETWORKS), default='vector')
  add('--repeats', type=int, default=5)
  add('--output', help='JSON file')
  add('--plot', help='PNG file')
  return parser
