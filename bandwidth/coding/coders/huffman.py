"""Canonical Huffman codes, at most 15 bits long.

Deep Compression (Han, Mao & Dally, arXiv 1510.00149, section 4) codes weights
and gaps this way. Only the lengths of the codes are stored; the codes follow:
shorter first, then by symbol, each the previous one plus one, shifted to its
length. Codes are written highest bit first, in the order of `bitstream`.

Symbols are coded in lanes of 2048 whose lengths in bits are stored. All lanes
are decoded in lock-step, one table look-up for each lane at a time.
"""

from typing import NamedTuple

import numpy as np

MAX_LENGTH = 15
LANE = 2048


class Encoded(NamedTuple):
  """A coded stream.

  Attributes:
    data: the codes of all lanes, one after the other, padded to a byte.
    lane_bits: [⌈n / 2048⌉] int64, the bits of each lane.
  """

  data: bytes
  lane_bits: np.ndarray


def code_lengths(
  counts: np.ndarray, *, max_length: int = MAX_LENGTH
) -> np.ndarray:
  """Returns lengths that minimize Σ counts·lengths under the cap.

  Package-merge (Larmore & Hirschberg, 1990), exact for any cap; where the cap
  does not bind, the total is Huffman's. Symbols that occur satisfy Kraft's
  equality Σ 2^−length = 1, except in an alphabet of one, whose length is 1.

  Args:
    counts: [A] occurrences; zero for a symbol without a code.
    max_length: the longest code allowed, in bits, at most 15.

  Returns:
    [A] uint8, zero for symbols without a code.

  Raises:
    ValueError: more symbols than codes of that length.

  >>> code_lengths(np.array([8, 4, 2, 1, 0]))
  array([1, 2, 3, 3, 0], dtype=uint8)
  """
  counts = np.asarray(counts, np.int64)
  if not 1 <= max_length <= MAX_LENGTH:
    raise ValueError(f'max_length={max_length} is not in 1 … {MAX_LENGTH}')
  lengths = np.zeros(counts.size, np.uint8)
  present = np.flatnonzero(counts)
  if present.size > 1 << max_length:
    raise ValueError(
      f'{present.size} symbols need codes longer than '
      f'max_length={max_length} bits'
    )
  if present.size <= 1:
    lengths[present] = 1
    return lengths
  order = present[np.argsort(counts[present], kind='stable')]
  lengths[order] = _package_merge(counts[order], max_length)
  return lengths


