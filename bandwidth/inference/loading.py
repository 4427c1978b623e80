"""From `model.bwz` to what runs: entropy coding is undone once, and no more.

Kernels and embeddings become matrices, tensor by tensor and in pieces: beside
what is kept, neither a tensor's payload nor its codes are in memory as a whole.
A convolution's kernel [height, width, in, out] is a matrix that multiplies
patches; its inputs are ordered channel by channel, as
`lax.conv_general_dilated_patches` orders those. An embedding [vocabulary,
width] has its vectors as outputs, see `rows_of`.
"""

import functools
import itertools
import math
import os
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from bandwidth import coding, tree
from bandwidth.base import unknown_name
from bandwidth.inference import matrices, packing
from bandwidth.inference.matrices import Matrix

FORMS = ('smallest', 'dense', 'codebook', 'sparse')
"""What a tensor can be kept as; `codebook` takes integers of 8 bits in, whose
codes are their values."""

_KERNEL, _EMBEDDING = 'kernel', 'embedding'
_ENTRIES = 256
# Bytes of a weight that is not zero: its column and its code.
_SPARSE_BYTES = 3
_COUNTED = 1 << 16


def load_compressed(
  path: str | os.PathLike[str], *, forms: Mapping[str, str] | None = None
) -> dict[str, Any]:
  """Reads a file; kernels stay compressed.

  Args:
    path: of a .bwz file.
    forms: of `FORMS`, by name of a tensor; others are kept as the smallest.

  Returns:
    Nested dictionaries, as `coding.load_tree`. Leaves are matrices where a name
    ends in `kernel` or `embedding` and the file shares at most 256 weights or
    levels, else arrays.

  Raises:
    ValueError: the file is malformed, a form unknown, or for a tensor that the
      file lacks.
    OSError: the file cannot be read.
  """
  forms = dict(forms or {})
  for name, form in forms.items():
    if form not in FORMS:
      raise ValueError(unknown_name(f'forms[{name!r}]', form, FORMS))
  with coding.open_file(path) as reader:
    for name in forms:
      if name not in reader:
        raise ValueError(unknown_name('forms', name, reader.names))
    return tree.nested(
      (name, _load(reader, name, forms.get(name, 'smallest')))
      for name in reader
    )


def _load(reader: coding.Reader, name: str, form: str) -> Matrix | np.ndarray:
  leaf = name.rpartition('/')[2]
  if _may_be_matrix(leaf, reader.shape(name), form):
    stream = reader.stream(name)
    matrix = None if stream is None else _matrix(leaf, stream, form)
    if matrix is not None:
      return matrix
  return reader.array(name)


def executable(
  leaf: str, tensor: coding.Tensor, *, form: str = 'smallest'
) -> Matrix | np.ndarray:
  """Returns what runs of one tensor.

  Args:
    leaf: last part of its name.
    tensor: as the file has it.
    form: of `FORMS`.
  """
  if not isinstance(tensor, coding.RawTensor) and _may_be_matrix(
    leaf, tensor.shape, form
  ):
    matrix = _matrix(leaf, coding.stream_of(tensor), form)
    if matrix is not None:
      return matrix
  return tensor.to_array()


def _may_be_matrix(leaf: str, shape: tuple[int, ...], form: str) -> bool:
  if form == 'dense' or leaf not in (_KERNEL, _EMBEDDING):
    return False
  return len(shape) >= 2 and math.prod(shape) > 0


class _Place(NamedTuple):
  """Where the parts of a tensor are in its matrix.

  Attributes:
    shape: (K, N).
    taps: positions of a convolution.
    by_output: whether the first axis are the outputs.
    grid: groups along the axes of the tensor.
  """

  shape: tuple[int, int]
  taps: int
  by_output: bool
  grid: tuple[int, ...]

  def packer(self, bits: int) -> packing.Packer:
    """Returns what takes the codes in the order of the tensor."""
    return packing.Packer(
      *self.shape, bits=bits, taps=self.taps, by_output=self.by_output
    )

  def book(self, values: np.ndarray) -> np.ndarray:
    """Returns codebooks [*grid, entries] as [G, H, entries]."""
    book = values.reshape(*self.grid[-2:], values.shape[-1])
    return book if self.by_output else book.transpose(1, 0, 2)


def _place(
  leaf: str, shape: tuple[int, ...], grid: tuple[int, ...]
) -> _Place | None:
  """None where the groups of a tensor are none of a matrix."""
  grid = (1,) * (len(shape) - len(grid)) + grid
  if leaf == _EMBEDDING:
    if len(shape) != 2:
      return None
    return _Place((shape[1], shape[0]), 1, True, grid)
  taps = math.prod(shape[:-2])
  # Inputs of a group are neighbors only where there is one tap.
  if len(shape) > 2 and any(each != 1 for each in grid[:-1]):
    return None
  return _Place((taps * shape[-2], shape[-1]), taps, False, grid)


