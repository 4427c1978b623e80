"""Adaptive coding of a sparse tensor: probabilities are learned, not stored.

For tensors so sparse that tables and gaps would dominate, as after rate-aware
training. As in CABAC (Marpe, Schwarz & Wiegand, 2003) and DeepCABAC (Wiedemann
et al., arXiv 1907.11900), it codes which elements are not zero, then signs and
magnitudes, each bit with an adaptive probability; those of the first kind are
mixed as in PAQ (Mahoney, 2005). A row is coded in one vector operation, so that
its time hardly depends on its length.

The tensor is a matrix: the last axis makes the columns, all others the rows; a
vector is one column. Layout: one byte n + 8·f_r + 16·f_c, n varints, one byte z
(none of these for a matrix of one column, where n = f_c = 0 and f_r = 1), and
to the end of the payload the stream of `binary`. It holds

1. if f_c which columns, then if f_r which rows, are live, that is hold anything
   but zeros: each bit under the counts (`logistic.Counts`, prior 1/2) of the
   two bits before it, ones before the first, anew for the rows. Without flags
   all are live;
2. the bits "is not zero" of the live part (`significance`), with the n varints
   as strides and the prior P = 2^16·2^(−z/8); nothing where f_r and there is
   one live column, or f_c and one live row: its live elements are not zero;
3. the values of the non-zeros, by rows (`magnitudes`): zigzag levels by sign
   and magnitude, codes of a codebook of K entries as labels of ⌈log2 K⌉ bits.

Time is bounded by 2^22 elements, 2^13 rows, rows + columns ≤ 64 + 4·n and bits
coded ≤ 2^16 + 2^11·n, where n are the bytes of the stream.
"""

import math
from typing import NamedTuple

import numpy as np

from bandwidth.coding import wire
from bandwidth.coding.coders import (
  binary,
  bitstream,
  logistic,
  magnitudes,
  significance,
)

MAX_ROWS = 1 << 13
MAX_SIZE = 1 << 22
_EIGHTHS = (65536, 60097, 55109, 50535, 46341, 42495, 38968, 35734)
_MAX_PRIOR = 8 * 12


class _Head(NamedTuple):
  strides: list[int]
  prior: int
  row_flags: bool
  column_flags: bool


_VECTOR_HEAD = _Head([], 0, True, False)


def allows(shape: tuple[int, ...]) -> bool:
  """Whether a tensor is within 2^22 elements and 2^13 rows, and not empty.

  >>> allows((5, 5, 20, 50)), allows((1 << 14,))
  (True, False)
  """
  rows, columns = matrix_shape(shape)
  return 0 < rows * columns <= MAX_SIZE and max(rows, columns) <= MAX_ROWS


def matrix_shape(shape: tuple[int, ...]) -> tuple[int, int]:
  """Returns (rows, columns).

  >>> matrix_shape((5, 5, 20, 50)), matrix_shape((7,))
  ((500, 50), (7, 1))
  """
  columns = shape[-1] if len(shape) > 1 else 1
  return math.prod(shape) // max(columns, 1), columns


def write(sink: wire.Sink, codes: np.ndarray, *, entries: int) -> bool:
  """Appends a tensor, unless it exceeds the reader's bounds on time.

  Args:
    sink: receives the bytes, which must end the payload.
    codes: unsigned integers of a shape that `allows` permits.
    entries: K, for codes of a codebook; 0 for zigzag levels.

  Returns:
    Whether the tensor was appended.
  """
  shape = matrix_shape(codes.shape)
  matrix = codes.reshape(shape).astype(np.int64)
  head = _choose_head(codes.shape, matrix != 0)
  encoder = binary.Encoder()
  _code(encoder, shape, truth=matrix, head=head, entries=entries)
  data = encoder.getvalue()
  stored = len(data)
  if sum(shape) > _most_lines(stored) or len(encoder) > _most_bits(stored):
    return False
  if shape[1] > 1:
    first = len(head.strides) + 8 * head.row_flags + 16 * head.column_flags
    sink.put('headers', bytes([first]))
    for stride in head.strides:
      sink.varint('headers', stride)
    sink.put('headers', bytes([head.prior]))
  sink.put('codes', data)
  sink.note('adaptive')
  return True


