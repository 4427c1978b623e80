"""Reducers on real links: processes in network namespaces, shaped to a rate.

    python -m experiments.benchmark wire [--rates 100mbit 1gbit] [--plot F.png]

Every process has a namespace, an interface and a TCP stack of its own, so bytes
are what the interface counted, and seconds include selection, coding, exchange
and putting the mean together, on cores that all processes share. The limit is
the bytes of the closed form over the rate. Needs root.
"""

import concurrent.futures
import json
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from experiments.benchmark.harness import Benchmark
from experiments.benchmark.network.reducers import REDUCERS
from experiments.models.shapes import NETWORKS
from experiments.reports.wire_plot import plot_wire
from experiments.runtime import options
from experiments.runtime.links import Links, parse_rate, shaped_links


def _run_workers(
  links: Links, reducers: Sequence[str], network: str, repeats: int
) -> list[dict[str, Any]]:
  """Starts a worker in each namespace and returns the rows of process 0."""
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
  outputs = _outputs(children)
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
    try:
      said = list(pool.map(finish, children))
    finally:
      for child in children:
        child.kill()
  failed = [i for i, child in enumerate(children) if child.returncode > 0]
  failed += [i for i, child in enumerate(children) if child.returncode < 0]
  if failed:
    last = said[failed[0]][1].strip().splitlines()[-1:] or ['no word']
    raise ValueError(f'process {failed[0]} of {len(children)}: {last[0]}')
  return [out for out, _ in said]


def _rows(given: Any) -> Iterator[list[dict[str, Any]]]:
  for rate in given.rates:
    bits = parse_rate(rate)
    with shaped_links(given.processes, bits) as links:
      found = _run_workers(links, given.reducers, given.network, given.repeats)
    dense = next((r for r in found if r['reducer'] == 'dense'), found[0])
    common = {'processes': given.processes, 'network': given.network}
    yield [_row(rate, bits, row, dense) | common for row in found]


def _row(
  rate: str, bits: int | None, row: Mapping[str, Any], dense: Mapping[str, Any]
) -> dict[str, Any]:
  """What a worker measured, beside the dense reducer and the limit."""
  closed_form, sent = row['closed_form'], row['interface_bytes']
  limit = 8 * closed_form / bits if bits else 0.0
  return {
    'rate': rate,
    'reducer': row['reducer'],
    'choice': row.get('choice', ''),
    'ms': round(1e3 * row['seconds'], 1),
    'fastest_ms': round(1e3 * row['fastest'], 1),
    'slowest_ms': round(1e3 * row['slowest'], 1),
    'speedup': round(dense['seconds'] / row['seconds'], 2),
    'closed_form': closed_form,
    'compiled_bytes': row['compiled_bytes'],
    'interface_bytes': sent,
    'framing': round(sent / max(closed_form, 1) - 1, 4),
    'limit_ms': round(1e3 * limit, 1) if limit else None,
    'by_limit': round(row['seconds'] / limit, 2) if limit else None,
    'predicted': row.get('predicted', {}),
  }


main = Benchmark(
  name='wire',
  about=__doc__,
  options={
    'processes': options.integer(4),
    'rates': options.text(
      ['100mbit', '1gbit', '10gbit', 'unshaped'], check=parse_rate
    ),
    'reducers': options.choice(
      REDUCERS,
      [
        *('dense', 'dgc dense', 'dgc all_gather', 'dgc owner_sharded'),
        'dgc auto',
      ],
    ),
    'network': options.choice(NETWORKS, 'vector'),
    'repeats': options.integer(5),
  },
  measure=_rows,
  parts=lambda given: len(given.rates),
  plot=lambda rows, given, path: plot_wire(rows, path),
  seed=0,
).main
