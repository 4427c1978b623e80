"""Which form of a matrix is fastest here: predicted from measured products.

Fewer bytes are less time only where memory is what a product waits for. In
small matrices calls cost more, in large batches arithmetic does, and then the
dense product is the faster one. `measure_forms` times products of each form on
this device; `plan_inference` interpolates, and keeps each matrix in the form
that is predicted to be fastest, which may be the dense one.
"""

import dataclasses
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bandwidth import tree
from bandwidth.base import unknown_name
from bandwidth.inference import matrices
from bandwidth.inference.matrices import (
  CodebookMatrix,
  Matrix,
  SparseMatrix,
  UniformMatrix,
)
from bandwidth.inference.products import matmul

KINDS = ('dense', 'codebook2', 'codebook4', 'codebook8', 'uniform', 'sparse')
"""Forms that are told apart: of a codebook the bits of its codes."""

_DENSITY = 0.1
_ENTRIES = 16
_MOST_ALIKE = 8


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


def measure_matrices(
  params: Any,
  rows: Mapping[str, int],
  *,
  backend: str = 'auto',
  mode: str = 'exact',
  repeats: int = 7,
) -> tuple[Timing, ...]:
  """Times each matrix of a network in all forms that it could have.

  A table for `plan_inference` that needs no interpolation. Matrices of one
  shape, form and batch are timed together, some of them: one that is multiplied
  again and again would be in the cache, as it is not between other layers.

  Args:
    params: as `plan_inference` takes them.
    rows: of activations, by name of the matrix; others are not timed.
    backend: of `products.BACKENDS`.
    mode: of `rounding.MODES`.
    repeats: as of `measure_forms`.

  Raises:
    ValueError: a number is not positive.
  """
  for name, count in (('repeats', repeats), *rows.items()):
    if count < 1:
      raise ValueError(f'{name}={count} is not positive')
  alike: dict[tuple[Any, ...], list[Matrix]] = {}
  leaves = jax.tree_util.tree_leaves_with_path(
    params, is_leaf=matrices.is_matrix
  )
  for path, matrix in leaves:
    name = tree.path_name(path)
    if name in rows and matrices.is_matrix(matrix):
      kinds = tuple(_candidates(matrix).items())
      key = (rows[name], matrix.shape, kind_of(matrix), kinds)
      alike.setdefault(key, []).append(matrix)
  timings = []
  for (batch, shape, _, kinds), found in alike.items():
    x = jnp.ones((batch, shape[0]))
    programs = []
    for kind, _ in kinds:
      made = [converted(matrix, kind) for matrix in found[:_MOST_ALIKE]]
      placed = jax.tree.map(jnp.asarray, made)
      programs.append(_in_turn(x, placed, backend=backend, mode=mode))
    seconds = interleaved(programs, repeats)
    timings += [
      Timing(kind, weights, batch, own / len(placed))
      for (kind, weights), own in zip(kinds, seconds, strict=True)
    ]
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


def _in_turn(
  x: jax.Array, given: Sequence[Any], *, backend: str, mode: str
) -> Callable[[], Any]:
  """Products one after another, as layers are."""

  def run(x: jax.Array, given: Sequence[Any]) -> list[jax.Array]:
    results = []
    for matrix in given:
      y = matmul(x, matrix, backend=backend, mode=mode)
      results.append(y)
      # Waits for it; no compiler may know that nothing is added.
      x = x + 0 * y[:, :1]
    return results

  compiled = jax.jit(run).lower(x, given).compile()
  return lambda: compiled(x, given)


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
  seconds: dict[int, list[float]] = {}
  for timing in own:
    seconds.setdefault(timing.weights, []).append(timing.seconds)
  # Matrices of as many weights and other shapes count alike.
  points = [(w, statistics.fmean(seconds[w])) for w in sorted(seconds)]
  known = np.log([p[0] for p in points])
  logs = np.interp(np.log(weights), known, np.log([p[1] for p in points]))
  return float(np.exp(logs)) * max(weights / points[-1][0], 1.0)


def plan_inference(
  params: Any,
  table: Sequence[Timing],
  *,
  batch: int | Mapping[str, int] = 1,
) -> Plan:
  """Keeps each matrix in the form that is fastest here.

  Args:
    params: a pytree with matrices among its leaves, as `load_compressed` gives.
      Embeddings, which are looked up and not multiplied, stay as they are.
    table: of `measure_forms` or `measure_matrices`.
    batch: rows of activations that a product will have, for all or by name of
      the matrix. A kernel that has no name there is multiplied by nothing, and
      decoded.

  Raises:
    ValueError: a batch is not positive, or the table lacks a kind.
  """
  rows = batch if isinstance(batch, Mapping) else {'': batch}
  for name, count in rows.items():
    if count < 1:
      raise ValueError(f'batch={count} is not positive {name}'.rstrip())
  choices: dict[str, Choice] = {}

  def choose(path: Any, leaf: Any) -> Any:
    name = tree.path_name(path)
    if not matrices.is_matrix(leaf) or name.endswith('embedding'):
      return leaf
    own = batch.get(name) if isinstance(batch, Mapping) else batch
    if own is None:
      choices[name] = Choice(kind='dense', seconds={})
      return converted(leaf, 'dense')
    seconds = {
      kind: predict(table, kind, weights=weights, batch=own)
      for kind, weights in _candidates(leaf).items()
    }
    kind = min(seconds, key=lambda each: seconds[each])
    choices[name] = Choice(kind=kind, seconds=seconds)
    return converted(leaf, kind)

  made = jax.tree_util.tree_map_with_path(
    choose, params, is_leaf=matrices.is_matrix
  )
  return Plan(made, choices)


def _candidates(matrix: Matrix) -> dict[str, int]:
  """What a matrix could be, and how many weights it would multiply."""
  whole = max(int(np.prod(matrix.shape)), 1)
  found = {'dense': whole, kind_of(matrix): _weights(matrix)}
  if isinstance(matrix, SparseMatrix):
    if bits := _bits_of(matrix):
      found[f'codebook{bits}'] = whole
  elif _has_one_book(matrix):
    found['sparse'] = max(int(np.count_nonzero(matrices.decode(matrix))), 1)
  return found


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
    packed: Any = matrix
    codes = matrices.unpack(
      jnp.asarray(packed.codes), packed.bits, packed.shape[0]
    )
    book = np.asarray(packed.codebook)[0, 0]
    return matrices.sparse_matrix(np.asarray(codes), book)
  if isinstance(matrix, SparseMatrix) and kind == f'codebook{_bits_of(matrix)}':
    weights = matrices.decode(matrix).T
    book, codes = np.unique(weights, return_inverse=True)
    return matrices.codebook_matrix(
      codes.reshape(weights.shape), book, bits=_bits_of(matrix)
    )
  raise ValueError(f'kind={kind!r}: the matrix is {kind_of(matrix)}')