def _package_merge(weights: np.ndarray, max_length: int) -> np.ndarray:
  """Lengths for ascending positive weights, at least two of them."""
  levels, items = [], weights
  is_leaf = np.ones(weights.size, bool)
  for _ in range(max_length - 1):
    levels.append(is_leaf)
    packages = items[: items.size // 2 * 2].reshape(-1, 2).sum(axis=1)
    merged = np.concatenate([weights, packages])
    order = np.argsort(merged, kind='stable')
    items, is_leaf = merged[order], order < weights.size
  levels.append(is_leaf)
  lengths = np.zeros(weights.size, np.uint8)
  taken = 2 * weights.size - 2
  for is_leaf in reversed(levels):
    leaves = int(np.count_nonzero(is_leaf[:taken]))
    lengths[:leaves] += 1
    taken = 2 * (taken - leaves)
  return lengths


def canonical_codes(lengths: np.ndarray) -> np.ndarray:
  """Returns the code of each symbol, in the low bits.

  Args:
    lengths: [A] uint8 of at most 15, zero for symbols without a code.

  Returns:
    [A] uint16.

  Raises:
    ValueError: lengths that break Kraft's equality.

  >>> [f'{c:b}' for c in canonical_codes(np.array([2, 1, 3, 3]))]
  ['10', '0', '110', '111']
  """
  lengths = np.asarray(lengths)
  check_lengths(lengths)
  present = np.flatnonzero(lengths)
  order = present[np.argsort(lengths[present], kind='stable')]
  # Left-aligned in 15 bits, a code is the total width of the ones before it.
  spans = np.int64(1) << (MAX_LENGTH - lengths[order].astype(np.int64))
  starts = np.cumsum(spans) - spans
  codes = np.zeros(lengths.size, np.uint16)
  codes[order] = starts >> (MAX_LENGTH - lengths[order].astype(np.int64))
  return codes


def check_lengths(lengths: np.ndarray) -> None:
  """Raises ValueError unless the lengths make a complete code."""
  present = np.asarray(lengths)[np.flatnonzero(lengths)].astype(np.int64)
  if present.size and present.max() > MAX_LENGTH:
    raise ValueError(f'code length {present.max()} exceeds {MAX_LENGTH}')
  if not present.size or (present.size == 1 and present[0] == 1):
    return
  if int((np.int64(1) << (MAX_LENGTH - present)).sum()) != 1 << MAX_LENGTH:
    raise ValueError("code lengths break Kraft's equality")


def encode(symbols: np.ndarray, lengths: np.ndarray) -> Encoded:
  """Codes symbols.

  An alphabet of one symbol takes no bits.

  Args:
    symbols: [n] unsigned integers below A, all with a code.
    lengths: [A] uint8 from `code_lengths`.

  Returns:
    The stream; `decode` needs the same `lengths` and n.

  Raises:
    ValueError: a symbol without a code.

  >>> encode(np.array([0, 1, 0, 2]), np.array([1, 2, 2], np.uint8)).data.hex()
  '4c'
  """
  symbols, lengths = np.asarray(symbols), np.asarray(lengths)
  if symbols.size and int(symbols.max()) >= lengths.size:
    raise ValueError(f'symbol {symbols.max()} has no code')
  bits = lengths[symbols].astype(np.int64)
  if symbols.size and not bits.all():
    raise ValueError(f'symbol {symbols[np.argmin(bits)]} has no code')
  if np.count_nonzero(lengths) <= 1:
    return Encoded(b'', np.zeros(-(-symbols.size // LANE), np.int64))
  codes = canonical_codes(lengths)[symbols]
  lanes = np.arange(0, symbols.size, LANE)
  lane_bits = np.add.reduceat(bits, lanes) if symbols.size else lanes
  return Encoded(_scatter(codes, bits), lane_bits)


def _scatter(codes: np.ndarray, bits: np.ndarray) -> bytes:
  """Writes codes of the given lengths one after the other, highest bit first.

  Codes never share a bit, so that adding is the same as or-ing; sums of 32-bit
  words are exact in the float64 of `np.bincount`.
  """
  ends = np.cumsum(bits)
  total = int(ends[-1]) if ends.size else 0
  starts = ends - bits
  word, room = starts >> 5, 64 - (starts & 31) - bits
  value = codes.astype(np.uint64) << room.astype(np.uint64)
  size = (total >> 5) + 2
  high = np.bincount(word, value >> np.uint64(32), size)
  low = np.bincount(word, value & np.uint64(0xFFFFFFFF), size)
  high[1:] += low[:-1]
  return high.astype('>u4').tobytes()[: (total + 7) // 8]


def decode(
  data: bytes | memoryview,
  lane_bits: np.ndarray,
  lengths: np.ndarray,
  count: int,
) -> np.ndarray:
  """Inverts `encode`.

  Args:
    data: ⌈Σ lane_bits / 8⌉ bytes.
    lane_bits: [⌈count / 2048⌉] int64.
    lengths: [A] uint8, a complete code.
    count: number of symbols in the stream.

  Returns:
    [count] uint16.

  Raises:
    ValueError: a stream that these lengths cannot have made.

  >>> stream = encode(np.array([0, 1, 0, 2]), np.array([1, 2, 2], np.uint8))
  >>> decode(*stream, np.array([1, 2, 2], np.uint8), 4)
  array([0, 1, 0, 2], dtype=uint16)
  """
  check_lengths(lengths)
  lane_bits = np.asarray(lane_bits, np.int64)
  lanes = -(-count // LANE)
  ends = np.cumsum(lane_bits)
  total = int(ends[-1]) if lanes else 0
  if lane_bits.size != lanes or len(data) != (total + 7) // 8:
    raise ValueError('lengths of the lanes disagree with the stream')
  present = np.flatnonzero(lengths)
  if present.size <= 1:
    if total:
      raise ValueError('bits for an alphabet of one symbol')
    return np.full(count, present[0] if present.size else 0, np.uint16)
  table = _table(lengths)
  if lanes == 1:
    return _decode_lane(data, table, count, total)
  return _decode_lanes(data, table, ends - lane_bits, ends, count)


def _table(lengths: np.ndarray) -> np.ndarray:
  """[2^15] uint32: symbol·16 + length, for the next 15 bits of the stream."""
  present = np.flatnonzero(lengths)
  order = present[np.argsort(lengths[present], kind='stable')]
  spans = 1 << (MAX_LENGTH - lengths[order].astype(np.int64))
  return np.repeat(
    (order << 4 | lengths[order].astype(np.int64)).astype(np.uint32), spans
  )


def _decode_lane(
  data: bytes | memoryview, table: np.ndarray, count: int, total: int
) -> np.ndarray:
  """Decodes a single lane, for which vector operations do not pay off."""
  entries = table.tolist()
  stream, width = int.from_bytes(data, 'big'), len(data) * 8
  # Words of 2^10 bits keep the shifts short.
  out, position = [], 0
  step, word, begin = 1024, 0, -1
  for _ in range(count):
    if begin < 0 or position - begin > step:
      begin = position
      shift = width - begin - step - 32
      word = stream >> shift if shift >= 0 else stream << -shift
      word &= (1 << (step + 32)) - 1
    entry = entries[word >> (step + 17 - position + begin) & 0x7FFF]
    out.append(entry >> 4)
    position += entry & 15
  if position != total:
    raise ValueError('codes end at another bit than the stream')
  return np.array(out, np.uint16)


def _decode_lanes(
  data: bytes | memoryview,
  table: np.ndarray,
  starts: np.ndarray,
  ends: np.ndarray,
  count: int,
) -> np.ndarray:
  padded = np.zeros(len(data) + 4, np.uint8)
  padded[: len(data)] = np.frombuffer(data, np.uint8)
  # The 24 bits that begin at each byte hold any code and its 7 bits of offset.
  windows = padded[:-2].astype(np.uint32)
  for i in (1, 2):
    windows <<= np.uint32(8)
    windows |= padded[i : windows.size + i]
  lanes, position = starts.size, starts.copy()
  last = count - (lanes - 1) * LANE
  out = np.zeros((LANE, lanes), np.uint16)
  active = lanes
  for step in range(LANE):
    if step == last:
      active -= 1
    here = position[:active]
    window = windows.take(here >> 3, mode='clip')
    window >>= (9 - (here & 7)).astype(np.uint32)
    entry = table.take(window & np.uint32(0x7FFF))
    out[step, :active] = entry >> np.uint32(4)
    here += entry & np.uint32(15)
  if not np.array_equal(position, ends):
    raise ValueError('codes end at another bit than their lane')
  del padded, windows  # room for the copy
  return np.ascontiguousarray(out.T).reshape(-1)[:count]