def _matrix(leaf: str, stream: coding.CodeStream, form: str) -> Matrix | None:
  """What runs of a stream; None where that is the dense array."""
  uniform = stream.kind == 'uniform'
  grid = stream.values.shape if uniform else stream.values.shape[:-1]
  place = _place(leaf, stream.shape, grid)
  if place is None:
    return None
  found = (_pack_levels if uniform else _pack_codes)(stream, place)
  if found is None:
    return None
  packer, book, nonzero = found
  one_book = leaf != _EMBEDDING and book.shape[:2] == (1, 1)
  small = _SPARSE_BYTES * nonzero < math.prod(place.shape) * packer.bits // 8
  if one_book and (form == 'sparse' or (form == 'smallest' and small)):
    pieces = functools.partial(
      packing.unpacked, packer.packed, packer.bits, place.shape[0]
    )
    return matrices.sparse_of(pieces, book[0, 0], shape=place.shape)
  return matrices.packed_matrix(
    packer.packed, book, shape=place.shape, bits=packer.bits
  )


class _Packed(NamedTuple):
  """Packed codes, what they mean [G, H, entries], and how many are not 0.

  Where there are several codebooks, that number counts by the first.
  """

  packer: packing.Packer
  book: np.ndarray
  nonzero: int


def _pack_codes(stream: coding.CodeStream, place: _Place) -> _Packed | None:
  """Packs codes; None where they are too many to tell apart."""
  entries = stream.values.shape[-1]
  if entries > _ENTRIES:
    return None
  counts = np.zeros(entries, np.int64)

  def pieces() -> Iterator[np.ndarray]:
    nonlocal counts
    for codes in _slices(stream.pieces):
      counts += np.bincount(codes, minlength=entries)
      yield codes

  packer = place.packer(matrices.bits_for(entries))
  for rows in packing.in_rows(pieces(), *packer.lines):
    packer.put(rows)
  book = place.book(stream.values)
  return _Packed(packer, book, int(counts[book[0, 0] != 0].sum()))


def _pack_levels(stream: coding.CodeStream, place: _Place) -> _Packed | None:
  """Packs levels; None where they reach too far.

  Levels that do not occur need no code, and which do is known in the end:
  codes are dealt out as levels appear, and get more bits where they must.
  """
  dealt = _LevelCodes()
  pieces = map(dealt.codes, _slices(stream.pieces))
  try:
    first = next(pieces)
    packer = place.packer(dealt.bits)
    lines = packer.lines
    for rows in packing.in_rows(itertools.chain([first], pieces), *lines):
      if dealt.bits > packer.bits:
        packer.repack(dealt.bits)
      packer.put(rows)
  except _TooFarError:
    return None
  order = np.argsort(dealt.levels)
  if not np.array_equal(order, np.arange(order.size)):
    ascending = np.zeros(_ENTRIES, np.uint8)
    ascending[order] = np.arange(order.size)
    packer.repack(packer.bits, ascending)
  levels = np.array(dealt.levels)[order].astype(np.float32)
  book = place.book(stream.values[..., None] * levels)
  return _Packed(packer, book, int(dealt.counts[order][book[0, 0] != 0].sum()))


def _slices(pieces: Iterator[np.ndarray]) -> Iterator[np.ndarray]:
  """Smaller pieces: NumPy counts after it has widened all of them."""
  for piece in pieces:
    for begin in range(0, piece.size, _COUNTED):
      yield piece[begin : begin + _COUNTED]
    del piece  # before the next one is decoded


class _TooFarError(Exception):
  """Levels that 8 bits don't tell apart."""


class _LevelCodes:
  """Codes of levels, in the order in which these appear.

  Attributes:
    levels: by code.
    counts: [256] how often each was there, by code.
  """

  def __init__(self) -> None:
    self.levels: list[int] = []
    self.counts = np.zeros(_ENTRIES, np.int64)
    self._table = np.zeros(2 * _ENTRIES, np.uint8)
    self._known = np.zeros(2 * _ENTRIES, bool)
    self._base: int | None = None

  @property
  def bits(self) -> int:
    """Bits that the codes so far need."""
    return matrices.bits_for(len(self.levels))

  def codes(self, levels: np.ndarray) -> np.ndarray:
    """Returns codes, uint8, of levels, int32 or narrower, not none.

    Raises:
      _TooFarError: levels so far differ by 256 or more.
    """
    least, most = int(levels.min()), int(levels.max())
    if self._base is None:
      # The table reaches as far from the first as any level may be.
      self._base = max(least - _ENTRIES, np.iinfo(np.int32).min)
    known = [least, most, *self.levels]
    if max(known) - min(known) >= _ENTRIES:
      raise _TooFarError
    offsets = levels.astype(np.int32, copy=False) - np.int32(self._base)
    counts = np.bincount(offsets, minlength=self._table.size)
    for offset in np.flatnonzero((counts > 0) & ~self._known).tolist():
      self._table[offset], self._known[offset] = len(self.levels), True
      self.levels.append(offset + self._base)
    found = np.flatnonzero(counts)
    self.counts[self._table[found]] += counts[found]
    return self._table[offsets]
