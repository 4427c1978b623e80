"""How a GPU's kernel should deal out its work: times of many ways.

    python -m experiments.benchmark gpu_launches [--shape 8192x8192]
      [--output F.json]

For each arithmetic of `bandwidth.inference.gpu` and each way, microseconds of a
product with one row of activations; the fastest is marked. What the library
uses is `gpu.LAUNCHES`.
"""

import argparse
import functools
import pathlib
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bandwidth import inference
from bandwidth.inference import gpu
from experiments.benchmark.inference.products import shape_of
from experiments.benchmark.measuring.device_time import Product, seconds_of
from experiments.runtime import table

NAME = 'gpu_launches'

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


def ways() -> Iterator[gpu.Launch]:
  """Yields the launches to try."""
  for outputs, warpgroups, vector, ahead in _WAYS:
    yield gpu.Launch(
      outputs=outputs, warpgroups=warpgroups, vector=vector, ahead=ahead
    )


def rows_of(
  arithmetic: str, inputs: int, outputs: int, repeats: int
) -> list[dict[str, Any]]:
  """Times all launches of an arithmetic."""
  rng = np.random.default_rng(0)
  # Words of random bits are codes too.
  codes = rng.integers(0, 256, (outputs, inputs // 2), np.uint8)
  books = outputs if arithmetic == 'bytes' else 1
  matrix = inference.CodebookMatrix(
    codes=jnp.asarray(codes),
    codebook=jnp.asarray(rng.normal(size=(books, 1, 16)), jnp.float32),
    shape=(inputs, outputs),
    bits=4,
  )
  x = jnp.asarray(rng.normal(size=(1, inputs)), jnp.float32)
  rows = []
  for launch in ways():
    fn = functools.partial(_product, mode=_MODES[arithmetic], launch=launch)
    (seconds,) = seconds_of([Product(fn, x, matrix)], repeats)
    rows.append(
      {
        'arithmetic': arithmetic,
        'shape': f'{inputs}x{outputs}',
        'outputs': launch.outputs,
        'warpgroups': launch.warpgroups,
        'vector': launch.vector,
        'ahead': launch.ahead,
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


def main(argv: Sequence[str]) -> int:
  """Times launches; returns the exit status."""
  parser = argparse.ArgumentParser(
    prog=f'benchmark {NAME}',
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  add = parser.add_argument
  add('--shape', default='8192x8192', help='inputs x outputs')
  add('--arithmetic', nargs='+', default=list(_MODES), choices=list(_MODES))
  add('--repeats', type=int, default=5)
  add('--output', type=pathlib.Path, help='JSON file')
  try:
    given = parser.parse_args(argv)
    if jax.default_backend() != 'gpu':
      raise ValueError(f'there is no GPU, this is a {jax.default_backend()}')
    shape = shape_of(given.shape)
    rows: list[dict[str, Any]] = []
    for arithmetic in given.arithmetic:
      rows += rows_of(arithmetic, *shape, given.repeats)
      if given.output:
        table.write(given.output, NAME, rows)
    table.show(rows)
  except ValueError as error:
    print(f'benchmark {NAME}: error: {error}', file=sys.stderr)
    return 2
  return 0
