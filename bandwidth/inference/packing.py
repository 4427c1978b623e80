"""Codes into bytes and back, on the host, piece by piece.

The layout is that of `matrices`: of a block of 512 / b inputs, input 16 j + l
is field j of the little-endian word l. A byte thus has 8 / b fields: byte m of
word l those of inputs 16 (8 m / b + i) + l. What is in memory at a time beside
codes and bytes is bounded, whatever the size of a matrix.
"""

from collections.abc import Callable, Iterable, Iterator

import numpy as np

LANES = 16
"""Words of a block."""

WORD_BYTES = 4
PIECE = 1 << 18
"""Codes that are worked on at a time."""


def row_bytes(inputs: int, bits: int) -> int:
  """Returns the bytes of an output that reads so many inputs.

  >>> row_bytes(129, 4)
  128
  """
  block = LANES * WORD_BYTES
  return block * -(-inputs * bits // (8 * block))


def rows_at_once(inputs: int) -> int:
  """Returns how many outputs, of so many codes each, make a piece."""
  return max(PIECE // max(inputs, 1), 1)


def pack_rows(codes: np.ndarray, bits: int, out: np.ndarray) -> None:
  """Packs whole outputs.

  Args:
    codes: integers [N, K], below 2^bits.
    bits: bits of a code, a divisor of 8.
    out: takes the result, uint8 [N, row_bytes(K, bits)], contiguous.
  """
  inputs, per = codes.shape[1], 8 // bits
  blocks = out.shape[1] // (LANES * WORD_BYTES)
  step = rows_at_once(inputs)
  for begin in range(0, len(codes), step):
    part = codes[begin : begin + step]
    filled = np.zeros((len(part), out.shape[1] * per), np.uint8)
    filled[:, :inputs] = part
    fields = filled.reshape(len(part), blocks, WORD_BYTES, per, LANES)
    merged = _merged(fields.transpose(3, 0, 1, 2, 4), bits)
    own = out[begin : begin + step]
    own = own.reshape(len(part), blocks, LANES, WORD_BYTES)
    own[...] = merged.swapaxes(2, 3)


def unpack_rows(packed: np.ndarray, bits: int, inputs: int) -> np.ndarray:
  """Undoes `pack_rows`: uint8 [N, row bytes] to uint8 [N, inputs].

  >>> out = np.zeros((1, 64), np.uint8)
  >>> pack_rows(np.array([[3, 0, 7]]), 4, out)
  >>> unpack_rows(out, 4, 3).tolist()
  [[3, 0, 7]]
  """
  rows, per = len(packed), 8 // bits
  blocks = packed.shape[1] // (LANES * WORD_BYTES)
  words = packed.reshape(rows, blocks, LANES, WORD_BYTES).swapaxes(2, 3)
  fields = np.empty((*words.shape[:3], per, LANES), np.uint8)
  for i in range(per):
    fields[..., i, :] = words >> np.uint8(i * bits)
  fields &= np.uint8((1 << bits) - 1)
  return fields.reshape(rows, packed.shape[1] * per)[:, :inputs]


def unpacked(
  packed: np.ndarray, bits: int, inputs: int
) -> Iterator[tuple[int, np.ndarray]]:
  """Yields the first of some outputs and their codes, uint8 [n, inputs]."""
  step = rows_at_once(inputs)
  for begin in range(0, len(packed), step):
    yield begin, unpack_rows(packed[begin : begin + step], bits, inputs)


def in_pieces(codes: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
  """Yields the first of some outputs and their codes, of all codes [N, K]."""
  step = rows_at_once(codes.shape[1])
  for begin in range(0, len(codes), step):
    yield begin, codes[begin : begin + step]


def kept(
  pieces: Callable[[], Iterator[tuple[int, np.ndarray]]],
  keep: np.ndarray,
  shape: tuple[int, int],
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Returns starts, columns and codes of a `SparseMatrix`.

  Args:
    pieces: called twice, gives the first output and the codes [n, K] of each.
    keep: bool [entries], which codes stay.
    shape: (K, N), inputs and outputs of the matrix.
  """
  inputs, rows = shape
  starts = np.zeros(rows + 1, np.int32)
  for begin, codes in pieces():
    own = starts[begin + 1 : begin + 1 + len(codes)]
    own[...] = np.count_nonzero(keep[codes], axis=1)
  np.cumsum(starts, out=starts)
  columns = np.empty(starts[-1], np.uint16 if inputs <= 2**16 else np.int32)
  found = np.empty(starts[-1], np.uint8)
  for begin, codes in pieces():
    n, k = np.nonzero(keep[codes])
    at = slice(starts[begin], starts[begin + len(codes)])
    columns[at], found[at] = k, codes[n, k]
  return starts, columns, found


def _merged(fields: np.ndarray, bits: int) -> np.ndarray:
  """One byte of the fields along the first axis."""
  merged = fields[0].copy()
  for i in range(1, len(fields)):
    merged |= fields[i] << np.uint8(i * bits)
  return merged


class Packer:
  """Codes of a matrix that come as they lie in a file.

  Attributes:
    packed: uint8 [N, row bytes], the codes so far.
    bits: bits of a code: 2, 4 or 8.
  """

  def __init__(
    self, inputs: int, outputs: int, *, bits: int, taps: int = 1,
    by_output: bool = False,
  ) -> None:  # fmt: skip
    """Makes room.

    Args:
      inputs: number of inputs K of the matrix.
      outputs: number of outputs N of the matrix.
      bits: bits of a code: 2, 4 or 8.
      taps: T: codes come as [T, K / T, N], and input c T + t is (t, c) of them.
      by_output: whether codes come as [N, K].
    """
    self.bits = bits
    self.packed = np.zeros((outputs, row_bytes(inputs, bits)), np.uint8)
    self._inputs, self._taps, self._by_output = inputs, taps, by_output
    self._done = 0

  @property
  def lines(self) -> tuple[int, int]:
    """Length of the rows that codes come in, and how many `put` wants.

    So many, or all that are left.
    """
    if self._by_output:
      return self._inputs, rows_at_once(self._inputs)
    # Whole blocks, so that bytes are written once; at least whole bytes.
    outputs = len(self.packed)
    byte = LANES * 8 // self.bits
    block = WORD_BYTES * byte
    unit = block if block * outputs <= 16 * PIECE else byte
    return outputs, unit * max(PIECE // (unit * max(outputs, 1)), 1)

  def put(self, codes: np.ndarray) -> None:
    """Packs the next rows, uint8 [n, length], of `lines`."""
    begin = self._done
    self._done += len(codes)
    if not codes.size:
      return
    if self._by_output:
      pack_rows(codes, self.bits, self.packed[begin : self._done])
    elif self._taps > 1:
      rows = np.arange(begin, self._done)
      channels = self._inputs // self._taps
      self._put_at(codes, rows % channels * self._taps + rows // channels)
    else:
      self._put_columns(codes, begin)

  def _words(self) -> np.ndarray:
    """The bytes [N, blocks, words, bytes]."""
    outputs, row = self.packed.shape
    blocks = row // (LANES * WORD_BYTES)
    return self.packed.reshape(outputs, blocks, LANES, WORD_BYTES)

  def _put_columns(self, codes: np.ndarray, begin: int) -> None:
    """Packs inputs from one on that is the first of a byte."""
    per = 8 // self.bits
    byte = LANES * per
    if len(codes) % byte:
      filled = np.zeros((-(-len(codes) // byte) * byte, codes.shape[1]), 'u1')
      filled[: len(codes)] = codes
      codes = filled
    fields = codes.reshape(len(codes) // byte, per, LANES, codes.shape[1])
    merged = _merged(fields.swapaxes(0, 1), self.bits)
    words = self._words()
    for place, plane in enumerate(merged, begin // byte):
      words[:, place // WORD_BYTES, :, place % WORD_BYTES] = plane.T

  def _put_at(self, codes: np.ndarray, inputs: np.ndarray) -> None:
    """Packs inputs at any places."""
    per = 8 // self.bits
    field, lane = np.divmod(inputs, LANES)
    byte = field // per
    words = self._words()
    for i in range(per):
      own = np.flatnonzero(field % per == i)
      at = (
        slice(None), byte[own] // WORD_BYTES, lane[own], byte[own] % WORD_BYTES,
      )  # fmt: skip
      words[at] |= (codes[own] << np.uint8(i * self.bits)).T

  def repack(self, bits: int, place: np.ndarray | None = None) -> None:
    """Changes the bits of codes, and what they are.

    Args:
      bits: bits of a code from now on: 2, 4 or 8.
      place: uint8, the new code of each old one; None: as it is.
    """
    old, before = self.packed, self.bits
    if bits != before:
      outputs = len(old)
      self.packed = np.zeros((outputs, row_bytes(self._inputs, bits)), 'u1')
      self.bits = bits
    for begin, codes in unpacked(old, before, self._inputs):
      codes = codes if place is None else place[codes]
      pack_rows(codes, bits, self.packed[begin : begin + len(codes)])


def in_rows(
  pieces: Iterable[np.ndarray], length: int, rows: int
) -> Iterator[np.ndarray]:
  """Yields flat pieces as uint8 [rows, length], the last one of fewer rows.

  The array is the same each time.

  >>> [part.tolist() for part in in_rows([np.arange(4), np.arange(2)], 2, 2)]
  [[[0, 1], [2, 3]], [[0, 1]]]
  """
  buffer = np.empty((rows, length), np.uint8)
  flat, filled = buffer.reshape(-1), 0
  for piece in pieces:
    begin = 0
    while begin < piece.size:
      count = min(piece.size - begin, flat.size - filled)
      flat[filled : filled + count] = piece[begin : begin + count]
      begin, filled = begin + count, filled + count
      if filled == flat.size:
        yield buffer
        filled = 0
  if filled:
    yield buffer[: filled // length]
