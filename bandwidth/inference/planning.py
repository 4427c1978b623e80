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
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bandwidth import tree
from bandwidth.inference import loading, matrices, packing
from bandwidth.inference.matrices import (
  CodebookMatrix,
  Matrix,
  SparseMatrix,
  UniformMatrix,
)
from bandwidth.inference.timing import (
  KINDS,
  TURNS,
  Timing,
  fastest,
  interleaved,
  kind_of,
  measure_forms,
  predict,
  program_of,
  weights_of,
)

__all__ = [
  'KINDS',
  'MARGIN',
  'Choice',
  'Plan',
  'Timing',
  'candidates',
  'choose_form',
  'converted',
  'fastest',
  'interleaved',
  'kind_of',
  'measure_forms',
  'measure_matrices',
  'measure_matrix',
  'plan_inference',
  'predict',
  'signature',
]

MARGIN = 0.1
"""By what part of the dense seconds another form must be faster to be kept:
measured again, it should not turn out the slower one."""

# Sparse matrices of more non-zeros than this were never the fastest.
_MOST_NONZERO = 0.5
# Numbers of non-zeros that differ by less share a measurement.
_SAME = math.log(1.05)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Choice:
  """What was chosen for a matrix.

  Attributes:
    kind: the form that is kept, one of `KINDS`.
    seconds: predicted seconds of a product, by each kind that it could be.
  """

  kind: str
  seconds: Mapping[str, float]


class Plan(NamedTuple):
  """Parameters in the forms that are fastest.

  Attributes:
    params: as given, with some matrices in other forms.
    choices: the choice for each matrix, by its name.
  """

  params: Any
  choices: dict[str, Choice]


def plan_inference(
  params: Any,
  table: Sequence[Timing] | None = None,
  *,
  batch: int | Mapping[str, int] = 1,
  backend: str = 'auto',
  mode: str = 'exact',
) -> Plan:
  """Keeps each matrix in the form that is fastest here.

  Args:
    params: a pytree with matrices among its leaves, as `load_compressed` gives.
      Embeddings, which are looked up and not multiplied, stay as they are.
    table: timings of `measure_forms` or `measure_matrices`, to predict from.
      None: products of the matrices themselves are timed, see `measure_matrix`.
    batch: rows of activations that a product will have, for all or by name of
      the matrix. A matrix that has no name there is multiplied by nothing, and
      decoded.
    backend: name of the backend to time, one of `products.BACKENDS`.
    mode: mode of arithmetic to time, one of `rounding.MODES`.

  Raises:
    ValueError: a batch is not positive, the table lacks a kind, or the backend
      can't run a matrix.
  """
  for name, rows in (
    batch.items() if isinstance(batch, Mapping) else [('', batch)]
  ):
    if rows < 1:
      raise ValueError(f'batch={rows} is not positive {name}'.rstrip())
  choices: dict[str, Choice] = {}

  def choose(name: str, leaf: Any) -> Any:
    if (
      not matrices.is_matrix(leaf) or loading.kind_of(name) == loading.EMBEDDING
    ):
      return leaf
    own = batch.get(name) if isinstance(batch, Mapping) else batch
    if own is None:
      choices[name] = Choice(kind='dense', seconds={})
    elif table is None:
      seconds = measure_matrix(leaf, batch=own, backend=backend, mode=mode)
      choices[name] = choose_form(seconds)
    else:
      shape = (leaf.shape[0], leaf.shape[1])
      choices[name] = choose_form(
        {
          kind: predict(table, kind, weights=weights, batch=own, shape=shape)
          for kind, weights in candidates(leaf).items()
        }
      )
    return converted(leaf, choices[name].kind)

  made = tree.map_named(choose, params, is_leaf=matrices.is_matrix)
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


def measure_matrices(
  params: Any,
  rows: Mapping[str, int],
  *,
  backend: str = 'auto',
  mode: str = 'exact',
  repeats: int = TURNS,
) -> tuple[Timing, ...]:
  """Returns a table of the matrices of a network, each in all its forms.

  Args:
    params: pytree with matrices among its leaves, as for `plan_inference`.
    rows: rows of activations by name of the matrix; matrices not named are not
      timed.
    backend: name of the backend, one of `products.BACKENDS`.
    mode: mode of arithmetic, one of `rounding.MODES`.
    repeats: number of turns, of which the fastest counts.

  Raises:
    ValueError: a number is not positive, or the backend can't run a matrix.
  """
  for name, count in (('repeats', repeats), *rows.items()):
    if count < 1:
      raise ValueError(f'{name}={count} is not positive')
  table: dict[Timing, None] = {}
  leaves = tree.named_leaves(params, is_leaf=matrices.is_matrix)
  for name, matrix in leaves:
    if name not in rows or not matrices.is_matrix(matrix):
      continue
    seconds = measure_matrix(
      matrix, batch=rows[name], backend=backend, mode=mode, repeats=repeats
    )
    shape = (matrix.shape[0], matrix.shape[1])
    for kind, weights in candidates(matrix).items():
      table[Timing(kind, weights, rows[name], seconds[kind], shape)] = None
  return tuple(table)


def measure_matrix(
  matrix: Matrix,
  *,
  batch: int,
  backend: str = 'auto',
  mode: str = 'exact',
  repeats: int = TURNS,
) -> dict[str, float]:
  """Times the products of a matrix in each form that it could have.

  What was measured is kept while the process runs, for all matrices that differ
  in what they hold alone.

  Args:
    matrix: a compressed matrix of any form.
    batch: number of rows of activations, positive.
    backend: name of the backend, one of `products.BACKENDS`.
    mode: mode of arithmetic, one of `rounding.MODES`.
    repeats: number of turns, of which the fastest counts.

  Returns:
    Seconds by kind, 'dense' among them.

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
      programs.append(program_of(x, form, backend=backend, mode=mode))
    _measured[key] = dict(zip(kinds, fastest(programs, repeats), strict=True))
  return dict(_measured[key])


def signature(matrix: Matrix, kinds: Mapping[str, int]) -> tuple[Any, ...]:
  """Returns what times hang on: form, shape, groups, numbers of non-zeros.

  Args:
    matrix: a compressed matrix of any form.
    kinds: kinds that it could have, from `candidates`.
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
  found = {'dense': whole, kind_of(matrix): weights_of(matrix)}
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
    matrix: a compressed matrix of any form.
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
