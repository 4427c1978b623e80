"""Serializes a tensor: its payload, whose length is in the directory.

The payload of a raw tensor is a vector of its elements (`blocks`, raw); an
empty array has no payload. A 4-bit element is the low half of a byte; the high
half is zeros, or ones if the element is negative. The payload of a quantized
tensor is

  head          byte: layout + 2·zero + 4·grid + 8·order
  entries       varint K                        codebook tensors only
  grid          if grid: varint d, d varints; d at most the tensor's axes
  values        the codebook, without its first entries, +0.0, if zero; or the
                steps: float32 elements in C order (`blocks`, raw)
  codes         layout 0: a vector (`blocks`, codes); 1: `adaptive`

where the code of a level is 2·level, or −2·level − 1 if it is negative. Codes
are written in one of these orders of the axes, first axis slowest, ties to the
lowest number (letters for a kernel HWIO):

  0  unchanged (HWIO)               3  last two reversed, first (OIHW)
  1  reversed (OIWH)                4  second last first (IHWO)
  2  last first (OHWI)
"""

import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from bandwidth.coding import blocks, tensors, wire
from bandwidth.coding.coders import adaptive

ORDERS = 5
# Larger tensors are not coded in several orders.
ORDER_LIMIT = 1 << 19
# Up to this size, tables cost as much as codes, and every coder is fast.
SMALL = 1 << 12
# Up to this size, the adaptive coder compresses a network in seconds.
_QUICK_NETWORK = 1 << 23
# Time grows with rows: orders with more than this many times the rows of
# another are skipped.
_MANY_ROWS = 4


class Effort(NamedTuple):
  """Which coders to try.

  Attributes:
    coder: entropy coders to try, one of `symbols.CODERS`.
    adaptive_size: number of elements up to which the adaptive coder is tried.
    dense: whether it is also tried on tensors with more non-zeros than zeros.
  """

  coder: str
  adaptive_size: int
  dense: bool


def effort_of(coder: str, *, elements: int) -> Effort:
  """Returns which coders to try on a network of `elements` elements in all.

  'auto' tries the adaptive coder in networks of at most 2^23 elements, and in
  larger ones on tensors of at most 2^12; 'adaptive' tries it on every tensor
  that `adaptive` allows.

  >>> effort_of('auto', elements=25_000_000).adaptive_size
  4096
  """
  if coder == 'adaptive':
    return Effort(coder, adaptive.MAX_SIZE, True)
  if coder != 'auto':
    return Effort(coder, 0, False)
  size = adaptive.MAX_SIZE if elements <= _QUICK_NETWORK else SMALL
  return Effort(coder, size, False)


def axes_of(order: int, ndim: int) -> tuple[int, ...]:
  """Returns the axes of one of the orders, slowest first.

  >>> [axes_of(order, 4) for order in (1, 2, 3)]
  [(3, 2, 1, 0), (3, 0, 1, 2), (3, 2, 0, 1)]
  """
  axes = tuple(range(ndim))
  if order == 1:
    return axes[::-1]
  if order == 2:
    return axes[-1:] + axes[:-1]
  if order == 3:
    return axes[-1:] + axes[-2:-1] + axes[:-2]
  if order == 4:
    return axes[-2:-1] + axes[:-2] + axes[-1:]
  return axes


def kind_of(tensor: tensors.Tensor) -> str:
  """Returns the kind of a tensor, one of `ledger.KINDS`."""
  if isinstance(tensor, tensors.CodebookTensor):
    return 'codebook'
  return 'uniform' if isinstance(tensor, tensors.UniformTensor) else 'raw'


def write(sink: wire.Sink, tensor: tensors.Tensor, *, effort: Effort) -> None:
  """Appends the payload of a tensor."""
  if isinstance(tensor, tensors.RawTensor):
    elements = _bytes_of(tensor.array)
    if tensor.dtype in ('int4', 'uint4'):
      # The high halves depend on how the array was made.
      elements = elements & 15
    blocks.write_raw(sink, elements, component='raw', coder=effort.coder)
    return
  if isinstance(tensor, tensors.UniformTensor):
    codes, entries = zigzag(tensor.levels), 0
  else:
    codes, entries = tensor.codes, tensor.codebook.shape[-1]
  best = _smallest(codes, entries, effort)
  _write_head(sink, tensor, best, coder=effort.coder)
  sink.append(best.sink)


