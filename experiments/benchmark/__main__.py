"""Runs a benchmark by name.

python -m experiments.benchmark NAME [--output F.json] [...]
"""

import importlib
import sys
from collections.abc import Sequence

from bandwidth.base import unknown_name

BENCHMARKS = {
  'coding': 'coding and decoding 25 million weights, beside zstandard',
  'convolution': 'gradients of LeNet-5 by XLA and by matrix products',
  'bytes': 'bytes a step at the shapes of AlexNet, ResNet-50, an LSTM',
  'fuzz': 'hostile files for the reader of .bwz',
  'gradient': 'compressing a gradient beside the momentum update',
  'gpu_launches': "ways of dealing out a product's work on a GPU",
  'inference': 'products from the compressed form, beside dense ones',
  'latency_table': 'latencies of the layers of a network, for a search',
  'loading': 'memory and time of opening a compressed network',
  'loop': 'overhead of the training loop and of its input',
  'owners': 'accuracy of owner-sharded exchange beside all-gather',
  'planned': 'products in the form that a plan chooses, beside dense ones',
  'search': 'searchers of compression policies on equal budgets',
  'search_joint': 'channels and precision together, at equal bytes',
  'pretrained': 'files and fidelity of pretrained networks, not retrained',
  'pretrained_search': 'searched channels of a pretrained network',
  'sensitivity': 'what pruning one layer alone does to a network',
  'step': 'what compression adds to a training step',
  'tpu': 'what the TPU compiler makes of a step on a pod',
  'training': 'training over links of several rates, dense and compressed',
  'wire': 'reducers on real links of several rates',
}


def main(argv: Sequence[str]) -> int:
  """Hands the rest of the command line to the benchmark that it names."""
  if not argv or argv[0] in ('-h', '--help'):
    print((__doc__ or '').strip() + '\n')
    for name, what in BENCHMARKS.items():
      print(f'  {name:17} {what}')
    return 0 if argv else 2
  name, *rest = argv
  if name not in BENCHMARKS:
    message = unknown_name('NAME', name, BENCHMARKS)
    print(f'benchmark: error: {message}', file=sys.stderr)
    return 2
  return importlib.import_module(f'experiments.benchmark.{name}').main(rest)


if __name__ == '__main__':
  sys.exit(main(sys.argv[1:]))
