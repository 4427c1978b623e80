"""From `model.bwz` to what runs: entropy coding is undone once, and no more.

Whatever a file shares weights or levels of becomes a matrix, tensor by tensor
and in pieces: beside what is kept, neither a tensor's payload nor its codes are
in memory as a whole. What the matrix of a tensor W multiplies:

- two axes, of any name: `matmul(x, m)` is x W of the array as it stands;
- an embedding [vocabulary, width] has its vectors as outputs, see `rows_of`:
  `matmul(x, m)` is x W';
- the kernel of a convolution [height, width, in, out] multiplies patches; its
  inputs are ordered channel by channel, as `lax.conv_general_dilated_patches`
  orders those.

A name says which: its last part, or the one before a last `value`, is
`embedding` or `kernel`. Elsewhere what more than two axes stand for is unknown.
"""

import functools
import itertools
import math
import os
import warnings
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

KERNEL, EMBEDDING = 'kernel', 'embedding'
"""Names that say what the axes of a tensor are."""

# What Flax NNX calls the array of a parameter.
_VALUE = 'value'
_ENTRIES = 256
# Bytes of a weight that is not zero: its column and its code.
_SPARSE_BYTES = 3
_COUNTED = 1 << 16


def load_compressed(
  path: str | os.PathLike[str], *, forms: Mapping[str, str] | None = None
) -> dict[str, Any]:
  """Reads a file; matrices stay compressed.

  Biases and what else has one axis are arrays. Each tensor of more axes that
  the file has in a compressed form and that nevertheless is an array is named
  by a warning of one line, which says why; form `dense` asks for it.

  Args:
    path: path of a .bwz file.
    forms: for tensors by name, one of `FORMS`; others are kept as the smallest.
      With 'codebook' or 'sparse', a tensor of more than two axes that is not
      named `kernel` is taken for one.

  Returns:
    Nested dictionaries, as `coding.load_tree`. Leaves are matrices where the
    file shares at most 256 weights or levels, else arrays.

  Raises:
    ValueError: the file is malformed, a form unknown, for a tensor that the
      file lacks, or one that this can't have.
    OSError: the file cannot be read.
  """
  forms = dict(forms or {})
  for name, form in forms.items():
    if form not in FORMS:
      raise ValueError(unknown_name(f'forms[{name!r}]', form, FORMS))
  dense: list[str] = []
  with coding.open_file(path) as reader:
    for name in forms:
      if name not in reader:
        raise ValueError(unknown_name('forms', name, reader.names))
    nested = tree.nested(
      (name, _load(reader, name, forms.get(name, 'smallest'), dense))
      for name in reader
    )
  for line in dense:
    warnings.warn(line, stacklevel=2)
  return nested


def _load(
  reader: coding.Reader, name: str, form: str, dense: list[str]
) -> Matrix | np.ndarray:
  """Reads a tensor; adds a line where it is dense without having to be."""
  if form == 'dense':
    return reader.array(name)
  shape = reader.shape(name)
  stream = reader.stream(name)
  try:
    if stream is None:
      raise _DenseError('the file does not have it compressed')
    return _matrix(name, stream, form)
  except _DenseError as reason:
    _check_may_be_dense(name, form, reason)
    if stream is not None and len(shape) > 1 and math.prod(shape):
      dense.append(f'{name} {shape} stays dense: {reason}')
  return reader.array(name)


def _check_may_be_dense(name: str, form: str, reason: Exception) -> None:
  """Raises ValueError where another form was asked for."""
  if form != 'smallest':
    raise ValueError(f'forms[{name!r}]={form!r}: {reason}') from None


def executable(
  name: str, tensor: coding.Tensor, *, form: str = 'smallest'
) -> Matrix | np.ndarray:
  """Returns what runs of one tensor.

  Args:
    name: name of the tensor, or the last part of it.
    tensor: the tensor as the file has it.
    form: what to keep it as, one of `FORMS`.

  Raises:
    ValueError: the tensor can't have that form.
  """
  if form == 'dense':
    return tensor.to_array()
  try:
    if isinstance(tensor, coding.RawTensor):
      raise _DenseError('it is not compressed')
    return _matrix(name, coding.stream_of(tensor), form)
  except _DenseError as reason:
    _check_may_be_dense(name, form, reason)
  return tensor.to_array()


class _DenseError(Exception):
  """A tensor can't be a matrix, or none of a form; the message says why."""


