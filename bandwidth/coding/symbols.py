"""Serializes unsigned integers with the entropy coder that takes fewest bits.

A stream is one byte, method + 4·width, then depending on the method:

  0 constant   varint value
  1 fixed      the values, `width` bits each (`bitstream`)
  2 huffman    lengths table, lane lengths, codes (`huffman`)
  3 ans        frequency table, varint length, stream (`ans`); width = q

A lengths table, and the exponents of a frequency table, are nibbles: varint
2·A + d, then A nibbles, or where d = 1 varint length and their raw deflate.
Mantissas follow exponents, q bits each. Lane lengths are a varint if there is
one lane; else varint minimum, one byte of width w, and if w > 0 the excesses
over the minimum, w bits each. The number of values is not stored; a stream
without values has no bytes.
"""

import zlib
from typing import NamedTuple

import numpy as np

from bandwidth.coding import wire
from bandwidth.coding.coders import ans, bitstream, huffman

CODERS = ('auto', 'fixed', 'huffman', 'ans', 'adaptive')
"""The coders that a writer may use. 'fixed': constant widths; 'huffman': also
canonical Huffman codes; 'ans': constant widths and rANS; 'auto': all of these,
and the adaptive coder where it is fast; 'adaptive': also the adaptive coder
wherever it applies, at several µs a weight."""

MAX_ALPHABET = 1 << 16
CONSTANT, FIXED, HUFFMAN, ANS = range(4)
"""Methods of a stream."""

_METHODS = {
  'fixed': (FIXED,),
  'huffman': (FIXED, HUFFMAN),
  'ans': (FIXED, ANS),
  'auto': (FIXED, HUFFMAN, ANS),
  'adaptive': (FIXED, HUFFMAN, ANS),
}


class StreamPlan(NamedTuple):
  """The coding of a stream, and its size.

  Attributes:
    bits: size in bits; exact for fixed widths, else to within a few bytes.
    method: `CONSTANT`, `FIXED`, `HUFFMAN` or `ANS`.
    costs: [A] float64, size in bits of each symbol; inf if it never occurs.
    width: bits of a value if the method is `FIXED`; the value itself if
      `CONSTANT`.
    lengths: [A] uint8, code lengths if the method is `HUFFMAN`.
    table: frequencies if the method is `ANS`.
  """

  bits: float
  method: int
  costs: np.ndarray
  width: int = 0
  lengths: np.ndarray = np.zeros(0, np.uint8)
  table: ans.Table = ans.Table(np.zeros(0, np.uint8), np.zeros(0, np.uint8), 0)


EMPTY = StreamPlan(0.0, CONSTANT, np.zeros(1))
"""The plan of an empty stream."""


def check_coder(coder: str) -> None:
  """Raises ValueError for a coder that is none of `CODERS`."""
  if coder not in CODERS:
    raise ValueError(f'coder={coder!r} is unknown; known: {", ".join(CODERS)}')


def histogram(values: np.ndarray) -> np.ndarray:
  """Returns how often each value occurs: int64 [A], A = largest + 1.

  Values of 2^16 and more are coded in fixed widths only and need no counts: the
  result is then empty.

  >>> histogram(np.array([0, 2, 2]))
  array([1, 0, 2])
  """
  if values.size and int(values.max()) >= MAX_ALPHABET:
    return np.zeros(0, np.int64)
  return np.bincount(values)


def plan(counts: np.ndarray, *, coder: str, largest: int) -> StreamPlan:
  """Finds the method that takes the fewest bits for given counts.

  Args:
    counts: [A] occurrences, or [0] for wide values; see `histogram`.
    coder: entropy coders to try, one of `CODERS`.
    largest: largest value of the stream, below 2^32.

  Returns:
    The plan of fewest bits.

  >>> plan(np.array([900, 100]), coder='auto', largest=1).bits < 550
  True
  """
  if not counts.size:
    width = bitstream.width_of(largest)
    return StreamPlan(np.inf, FIXED, np.full(1, float(width)), width=width)
  total = int(counts.sum())
  present = np.flatnonzero(counts)
  if present.size == 1:
    bits = 8 + 8 * len(wire.varint(int(present[0])))
    costs = np.zeros(counts.size)
    return StreamPlan(bits, CONSTANT, costs, width=int(present[0]))
  width = bitstream.width_of(largest)
  plans = [
    StreamPlan(
      8 + 8 * bitstream.packed_bytes(total, width),
      FIXED,
      np.full(counts.size, float(width)),
      width=width,
    )
  ]
  methods = _METHODS[coder]
  if HUFFMAN in methods and present.size <= 1 << huffman.MAX_LENGTH:
    plans.append(_plan_huffman(counts, total))
  if ANS in methods:
    plans.append(_plan_ans(counts, present))
  return min(plans, key=lambda each: each.bits)


