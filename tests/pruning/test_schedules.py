import jax
import numpy as np
import pytest
from traces import Counted

from bandwidth import pruning

SCHEDULES = {
  'one_shot': pruning.one_shot(0.9, step=5),
  'cubic': pruning.cubic(0.9, begin=3, end=11, initial=0.2),
  'iterative': pruning.iterative(0.9, steps=3, frequency=4, begin=2),
  'iterative_linear': pruning.iterative_linear(0.9, steps=3, frequency=4),
  'every': pruning.every(pruning.cubic(0.9, end=10), 4, begin=1),
  'cosine': pruning.cosine_fraction(0.3, end=12),
}


@pytest.mark.parametrize('name', SCHEDULES)
def test_jit_equals_no_jit_in_one_compilation(name):
  schedule = SCHEDULES[name]
  counted = Counted(schedule)
  traced = jax.jit(counted)
  for t in range(20):
    value = schedule(t)
    assert value.dtype == np.float32
    assert value.shape == ()
    np.testing.assert_allclose(traced(t), value, rtol=1e-6, atol=1e-7)
  assert counted.traces == 1


def test_cubic_equals_zhu_and_gupta():
  s_i, s_f, t_0, t_1 = 0.2, 0.9, 3, 11
  for t in range(20):
    clamped = min(max(t, t_0), t_1)
    s = s_f + (s_i - s_f) * (1 - (clamped - t_0) / (t_1 - t_0)) ** 3
    np.testing.assert_allclose(SCHEDULES['cubic'](t), s, rtol=1e-5)
  assert SCHEDULES['cubic'](10**6) == np.float32(0.9)


def test_iterative_removes_equal_shares():
  schedule = pruning.iterative(0.9, steps=3, frequency=4, begin=2, initial=0.1)
  density = [1 - float(schedule(t)) for t in (0, 2, 6, 10, 500)]
  ratios = np.divide(density[1:4], density[:3])
  np.testing.assert_allclose(ratios, [(0.1 / 0.9) ** (1 / 3)] * 3, rtol=1e-5)
  assert schedule(500) == np.float32(0.9)
  assert schedule(5) == schedule(2)


def test_iterative_linear_removes_equal_numbers():
  values = [float(SCHEDULES['iterative_linear'](t)) for t in (0, 4, 8, 12)]
  np.testing.assert_allclose(values, [0.3, 0.6, 0.9, 0.9], rtol=1e-6)


def test_one_shot_and_every():
  values = [float(SCHEDULES['one_shot'](t)) for t in (0, 4, 5, 9)]
  np.testing.assert_allclose(values, [0, 0, 0.9, 0.9], rtol=1e-6)
  cubic = pruning.cubic(0.9, end=10)
  for t in range(1, 20):
    assert SCHEDULES['every'](t) == cubic(1 + (t - 1) // 4 * 4)


def test_cosine_equals_rigl():
  for t in range(15):
    f = 0.3 / 2 * (1 + np.cos(min(t, 12) * np.pi / 12))
    np.testing.assert_allclose(SCHEDULES['cosine'](t), f, atol=1e-7)


@pytest.mark.parametrize(
  ('make', 'match'),
  [
    (lambda: pruning.one_shot(1.1), 'sparsity=1.1'),
    (lambda: pruning.one_shot(0.5, step=-1), 'step=-1'),
    (lambda: pruning.cubic(2.0, end=5), 'final=2.0'),
    (lambda: pruning.cubic(0.5, begin=5, end=5), 'end=5'),
    (lambda: pruning.cubic(0.5, end=5, initial=-1), 'initial=-1'),
    (lambda: pruning.iterative(1.0, steps=2, frequency=1), 'no ratio'),
    (lambda: pruning.iterative(0.5, steps=0, frequency=1), 'steps=0'),
    (lambda: pruning.iterative(0.5, steps=2, frequency=0), 'frequency=0'),
    (lambda: pruning.every(lambda t: t, 0), 'frequency=0'),
    (lambda: pruning.cosine_fraction(1.5, end=3), 'fraction=1.5'),
    (lambda: pruning.cosine_fraction(0.5, end=0), 'end=0'),
  ],
)
def test_bad_arguments(make, match):
  with pytest.raises(ValueError, match=match):
    make()
