import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bandwidth.quantization import kmeans
from bandwidth.quantization.codebook import (
  Codebook,
  Sharing,
  fit_codebook,
  nearest_codes,
  refine_centroids,
)
from bandwidth.quantization.entropy_constrained import fit_entropy_constrained


def normal(shape, seed=0):
  return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


@settings(max_examples=60, deadline=None)
@given(
  st.lists(st.floats(-1e6, 1e6, width=32, allow_subnormal=False), max_size=40),
  st.integers(2, 9),
  st.booleans(),
)
def test_codes_are_nearest_and_zeros_stay(points, entries, reserve_zero):
  weights = np.array(points, np.float32)
  sharing = Sharing(entries=entries, reserve_zero=reserve_zero)
  shared = fit_codebook(weights, sharing)
  assert shared.entries <= entries
  decoded = shared.decode()
  table = shared.centroids.astype(np.float64)
  if reserve_zero:
    np.testing.assert_array_equal(shared.codes == 0, weights == 0)
    table = table[1:]
  for weight, value in zip(weights, decoded, strict=True):
    if not (reserve_zero and weight == 0):
      nearest = np.abs(table - weight).min()
      assert abs(np.float64(value) - weight) <= nearest * (1 + 1e-6)


def test_few_distinct_values_are_exact():
  weights = np.float32([[0.1, 0.0, -3.0], [0.1, 0.1, 7.5]])
  shared = fit_codebook(weights, Sharing(entries=16))
  np.testing.assert_array_equal(shared.decode(), weights)
  assert shared.entries == 4
  assert shared.codes.dtype == np.uint8


def test_group_is_fitted_alone():
  weights = normal((5, 3, 200))
  sharing = Sharing(entries=5, axis=1)
  shared = fit_codebook(weights, sharing)
  assert shared.codes.shape == weights.shape
  assert shared.centroids.shape == (3, 5)
  for i in range(3):
    alone = fit_codebook(weights[:, i], Sharing(entries=5))
    np.testing.assert_array_equal(shared.decode()[:, i], alone.decode())


@pytest.mark.parametrize('axis', [0, -1])
def test_neighbors_share_a_row_of_centroids(axis):
  codes = np.arange(24, dtype=np.uint8).reshape(6, 4) % 2
  groups = {0: 3, -1: 2}[axis]
  centroids = normal((groups, 2))
  options = {'axis': axis, 'reserves_zero': False}
  shared = Codebook(codes=codes, centroids=centroids, **options)
  spread = np.repeat(centroids, 2, axis=0)
  whole = Codebook(codes=codes, centroids=spread, **options)
  np.testing.assert_array_equal(shared.decode(), whole.decode())
  with pytest.raises(ValueError, match=r'\(5, 2\) must be \(a divisor of'):
    Codebook(codes=codes, centroids=normal((5, 2)), **options)


def test_mask_decides_who_survives():
  weights = np.float32([5.0, 1.0, 0.0, 2.0])
  mask = np.array([False, True, True, True])
  shared = fit_codebook(weights, Sharing(entries=4), mask=mask)
  np.testing.assert_array_equal(shared.decode(), [0, 1, 0, 2])
  np.testing.assert_array_equal(shared.codes == 0, ~mask)


def test_exact_solver_and_importance():
  weights = np.float32([0.0, 1.0, 2.0, 3.0, 10.0])
  sharing = Sharing(entries=2, reserve_zero=False)
  shared = fit_codebook(weights, sharing, solver=kmeans.exact_kmeans())
  np.testing.assert_allclose(shared.centroids, [1.5, 10])
  importance = np.array([1, 1, 1, 1000, 1e-6])
  shared = fit_codebook(
    weights, sharing, solver=kmeans.exact_kmeans(), importance=importance
  )
  np.testing.assert_allclose(shared.centroids, [0.5, 3], atol=2e-3)


def test_bfloat16_and_wide_codes():
  weights = jnp.asarray(normal(5000), jnp.bfloat16)
  shared = fit_codebook(weights, Sharing(entries=300))
  assert shared.codes.dtype == np.uint16
  error = np.abs(shared.decode() - np.asarray(weights, np.float32)).max()
  assert error < 0.5


@pytest.mark.parametrize('shape', [(), (0,), (3, 0), (1, 1)])
@pytest.mark.parametrize('reserve_zero', [True, False])
def test_odd_shapes(shape, reserve_zero):
  weights = np.ones(shape, np.float32)
  sharing = Sharing(entries=4, reserve_zero=reserve_zero)
  shared = fit_codebook(weights, sharing)
  np.testing.assert_array_equal(shared.decode(), weights)
  fit = fit_entropy_constrained(weights, sharing, lagrangian=0.1)
  np.testing.assert_array_equal(fit.codebook.decode(), weights)


def test_empty_groups():
  sharing = Sharing(entries=4, axis=0)
  for shape in [(0, 3), (3, 0)]:
    assert fit_codebook(np.ones(shape), sharing).decode().shape == shape


