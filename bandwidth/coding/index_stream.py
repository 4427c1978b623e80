"""Serializes the positions of a sparse block in the smallest kind of index.

One byte, kind + 4·width (kinds as in `sparse_index.KINDS`), then

  gap         varint m, a stream of m gaps            width: bits of a gap
  bitmask     a stream of `size` bits
  elias_fano  varint m, the bytes of `elias_fano`
  direct      varint m, positions packed in ⌈log2 size⌉ bits

where a stream is one of `symbols`, and m is the number of entries, including
fillers.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from bandwidth.coding import sparse_index, symbols, wire
from bandwidth.coding.coders import bitstream


class Index(NamedTuple):
  """Positions of the entries of a block.

  Attributes:
    positions: [m] int64, ascending, of all entries including fillers.
    may_fill: [m] bool: for the writer, which entries are fillers; for the
      reader, which have a filler's gap and are fillers if their value is 0.
    gap_bits: size in bits of the gap of a filler.
  """

  positions: np.ndarray
  may_fill: np.ndarray
  gap_bits: float = 0.0


class IndexPlan(NamedTuple):
  """A kind of index for given positions, and its size.

  Attributes:
    bits: size in bits of the index and of the fillers' values, to within a few
      bytes.
    kind: kind of index, one of `sparse_index.KINDS`.
    width: bits of a gap; 0 for the other kinds.
    stream: plan of the gaps or the mask; empty for the other kinds.
  """

  bits: float
  kind: str
  width: int
  stream: symbols.StreamPlan = symbols.EMPTY


def plan(
  positions: np.ndarray,
  *,
  size: int,
  coder: str,
  filler_bits: Callable[[int], float],
) -> IndexPlan:
  """Finds the smallest kind of index.

  Args:
    positions: [n] ascending, n ≥ 1, below `size`.
    size: length of the block, in elements.
    coder: entropy coders to try, one of `symbols.CODERS`.
    filler_bits: size in bits of the values of n fillers, by n.
  """
  count = positions.size
  mask = symbols.plan(np.array([size - count, count]), coder=coder, largest=1)
  head = 8 + 8 * len(wire.varint(count))
  direct = count * bitstream.width_of(size - 1)
  plans = [
    IndexPlan(8 + mask.bits, 'bitmask', 0, mask),
    IndexPlan(head + direct, 'direct', 0),
    IndexPlan(
      head + 8 * sparse_index.elias_fano_bytes(count, size), 'elias_fano', 0
    ),
  ]
  gaps, times = _unique(sparse_index.gaps_of(positions))
  widest = min(sparse_index.MAX_GAP_BITS, int(gaps[-1]).bit_length() or 1)
  for width in range(1, widest + 1):
    fillers = int((gaps >> width) @ times)
    if fillers > 2 * count and width < widest:
      continue
    counts = np.bincount(gaps & ((1 << width) - 1), times, 1 << width).astype(
      np.int64
    )
    counts[-1] += fillers
    largest = int(np.flatnonzero(counts)[-1])
    stream = symbols.plan(counts[: largest + 1], coder=coder, largest=largest)
    bits = head + stream.bits + filler_bits(fillers)
    plans.append(IndexPlan(bits, 'gap', width, stream))
  return min(plans, key=lambda each: each.bits)


def _unique(gaps: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """The distinct values, ascending, and the number of times each occurs."""
  if int(gaps.max()) <= 4 * gaps.size:
    counts = np.bincount(gaps)
    values = np.flatnonzero(counts)
    return values, counts[values]
  return np.unique(gaps, return_counts=True)


def write(
  sink: wire.Sink, positions: np.ndarray, index: IndexPlan, *, size: int
) -> Index:
  """Appends an index, and returns it with fillers; their values must follow."""
  kind = sparse_index.KINDS.index(index.kind)
  sink.put('headers', bytes([kind + 4 * index.width]))
  sink.note(index.kind + (str(index.width) if index.width else ''))
  count = positions.size
  if index.kind == 'gap':
    gaps, fillers = sparse_index.relative_index(positions, width=index.width)
    sink.varint('headers', gaps.size)
    symbols.write(sink, gaps, index.stream, component='indices')
    longest = (1 << index.width) - 1
    cost = symbols.cost(index.stream.costs, longest)
    all_positions = sparse_index.absolute_index(gaps)
    return Index(all_positions, fillers, cost)
  if index.kind == 'bitmask':
    mask = np.zeros(size, np.uint8)
    mask[positions] = 1
    symbols.write(sink, mask, index.stream, component='indices')
  else:
    sink.varint('headers', count)
    if index.kind == 'elias_fano':
      data = sparse_index.elias_fano(positions, size=size)
    else:
      data = bitstream.pack(positions, bitstream.width_of(size - 1))
    sink.put('indices', data)
  return Index(positions, np.zeros(count, bool))


def read(source: wire.Source, *, size: int) -> Index:
  """Reads an index.

  Raises:
    ValueError: a malformed index, or positions that do not ascend below `size`.
  """
  first = source.byte('headers')
  kind, width = sparse_index.KINDS[first & 3], first >> 2
  if (kind == 'gap') != (1 <= width <= sparse_index.MAX_GAP_BITS) or width > 16:
    raise source.error(f'unknown index {first}')
  source.note(kind + (str(width) if width else ''))
  if kind == 'bitmask':
    mask, _ = symbols.read(source, size, component='indices')
    if mask.size and int(mask.max()) > 1:
      raise source.error('a bitmask of other than bits')
    positions = np.flatnonzero(mask)
    return Index(positions, np.zeros(positions.size, bool))
  count = source.varint('headers', limit=size)
  if kind == 'gap':
    gaps, costs = symbols.read(source, count, component='indices')
    longest = (1 << width) - 1
    if count and int(gaps.max()) > longest:
      raise source.error(f'a gap exceeds {width} bits')
    positions = sparse_index.absolute_index(gaps)
    _check_positions(source, positions, size)
    return Index(positions, gaps == longest, symbols.cost(costs, longest))
  if kind == 'elias_fano':
    length = sparse_index.elias_fano_bytes(count, size)
    data = source.take('indices', length)
    with source.guard('Elias-Fano positions'):
      positions = sparse_index.from_elias_fano(data, count=count, size=size)
  else:
    width = bitstream.width_of(max(size - 1, 0))
    data = source.take('indices', bitstream.packed_bytes(count, width))
    with source.guard('positions'):
      positions = bitstream.unpack(data, count, width).astype(np.int64)
  _check_positions(source, positions, size)
  return Index(positions, np.zeros(count, bool))


def _check_positions(
  source: wire.Source, positions: np.ndarray, size: int
) -> None:
  if not positions.size:
    return
  if int(positions[-1]) >= size or (np.diff(positions) <= 0).any():
    raise source.error(f'positions do not ascend below {size}')
