"""Serializes vectors, in blocks of 2^20 elements.

Blocks bound the memory that coding takes, and each has its own tables. A vector
is cut into ⌈n / 2^20⌉ blocks, of which the last may be shorter.

A block of codes: one byte, 0 dense or 1 sparse. Dense: a stream of all codes
(`symbols`). Sparse: the index of the non-zero codes (`index_stream`), then a
stream of them, with a 0 for each filler.

A block of raw elements of w bytes each, little-endian: one byte, method + 4·t:

  0 stored   the elements without their low t bytes, all of which are zero
  1 planes   w streams, of the first, second … byte of each element
  2 sparse   the index of the elements with a non-zero bit, then these elements
             as a block of any other method, with a zero for each filler
  3 deflate  varint length, the raw deflate of the elements
"""

import math
import zlib
from collections.abc import Iterator

import numpy as np

from bandwidth.coding import index_stream, symbols, wire

BLOCK = 1 << 20
_STORED, _PLANES, _SPARSE, _DEFLATE = range(4)
# Deflate is slow; beyond this many bytes, planes are as good.
_DEFLATE_LIMIT = 1 << 18


def write_codes(sink: wire.Sink, codes: np.ndarray, *, coder: str) -> None:
  """Appends a vector of codes.

  Args:
    sink: receives the bytes of the vector.
    codes: [n] unsigned integers of at most 32 bits.
    coder: entropy coders to try, one of `symbols.CODERS`.
  """
  for begin in range(0, codes.size, BLOCK):
    _write_code_block(sink, codes[begin : begin + BLOCK], coder)


def read_codes(source: wire.Source, out: np.ndarray) -> None:
  """Fills `out`, [n] unsigned integers, with a vector of codes.

  Raises:
    ValueError: a malformed vector, or codes too large for the dtype of `out`.
  """
  begin = 0
  for codes in code_blocks(source, out.size):
    _check_width(source, codes, out.dtype)
    out[begin : begin + codes.size] = codes
    begin += codes.size


def code_blocks(source: wire.Source, count: int) -> Iterator[np.ndarray]:
  """Yields `count` codes in blocks, each in a dtype that is wide enough.

  Raises:
    ValueError: a malformed vector.
  """
  for begin in range(0, count, BLOCK):
    yield _read_code_block(source, min(BLOCK, count - begin))


def _write_code_block(sink: wire.Sink, codes: np.ndarray, coder: str) -> None:
  largest = int(codes.max())
  counts = symbols.histogram(codes)
  dense = symbols.plan(counts, coder=coder, largest=largest)
  count = int(np.count_nonzero(codes))
  # Beyond this density, no index is smaller than codes for the zeros.
  if 0 < count <= 0.75 * codes.size:
    positions = np.flatnonzero(codes)
    kept = codes[positions]
    kept_counts = counts.copy()
    kept_counts[:1] = 0
    values = symbols.plan(kept_counts, coder=coder, largest=largest)
    index = index_stream.plan(
      positions,
      size=codes.size,
      coder=coder,
      filler_bits=lambda n: _filler_bits(n, count, values),
    )
    wide = codes.size * dense.width if not counts.size else dense.bits
    narrow = count * dense.width if not counts.size else values.bits
    if index.bits + narrow < wide:
      sink.put('headers', b'\1')
      _write_sparse_codes(sink, kept, positions, index, coder, codes.size)
      return
  sink.put('headers', b'\0')
  symbols.write(sink, codes, dense, component='codes')
  sink.note('dense')


def _filler_bits(fillers: int, count: int, values: symbols.StreamPlan) -> float:
  """The bits that `fillers` zeros add to a stream of `count` other symbols."""
  if not fillers:
    return 0.0
  if values.method == symbols.FIXED:
    return float(fillers * values.width)
  total = count + fillers
  return count * math.log2(total / count) + fillers * math.log2(total / fillers)


