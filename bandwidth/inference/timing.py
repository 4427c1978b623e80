"""Times of products in each form that a matrix can have, on this device."""

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bandwidth.base import unknown_name
from bandwidth.inference import matrices
from bandwidth.inference.matrices import (
  CodebookMatrix,
  SparseMatrix,
  UniformMatrix,
)
from bandwidth.inference.products import matmul

KINDS = ('dense', 'codebook2', 'codebook4', 'codebook8', 'uniform', 'sparse')
"""Forms that are told apart: of a codebook the bits of its codes."""

_DENSITY = 0.1
_ENTRIES = 16
TURNS = 15
"""Turns of which the best one counts."""

_TURN_SECONDS = 4e-3


class Timing(NamedTuple):
  """A measured product.

  Attributes:
    kind: form of the matrix, one of `KINDS`.
    weights: number of weights that are multiplied: those that are not zero of a
      sparse matrix, otherwise all.
    batch: number of rows of activations.
    seconds: seconds that one product takes.
    shape: (K, N) of a matrix of a network; None of examples.
  """

  kind: str
  weights: int
  batch: int
  seconds: float
  shape: tuple[int, int] | None = None


def kind_of(matrix: Any) -> str:
  """Returns the kind of a matrix or an array."""
  if isinstance(matrix, CodebookMatrix):
    return f'codebook{matrix.bits}'
  if isinstance(matrix, UniformMatrix):
    return 'uniform'
  return 'sparse' if isinstance(matrix, SparseMatrix) else 'dense'


def measure_forms(
  *,
  sizes: Sequence[int] = (64, 512, 2048),
  batches: Sequence[int] = (1, 8, 64),
  kinds: Sequence[str] = KINDS,
  backend: str = 'auto',
  mode: str = 'exact',
  repeats: int = 7,
) -> tuple[Timing, ...]:
  """Times products of square matrices on this device.

  Args:
    sizes: numbers K = N of inputs and outputs, positive; two or more, so that
      `predict` can interpolate.
    batches: numbers of rows of activations, positive.
    kinds: forms to time, of `KINDS`.
    backend: name of the backend, one of `products.BACKENDS`.
    mode: mode of arithmetic, one of `rounding.MODES`.
    repeats: number of turns, of which the median counts; each is as many
      products as take a millisecond.

  Raises:
    ValueError: a kind is unknown, a number not positive.
  """
  for name, values in (
    ('sizes', sizes), ('batches', batches), ('repeats', [repeats]),
  ):  # fmt: skip
    if not values or min(values) < 1:
      raise ValueError(f'{name}={values} are not positive')
  for kind in kinds:
    if kind not in KINDS:
      raise ValueError(unknown_name('kinds', kind, KINDS))
  timings = []
  for size in sizes:
    made = [_example(kind, size) for kind in kinds]
    for batch in batches:
      x = jnp.ones((batch, size))
      programs = [program_of(x, m, backend=backend, mode=mode) for m in made]
      for kind, matrix, seconds in zip(
        kinds, made, interleaved(programs, repeats), strict=True
      ):
        timings.append(Timing(kind, weights_of(matrix), batch, seconds))
  return tuple(timings)


def _example(kind: str, size: int) -> Any:
  """A square matrix of a kind, random."""
  rng = np.random.default_rng(0)
  shape = (size, size)
  if kind == 'dense':
    made: Any = rng.normal(size=shape).astype(np.float32)
  elif kind == 'uniform':
    made = matrices.uniform_matrix(rng.integers(-127, 128, shape), 0.01)
  elif kind == 'sparse':
    book = np.arange(_ENTRIES, dtype=np.float32)
    codes = rng.integers(1, _ENTRIES, shape) * (rng.random(shape) < _DENSITY)
    made = matrices.sparse_matrix(codes, book)
  else:
    entries = 2 ** int(kind.removeprefix('codebook'))
    codes = rng.integers(0, entries, shape)
    made = matrices.codebook_matrix(codes, rng.normal(size=entries))
  return jax.tree.map(jnp.asarray, made)


def weights_of(matrix: Any) -> int:
  """Returns how many weights are multiplied, at least 1."""
  if isinstance(matrix, SparseMatrix):
    return max(int(np.asarray(matrix.starts)[-1]), 1)
  return max(int(np.prod(matrix.shape)), 1)


