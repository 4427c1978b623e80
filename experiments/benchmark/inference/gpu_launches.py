"""How a GPU's kernel should deal out its work: times of many ways.

    python -m experiments.benchmark gpu_launches [--shape 8192x8192]
      [--output F.json]

For each arithmetic of `bandwidth.inference.gpu` and each way, microseconds of a
product with one row of activations; the fastest is marked. What the library
uses is `gpu.LAUNCHES`.
"""

import functools
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bandwidth import inference
from bandwidth.inference import gpu
from experiments.benchmark.harness import Benchmark
from experiments.measuring.device_time import Product, seconds_of
from experiments.runtime import options

_MODES = {
  'floats': 'exact',
  'pairs8': 'int8',
  'pairs16': 'int16',
  'bytes': 'int8',
}
# Outputs, warpgroups, vector, ahead.
_WAYS = (
  (8, 1, 4, 0),
  (8, 1, 2, 1),
  (8, 2, 2, 1),
  (8, 4, 2, 1),
  (8, 4, 4, 0),
  (4, 4, 2, 1),
  (8, 1, 1, 2),
)


def _rows_of(
  arithmetic: str, shape: tuple[int, int], repeats: int
) -> list[dict[str, Any]]:
  """Times all launches of an arithmetic."""
  inputs, outputs = shape
  rng = np.random.default_rng(0)
  # Words of random bits are codes too.
  codes = rng.integers(0, 256, (outputs, inputs // 2), np.uint8)
  books = outputs if arithmetic == 'bytes' else 1
  matrix = inference.CodebookMatrix(
    codes=jnp.asarray(codes),
    codebook=jnp.asarray(rng.normal(size=(books, 1, 16)), jnp.float32),
    shape=shape,
    bits=4,
  )
  x = jnp.asarray(rng.normal(size=(1, inputs)), jnp.float32)
  rows = []
  for outputs_of_one, warpgroups, vector, ahead in _WAYS:
    launch = gpu.Launch(
      outputs=outputs_of_one, warpgroups=warpgroups, vector=vector, ahead=ahead
    )
    fn = functools.partial(_product, mode=_MODES[arithmetic], launch=launch)
    (seconds,) = seconds_of([Product(fn, x, matrix)], repeats)
    rows.append(
      {
        'arithmetic': arithmetic,
        'shape': f'{inputs}x{outputs}',
        'outputs': outputs_of_one,
        'warpgroups': warpgroups,
        'vector': vector,
        'ahead': ahead,
        'us': round(1e6 * seconds, 2),
        'gb_per_second': round(codes.nbytes / seconds / 1e9),
      }
    )
  least = min(row['us'] for row in rows)
  return [{**row, 'fastest': row['us'] == least} for row in rows]


def _product(
  x: jax.Array, matrix: Any, *, mode: str, launch: gpu.Launch
) -> jax.Array:
  given = gpu.operands(x, matrix, mode)
  y = gpu.multiply(
    given.words, given.x, given.tables, given.decoding, launch=launch
  )
  return given.scaled(y)


def _rows(given: Any) -> Iterator[list[dict[str, Any]]]:
  if jax.default_backend() != 'gpu':
    raise ValueError(f'there is no GPU, this is a {jax.default_backend()}')
  for arithmetic in given.arithmetic:
    yield _rows_of(arithmetic, given.shape, given.repeats)


main = Benchmark(
  name='gpu_launches',
  about=__doc__,
  seed=0,
  options={
    'shape': options.shape('8192x8192', 'inputs x outputs'),
    'arithmetic': options.choice(_MODES, list(_MODES)),
    'repeats': options.integer(5),
  },
  measure=_rows,
  parts=lambda given: len(given.arithmetic),
).main