def _write_sparse_codes(
  sink: wire.Sink,
  kept: np.ndarray,
  positions: np.ndarray,
  index: index_stream.IndexPlan,
  coder: str,
  size: int,
) -> None:
  written = index_stream.write(sink, positions, index, size=size)
  if written.may_fill.any():
    entries = np.zeros(written.positions.size, kept.dtype)
    entries[~written.may_fill] = kept
    kept = entries
  plan = symbols.plan(
    symbols.histogram(kept), coder=coder, largest=int(kept.max())
  )
  symbols.write(sink, kept, plan, component='codes')
  fillers = written.positions.size - positions.size
  move_fillers(sink, written, fillers, symbols.cost(plan.costs, 0))


def move_fillers(
  tally: wire.Tally,
  index: index_stream.Index,
  fillers: int,
  value_bits: float,
  *,
  component: str = 'codes',
) -> None:
  """Moves the bytes of fillers, rounded down, to the component 'fillers'."""
  for source, bits in (
    ('indices', index.gap_bits),
    (component, value_bits),
  ):
    tally.move(source, 'fillers', int(fillers * bits / 8))


def _read_code_block(source: wire.Source, size: int) -> np.ndarray:
  layout = source.byte('headers')
  if layout == 0:
    codes, _ = symbols.read(source, size, component='codes')
    source.note('dense')
    return codes
  if layout != 1:
    raise source.error(f'unknown layout {layout}')
  index = index_stream.read(source, size=size)
  count = index.positions.size
  codes, costs = symbols.read(source, count, component='codes')
  zeros = codes == 0
  fillers = int(np.count_nonzero(zeros))
  if fillers and not index.may_fill[zeros].all():
    raise source.error('a zero among the values of a sparse block')
  out = np.zeros(size, codes.dtype)
  out[index.positions] = codes
  move_fillers(source, index, fillers, symbols.cost(costs, 0))
  return out


def _check_width(
  source: wire.Source, codes: np.ndarray, dtype: np.dtype
) -> None:
  if codes.size and int(codes.max()) > np.iinfo(dtype).max:
    raise source.error(f'code {codes.max()} exceeds {dtype}')


def write_raw(
  sink: wire.Sink, elements: np.ndarray, *, component: str, coder: str
) -> None:
  """Appends a vector of elements, preserved bit for bit.

  Args:
    sink: receives the bytes of the vector.
    elements: [n, w] uint8, the bytes of each element, low byte first.
    component: what the bytes count as, one of `wire.COMPONENTS`.
    coder: entropy coders to try, one of `symbols.CODERS`.
  """
  for begin in range(0, elements.shape[0], BLOCK):
    block = np.ascontiguousarray(elements[begin : begin + BLOCK])
    _write_raw_block(sink, block, component, coder)


def read_raw(source: wire.Source, out: np.ndarray, *, component: str) -> None:
  """Fills `out`, [n, w] uint8, with a vector of elements.

  Raises:
    ValueError: a malformed vector.
  """
  for begin in range(0, out.shape[0], BLOCK):
    _read_raw_block(source, out[begin : begin + BLOCK], component)


def _write_raw_block(
  sink: wire.Sink, elements: np.ndarray, component: str, coder: str
) -> None:
  count, itemsize = elements.shape
  occupied = _occupied(elements)
  entries = int(np.count_nonzero(occupied))
  if not 0 < entries <= 0.9 * count:
    _write_dense_raw(sink, elements, component, coder)
    return
  positions = np.flatnonzero(occupied)
  index = index_stream.plan(
    positions,
    size=count,
    coder=coder,
    filler_bits=lambda fillers: 8 * fillers * itemsize,
  )
  sparse = wire.Sink()
  sparse.put('headers', bytes([_SPARSE]))
  written = index_stream.write(sparse, positions, index, size=count)
  values = np.zeros((written.positions.size, itemsize), np.uint8)
  values[np.flatnonzero(~written.may_fill)] = elements[positions]
  before = sparse.counts[component]
  _write_dense_raw(sparse, values, component, coder)
  each = 8 * (sparse.counts[component] - before) / max(values.shape[0], 1)
  fillers = values.shape[0] - entries
  move_fillers(sparse, written, fillers, each, component=component)
  dense = wire.Sink()
  _write_dense_raw(dense, elements, component, coder)
  sink.append(min(sparse, dense, key=len))