def program_of(
  x: jax.Array, matrix: Any, *, backend: str, mode: str
) -> Callable[[], Any]:
  """Returns a compiled product that needs no arguments."""
  compiled = (
    jax.jit(lambda x, m: matmul(x, m, backend=backend, mode=mode))
    .lower(x, matrix)
    .compile()
  )
  return lambda: compiled(x, matrix)


def interleaved(
  programs: Sequence[Callable[[], Any]],
  repeats: int,
  *,
  least_seconds: float = 1e-3,
) -> list[float]:
  """Returns median seconds of programs that take turns.

  Args:
    programs: without arguments; what they return is waited for.
    repeats: number of turns that each program gets.
    least_seconds: least seconds of a turn, for which a program is run as often
      as that takes.
  """
  times = _turns(programs, repeats, least_seconds)
  return [statistics.median(own) for own in times]


def fastest(
  programs: Sequence[Callable[[], Any]], repeats: int = TURNS
) -> list[float]:
  """Returns seconds of programs in their best turn.

  Whatever else a machine does adds to seconds and never takes from them, and
  may last longer than all turns do: of two programs the one that is faster in
  its best turn is faster. As `interleaved` otherwise.
  """
  return [min(own) for own in _turns(programs, repeats, _TURN_SECONDS)]


def _turns(
  programs: Sequence[Callable[[], Any]], repeats: int, least_seconds: float
) -> list[list[float]]:
  """Mean seconds in each turn, by program."""
  counts = []
  for program in programs:
    jax.block_until_ready(program())
    start = time.perf_counter()
    jax.block_until_ready(program())
    once = max(time.perf_counter() - start, 1e-7)
    counts.append(max(round(least_seconds / once), 1))
  times: list[list[float]] = [[] for _ in programs]
  for _ in range(repeats):
    for program, count, own in zip(programs, counts, times, strict=True):
      # Threads and caches are as the program before left them.
      jax.block_until_ready(program())
      start = time.perf_counter()
      for _ in range(count):
        jax.block_until_ready(program())
      own.append((time.perf_counter() - start) / count)
  return times


def predict(
  table: Sequence[Timing],
  kind: str,
  *,
  weights: int,
  batch: int,
  shape: tuple[int, int] | None = None,
) -> float:
  """Predicts the seconds of a product.

  Logarithms of seconds are interpolated between those of weights and of
  batches. Beyond the largest, seconds grow in proportion; below the smallest,
  they stay. Where the table has matrices of the very shape, only these count.

  Args:
    table: timings measured on the device, see `measure_forms`.
    kind: form of the matrix, one of `KINDS`.
    weights: number of weights that are multiplied, see `Timing`.
    batch: number of rows of activations, positive.
    shape: (K, N) of the matrix. None: judged by the number of weights alone.

  Raises:
    ValueError: the table lacks the kind.

  >>> table = [Timing('dense', 100, 1, 1.0), Timing('dense', 400, 1, 4.0)]
  >>> round(predict(table, 'dense', weights=200, batch=1), 3)
  2.0
  >>> round(predict(table, 'dense', weights=800, batch=1), 3)
  8.0
  """
  own = [t for t in table if t.kind == kind]
  if not own:
    raise ValueError(f'table: it has no timings of {kind}')
  own = [t for t in own if shape and t.shape == shape] or own
  batches = sorted({t.batch for t in own})
  by_batch = [
    _of_weights([t for t in own if t.batch == b], weights) for b in batches
  ]
  logs = np.interp(np.log(batch), np.log(batches), np.log(by_batch))
  beyond = max(batch / batches[-1], 1.0)
  return float(np.exp(logs)) * beyond


def _of_weights(own: Sequence[Timing], weights: int) -> float:
  seconds: dict[int, list[float]] = {}
  for timing in own:
    seconds.setdefault(timing.weights, []).append(timing.seconds)
  # Matrices of as many weights and other shapes count alike.
  points = [(w, statistics.fmean(seconds[w])) for w in sorted(seconds)]
  known = np.log([p[0] for p in points])
  logs = np.interp(np.log(weights), known, np.log([p[1] for p in points]))
  return float(np.exp(logs)) * max(weights / points[-1][0], 1.0)
