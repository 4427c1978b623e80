import heapq

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bandwidth.coding.coders import huffman


def heap_total(counts):
  """Bits of Huffman's own algorithm: the sum of all merged weights."""
  heap = [c for c in counts if c]
  heapq.heapify(heap)
  total = 0
  while len(heap) > 1:
    merged = heapq.heappop(heap) + heapq.heappop(heap)
    total += merged
    heapq.heappush(heap, merged)
  return total


counts_lists = st.lists(st.integers(0, 1000), min_size=2, max_size=60).filter(
  lambda counts: sum(c > 0 for c in counts) > 1
)


@settings(max_examples=100, deadline=None)
@given(counts_lists)
def test_total_is_huffmans_and_near_entropy(counts):
  counts = np.array(counts)
  lengths = huffman.code_lengths(counts)
  total = int(counts @ lengths.astype(int))
  assert total == heap_total(counts.tolist())
  kept = counts[counts > 0]
  entropy = float(kept @ np.log2(kept.sum() / kept))
  assert entropy - 1e-6 <= total < entropy + kept.sum()
  assert sum(2.0 ** -int(n) for n in lengths if n) == 1
  assert not lengths[counts == 0].any()


def test_cap_is_optimal_against_search():
  counts = np.array([1, 1, 2, 4, 8, 16])
  best = min(
    int(counts @ np.array(lengths))
    for lengths in np.ndindex(*[4] * 6)
    if all(lengths) and sum(2.0**-n for n in lengths) <= 1
  )
  capped = huffman.code_lengths(counts, max_length=3)
  assert capped.max() == 3
  assert int(counts @ capped.astype(int)) == best


def test_fibonacci_weights_are_capped_at_fifteen():
  counts = [1, 1]
  while len(counts) < 40:
    counts.append(counts[-1] + counts[-2])
  lengths = huffman.code_lengths(np.array(counts))
  assert lengths.max() == 15
  assert sum(2.0 ** -int(n) for n in lengths) == 1


def test_canonical_codes_by_hand():
  codes = huffman.canonical_codes(np.array([3, 1, 0, 2, 3], np.uint8))
  assert codes.tolist() == [0b110, 0b0, 0, 0b10, 0b111]


def test_stream_by_hand():
  lengths = np.array([1, 2, 2], np.uint8)
  stream = huffman.encode(np.array([2, 0, 1]), lengths)
  assert stream.data == bytes([0b11010000])
  assert stream.lane_bits.tolist() == [5]


@settings(max_examples=40, deadline=None)
@given(
  st.sampled_from([0, 1, 2, 100, 2047, 2048, 2049, 9000]),
  st.integers(1, 400),
  st.integers(0, 2**32 - 1),
)
def test_round_trip(count, alphabet, seed):
  rng = np.random.default_rng(seed)
  odds = rng.dirichlet(np.full(alphabet, 0.2))
  symbols = rng.choice(alphabet, size=count, p=odds)
  lengths = huffman.code_lengths(np.bincount(symbols, minlength=alphabet))
  stream = huffman.encode(symbols, lengths)
  assert int(stream.lane_bits.sum()) == (
    int(lengths[symbols].astype(int).sum())
    if np.count_nonzero(lengths) > 1
    else 0
  )
  decoded = huffman.decode(*stream, lengths, count)
  np.testing.assert_array_equal(decoded, symbols)


def test_errors():
  with pytest.raises(ValueError, match='codes longer than'):
    huffman.code_lengths(np.ones(9), max_length=3)
  with pytest.raises(ValueError, match='max_length=16'):
    huffman.code_lengths(np.ones(9), max_length=16)
  with pytest.raises(ValueError, match='Kraft'):
    huffman.canonical_codes(np.array([1, 1, 1]))
  with pytest.raises(ValueError, match='symbol 2 has no code'):
    huffman.encode(np.array([2]), np.array([1, 1], np.uint8))
  lengths = np.array([1, 2, 2], np.uint8)
  with pytest.raises(ValueError, match='another bit'):
    huffman.decode(b'\xff', np.array([5]), lengths, 3)
  with pytest.raises(ValueError, match='lengths of the lanes'):
    huffman.decode(b'\xff', np.array([5, 5]), lengths, 3)
