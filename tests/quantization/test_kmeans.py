import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.cluster import KMeans

from bandwidth.quantization import kmeans


def brute_inertia(values, centroids, importance=None):
  weight = np.ones(len(values)) if importance is None else importance
  distance = (values[:, None] - np.asarray(centroids)[None]) ** 2
  return (weight * distance.min(1)).sum()


def best_inertia(values, clusters):
  """Tries every way to cut the sorted values: O(n²k), plainly right."""
  values = np.sort(values)
  n = len(values)
  best = np.full((clusters + 1, n + 1), np.inf)
  best[0, 0] = 0
  for k in range(1, clusters + 1):
    for end in range(1, n + 1):
      for begin in range(end):
        run = values[begin:end]
        cost = ((run - run.mean()) ** 2).sum()
        best[k, end] = min(best[k, end], best[k - 1, begin] + cost)
  return best[1:, n].min()


@settings(max_examples=60, deadline=None)
@given(
  st.lists(st.integers(-20, 20), min_size=1, max_size=14),
  st.integers(1, 6),
)
def test_exact_is_optimal(points, clusters):
  values = np.array(points, float)
  centroids = kmeans.exact_kmeans()(kmeans.sort_sample(values), clusters)
  assert len(centroids) <= clusters
  found = brute_inertia(values, centroids)
  assert found == pytest.approx(best_inertia(values, clusters), abs=1e-9)


@pytest.mark.parametrize(
  ('size', 'clusters'), [(50, 3), (1000, 16), (4000, 64)]
)
def test_exact_equals_kmeans1d(size, clusters):
  kmeans1d = pytest.importorskip('kmeans1d')
  values = np.random.default_rng(size).standard_normal(size)
  oracle = kmeans1d.cluster(values, clusters).centroids
  ours = kmeans.exact_kmeans()(kmeans.sort_sample(values), clusters)
  np.testing.assert_allclose(ours, oracle, atol=1e-9)


def test_exact_with_coarse_cuts_is_near_the_optimum():
  values = np.random.default_rng(0).standard_normal(20000)
  sample = kmeans.sort_sample(values)
  coarse = kmeans.exact_kmeans(resolution=500)(sample, 8)
  full = kmeans.exact_kmeans()(sample, 8)
  assert kmeans.inertia(sample, coarse) < 1.01 * kmeans.inertia(sample, full)


def test_lloyd_equals_scikit_learn():
  values = np.random.default_rng(1).standard_normal(3000)
  start = np.linspace(values.min(), values.max(), 7)
  oracle = KMeans(7, init=start[:, None], n_init=1, tol=0, max_iter=500)
  oracle.fit(values[:, None])
  ours = kmeans.lloyd()(kmeans.sort_sample(values), 7)
  oracle = np.sort(oracle.cluster_centers_.ravel())
  np.testing.assert_allclose(ours, oracle, atol=1e-6)


def test_lloyd_with_importance_equals_scikit_learn():
  rng = np.random.default_rng(2)
  values, weight = rng.standard_normal(500), rng.uniform(0.1, 5, 500)
  start = np.linspace(values.min(), values.max(), 4)
  oracle = KMeans(4, init=start[:, None], n_init=1, tol=0, max_iter=500)
  oracle.fit(values[:, None], sample_weight=weight)
  ours = kmeans.lloyd()(kmeans.sort_sample(values, weight), 4)
  oracle = np.sort(oracle.cluster_centers_.ravel())
  np.testing.assert_allclose(ours, oracle, atol=1e-6)


def test_lloyd_uses_every_cluster():
  # Evenly spaced centroids would leave 14 of 16 without a weight.
  values = np.append(np.random.default_rng(3).standard_normal(1000), 1e4)
  sample = kmeans.sort_sample(values)
  centroids = kmeans.lloyd()(sample, 16)
  assert (np.diff(kmeans.nearest_cuts(sample, centroids)) > 0).all()


def test_inertia_equals_brute_force():
  rng = np.random.default_rng(4)
  values, weight = rng.standard_normal(100), rng.uniform(1, 2, 100)
  centroids = np.array([-1.0, 0.3, 0.4])
  ours = kmeans.inertia(kmeans.sort_sample(values, weight), centroids)
  assert ours == pytest.approx(brute_inertia(values, centroids, weight))


def test_initializers_by_hand():
  sample = kmeans.sort_sample(np.array([4.0, 0.0, 1.0, 1.0]))
  np.testing.assert_array_equal(kmeans.linear_init(sample, 3), [0, 2, 4])
  np.testing.assert_array_equal(kmeans.density_init(sample, 4), [0, 1, 1, 4])


def test_forgy_picks_distinct_values_by_key():
  sample = kmeans.sort_sample(np.repeat(np.arange(10.0), 5))
  first = kmeans.forgy_init(jax.random.key(1))(sample, 6)
  assert len(set(first)) == 6
  assert set(first) <= set(range(10))
  again = kmeans.forgy_init(jax.random.key(1))(sample, 6)
  np.testing.assert_array_equal(first, again)
  other = kmeans.forgy_init(jax.random.key(2))(sample, 6)
  assert not np.array_equal(first, other)


def test_bad_arguments():
  with pytest.raises(ValueError, match='iterations=-1'):
    kmeans.lloyd(iterations=-1)
  with pytest.raises(ValueError, match='resolution=0'):
    kmeans.exact_kmeans(resolution=0)
