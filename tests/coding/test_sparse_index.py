import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bandwidth.coding import index_stream, sparse_index, wire


@st.composite
def positions_in(draw):
  size = draw(st.integers(1, 3000))
  chosen = draw(st.sets(st.integers(0, size - 1), max_size=60))
  return np.array(sorted(chosen), np.int64), size


def gaps_in_a_loop(positions, width):
  """Han's encoder: one filler whenever N zeros and more are ahead."""
  longest, gaps, fillers, last = 2**width - 1, [], [], -1
  for position in positions.tolist():
    while position - last - 1 > longest:
      gaps.append(longest)
      fillers.append(True)
      last += longest + 1
    gaps.append(position - last - 1)
    fillers.append(False)
    last = position
  return gaps, fillers


@settings(max_examples=80, deadline=None)
@given(positions_in(), st.integers(1, 12))
def test_relative_index(case, width):
  positions, _ = case
  gaps, fillers = gaps_in_a_loop(positions, width)
  index = sparse_index.relative_index(positions, width=width)
  assert index.gaps.tolist() == gaps
  assert index.is_filler.tolist() == fillers
  assert sparse_index.filler_counts(positions)[width - 1] == sum(fillers)
  entries = sparse_index.absolute_index(index.gaps)
  np.testing.assert_array_equal(entries[~index.is_filler], positions)


def test_fillers_follow_the_geometric_law():
  # Fillers per non-zero = (1 − p)^N / (1 − (1 − p)^N) for independent zeros.
  rng = np.random.default_rng(0)
  positions = np.flatnonzero(rng.random(400_000) < 0.04)
  fillers = sparse_index.filler_counts(positions) / positions.size
  for width in (4, 5, 6):
    power = 0.96 ** (2**width)
    assert fillers[width - 1] == pytest.approx(power / (1 - power), rel=0.05)


@settings(max_examples=80, deadline=None)
@given(positions_in())
def test_elias_fano(case):
  positions, size = case
  data = sparse_index.elias_fano(positions, size=size)
  assert len(data) == sparse_index.elias_fano_bytes(positions.size, size)
  bound = positions.size * (2 + np.log2(max(size / max(len(positions), 1), 1)))
  assert 8 * len(data) <= bound + 2 + 16
  back = sparse_index.from_elias_fano(data, count=positions.size, size=size)
  np.testing.assert_array_equal(back, positions)


@settings(max_examples=60, deadline=None)
@given(positions_in(), st.integers(0, 9))
def test_choice_is_the_smallest_by_exact_count(case, value_bits):
  positions, size = case
  choice = sparse_index.choose(positions, size=size, value_bits=value_bits)
  sizes = [
    size,
    positions.size * max(1, (size - 1).bit_length()),
    8 * sparse_index.elias_fano_bytes(positions.size, size),
  ]
  for width in range(1, 17):
    gaps, fillers = gaps_in_a_loop(positions, width)
    sizes.append(len(gaps) * width + sum(fillers) * value_bits)
  assert choice.bits == min(sizes)


def test_dense_vectors_take_a_bitmask_and_sparse_ones_gaps():
  half = np.flatnonzero(np.random.default_rng(0).random(4000) < 0.5)
  assert sparse_index.choose(half, size=4000, value_bits=5).kind == 'bitmask'
  few = np.arange(20, 4000, 25)
  choice = sparse_index.choose(few, size=4000, value_bits=5)
  assert (choice.kind, choice.width) == ('gap', 5)


@settings(max_examples=80, deadline=None)
@given(positions_in(), st.sampled_from(['fixed', 'huffman', 'ans', 'auto']))
def test_streams_round_trip(case, coder):
  positions, size = case
  if not positions.size:
    return
  plan = index_stream.plan(
    positions, size=size, coder=coder, filler_bits=lambda n: 5.0 * n
  )
  sink = wire.Sink()
  written = index_stream.write(sink, positions, plan, size=size)
  source = wire.Source(sink.getvalue(), section='test')
  found = index_stream.read(source, size=size)
  source.finish()
  np.testing.assert_array_equal(found.positions, written.positions)
  assert found.may_fill[written.may_fill].all()
  if written.may_fill.any():
    assert found.gap_bits == written.gap_bits
  np.testing.assert_array_equal(written.positions[~written.may_fill], positions)


def test_every_kind_can_be_read():
  positions, size = np.array([3, 64, 65, 99]), 100
  for kind, width in (('direct', 0), ('elias_fano', 0), ('gap', 3)):
    plan = index_stream.plan(
      positions, size=size, coder='fixed', filler_bits=lambda n: n
    )
    if kind == 'gap':
      gaps = sparse_index.relative_index(positions, width=width).gaps
      stream = index_stream.symbols.plan(
        np.bincount(gaps), coder='fixed', largest=int(gaps.max())
      )
      plan = plan._replace(stream=stream)
    sink = wire.Sink()
    plan = plan._replace(kind=kind, width=width)
    index_stream.write(sink, positions, plan, size=size)
    found = index_stream.read(
      wire.Source(sink.getvalue(), section='x'), size=size
    )
    assert set(positions) <= set(found.positions.tolist())


def test_errors():
  with pytest.raises(ValueError, match='width=17'):
    sparse_index.relative_index(np.array([1]), width=17)
  with pytest.raises(ValueError, match='hold no 4'):
    sparse_index.from_elias_fano(b'', count=4, size=16)
  with pytest.raises(ValueError, match='3 positions'):
    sparse_index.from_elias_fano(b'\xcd\xb0', count=4, size=16)
