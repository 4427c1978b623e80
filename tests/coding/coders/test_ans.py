import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bandwidth.coding.coders import ans


def another_reader(data, table, count):
  """Decodes by the text of the module, in Python's integers."""
  present = np.flatnonzero(table.exponents).tolist()
  weights = []
  for symbol, mantissa in zip(present, table.mantissas.tolist(), strict=True):
    power = int(table.exponents[symbol]) - 1
    weights.append((2**table.mantissa_bits + mantissa) << power)
  size = len(present)
  frequency = [1 + w * (2**20 - size) // sum(weights) for w in weights]
  frequency[frequency.index(max(frequency))] += 2**20 - sum(frequency)
  edges = [
    sum(frequency[:i]) * (2**24 - size) // 2**20 + i for i in range(size)
  ]
  edges.append(2**24)
  data += bytes(-len(data) % 4)
  words = [
    int.from_bytes(data[i : i + 4], 'little') for i in range(0, len(data), 4)
  ]
  state, out = 0, []

  def refill():
    nonlocal state
    if state < 2**32 and words:
      state = state << 32 | words.pop()

  refill()
  refill()
  for _ in range(count):
    low = state % 2**24
    i = max(j for j in range(size) if edges[j] <= low)
    state = (state >> 24) * (edges[i + 1] - edges[i]) + low - edges[i]
    refill()
    out.append(present[i])
  assert state == 0
  assert not words
  return out


streams = st.tuples(
  st.integers(2, 40),
  st.integers(2, 3000),
  st.sampled_from(ans.MANTISSAS),
  st.integers(0, 2**32 - 1),
)


@settings(max_examples=40, deadline=None)
@given(streams)
def test_round_trip_size_and_another_reader(stream):
  alphabet, count, mantissa_bits, seed = stream
  rng = np.random.default_rng(seed)
  odds = rng.dirichlet(np.full(alphabet, 0.3))
  symbols = rng.choice(alphabet, size=count, p=odds)
  symbols[:2] = 0, alphabet - 1
  counts = np.bincount(symbols)
  table = ans.make_table(counts, mantissa_bits=mantissa_bits)
  data = ans.encode(symbols, table)
  np.testing.assert_array_equal(ans.decode(data, table, count), symbols)
  if count <= 300:
    assert another_reader(data, table, count) == symbols.tolist()
  bits = float(ans.bits_of_symbols(table)[symbols].sum())
  assert bits / 8 - 1 <= len(data) <= bits / 8 + 5


def test_tables_come_near_entropy():
  rng = np.random.default_rng(0)
  counts = rng.integers(1, 10_000, size=64)
  odds = counts / counts.sum()
  entropy = -float(odds @ np.log2(odds))
  for mantissa_bits, excess in ((0, 0.05), (2, 0.003), (6, 1e-4)):
    table = ans.make_table(counts, mantissa_bits=mantissa_bits)
    assert ans.frequencies(table).sum() == 1 << 20
    cost = float(odds @ ans.bits_of_symbols(table))
    assert entropy <= cost + 1e-9 <= entropy + excess


def test_rare_symbols_keep_a_frequency():
  table = ans.make_table(np.array([2**30, 1, 0, 1]), mantissa_bits=4)
  assert ans.frequencies(table).min() >= 1
  assert np.isinf(ans.bits_of_symbols(table)[2])


def test_errors():
  table = ans.make_table(np.array([5, 0, 3]), mantissa_bits=1)
  with pytest.raises(ValueError, match='symbol 1 is not'):
    ans.encode(np.array([0, 1]), table)
  with pytest.raises(ValueError, match='symbol 7 is not'):
    ans.encode(np.array([7]), table)
  data = ans.encode(np.array([0, 2, 0, 2]), table)
  with pytest.raises(ValueError, match='first state'):
    ans.decode(data, table, 3)
  with pytest.raises(ValueError, match='zero byte'):
    ans.decode(data + b'\0', table, 4)
  lonely = ans.Table(np.array([1], np.uint8), np.zeros(1, np.uint8), 0)
  with pytest.raises(ValueError, match='1 symbols'):
    ans.frequencies(lonely)
