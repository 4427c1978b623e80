"""Which form of a matrix is fastest here: predicted from measured products.

Fewer bytes are less time only where memory is what a product waits for. In
small matrices calls cost more, in large batches arithmetic does, and then the
dense product is the faster one. `plan_inference` keeps each matrix in the form
that is predicted to be fastest, which may be the dense one: by products of its
own shape that it times on this device, or by a table of `measure_forms`, which
times square ones, and between them interpolates.
"""

import dataclasses
import functools
import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bandwidth import tree
from bandwidth.base import unknown_name
from bandwidth.inference import matrices, packing
from bandwidth.inference.matrices import (
  CodebookMatrix,
  Matrix,
  SparseMatrix,
  UniformMatrix,
)
from bandwidth.inference.products import matmul

KINDS = ('dense', 'codebook2', 'codebook4', 'codebook8', 'uniform', 'sparse')
"""Forms that are told apart: of a codebook the bits of its codes."""

MARGIN = 0.05
"""By what part of the dense seconds another form must be faster to be kept:
measured again, it should not turn out the slower one."""

_DENSITY = 0.1
_ENTRIES = 16
# Sparse matrices of more non-zeros than this were never the fastest.
_MOST_NONZERO = 0.5
# Numbers of non-zeros that differ by less share a measurement.
_SAME = math.log(1.05)
_REPEATS = 9


class Timing(NamedTuple):
  """A measured product.

  Attributes:
    kind: of `KINDS`.
    weights: that are multiplied, of a sparse matrix those that are not zero.
    batch: rows of activations.
    seconds: median of a product.
  """

  kind: str
  weights: int
  batch: int
  seconds: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Choice:
  """What was chosen for a matrix.

  Attributes:
    kind: of `KINDS`, the one kept.
    seconds: predicted, by kind of all that it could be.
  """

  kind: str
  seconds: Mapping[str, float]


class Plan(NamedTuple):
  """Parameters in the forms that are fastest.

  Attributes:
    params: as given, with some matrices in other forms.
    choices: by name of the matrix.
  """

  params: Any
  choices: dict[str, Choice]


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
    sizes: K = N of them, at least two.
    batches: rows of activations.
    kinds: of `KINDS`.
    backend: of `products.BACKENDS`.
    mode: of `rounding.MODES`.
    repeats: of which the median counts; each is as many products as take a
      millisecond.

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
      programs = [_program(x, m, backend=backend, mode=mode) for m in made]
      for kind, matrix, seconds in zip(
        kinds, made, interleaved(programs, repeats), strict=True
      ):
        timings.append(Timing(kind, _weights(matrix), batch, seconds))
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


def _weights(matrix: Any) -> int:
  if isinstance(matrix, SparseMatrix):
    return max(int(np.asarray(matrix.starts)[-1]), 1)
  return max(int(np.prod(matrix.shape)), 1)


def _program(
  x: jax.Array, matrix: Any, *, backend: str, mode: str
) -> Callable[[], Any]:
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
    repeats: turns.
    least_seconds: of a turn: a program runs as often as that takes.
  """
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
      start = time.perf_counter()
      for _ in range(count):
        jax.block_until_ready(program())
      own.append((time.perf_counter() - start) / count)
  return [statistics.median(own) for own in times]


def predict(
  table: Sequence[Timing], kind: str, *, weights: int, batch: int
) -> float:
  """Predicts the seconds of a product.

  Logarithms of seconds are interpolated between those of weights and of
  batches. Beyond the largest, seconds grow in proportion; below the smallest,
  they stay.

  Args:
    table: measured.
    kind: of `KINDS`.
    weights: of the matrix, see `Timing`.
    batch: rows of activations.

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
  batches = sorted({t.batch for t in own})
  by_batch = [
    _of_weights([t for t in own if t.batch == b], weights) for b in batches
  ]
  logs = np.interp(np.log(batch), np.log(batches), np.log(by_batch))
  beyond = max(batch / batches[-1], 1.0)
  return float(np.exp(logs)) * beyond


def _of_weights(own: Sequence[Timing], weights: int) -> float:
  points = sorted((t.weights, t.seconds) for t in own)
  known = np.log([p[0] for p in points])
  logs = np.interp(np.log(weights), known, np.log([p[1] for p in points]))
  return float(np.exp(logs)) * max(weights / points[-1][0], 1.0)


def plan_inference(
  params: Any,
  table: Sequence[Timing] | None = None,
  *,
  batch: int = 1,
  backend: str = 'auto',
  mode: str = 'exact',
) -> Plan:
  """Keeps each matrix in the form that is fastest here.

  Args:
    params: a pytree with matrices among its leaves, as `load_compressed` gives.
      Embeddings, which are looked up and not multiplied, stay as they are.
    table: of `measure_forms`, to predict from. None: products of the matrices
      themselves are timed, once a process for each shape.
    batch: rows of activations that a product will have.
    backend: of `products.BACKENDS`, to time with.
    mode: of `rounding.MODES`, to time with.

  Raises:
    ValueError: the batch is not positive, the table lacks a kind, or the
      backend can't run a matrix.
  """
  if batch < 1:
    raise ValueError(f'batch={batch} is not positive')
  choices: dict[str, Choice] = {}
  measured = functools.partial(
    measure_matrix, batch=batch, backend=backend, mode=mode
  )

  def choose(path: Any, leaf: Any) -> Any:
    name = tree.path_name(path)
    if not matrices.is_matrix(leaf) or name.endswith('embedding'):
      return leaf
    if table is None:
      choice = choose_form(measured(leaf))
    else:
      choice = choose_form(
        {
          kind: predict(table, kind, weights=weights, batch=batch)
          for kind, weights in candidates(leaf).items()
        }
      )
    choices[name] = choice
    return converted(leaf, choice.kind)

  made = jax.tree_util.tree_map_with_path(
    choose, params, is_leaf=matrices.is_matrix
  )
  return Plan(made, choices)