@pytest.mark.parametrize(
  ('kwargs', 'match'),
  [
    ({'weights': [np.nan, 1]}, 'weights must be finite'),
    ({'weights': [np.inf]}, 'weights must be finite'),
    ({'mask': np.ones(3, bool)}, r'mask.shape=\(3,\)'),
    ({'importance': np.zeros(2)}, 'importance must be'),
    ({'sharing': Sharing(entries=4, axis=1)}, 'axis=1'),
  ],
)
def test_bad_fits(kwargs, match):
  weights = np.asarray(kwargs.pop('weights', [1.0, 2.0]))
  sharing = kwargs.pop('sharing', Sharing(entries=4))
  with pytest.raises(ValueError, match=match):
    fit_codebook(weights, sharing, **kwargs)


def test_mask_needs_a_zero():
  sharing = Sharing(entries=4, reserve_zero=False)
  with pytest.raises(ValueError, match='reserve_zero'):
    fit_codebook(np.ones(2), sharing, mask=np.array([True, False]))


@pytest.mark.parametrize('entries', [0, 1, 65537])
def test_bad_entries(entries):
  with pytest.raises(ValueError, match=f'entries={entries}'):
    Sharing(entries=entries)


@pytest.mark.parametrize(
  ('codes', 'centroids', 'axis', 'match'),
  [
    (np.zeros(2, int), np.zeros(1, np.float32), None, 'codes.dtype'),
    (np.zeros(2, np.uint8), np.zeros(1), None, 'centroids.dtype'),
    (np.full(2, 1, np.uint8), np.zeros(1, np.float32), None, 'code 1'),
    (np.zeros(2, np.uint8), np.ones(1, np.float32), None, 'must be 0'),
    (np.zeros(2, np.uint8), np.zeros(1, np.float32), 0, 'centroids.shape'),
    (np.zeros(2, np.uint8), np.float32([0, np.nan]), None, 'finite'),
  ],
)
def test_invariants(codes, centroids, axis, match):
  with pytest.raises(ValueError, match=match):
    Codebook(codes=codes, centroids=centroids, axis=axis)


def test_refine_equals_the_host():
  weights = normal(4000)
  start = np.linspace(weights.min(), weights.max(), 9).astype(np.float32)
  refine = jax.jit(refine_centroids, static_argnames='iterations')
  ours = refine(weights, start, iterations=20)
  sample = kmeans.sort_sample(weights)
  host = kmeans.lloyd(iterations=20)(sample, 9)
  np.testing.assert_allclose(ours, host, atol=2e-5)
  codes = np.abs(weights[:, None] - np.asarray(ours)[None]).argmin(1)
  np.testing.assert_array_equal(
    nearest_codes(jnp.asarray(weights), ours), codes
  )


def test_refine_leaves_out_masked_weights():
  weights, mask = jnp.array([1.0, 3.0, 99.0]), jnp.array([True, True, False])
  ours = refine_centroids(weights, jnp.zeros(1), iterations=3, mask=mask)
  np.testing.assert_allclose(ours, [2.0])


def objective(weights, fit, lagrangian):
  """J by its definition, from the decoded values and code frequencies."""
  error = ((weights - fit.codebook.decode()) ** 2).sum()
  _, counts = np.unique(fit.codebook.codes, return_counts=True)
  bits = -(counts * np.log2(counts / weights.size)).sum()
  return error, bits, error + lagrangian * bits


@pytest.mark.parametrize('reserve_zero', [True, False])
@pytest.mark.parametrize('lagrangian', [0.0, 0.003, 0.03])
def test_entropy_constrained_reports_what_it_did(reserve_zero, lagrangian):
  weights = normal(3000) * (normal(3000, 1) > 0)
  sharing = Sharing(entries=24, reserve_zero=reserve_zero)
  fit = fit_entropy_constrained(weights, sharing, lagrangian=lagrangian)
  error, bits, total = objective(weights, fit, lagrangian)
  assert fit.distortion == pytest.approx(error, rel=1e-4)
  assert fit.bits == pytest.approx(bits)
  if reserve_zero:
    assert (fit.codebook.decode()[weights == 0] == 0).all()
  plain = fit_entropy_constrained(weights, sharing, lagrangian=0.0)
  assert total <= objective(weights, plain, lagrangian)[2] * (1 + 1e-6)


def test_entropy_constrained_assigns_by_its_criterion():
  weights, lagrangian = normal(2000), 0.02
  sharing = Sharing(entries=16, reserve_zero=False)
  fit = fit_entropy_constrained(weights, sharing, lagrangian=lagrangian)
  table = fit.codebook.centroids
  rates = -np.log2(np.bincount(fit.codebook.codes) / weights.size)
  cost = (weights[:, None] - table[None]) ** 2 + lagrangian * rates[None]
  chosen = cost[np.arange(weights.size), fit.codebook.codes]
  assert np.quantile(chosen - cost.min(1), 0.99) < 1e-3


def test_more_lagrangian_fewer_bits():
  weights = normal(3000)
  bits = [
    fit_entropy_constrained(weights, Sharing(entries=64), lagrangian=x).bits
    for x in (0.0, 0.001, 0.01, 0.1, 100.0)
  ]
  assert bits == sorted(bits, reverse=True)
  assert bits[-1] == 0


def test_bad_entropy_constraints():
  with pytest.raises(ValueError, match='lagrangian=-1'):
    fit_entropy_constrained(np.ones(2), Sharing(entries=2), lagrangian=-1)
  with pytest.raises(ValueError, match='axis=0'):
    fit_entropy_constrained(
      np.ones(2), Sharing(entries=2, axis=0), lagrangian=0
    )