def _occupied(elements: np.ndarray) -> np.ndarray:
  """Which elements have a non-zero bit: bool [n]."""
  itemsize = elements.shape[1]
  if itemsize in (1, 2, 4, 8):
    return elements.view(f'u{itemsize}').reshape(-1) != 0
  return np.asarray(elements.any(axis=1))


def _write_dense_raw(
  sink: wire.Sink, elements: np.ndarray, component: str, coder: str
) -> None:
  count, itemsize = elements.shape
  dropped = 0
  while dropped < itemsize - 1 and not elements[:, dropped].any():
    dropped += 1
  stored = 8 + 8 * count * (itemsize - dropped)
  plans = [
    symbols.plan(np.bincount(plane), coder=coder, largest=int(plane.max()))
    for plane in elements.T
  ]
  planes = 8 + sum(plan.bits for plan in plans)
  data = b''
  if coder != 'fixed' and 64 <= elements.size <= _DEFLATE_LIMIT:
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    data = packer.compress(elements.tobytes()) + packer.flush()
    if 40 + 8 * len(data) < min(planes, stored):
      sink.put('headers', bytes([_DEFLATE]))
      sink.varint('headers', len(data))
      sink.put(component, data)
      sink.note('deflate', component)
      return
  if planes < stored:
    sink.put('headers', bytes([_PLANES]))
    for plane, plan in zip(elements.T, plans, strict=True):
      symbols.write(sink, plane, plan, component=component)
    sink.note('planes', component)
    return
  sink.put('headers', bytes([_STORED + 4 * dropped]))
  sink.put(component, elements[:, dropped:].tobytes())
  sink.note('stored', component)


def _read_raw_block(
  source: wire.Source, out: np.ndarray, component: str
) -> None:
  count, itemsize = out.shape
  first = source.byte('headers')
  if first != _SPARSE:
    _read_dense_raw(source, out, component, first)
    return
  index = index_stream.read(source, size=count)
  values = np.zeros((index.positions.size, itemsize), np.uint8)
  before = source.counts[component]
  if values.size:
    _read_dense_raw(source, values, component, source.byte('headers'))
  each = 8 * (source.counts[component] - before) / max(values.shape[0], 1)
  zeros = ~_occupied(values)
  fillers = int(np.count_nonzero(zeros))
  if fillers and not index.may_fill[zeros].all():
    raise source.error('a zero among the values of a sparse block')
  out[:] = 0
  out[index.positions] = values
  move_fillers(source, index, fillers, each, component=component)


def _read_dense_raw(
  source: wire.Source, out: np.ndarray, component: str, first: int
) -> None:
  count, itemsize = out.shape
  method, dropped = first & 3, first >> 2
  if dropped >= itemsize or (dropped and method != _STORED):
    raise source.error(f'unknown method {first} for {itemsize}-byte elements')
  if method == _STORED:
    kept = itemsize - dropped
    data = source.take(component, count * kept)
    out[:, :dropped] = 0
    out[:, dropped:] = np.frombuffer(data, np.uint8).reshape(count, kept)
    source.note('stored', component)
  elif method == _PLANES:
    for place in range(itemsize):
      plane, _ = symbols.read(source, count, component=component)
      _check_width(source, plane, out.dtype)
      out[:, place] = plane
    source.note('planes', component)
  elif method == _DEFLATE:
    length = source.varint('headers', limit=source.remaining)
    data = source.take(component, length)
    plain = symbols.inflate(source, data, count * itemsize)
    out[:] = np.frombuffer(plain, np.uint8).reshape(count, itemsize)
    source.note('deflate', component)
  else:
    raise source.error('a sparse block inside a sparse block')