class _Trial(NamedTuple):
  sink: wire.Sink
  order: int
  layout: int


def _smallest(codes: np.ndarray, entries: int, effort: Effort) -> _Trial:
  """The codes in the order and layout that take the fewest bytes."""
  if not codes.size:
    return _Trial(wire.Sink(), 0, 0)
  trials = []
  fewest = adaptive.matrix_shape(codes.shape)[0]
  for order in _orders(codes):
    ordered = codes.transpose(axes_of(order, codes.ndim))
    rows = adaptive.matrix_shape(ordered.shape)[0]
    if _may_adapt(codes, effort) and rows <= _MANY_ROWS * fewest:
      sink = wire.Sink()
      if adaptive.write(sink, ordered, entries=entries):
        trials.append(_Trial(sink, order, 1))
    sink = wire.Sink()
    blocks.write_codes(sink, ordered.reshape(-1), coder=effort.coder)
    trials.append(_Trial(sink, order, 0))
  return min(trials, key=lambda trial: len(trial.sink))


def _may_adapt(codes: np.ndarray, effort: Effort) -> bool:
  """Whether the adaptive coder is worth trying, and allowed."""
  if codes.size > effort.adaptive_size or not adaptive.allows(codes.shape):
    return False
  small = codes.size <= SMALL
  sparse = 2 * int(np.count_nonzero(codes)) <= codes.size
  return small or effort.dense or sparse


def _orders(codes: np.ndarray) -> list[int]:
  """Orders to try: 0, and for a small sparse tensor all that differ."""
  if codes.size > ORDER_LIMIT or 2 * np.count_nonzero(codes) > codes.size:
    return [0]
  seen: dict[tuple[int, ...], int] = {}
  for order in range(ORDERS):
    axes = axes_of(order, codes.ndim)
    key = tuple(axis for axis in axes if codes.shape[axis] > 1)
    seen.setdefault(key, order)
  return list(seen.values())


def _write_head(
  sink: wire.Sink,
  tensor: tensors.CodebookTensor | tensors.UniformTensor,
  trial: _Trial,
  *,
  coder: str,
) -> None:
  if isinstance(tensor, tensors.CodebookTensor):
    values = tensor.codebook
    first = values[..., 0]
    zero = not (first.view(np.uint32) if first.ndim else _bits(first)).any()
  else:
    values, zero = tensor.step, False
  grid = tensor.grid
  head = trial.layout + 2 * zero + 4 * bool(grid) + 8 * trial.order
  sink.put('headers', bytes([head]))
  if isinstance(tensor, tensors.CodebookTensor):
    sink.varint('headers', values.shape[-1])
  if grid:
    sink.varint('headers', len(grid))
    for parts in grid:
      sink.varint('headers', parts)
  kept = values[..., 1:] if zero else values
  elements = _bytes_of(kept)
  blocks.write_raw(sink, elements, component='codebooks', coder=coder)


def _bits(value: np.ndarray) -> np.ndarray:
  return np.frombuffer(value.tobytes(), np.uint8)


def read(
  source: wire.Source, kind: str, dtype: str, shape: tuple[int, ...]
) -> tensors.Tensor:
  """Reads the payload of a tensor.

  Args:
    source: the whole payload, and nothing else.
    kind: kind of tensor, one of `ledger.KINDS`.
    dtype: dtype of the array, one of `tensors.DTYPES`.
    shape: shape of the array; the caller has bounded its size.

  Raises:
    ValueError: a malformed payload.
  """
  if kind == 'raw':
    tensor = _read_raw(source, dtype, shape)
  else:
    tensor = _read_quantized(source, kind, dtype, shape)
  source.finish()
  return tensor


def _read_raw(
  source: wire.Source, dtype: str, shape: tuple[int, ...]
) -> tensors.RawTensor:
  kind = tensors.dtype_of(dtype)
  elements = np.empty((math.prod(shape), kind.itemsize), np.uint8)
  blocks.read_raw(source, elements, component='raw')
  if dtype == 'bool' and elements.size and int(elements.max()) > 1:
    raise source.error('a bool that is neither 0 nor 1')
  if dtype in ('int4', 'uint4'):
    _check_nibbles(source, elements, dtype)
  array = _array_of(elements, kind).reshape(shape)
  return tensors.RawTensor(array)


