"""The positions of a vector's non-zeros: four kinds of index of fixed widths.

Relative index (Han, Mao & Dally, arXiv 1510.00149, section 2): the number of
zeros skipped before each entry, so that position = cumsum(gap + 1) − 1. With b
bits, the longest gap is N − 1, N = 2^b. A run of g ≥ N zeros takes ⌊g / N⌋
fillers before its entry: entries of gap N − 1 and value 0, each of which
bridges N positions.

Bitmask: one bit for each position. Elias-Fano (1971, 1974): the low
l = max(0, ⌊log2(size / m)⌋) bits of each position are packed, the high bits are
coded as the ones of a bit string, entry i at place (position_i >> l) + i.
Direct: positions packed in ⌈log2 size⌉ bits.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from bandwidth.coding.coders import bitstream

KINDS = ('gap', 'bitmask', 'elias_fano', 'direct')
MAX_GAP_BITS = 16


class RelativeIndex(NamedTuple):
  """Gaps, including those of fillers.

  Attributes:
    gaps: [m] uint32, number of zeros skipped before each entry.
    is_filler: [m] bool, True for an entry that only bridges a gap.
  """

  gaps: np.ndarray
  is_filler: np.ndarray


class IndexChoice(NamedTuple):
  """The smallest kind of index for given positions, and its size.

  Attributes:
    kind: kind of index, one of `KINDS`.
    width: bits of a gap; 0 for the other kinds.
    bits: exact size in bits, the fillers' values included.
    fillers: number of entries that are fillers.
  """

  kind: str
  width: int
  bits: int
  fillers: int


def gaps_of(positions: np.ndarray) -> np.ndarray:
  """Returns the number of zeros before each of the ascending positions.

  >>> gaps_of(np.array([0, 1, 5]))
  array([0, 0, 3])
  """
  positions = np.asarray(positions, np.int64)
  return np.diff(positions, prepend=-1) - 1


def relative_index(positions: np.ndarray, *, width: int) -> RelativeIndex:
  """Returns gaps of at most 2^width − 1, with fillers inserted.

  Args:
    positions: [n] integers, ascending, not negative.
    width: bits of a gap, 1 to 16.

  >>> relative_index(np.array([1, 9]), width=2)
  RelativeIndex(gaps=array([1, 3, 3], dtype=uint32),
                is_filler=array([False,  True, False]))
  """
  _check_gap_bits(width)
  gaps = gaps_of(positions)
  before = gaps >> width
  last = np.cumsum(before + 1) - 1
  size = int(last[-1]) + 1 if last.size else 0
  out = np.full(size, (1 << width) - 1, np.uint32)
  is_filler = np.ones(size, bool)
  out[last] = gaps & ((1 << width) - 1)
  is_filler[last] = False
  return RelativeIndex(out, is_filler)


def absolute_index(gaps: np.ndarray) -> np.ndarray:
  """Returns cumsum(gap + 1) − 1, the positions of all entries and fillers.

  >>> absolute_index(np.array([1, 3, 3]))
  array([1, 5, 9])
  """
  return np.cumsum(np.asarray(gaps, np.int64) + 1) - 1


def filler_counts(positions: np.ndarray) -> np.ndarray:
  """Returns the exact number of fillers at gap widths 1 … 16.

  >>> filler_counts(np.array([1, 9]))[:4]
  array([3, 1, 0, 0])
  """
  gaps = gaps_of(positions)
  return np.array(
    [int((gaps >> width).sum()) for width in range(1, MAX_GAP_BITS + 1)]
  )


def choose(
  positions: np.ndarray, *, size: int, value_bits: float
) -> IndexChoice:
  """Picks the kind of index that takes the fewest bits, counted exactly.

  Args:
    positions: [n] integers, ascending, below `size`.
    size: length of the vector, in elements.
    value_bits: size in bits of the value of a filler.

  Returns:
    The choice, over gap widths of 1 to 16 bits and the other three kinds.

  >>> choose(np.arange(0, 1000, 25), size=1000, value_bits=5)
  IndexChoice(kind='gap', width=5, bits=200, fillers=0)
  """
  return choose_where(
    positions, size=size, filler_bits=lambda fillers: fillers * value_bits
  )


def choose_where(
  positions: np.ndarray, *, size: int, filler_bits: Callable[[int], float]
) -> IndexChoice:
  """As `choose`, where the values of n fillers take `filler_bits(n)` bits."""
  count = positions.size
  choices = [
    IndexChoice('bitmask', 0, size, 0),
    IndexChoice('elias_fano', 0, 8 * elias_fano_bytes(count, size), 0),
    IndexChoice('direct', 0, count * bitstream.width_of(max(size - 1, 0)), 0),
  ]
  for width, fillers in enumerate(filler_counts(positions), start=1):
    bits = (count + fillers) * width + filler_bits(int(fillers))
    choices.append(IndexChoice('gap', width, int(np.ceil(bits)), int(fillers)))
  return min(choices, key=lambda choice: choice.bits)


def elias_fano_width(count: int, size: int) -> int:
  """Returns l = max(0, ⌊log2(size / count)⌋).

  >>> elias_fano_width(10, 1000)
  6
  """
  return max(0, (size // max(count, 1)).bit_length() - 1)


def elias_fano_bytes(count: int, size: int) -> int:
  """Returns the length of `elias_fano` in bytes."""
  width = elias_fano_width(count, size)
  high = count + (max(size - 1, 0) >> width) + 1
  return bitstream.packed_bytes(count, width) + (high + 7) // 8


def elias_fano(positions: np.ndarray, *, size: int) -> bytes:
  """Encodes ascending positions below `size`: low bits, then high bits.

  >>> elias_fano(np.array([3, 4, 7, 13]), size=16).hex()
  'cdb2'
  """
  positions = np.asarray(positions, np.int64)
  width = elias_fano_width(positions.size, size)
  high = np.zeros(positions.size + (max(size - 1, 0) >> width) + 1, np.uint8)
  high[(positions >> width) + np.arange(positions.size)] = 1
  low = positions & ((1 << width) - 1)
  packed = bitstream.pack(low, width) if width else b''
  return packed + np.packbits(high).tobytes()


def from_elias_fano(
  data: bytes | memoryview, *, count: int, size: int
) -> np.ndarray:
  """Inverts `elias_fano`.

  Args:
    data: exactly `elias_fano_bytes(count, size)` bytes.
    count: number of positions in the stream.
    size: length of the vector, in elements.

  Returns:
    [count] int64. The caller must check that they ascend.

  Raises:
    ValueError: a wrong length or number of ones.

  >>> from_elias_fano(bytes.fromhex('cdb2'), count=4, size=16)
  array([ 3,  4,  7, 13])
  """
  if len(data) != elias_fano_bytes(count, size):
    raise ValueError(f'{len(data)} bytes hold no {count} positions')
  width = elias_fano_width(count, size)
  split = bitstream.packed_bytes(count, width)
  ones = np.flatnonzero(np.unpackbits(np.frombuffer(data[split:], np.uint8)))
  if ones.size != count:
    raise ValueError(f'{ones.size} positions where {count} are wanted')
  positions = (ones - np.arange(count)) << width
  if width:
    positions |= bitstream.unpack(data[:split], count, width)
  return positions


def _check_gap_bits(width: int) -> None:
  if not 1 <= width <= MAX_GAP_BITS:
    raise ValueError(f'width={width} is not in 1 … {MAX_GAP_BITS}')
