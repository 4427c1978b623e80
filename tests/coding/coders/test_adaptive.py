import contextlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bandwidth.coding import wire
from bandwidth.coding.coders import adaptive, binary, logistic, significance


def another_reader(data, probabilities):
  """Decodes by the text of `binary`, in Python's integers."""
  data = data + bytes(-len(data) % 4)
  words = np.frombuffer(data, '>u4').tolist() + [0] * len(probabilities)
  words = iter([*words, 0, 0])
  low, span = 0, 2**64 - 1
  point = next(words) << 32 | next(words)
  out = []
  for p in probabilities:
    split = (2**16 - p) * (2**24 - 2) // 2**16 + 1
    scale = span >> 24
    bit = (point - low) % 2**64 // scale >= split
    if bit:
      low = (low + scale * split) % 2**64
      span = scale * (2**24 - split)
    else:
      span = scale * split
    if span < 2**32:
      low, span = (low << 32) % 2**64, span << 32
      point = (point << 32 | next(words)) % 2**64
    out.append(int(bit))
  return out


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 600), st.booleans(), st.integers(0, 2**32 - 1))
def test_range_coder(count, skewed, seed):
  rng = np.random.default_rng(seed)
  probabilities = rng.integers(1, 200 if skewed else 65536, size=count)
  bits = (rng.random(count) * 65536 < probabilities).astype(np.int32)
  encoder = binary.Encoder()
  encoder.code(probabilities[: count // 2], bits[: count // 2])
  encoder.code(probabilities[count // 2 :], bits[count // 2 :])
  data = encoder.getvalue()
  assert another_reader(data, probabilities.tolist()) == bits.tolist()
  decoder = binary.Decoder(data)
  parts = [
    decoder.code(part, None) for part in np.array_split(probabilities, 3)
  ]
  np.testing.assert_array_equal(np.concatenate(parts), bits)
  ideal = -np.log2(np.where(bits, probabilities, 65536 - probabilities) / 65536)
  assert len(data) <= ideal.sum() / 8 + 1.1


def test_stretch_and_squash():
  p = np.arange(16, 65521)
  exact = 256 * np.log2(p / (65536 - p))
  np.testing.assert_allclose(logistic.stretch()[p], exact, atol=1)
  table, bound = logistic.squash()
  domain = np.arange(-bound, bound + 1)
  exact = 65536 / (1 + 2.0 ** (-domain / 256))
  assert np.abs(table - exact).max() < 200
  assert (np.diff(table) >= 0).all()


def test_counts_by_hand():
  counts = logistic.Counts(2)
  context = np.array([0, 0, 1])
  assert counts.probability(context).tolist() == [32768] * 3
  counts.update(context, np.array([1, 0, 0]))
  # (2·1 + 1/2) / (2·2 + 1) and (0 + 1/2) / (2 + 1), of 2^16.
  expected = [(2 * 65536 + 32768) // 5, 32768 // 3]
  assert counts.probability(np.array([0, 1])).tolist() == expected


shapes = st.lists(st.integers(1, 12), min_size=0, max_size=4).map(tuple)


@settings(max_examples=60, deadline=None)
@given(shapes, st.floats(0, 1), st.booleans(), st.integers(0, 2**32 - 1))
def test_round_trip(shape, density, levels, seed):
  rng = np.random.default_rng(seed)
  # Heavy tails, so that the escape code is met.
  values = np.exp(rng.exponential(2, size=shape)).astype(np.int64) % 60_000
  codes = np.where(rng.random(shape) < density, values, 0).astype(np.uint32)
  entries = 0 if levels else max(int(codes.max()) + 1, 2)
  sink = wire.Sink()
  if not adaptive.write(sink, codes, entries=entries):
    assert sum(adaptive.matrix_shape(shape)) > 64
    assert not len(sink)
    return
  source = wire.Source(sink.getvalue(), section='test')
  out = np.zeros(shape, np.uint32)
  adaptive.read(source, out, entries=entries)
  np.testing.assert_array_equal(out, codes)
  assert source.counts == +sink.counts
  assert not source.remaining


def entropy_bytes(codes):
  counts = np.bincount(codes.reshape(-1))
  counts = counts[counts > 0]
  return float(counts @ np.log2(codes.size / counts)) / 8


def size_of(codes, entries=0):
  sink = wire.Sink()
  assert adaptive.write(sink, codes.astype(np.uint32), entries=entries)
  return len(sink)


def test_costs_little_more_than_entropy_where_there_is_no_structure():
  rng = np.random.default_rng(1)
  shape = (200, 100)
  codes = np.where(rng.random(shape) < 0.03, rng.integers(1, 5, shape), 0)
  assert size_of(codes) < 1.06 * entropy_bytes(codes) + 20


def test_finds_structure():
  rng = np.random.default_rng(2)
  # Images of 14 by 14: what a unit sees is a patch, and half the units do not.
  y, x = np.divmod(np.arange(196)[:, None], 14)
  cy, cx = rng.integers(0, 14, (2, 1, 60))
  near = (abs(y - cy) + abs(x - cx) < 4) & (rng.random((1, 60)) < 0.5)
  codes = np.where(near & (rng.random(near.shape) < 0.6), 2, 0)
  assert size_of(codes) < 0.75 * entropy_bytes(codes)
  strides = significance.choose_strides(codes.shape, codes > 0)
  assert strides[0] == 14


def test_work_is_bounded():
  assert not adaptive.allows((1 << 14, 1))
  assert not adaptive.allows((0, 3))
  sink = wire.Sink()
  assert not adaptive.write(sink, np.zeros((3000, 4), np.uint32), entries=0)
  out = np.zeros((3000, 4), np.uint32)
  with pytest.raises(ValueError, match='bytes for shape'):
    adaptive.read(wire.Source(b'\0\0\0', section='x'), out, entries=0)


def test_bits_are_bounded_by_bytes():
  # All alike, so that a bit costs next to nothing: 78 of them for each value.
  codes = np.full((400, 400), 2**32 - 1, np.uint32)
  assert not adaptive.write(wire.Sink(), codes, entries=0)
  encoder = binary.Encoder()
  head = adaptive._Head([], 0, False, False)
  matrix = codes.astype(np.int64)
  adaptive._code(encoder, codes.shape, truth=matrix, head=head, entries=0)
  data = encoder.getvalue()
  assert len(encoder) > 2**16 + 2**11 * len(data)
  source = wire.Source(b'\0\0' + data, section='x')
  with pytest.raises(ValueError, match=r'x, byte \d+: .*more bits than so few'):
    adaptive.read(source, np.zeros_like(codes), entries=0)


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=60), st.booleans())
def test_noise_is_read_or_refused(data, levels):
  out = np.zeros((5, 4, 6), np.uint8)
  source = wire.Source(data, section='x')
  with contextlib.suppress(ValueError):
    adaptive.read(source, out, entries=0 if levels else 16)


def test_magnitudes_of_all_sizes():
  codes = np.array(
    [1, 2, 29, 30, 31, 32, 33, 1000, 2**31, 2**32 - 1, 2**32 - 2]
  )
  sink = wire.Sink()
  assert adaptive.write(sink, codes.astype(np.uint32), entries=0)
  out = np.zeros(codes.shape, np.uint32)
  adaptive.read(wire.Source(sink.getvalue(), section='x'), out, entries=0)
  np.testing.assert_array_equal(out, codes)
