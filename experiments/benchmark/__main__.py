"""Runs a benchmark by name.

python -m experiments.benchmark NAME [--output F.json] [...]
"""

import importlib
import sys
from collections.abc import Sequence
from typing import NamedTuple

from bandwidth.base import unknown_name


class Benchmark(NamedTuple):
  """A module of `experiments.benchmark`, and what it measures."""

  module: str
  measures: str


BENCHMARKS = {
  'bytes': Benchmark(
    'network.bytes', 'bytes a step at the shapes of AlexNet, ResNet-50, an LSTM'
  ),
  'gradient': Benchmark(
    'network.gradient', 'compressing a gradient beside the momentum update'
  ),
  'loop': Benchmark(
    'network.loop', 'overhead of the training loop and of its input'
  ),
  'owners': Benchmark(
    'network.owners', 'accuracy of owner-sharded exchange beside all-gather'
  ),
  'step': Benchmark('network.step', 'what compression adds to a training step'),
  'tpu': Benchmark(
    'network.tpu', 'what the TPU compiler makes of a step on a pod'
  ),
  'training': Benchmark(
    'network.training',
    'training over links of several rates, dense and compressed',
  ),
  'wire': Benchmark('network.wire', 'reducers on real links of several rates'),
  'coding': Benchmark(
    'memory.coding', 'coding and decoding 25 million weights, beside zstandard'
  ),
  'convolution': Benchmark(
    'memory.convolution', 'gradients of LeNet-5 by XLA and by matrix products'
  ),
  'pretrained': Benchmark(
    'memory.pretrained',
    'files and fidelity of pretrained networks, not retrained',
  ),
  'sensitivity': Benchmark(
    'memory.sensitivity', 'what pruning one layer alone does to a network'
  ),
  'gpu_launches': Benchmark(
    'inference.gpu_launches', "ways of dealing out a product's work on a GPU"
  ),
  'inference': Benchmark(
    'inference.products', 'products from the compressed form, beside dense ones'
  ),
  'loading': Benchmark(
    'inference.loading', 'memory and time of opening a compressed network'
  ),
  'planned': Benchmark(
    'inference.planned',
    'products in the form that a plan chooses, beside dense ones',
  ),
  'latency_table': Benchmark(
    'engineer.latency_table',
    'latencies of the layers of a network, for a search',
  ),
  'search': Benchmark(
    'engineer.search', 'searchers of compression policies on equal budgets'
  ),
  'search_joint': Benchmark(
    'engineer.joint', 'channels and precision together, at equal bytes'
  ),
  'pretrained_search': Benchmark(
    'engineer.pretrained_search', 'searched channels of a pretrained network'
  ),
}


def main(argv: Sequence[str]) -> int:
  """Hands the rest of the command line to the benchmark that it names."""
  if not argv or argv[0] in ('-h', '--help'):
    print((__doc__ or '').strip() + '\n')
    for name, benchmark in BENCHMARKS.items():
      print(f'  {name:17} {benchmark.measures}')
    return 0 if argv else 2
  name, *rest = argv
  if name not in BENCHMARKS:
    message = unknown_name('NAME', name, BENCHMARKS)
    print(f'benchmark: error: {message}', file=sys.stderr)
    return 2
  module = f'experiments.benchmark.{BENCHMARKS[name].module}'
  return importlib.import_module(module).main(rest)


if __name__ == '__main__':
  sys.exit(main(sys.argv[1:]))