def read(source: wire.Source, out: np.ndarray, *, entries: int) -> None:
  """Fills `out`, unsigned integers, with a tensor.

  Raises:
    ValueError: a malformed tensor, or one beyond the bounds.
  """
  if not allows(out.shape):
    raise source.error(f'shape {out.shape} is beyond the adaptive coder')
  shape = matrix_shape(out.shape)
  head = _VECTOR_HEAD if shape[1] == 1 else _read_head(source)
  if sum(shape) > _most_lines(source.remaining):
    raise source.error(f'{source.remaining} bytes for shape {out.shape}')
  with source.guard('adaptive codes'):
    stored = source.remaining
    decoder = binary.Decoder(
      source.take('codes', stored), most_bits=_most_bits(stored)
    )
    matrix = _code(decoder, shape, truth=None, head=head, entries=entries)
    if matrix.max() > np.iinfo(out.dtype).max:
      raise ValueError(f'code {matrix.max()} exceeds {out.dtype}')
  out[...] = matrix.reshape(out.shape)
  source.note('adaptive')


def _read_head(source: wire.Source) -> _Head:
  first = source.byte('headers')
  count = first & 7
  if count > significance.MAX_STRIDES or first >> 5:
    raise source.error(f'unknown head {first} of adaptive codes')
  strides = [source.varint('headers', limit=MAX_ROWS) for _ in range(count)]
  prior = source.byte('headers')
  if not all(strides) or prior > _MAX_PRIOR:
    raise source.error(f'strides {strides} and prior {prior}')
  return _Head(strides, prior, bool(first & 8), bool(first & 16))


def _choose_head(shape: tuple[int, ...], mask: np.ndarray) -> _Head:
  if mask.shape[1] == 1:
    return _VECTOR_HEAD
  ones, size = int(mask.sum()), mask.size
  row_flags = _flags_pay(np.any(mask, axis=1), mask.shape[1], ones / size)
  column_flags = _flags_pay(np.any(mask, axis=0), mask.shape[0], ones / size)
  live = int(mask.any(axis=1).sum()) if row_flags else mask.shape[0]
  live *= int(mask.any(axis=0).sum()) if column_flags else mask.shape[1]
  strides = significance.choose_strides(shape, mask)
  return _Head(strides, _prior_byte(ones, live), row_flags, column_flags)


def _flags_pay(live: np.ndarray, length: int, density: float) -> bool:
  """Whether flags take fewer bits than the zeros of the rows that they skip."""
  share = float(live.mean())
  if share in (0.0, 1.0):
    return share == 0
  flags = -share * math.log2(share) - (1 - share) * math.log2(1 - share)
  return flags < (1 - share) * length * -math.log2(1 - density)


def _most_lines(stored: int) -> int:
  """Largest number of rows and columns; each takes tens of microseconds."""
  return 64 + 4 * stored


def _most_bits(stored: int) -> int:
  return (1 << 16) + (stored << 11)


def _prior_byte(ones: int, trials: int) -> int:
  """The largest z whose prior is not below the density."""
  z = 0
  while z < _MAX_PRIOR and _prior(z + 1) * trials >= ones * logistic.ONE:
    z += 1
  return z


def _prior(z: int) -> int:
  value = _EIGHTHS[z & 7] >> (z >> 3)
  return min(max(value, logistic.LOW), logistic.HIGH)


def _code(
  coder: binary.Coder,
  shape: tuple[int, int],
  *,
  truth: np.ndarray | None,
  head: _Head,
  entries: int,
) -> np.ndarray:
  """Codes a matrix and returns it; a decoder has no `truth`."""
  mask = None if truth is None else truth != 0
  rows, columns = np.arange(shape[0]), np.arange(shape[1])
  if head.column_flags:
    columns = _live(coder, shape[1], None if mask is None else mask.any(axis=0))
  if head.row_flags:
    rows = _live(coder, shape[0], None if mask is None else mask.any(axis=1))
  found = np.zeros((shape[0], columns.size), np.uint8)
  if (head.row_flags and columns.size == 1) or (
    head.column_flags and rows.size == 1
  ):
    found[rows] = 1
  elif rows.size and columns.size:
    significance.code(
      coder,
      found,
      rows,
      truth=None if mask is None else mask[:, columns],
      strides=head.strides,
      prior=_prior(head.prior),
    )
  row, column = np.nonzero(found)
  column = columns[column]
  values = None if truth is None else truth[row, column]
  if entries:
    width = bitstream.width_of(entries - 1)
    values = magnitudes.code_labels(coder, row.size, values, width=width)
  else:
    values = magnitudes.code_signed(coder, row.size, values)
  out = np.zeros(shape, np.int64)
  out[row, column] = values
  return out


def _live(
  coder: binary.Coder, count: int, bits: np.ndarray | None
) -> np.ndarray:
  """Codes which rows or columns are live; returns their indices."""
  counts = logistic.Counts(4)
  context, live = np.array([3]), []
  for i in range(count):
    known = None if bits is None else bits[i : i + 1]
    bit = coder.code(counts.probability(context), known)
    counts.update(context, bit)
    context = (2 * context + bit) & 3
    if bit[0]:
      live.append(i)
  return np.array(live, np.int64)