def _plan_huffman(counts: np.ndarray, total: int) -> StreamPlan:
  lengths = huffman.code_lengths(counts)
  bits = float(counts @ lengths.astype(np.int64))
  lanes = -(-total // huffman.LANE)
  # Lane lengths take about a byte each; the exact size depends on the codes.
  overhead = 8 + 8 * len(_nibbles(lengths)) + 8 * (3 + lanes * (lanes > 1))
  costs = np.where(lengths > 0, lengths.astype(np.float64), np.inf)
  return StreamPlan(bits + overhead, HUFFMAN, costs, lengths=lengths)


def _plan_ans(counts: np.ndarray, present: np.ndarray) -> StreamPlan:
  best = StreamPlan(np.inf, ANS, counts)
  for mantissa_bits in ans.MANTISSAS:
    table = ans.make_table(counts, mantissa_bits=mantissa_bits)
    costs = ans.bits_of_symbols(table)
    bits = float(counts[present] @ costs[present])
    bits += 8 * len(_nibbles(table.exponents)) + present.size * mantissa_bits
    bits += 8 * 7
    if bits < best.bits:
      best = StreamPlan(bits, ANS, costs, table=table)
  return best


def cost(costs: np.ndarray, symbol: int) -> float:
  """Returns the size of a symbol in bits by `StreamPlan.costs`; 0 if inf."""
  if costs.size > 1 and symbol >= costs.size:
    return 0.0
  bits = float(costs[symbol if costs.size > 1 else 0])
  return bits if np.isfinite(bits) else 0.0


def write(
  sink: wire.Sink, values: np.ndarray, plan: StreamPlan, *, component: str
) -> None:
  """Appends a stream. `plan` must be made from the counts of `values`."""
  if not values.size:
    return
  if plan.method == CONSTANT:
    sink.varint('headers', CONSTANT)
    sink.varint(component, plan.width)
    sink.note('constant', component)
  elif plan.method == FIXED:
    sink.put('headers', bytes([FIXED + 4 * plan.width]))
    sink.put(component, bitstream.pack(values, plan.width))
    sink.note('fixed', component)
  elif plan.method == HUFFMAN:
    _write_huffman(sink, values, plan.lengths, component)
  else:
    table = plan.table
    sink.put('headers', bytes([ANS + 4 * table.mantissa_bits]))
    sink.put('tables', _nibbles(table.exponents))
    if table.mantissa_bits:
      sink.put('tables', bitstream.pack(table.mantissas, table.mantissa_bits))
    data = ans.encode(values, table)
    sink.varint('headers', len(data))
    sink.put(component, data)
    sink.note('ans', component)


def _write_huffman(
  sink: wire.Sink, values: np.ndarray, lengths: np.ndarray, component: str
) -> None:
  sink.put('headers', bytes([HUFFMAN]))
  sink.put('tables', _nibbles(lengths))
  stream = huffman.encode(values, lengths)
  low = int(stream.lane_bits.min())
  sink.varint('headers', low)
  if stream.lane_bits.size > 1:
    excess = stream.lane_bits - low
    width = int(excess.max()).bit_length()
    sink.put('headers', bytes([width]))
    if width:
      sink.put('headers', bitstream.pack(excess, width))
  sink.put(component, stream.data)
  sink.note('huffman', component)


def read(
  source: wire.Source, count: int, *, component: str
) -> tuple[np.ndarray, np.ndarray]:
  """Reads a stream.

  Args:
    source: at the first byte of the stream.
    count: number of values; the caller has bounded it.
    component: component of the values, one of `wire.COMPONENTS`.

  Returns:
    The values, [count] uint8, uint16 or uint32, and the size of each symbol in
    bits, as in `StreamPlan.costs`; [1] if all symbols take the same.

  Raises:
    ValueError: a malformed stream.
  """
  if not count:
    return np.zeros(0, np.uint8), np.zeros(1)
  first = source.byte('headers')
  method, width = first & 3, first >> 2
  if method == CONSTANT:
    if width:
      raise source.error(f'unknown coder {first}')
    value = source.varint(component, limit=(1 << 32) - 1)
    source.note('constant', component)
    return np.full(count, value, _dtype(value)), np.zeros(1)
  if method == FIXED:
    if not 1 <= width <= bitstream.MAX_WIDTH:
      raise source.error(f'width {width} is not in 1 … 32')
    data = source.take(component, bitstream.packed_bytes(count, width))
    with source.guard('fixed-width values'):
      values = bitstream.unpack(data, count, width)
    source.note('fixed', component)
    return values, np.full(1, float(width))
  if method == HUFFMAN:
    if width:
      raise source.error(f'unknown coder {first}')
    return _read_huffman(source, count, component)
  return _read_ans(source, count, component, width)


def _dtype(largest: int) -> type[np.unsignedinteger]:
  if largest < 1 << 8:
    return np.uint8
  return np.uint16 if largest < 1 << 16 else np.uint32


def _read_huffman(
  source: wire.Source, count: int, component: str
) -> tuple[np.ndarray, np.ndarray]:
  lengths = _read_nibbles(source)
  with source.guard('Huffman code lengths'):
    huffman.check_lengths(lengths)
  lanes = -(-count // huffman.LANE)
  longest = huffman.LANE * huffman.MAX_LENGTH
  lane_bits = np.full(lanes, source.varint('headers', limit=longest), np.int64)
  if lanes > 1 and (width := source.byte('headers')):
    if width > 16:
      raise source.error(f'width {width} of lane lengths is not in 0 … 16')
    data = source.take('headers', bitstream.packed_bytes(lanes, width))
    with source.guard('lane lengths'):
      lane_bits += bitstream.unpack(data, lanes, width)
  data = source.take(component, (int(lane_bits.sum()) + 7) // 8)
  with source.guard('Huffman codes'):
    values = huffman.decode(data, lane_bits, lengths, count)
  source.note('huffman', component)
  return values, np.where(lengths > 0, lengths.astype(np.float64), np.inf)


def _read_ans(
  source: wire.Source, count: int, component: str, mantissa_bits: int
) -> tuple[np.ndarray, np.ndarray]:
  if mantissa_bits > 8:
    raise source.error(f'{mantissa_bits} mantissa bits exceed 8')
  exponents = _read_nibbles(source)
  present = int(np.count_nonzero(exponents))
  mantissas = np.zeros(present, np.uint8)
  if mantissa_bits:
    size = bitstream.packed_bytes(present, mantissa_bits)
    data = source.take('tables', size)
    with source.guard('mantissas'):
      mantissas = bitstream.unpack(data, present, mantissa_bits)
  table = ans.Table(exponents, mantissas, mantissa_bits)
  with source.guard('frequencies'):
    costs = ans.bits_of_symbols(table)
  length = source.varint('headers', limit=source.remaining)
  data = source.take(component, length)
  with source.guard('rANS stream'):
    values = ans.decode(data, table, count)
  source.note('ans', component)
  return values, costs


def _nibbles(values: np.ndarray) -> bytes:
  size = int(np.flatnonzero(values)[-1]) + 1
  plain = bitstream.pack(values[:size], 4)
  packer = zlib.compressobj(9, zlib.DEFLATED, -15)
  small = packer.compress(plain) + packer.flush()
  small = wire.varint(len(small)) + small
  if len(small) < len(plain):
    return wire.varint(2 * size + 1) + small
  return wire.varint(2 * size) + plain


def _read_nibbles(source: wire.Source) -> np.ndarray:
  head = source.varint('tables', limit=2 * MAX_ALPHABET + 1)
  size = head >> 1
  if not size:
    raise source.error('a table of no symbols')
  length = bitstream.packed_bytes(size, 4)
  if head & 1:
    stored = source.varint('tables', limit=source.remaining)
    data = inflate(source, source.take('tables', stored), length)
  else:
    data = source.take('tables', length)
  with source.guard('table'):
    return bitstream.unpack(data, size, 4)


def inflate(
  source: wire.Source,
  data: bytes | memoryview,
  length: int,
  *,
  dictionary: bytes = b'',
) -> bytes:
  """Decompresses raw deflate to exactly `length` bytes, in bounded memory.

  Raises:
    ValueError: a malformed stream, or one of another length.
  """
  unpacker = zlib.decompressobj(-15, zdict=dictionary)
  try:
    out = unpacker.decompress(data, length + 1)
  except zlib.error as error:
    raise source.error(f'deflate: {error}') from None
  if len(out) != length or not unpacker.eof or unpacker.unused_data:
    raise source.error(f'deflate: not exactly {length} bytes')
  return out