def _check_nibbles(
  source: wire.Source, elements: np.ndarray, dtype: str
) -> None:
  # The high halves do not change the array, but two files might differ.
  beyond = elements > 15
  if dtype == 'int4':
    beyond &= elements < 0xF8
  if beyond.any():
    raise source.error(f'an element beyond {dtype}')


class _Head(NamedTuple):
  """The part of a payload before the codes.

  Attributes:
    layout: 0, a vector of `blocks`, or 1, `adaptive`.
    order: order of the axes, 0 to 4; see `axes_of`.
    values: codebook [*grid, K], or steps [*grid].
    wide: unsigned dtype that holds every code the tensor may have.
  """

  layout: int
  order: int
  values: np.ndarray
  wide: type[np.unsignedinteger]


def _read_head(source: wire.Source, kind: str, shape: tuple[int, ...]) -> _Head:
  head = source.byte('headers')
  layout, zero, has_grid, order = head & 1, head & 2, head & 4, head >> 3
  if order >= ORDERS or (zero and kind != 'codebook'):
    raise source.error(f'unknown head {head}')
  entries = 1
  if kind == 'codebook':
    entries = source.varint('headers', limit=tensors.MAX_CODEBOOK)
    if not entries:
      raise source.error('a codebook without entries')
  grid: tuple[int, ...] = ()
  if has_grid:
    grid = _read_grid(source, shape)
  if math.prod(grid) * entries > tensors.codebook_limit(math.prod(shape)):
    raise source.error(f'a codebook of {entries} entries in grid {grid}')
  values = _read_values(source, grid, entries, skipped=int(bool(zero)))
  if kind == 'uniform':
    return _Head(layout, order, values.reshape(grid), np.uint32)
  wide = np.uint8 if entries <= 256 else np.uint16
  return _Head(layout, order, values.reshape((*grid, entries)), wide)


def _read_codes(
  source: wire.Source, head: _Head, kind: str, shape: tuple[int, ...]
) -> np.ndarray:
  """All codes, [shape]."""
  ordered = tuple(shape[axis] for axis in axes_of(head.order, len(shape)))
  flat = np.zeros(math.prod(shape), head.wide)
  if head.layout == 0:
    blocks.read_codes(source, flat)
  elif flat.size:
    entries = 0 if kind == 'uniform' else head.values.shape[-1]
    adaptive.read(source, flat.reshape(ordered), entries=entries)
  inverse = np.argsort(axes_of(head.order, len(shape)), kind='stable')
  codes = np.ascontiguousarray(flat.reshape(ordered).transpose(inverse))
  return codes.reshape(shape)


def _read_quantized(
  source: wire.Source, kind: str, dtype: str, shape: tuple[int, ...]
) -> tensors.CodebookTensor | tensors.UniformTensor:
  head = _read_head(source, kind, shape)
  codes = _read_codes(source, head, kind, shape)
  with source.guard('values'):
    if kind == 'uniform':
      return tensors.UniformTensor(unzigzag(codes), head.values, dtype=dtype)
    return tensors.CodebookTensor(codes, head.values, dtype=dtype)


class CodeStream(NamedTuple):
  """A quantized tensor whose codes are read piece by piece.

  Attributes:
    kind: kind of tensor, 'codebook' or 'uniform'.
    shape: shape of the tensor, () for a scalar.
    values: the codebook [*grid, K] or the steps [*grid], float32.
    pieces: 1-D arrays that together are all codes in C order, uint8 or uint16,
      or all levels, each piece int8, int16 or int32. Raises `ValueError` where
      the payload is malformed.
  """

  kind: str
  shape: tuple[int, ...]
  values: np.ndarray
  pieces: Iterator[np.ndarray]


def stream(
  source: wire.Source, kind: str, shape: tuple[int, ...]
) -> CodeStream:
  """Reads the payload of a quantized tensor up to its codes.

  Each piece has at most 2^20 codes. If the codes are in another order than the
  array, which `write` does for small tensors only, all are read first.

  Args:
    source: the whole payload; must stay readable until the last piece.
    kind: kind of tensor, 'codebook' or 'uniform'.
    shape: shape of the tensor, () for a scalar.

  Raises:
    ValueError: a malformed payload.
  """
  head = _read_head(source, kind, shape)
  with source.guard('values'):
    if kind == 'uniform':
      tensors.checked_step(head.values, shape)
    else:
      tensors.checked_codebook(head.values, shape)
  return CodeStream(
    kind, shape, head.values, _pieces(source, head, kind, shape)
  )


