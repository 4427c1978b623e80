import numpy as np
import pytest

from bandwidth import quantization
from bandwidth.quantization import Sensitivity, share_with_feedback


def cost(error, hessian, rows):
  return float(np.einsum('i,ij,jk,ik->', rows, error, hessian, error))


@pytest.fixture
def problem():
  rng = np.random.default_rng(0)
  mix = rng.normal(size=(24, 24)) * np.geomspace(1, 0.05, 24)
  inputs = rng.normal(size=(4000, 24)) @ mix.T
  hessian = inputs.T @ inputs / len(inputs)
  weights = rng.normal(size=(60, 24)).astype(np.float32)
  rows = np.exp(rng.normal(size=60))
  return weights, hessian, rows


def test_costs_less_than_nearest_values(problem):
  weights, hessian, rows = problem
  found = share_with_feedback(weights, Sensitivity(hessian, rows), entries=4)
  assert found.centroids.shape == (60, 4)
  sharing = quantization.Sharing(entries=4, axis=0, reserve_zero=False)
  nearest = quantization.fit_codebook(
    weights, sharing, solver=quantization.exact_kmeans()
  ).decode()
  ours = cost(weights - found.decode(), hessian, np.ones(60))
  assert ours < 0.6 * cost(weights - nearest, hessian, np.ones(60))


def test_codebooks_are_the_best_of_their_codes(problem):
  weights, hessian, rows = problem
  found = share_with_feedback(
    weights, Sensitivity(hessian, rows), entries=4, rounds=1
  )
  damped = hessian + 0.01 * np.trace(hessian) / 24 * np.eye(24)
  root = np.linalg.cholesky(damped).T
  for w, codes, book in zip(weights, found.codes, found.centroids, strict=True):
    picks = np.eye(4)[codes]
    best = np.linalg.lstsq(root @ picks, root @ w, rcond=None)[0]
    # What no weight uses may be anything.
    used = np.unique(codes)
    np.testing.assert_allclose(book[used], best[used], atol=0.02)


def test_rows_that_share_a_codebook_count_by_their_weight(problem):
  weights, hessian, _ = problem
  rows = np.where(np.arange(60) % 3, 0.01, 1.0)

  def errors(rows):
    found = share_with_feedback(
      weights, Sensitivity(hessian, rows), entries=4, together=3
    )
    assert found.centroids.shape == (20, 4)
    error = weights - found.decode()
    return np.einsum('ij,jk,ik->i', error, hessian, error)

  heavy = errors(rows)[::3].sum()
  assert heavy < 0.8 * errors(np.ones(60))[::3].sum()


def test_codebooks_of_integers(problem):
  weights, hessian, _ = problem
  plain, whole = (
    share_with_feedback(
      weights, Sensitivity(hessian, np.ones(60)), largest=largest
    )
    for largest in (None, 20)
  )

  def rounded(tensor):
    scale = np.abs(tensor.centroids).max(-1, keepdims=True) / 20
    return np.rint(tensor.centroids / scale) * scale

  np.testing.assert_allclose(whole.centroids, rounded(whole), rtol=1e-5)
  later = np.take_along_axis(rounded(plain), plain.codes.astype(int), 1)
  ones = np.ones(60)
  ours = cost(weights - whole.decode(), hessian, ones)
  assert ours < 0.9 * cost(weights - later, hessian, ones)


def test_few_values_are_kept_as_they_are():
  weights = np.array([[0.5, -1.0, 0.5, 2.0], [3.0, 3.0, 1.0, 1.0]], np.float32)
  found = share_with_feedback(weights, Sensitivity(np.eye(4), np.ones(2)))
  np.testing.assert_allclose(found.decode(), weights, atol=1e-5)


@pytest.mark.parametrize(
  ('options', 'message'),
  [
    ({'entries': 0}, 'entries=0 is not in 1 to 256'),
    ({'together': 7}, 'together=7 does not divide 60 rows'),
    ({'rounds': 0}, 'rounds=0 is not positive'),
    ({'largest': 0}, 'largest=0 is not positive'),
  ],
)
def test_bad_arguments(problem, options, message):
  weights, hessian, rows = problem
  with pytest.raises(ValueError, match=message):
    share_with_feedback(weights, Sensitivity(hessian, rows), **options)
  with pytest.raises(ValueError, match=r'weights.shape=.* must be \(60, 24\)'):
    share_with_feedback(weights[:5], Sensitivity(hessian, rows))