def choose_form(seconds: Mapping[str, float]) -> Choice:
  """Chooses the fastest kind, but the dense one unless `MARGIN` is gained.

  >>> choose_form({'dense': 1.0, 'codebook4': 0.97}).kind
  'dense'
  """
  kind = min(seconds, key=lambda each: seconds[each])
  if seconds[kind] > (1 - MARGIN) * seconds['dense']:
    kind = 'dense'
  return Choice(kind=kind, seconds=dict(seconds))


_measured: dict[tuple[Any, ...], dict[str, float]] = {}


def measure_matrix(
  matrix: Matrix, *, batch: int, backend: str = 'auto', mode: str = 'exact'
) -> dict[str, float]:
  """Times the products of a matrix in each form that it could have.

  What was measured is kept while the process runs, for all matrices that differ
  in what they hold alone.

  Args:
    matrix: of any form.
    batch: rows of activations.
    backend: of `products.BACKENDS`.
    mode: of `rounding.MODES`.

  Returns:
    Median seconds by kind, 'dense' among them.

  Raises:
    ValueError: the backend can't run the matrix.
  """
  kinds = candidates(matrix)
  key = (*signature(matrix, kinds), batch, backend, mode)
  if key not in _measured:
    x = jnp.ones((batch, matrix.shape[0]))
    programs = []
    for kind in kinds:
      form = jax.tree.map(jnp.asarray, converted(matrix, kind))
      programs.append(_program(x, form, backend=backend, mode=mode))
    seconds = interleaved(programs, _REPEATS)
    _measured[key] = dict(zip(kinds, seconds, strict=True))
  return dict(_measured[key])


def signature(matrix: Matrix, kinds: Mapping[str, int]) -> tuple[Any, ...]:
  """Returns what times hang on: form, shape, groups, numbers of non-zeros.

  Args:
    matrix: of any form.
    kinds: its `candidates`.
  """
  groups = ()
  if isinstance(matrix, CodebookMatrix):
    groups = tuple(matrix.codebook.shape[:2])
  elif isinstance(matrix, UniformMatrix):
    groups = tuple(matrix.step.shape)
  counts = {
    kind: round(math.log(weights) / _SAME) for kind, weights in kinds.items()
  }
  return (kind_of(matrix), tuple(matrix.shape), groups, *counts.items())


def candidates(matrix: Matrix) -> dict[str, int]:
  """Returns what a matrix could be, and the weights it then would multiply."""
  whole = max(int(np.prod(matrix.shape)), 1)
  found = {'dense': whole, kind_of(matrix): _weights(matrix)}
  if isinstance(matrix, SparseMatrix):
    if bits := _bits_of(matrix):
      found[f'codebook{bits}'] = whole
  elif _has_one_book(matrix):
    book, pieces = _unpacked(matrix)
    nonzero = sum(int((book[codes] != 0).sum()) for _, codes in pieces())
    if nonzero <= _MOST_NONZERO * whole:
      found['sparse'] = max(nonzero, 1)
  return found


def _unpacked(matrix: Any) -> tuple[np.ndarray, Callable[[], Any]]:
  """The one codebook of a matrix, and what gives its codes by pieces."""
  pieces = functools.partial(
    packing.unpacked, np.asarray(matrix.codes), matrix.bits, matrix.shape[0]
  )
  return np.asarray(matrix.codebook)[0, 0], pieces


def _bits_of(matrix: SparseMatrix) -> int:
  """Bits of a code when 0 has one too; 0 where those are too many."""
  book = np.asarray(matrix.codebook)
  entries = len(book) + (not np.any(book == 0))
  return matrices.bits_for(entries) if entries <= 2**8 else 0


def _has_one_book(matrix: Matrix) -> bool:
  return isinstance(matrix, CodebookMatrix) and matrix.codebook.shape[:2] == (
    1,
    1,
  )


def converted(matrix: Matrix, kind: str) -> Any:
  """Returns a matrix in another form, of the same weights.

  Args:
    matrix: of any form.
    kind: what it is; 'dense'; 'sparse' of a codebook; or the codebook that a
      sparse one has.

  Raises:
    ValueError: it can't be of that kind.
  """
  if kind == kind_of(matrix):
    return matrix
  if kind == 'dense':
    return matrices.decode(matrix)
  if kind == 'sparse' and _has_one_book(matrix):
    book, pieces = _unpacked(matrix)
    return matrices.sparse_of(pieces, book, shape=matrix.shape)
  if isinstance(matrix, SparseMatrix) and kind == f'codebook{_bits_of(matrix)}':
    return _with_zeros(matrix)
  raise ValueError(f'kind={kind!r}: the matrix is {kind_of(matrix)}')


def _with_zeros(matrix: SparseMatrix) -> CodebookMatrix:
  """A sparse matrix with a code for each weight, zeros among them."""
  inputs, outputs = matrix.shape
  book = np.asarray(matrix.codebook)
  zeros = np.flatnonzero(book == 0)
  if not zeros.size:
    zeros, book = [len(book)], np.append(book, np.float32(0))
  codes = np.full((outputs, inputs), zeros[0], np.uint8)
  rows = np.repeat(np.arange(outputs), np.diff(np.asarray(matrix.starts)))
  codes[rows, np.asarray(matrix.columns)] = np.asarray(matrix.codes)
  return matrices.codebook_matrix(
    codes, book, bits=matrices.bits_for(len(book))
  )
