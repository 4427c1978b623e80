"""Runs a benchmark by name.

python -m experiments.benchmark NAME [--output F.json] [...]
"""

import importlib
import sys
from collections.abc import Sequence
from typing import Any

from bandwidth.base import unknown_name

BENCHMARKS = {
  'bytes': 'network.bytes',
  'gradient': 'network.gradient',
  'loop': 'network.loop',
  'owners': 'network.owners',
  'step': 'network.step',
  'tpu': 'network.tpu',
  'training': 'network.training',
  'wire': 'network.wire',
  'coding': 'memory.coding',
  'convolution': 'memory.convolution',
  'pretrained': 'memory.pretrained',
  'sensitivity': 'memory.sensitivity',
  'gpu_launches': 'inference.gpu_launches',
  'inference': 'inference.products',
  'loading': 'inference.loading',
  'planned': 'inference.planned',
  'latency_table': 'engineer.latency_table',
  'search': 'engineer.search',
  'search_joint': 'engineer.joint',
  'pretrained_search': 'engineer.pretrained_search',
}
"""Modules, each with a `main(argv) -> status`, by the kind of bandwidth."""


def main(argv: Sequence[str]) -> int:
  """Hands the rest of the command line to the benchmark that it names."""
  if not argv or argv[0] in ('-h', '--help'):
    print((__doc__ or '').strip() + '\n')
    for name in BENCHMARKS:
      about = (_module(name).__doc__ or '').splitlines()[0]
      print(f'  {name:17} {about}')
    return 0 if argv else 2
  name, *rest = argv
  if name not in BENCHMARKS:
    message = unknown_name('NAME', name, BENCHMARKS)
    print(f'benchmark: error: {message}', file=sys.stderr)
    return 2
  return _module(name).main(rest)


def _module(name: str) -> Any:
  return importlib.import_module(f'experiments.benchmark.{BENCHMARKS[name]}')


if __name__ == '__main__':
  sys.exit(main(sys.argv[1:]))