def stream_of(
  tensor: tensors.CodebookTensor | tensors.UniformTensor,
) -> CodeStream:
  """Returns a tensor held in memory as a stream."""
  if isinstance(tensor, tensors.UniformTensor):
    pieces = _in_blocks(tensor.levels)
    return CodeStream('uniform', tensor.shape, tensor.step, pieces)
  pieces = _in_blocks(tensor.codes)
  return CodeStream('codebook', tensor.shape, tensor.codebook, pieces)


def _in_blocks(codes: np.ndarray) -> Iterator[np.ndarray]:
  flat = codes.reshape(-1)
  for begin in range(0, flat.size, blocks.BLOCK):
    yield flat[begin : begin + blocks.BLOCK]


def _pieces(
  source: wire.Source, head: _Head, kind: str, shape: tuple[int, ...]
) -> Iterator[np.ndarray]:
  in_order = axes_of(head.order, len(shape)) == axes_of(0, len(shape))
  if head.layout == 0 and in_order:
    found = blocks.code_blocks(source, math.prod(shape))
  else:
    found = _in_blocks(_read_codes(source, head, kind, shape))
  for codes in found:
    if kind == 'uniform':
      yield unzigzag(codes)
    else:
      with source.guard('values'):
        tensors.check_codes(codes, head.values.shape[-1])
      yield codes.astype(head.wide, copy=False)
    del codes  # before the next ones are decoded
  source.finish()


def _read_grid(source: wire.Source, shape: tuple[int, ...]) -> tuple[int, ...]:
  ndim = source.varint('headers', limit=len(shape))
  limits = [max(size, 1) for size in shape[len(shape) - ndim :]]
  grid = tuple(source.varint('headers', limit=limit) for limit in limits)
  if not all(
    parts and size % parts == 0
    for parts, size in zip(grid, limits, strict=True)
  ):
    raise source.error(f'grid {grid} does not divide shape {shape}')
  return grid


def _read_values(
  source: wire.Source, grid: tuple[int, ...], entries: int, *, skipped: int
) -> np.ndarray:
  """The codebooks or steps, flat; codebooks begin with `skipped` zeros."""
  groups = math.prod(grid)
  stored = np.empty((groups * (entries - skipped), 4), np.uint8)
  blocks.read_raw(source, stored, component='codebooks')
  values = np.zeros((groups, entries), np.float32)
  values[:, skipped:] = _array_of(stored, np.dtype(np.float32)).reshape(
    groups, entries - skipped
  )
  return values.reshape(-1)


def zigzag(levels: np.ndarray) -> np.ndarray:
  """Maps int32 levels 0, −1, 1, −2 to uint32 codes 0, 1, 2, 3, and so on.

  >>> zigzag(np.array([0, -1, 1, 5], np.int32))
  array([ 0,  1,  2, 10], dtype=uint32)
  """
  wide = levels.view(np.uint32)
  return wide << 1 ^ np.where(levels < 0, np.uint32(0xFFFFFFFF), np.uint32(0))


def unzigzag(codes: np.ndarray) -> np.ndarray:
  """Inverts `zigzag`; uint8 and uint16 become int8 and int16.

  >>> unzigzag(np.array([0, 1, 2, 10], np.uint32))
  array([ 0, -1,  1,  5], dtype=int32)
  """
  flipped = np.asarray(codes & codes.dtype.type(1))
  np.negative(flipped, out=flipped)
  flipped ^= codes >> codes.dtype.type(1)
  return flipped.view(f'i{codes.itemsize}')


def _bytes_of(array: np.ndarray) -> np.ndarray:
  """[n, w] uint8, the elements in C order, low byte first."""
  little = np.ascontiguousarray(array).reshape(-1)
  if little.dtype.byteorder == '>':
    little = little.astype(little.dtype.newbyteorder('<'))
  return little.view(np.uint8).reshape(little.size, little.dtype.itemsize)


def _array_of(elements: np.ndarray, dtype: np.dtype) -> np.ndarray:
  return np.ascontiguousarray(elements).reshape(-1).view(dtype)
