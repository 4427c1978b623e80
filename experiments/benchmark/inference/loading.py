"""Memory and time of opening a file, beside reading the dense weights.

    python -m experiments.benchmark loading [--weights 50000000] [--output F]

Networks of 4-bit weights are made and written: one whose weights are nearly all
in one kernel, one of which an embedding is half, one of many kernels, one of
convolutions; each once with a codebook and once with levels. Every way of
reading runs in a process of its own, which resets the peak of its resident
memory, reads, and looks at that peak. `of_dense` is by how much it rose above
what the process held before, beside the bytes of the weights as float32:
`load_compressed` is to stay below a third. `load_tree`, which reads the dense
weights, is the control.
"""

import itertools
import json
import math
import pathlib
import tempfile
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from bandwidth import coding, inference
from experiments.benchmark.harness import Benchmark
from experiments.measuring.memory import cost_of
from experiments.runtime import options
from experiments.runtime.command import run_python

KINDS = ('codebook', 'uniform')
_LEVELS = 7
# Of a kernel, and the width of the embedding that is half of the network.
_SHAPES: dict[str, tuple[tuple[int, ...], int]] = {
  'one kernel': ((1, 4096), 0),
  'half embedding': ((384, 1536), 384),
  'many kernels': ((512, 768), 0),
  'convolutions': ((3, 3, 512, 512), 0),
}
NETWORKS = tuple(_SHAPES)


def shapes_of(network: str, weights: int) -> dict[str, tuple[int, ...]]:
  """Returns names and shapes of about so many weights.

  >>> shapes_of('one kernel', 8_000_000)
  {'layer_0/kernel': (1953, 4096)}
  """
  kernel, words = _SHAPES[network]
  if network == 'one kernel':
    return {'layer_0/kernel': (max(weights // kernel[1], 1), kernel[1])}
  shapes: dict[str, tuple[int, ...]] = {}
  if words:
    weights //= 2
    shapes['words/embedding'] = (max(weights // words, 1), words)
  count = max(weights // math.prod(kernel), 1)
  return shapes | {f'layer_{i}/kernel': kernel for i in range(count)}


def _make_file(
  path: pathlib.Path, shapes: dict[str, tuple[int, ...]], kind: str
) -> None:
  """Writes a network of random weights of 15 values each."""
  rng = np.random.default_rng(0)
  book = np.linspace(-1, 1, 2 * _LEVELS + 1, dtype=np.float32)
  tensors: dict[str, coding.Tensor] = {}
  for name, shape in shapes.items():
    values = rng.normal(0, 2.5, shape[-2:]).round()
    levels = np.clip(values, -_LEVELS, _LEVELS).astype(np.int8)
    levels = np.broadcast_to(levels, shape)
    if kind == 'uniform':
      tensors[name] = coding.UniformTensor(levels, np.array(0.1))
    else:
      tensors[name] = coding.CodebookTensor(levels + _LEVELS, book)
  coding.write(path, tensors)


WAYS: dict[str, Callable[[str], Any]] = {
  'load_compressed': inference.load_compressed,
  'load_tree': coding.load_tree,
}
"""Ways of reading; the last one, of the dense weights, is the control."""


def measure_here(path: str, way: str) -> dict[str, float]:
  """Reads a file here; returns what its memory rose by, and seconds."""
  kept, cost = cost_of(lambda: WAYS[way](path))
  del kept
  if cost.peak <= 0:
    raise ValueError('the system does not say what memory a process holds')
  return {
    'peak_bytes': cost.peak,
    'kept_bytes': cost.kept,
    'seconds': cost.clock,
  }


def _measure(path: pathlib.Path, way: str) -> dict[str, float]:
  """Reads a file in a process of its own; returns as `measure_here`."""
  code = (
    'import json, sys; '
    'from experiments.benchmark.inference.loading import measure_here; '
    'print(json.dumps(measure_here(*sys.argv[1:])))'
  )
  return json.loads(run_python(['-c', code, str(path), way], way))


def _rows_of(
  network: str, kind: str, *, weights: int, repeats: int
) -> list[dict[str, Any]]:
  """Returns what each way of reading a network takes; medians of seconds."""
  shapes = shapes_of(network, weights)
  dense = 4 * sum(int(np.prod(shape)) for shape in shapes.values())
  rows = []
  with tempfile.TemporaryDirectory() as folder:
    path = pathlib.Path(folder) / 'model.bwz'
    _make_file(path, shapes, kind)
    for way in WAYS:
      found = [_measure(path, way) for _ in range(repeats)]
      peak = max(each['peak_bytes'] for each in found)
      rows.append(
        {
          'network': network,
          'kind': kind,
          'read_by': way,
          'dense_bytes': dense,
          'file_bytes': path.stat().st_size,
          'kept_bytes': int(max(each['kept_bytes'] for each in found)),
          'peak_bytes': int(peak),
          'of_dense': round(peak / dense, 3),
          'seconds': round(
            float(np.median([each['seconds'] for each in found])), 3
          ),
        }
      )
  return rows


def _rows(given: Any) -> Iterator[list[dict[str, Any]]]:
  for network, kind in itertools.product(given.networks, given.kinds):
    yield _rows_of(network, kind, weights=given.weights, repeats=given.repeats)


main = Benchmark(
  name='loading',
  about=__doc__,
  options={
    'weights': options.integer(50_000_000, 'of a network, about'),
    'networks': options.choice(NETWORKS, NETWORKS),
    'kinds': options.choice(KINDS, KINDS),
    'repeats': options.integer(1),
  },
  measure=_rows,
  parts=lambda given: len(given.networks) * len(given.kinds),
  seed=0,
).main