def kind_of(name: str) -> str:
  """Returns what a name says a tensor is: `kernel`, `embedding` or nothing.

  >>> kind_of('Embed_0/embedding'), kind_of('conv/kernel/value'), kind_of('w')
  ('embedding', 'kernel', '')
  """
  parts = name.split('/')
  last = parts[-2] if parts[-1] == _VALUE and parts[1:] else parts[-1]
  return last if last in (KERNEL, EMBEDDING) else ''


class _Place(NamedTuple):
  """Where the parts of a tensor are in its matrix.

  Attributes:
    shape: (K, N), inputs and outputs of the matrix.
    taps: number of positions of a convolution.
    by_output: whether outputs are the first axis of the tensor.
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


def _place(kind: str, shape: tuple[int, ...], grid: tuple[int, ...]) -> _Place:
  """Raises `_DenseError` where the groups of a tensor are none of a matrix."""
  grid = (1,) * (len(shape) - len(grid)) + grid
  if kind == EMBEDDING:
    if len(shape) != 2:
      raise _DenseError(f'an embedding has two axes, not {len(shape)}')
    return _Place((shape[1], shape[0]), 1, True, grid)
  taps = math.prod(shape[:-2])
  # Inputs of a group are neighbors only where there is one tap.
  if len(shape) > 2 and any(each != 1 for each in grid[:-1]):
    raise _DenseError('its groups are of inputs of a convolution')
  return _Place((taps * shape[-2], shape[-1]), taps, False, grid)


def _matrix(name: str, stream: coding.CodeStream, form: str) -> Matrix:
  """What runs of a stream.

  Raises:
    _DenseError: that is the dense array, or there is no such form of it.
  """
  kind, axes = kind_of(name), len(stream.shape)
  if axes < 2 or not math.prod(stream.shape):
    raise _DenseError(f'its shape is {stream.shape}, which is no matrix')
  if axes > 2 and not kind and form == 'smallest':
    raise _DenseError(
      f'what its {axes} axes are is unknown, as it is not called {KERNEL}'
    )
  uniform = stream.kind == 'uniform'
  grid = stream.values.shape if uniform else stream.values.shape[:-1]
  place = _place(kind, stream.shape, grid)
  packer, book, nonzero = (_pack_levels if uniform else _pack_codes)(
    stream, place
  )
  one_book = kind != EMBEDDING and book.shape[:2] == (1, 1)
  if form == 'sparse' and not one_book:
    raise _DenseError(
      'a sparse embedding has no vectors to be looked up'
      if kind == EMBEDDING
      else 'of a sparse matrix all weights share one codebook'
    )
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


def _pack_codes(stream: coding.CodeStream, place: _Place) -> _Packed:
  """Raises `_DenseError` where codes are too many to tell apart."""
  entries = stream.values.shape[-1]
  if entries > _ENTRIES:
    raise _DenseError(f'it shares {entries} weights, more than {_ENTRIES}')
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


def _pack_levels(stream: coding.CodeStream, place: _Place) -> _Packed:
  """Raises `_DenseError` where levels reach too far.

  Levels that do not occur need no code, and which do is known in the end:
  codes are dealt out as levels appear, and get more bits where they must.
  """
  dealt = _LevelCodes()
  pieces = map(dealt.codes, _slices(stream.pieces))
  first = next(pieces)
  packer = place.packer(dealt.bits)
  lines = packer.lines
  for rows in packing.in_rows(itertools.chain([first], pieces), *lines):
    if dealt.bits > packer.bits:
      packer.repack(dealt.bits)
    packer.put(rows)
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


class _LevelCodes:
  """Codes of levels, in the order in which these appear.

  Attributes:
    levels: the level that each code stands for.
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
      _DenseError: levels so far differ by 256 or more.
    """
    least, most = int(levels.min()), int(levels.max())
    if self._base is None:
      # The table reaches as far from the first as any level may be.
      self._base = max(least - _ENTRIES, np.iinfo(np.int32).min)
    known = [least, most, *self.levels]
    if max(known) - min(known) >= _ENTRIES:
      raise _DenseError(
        f'its levels reach from {min(known)} to {max(known)} at least, which '
        '8 bits do not tell apart'
      )
    offsets = levels.astype(np.int32, copy=False) - np.int32(self._base)
    counts = np.bincount(offsets, minlength=self._table.size)
    for offset in np.flatnonzero((counts > 0) & ~self._known).tolist():
      self._table[offset], self._known[offset] = len(self.levels), True
      self.levels.append(offset + self._base)
    found = np.flatnonzero(counts)
    self.counts[self._table[found]] += counts[found]
    return self._table[offsets]
