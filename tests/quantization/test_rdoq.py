import constriction
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bandwidth.quantization import rdoq


def normal(shape, seed=0):
  return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(-6, 6), min_size=1, max_size=40))
def test_adaptive_bits_is_the_coder_run_in_order(points):
  levels = np.array(points)
  low, high = min(0, *points), max(0, *points)
  counts = np.full(high - low + 1, 0.5)
  bits = 0.0
  for level in levels - low:
    bits -= np.log2(counts[level] / counts.sum())
    counts[level] += 1
  assert rdoq.adaptive_bits(levels) == pytest.approx(bits, abs=1e-6)


def test_static_bits_is_what_a_range_coder_takes():
  levels = np.rint(2 * normal(20000)).astype(np.int32)
  counts = np.bincount(levels - levels.min())
  model = constriction.stream.model.Categorical(
    counts / counts.sum(), perfect=False
  )
  coder = constriction.stream.stack.AnsCoder()
  coder.encode_reverse((levels - levels.min()).astype(np.int32), model)
  taken = coder.num_bits()
  assert rdoq.static_bits(levels) == pytest.approx(taken, rel=2e-3)


def test_no_lagrangian_rounds():
  weights = normal((30, 20))
  fit = rdoq.optimize_levels(weights, step=0.25, lagrangian=0.0)
  np.testing.assert_array_equal(fit.tensor.levels, np.rint(weights / 0.25))
  error = ((fit.tensor.decode() - weights) ** 2).sum()
  assert fit.distortion == pytest.approx(error, rel=1e-4)


@pytest.mark.parametrize('lagrangian', [0.001, 0.01, 0.1])
def test_beats_rounding_and_any_single_change(lagrangian):
  weights = normal(2000)
  step = 0.2

  def objective(levels):
    error = ((levels * step - weights) ** 2).sum()
    return error + lagrangian * rdoq.adaptive_bits(levels)

  fit = rdoq.optimize_levels(weights, step=step, lagrangian=lagrangian)
  levels = fit.tensor.levels.astype(int)
  best = objective(levels)
  total = fit.distortion + lagrangian * fit.bits
  assert total == pytest.approx(best, rel=1e-4)
  assert best < objective(np.rint(weights / step).astype(int))
  table = rdoq.adaptive_rates()(levels)
  cost = (np.arange(-30, 31)[:, None] * step - weights) ** 2
  spare = np.full(61, np.inf)
  spare[table.low + 30 : table.low + 30 + table.bits.size] = table.bits
  cost = cost + lagrangian * spare[:, None]
  chosen = cost[levels + 30, np.arange(weights.size)]
  assert np.mean(chosen > cost.min(0) + 0.05 * lagrangian) < 0.01
  # Importance takes another path, of candidates.
  other = rdoq.optimize_levels(
    weights, step=step, lagrangian=lagrangian, importance=np.ones(2000)
  )
  other = objective(other.tensor.levels.astype(int))
  assert other == pytest.approx(best, rel=0.12)


def test_rates_and_distortions_trade_off():
  weights = normal(3000)
  fits = [
    rdoq.optimize_levels(weights, step=0.1, lagrangian=x)
    for x in (0.0, 1e-4, 1e-3, 1e-2, 1e-1, 10.0)
  ]
  bits = [fit.bits for fit in fits]
  assert bits == sorted(bits, reverse=True)
  errors = [fit.distortion for fit in fits]
  assert errors == sorted(errors)
  assert not fits[-1].tensor.levels.any()


def test_important_weights_keep_their_values():
  weights = normal(1000)
  importance = np.where(np.arange(1000) < 100, 1e6, 1.0)
  fit = rdoq.optimize_levels(
    weights, step=0.1, lagrangian=0.1, importance=importance
  )
  wanted = np.rint(weights[:100] / np.float32(0.1))
  np.testing.assert_array_equal(fit.tensor.levels[:100], wanted)
  assert np.abs(fit.tensor.decode()[100:] - weights[100:]).max() > 0.2


def test_channels():
  weights = normal((40, 3)) * np.array([1, 10, 0.1], np.float32)
  steps = np.array([0.1, 1.0, 0.01])
  fit = rdoq.optimize_levels(weights, step=steps, lagrangian=0.0, axis=1)
  np.testing.assert_array_equal(fit.tensor.levels, np.rint(weights / steps))
  # The coarse step makes errors of that channel dear, and so its levels exact.
  fit = rdoq.optimize_levels(weights, step=steps, lagrangian=0.003, axis=1)
  nearest = np.rint(weights / steps)
  np.testing.assert_array_equal(fit.tensor.levels[:, 1], nearest[:, 1])
  assert (fit.tensor.levels[:, 2] != nearest[:, 2]).mean() > 0.3


def test_search_takes_the_best():
  weights = normal(1000)
  steps = [0.01, 0.1, 0.3, 1.0]
  best = rdoq.search_step(weights, steps=steps, lagrangian=0.01)
  totals = []
  for step in steps:
    fit = rdoq.optimize_levels(weights, step=step, lagrangian=0.01)
    totals.append(fit.distortion + 0.01 * fit.bits)
  assert best.distortion + 0.01 * best.bits == min(totals)


@pytest.mark.parametrize('shape', [(), (0,), (3, 0)])
def test_odd_shapes(shape):
  fit = rdoq.optimize_levels(np.ones(shape), step=0.5, lagrangian=0.01)
  assert fit.tensor.decode().shape == shape


@pytest.mark.parametrize(
  ('kwargs', 'match'),
  [
    ({'step': 0.0}, 'step must be'),
    ({'step': np.ones(2)}, 'step is float32'),
    ({'lagrangian': -1.0}, 'lagrangian=-1'),
    ({'importance': -np.ones(3)}, 'importance must be'),
    ({'importance': np.ones(2)}, 'importance.shape'),
    ({'weights': np.array([np.nan])}, 'weights must be finite'),
    ({'step': 1e-30}, 'it is too small'),
  ],
)
def test_bad_arguments(kwargs, match):
  kwargs = {'weights': np.ones(3), 'step': 1.0, 'lagrangian': 0.1} | kwargs
  with pytest.raises(ValueError, match=match):
    rdoq.optimize_levels(kwargs.pop('weights'), **kwargs)
