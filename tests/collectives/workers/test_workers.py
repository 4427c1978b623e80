import hypothesis
import jax
import ml_dtypes
import numpy as np
import pytest
from hypothesis import strategies as st

from bandwidth.collectives import resplit_workers

counts = st.integers(1, 12)


@hypothesis.given(old=counts, new=counts, seed=st.integers(0, 99))
@hypothesis.settings(deadline=None, max_examples=60)
def test_the_mean_is_conserved(old, new, seed):
  v = np.random.default_rng(seed).normal(size=(old, 5))
  out = resplit_workers({'v': v}, new)['v']
  assert out.shape == (new, 5)
  np.testing.assert_allclose(out.mean(0), v.mean(0), atol=1e-12)


@pytest.mark.parametrize(('old', 'new'), [(8, 4), (4, 8), (8, 1), (2, 8)])
def test_powers_of_two_conserve_exactly(old, new):
  v = np.random.default_rng(0).integers(-99, 99, (old, 3)).astype(np.float32)
  out = resplit_workers(v, new)
  np.testing.assert_array_equal(out.sum(0) / new, v.sum(0) / old)


def test_groups_are_averaged_and_children_copied():
  v = np.array([[1.0], [2.0], [3.0], [6.0]])
  np.testing.assert_array_equal(resplit_workers(v, 2), [[1.5], [4.5]])
  np.testing.assert_array_equal(
    resplit_workers(v[:2], 4), [[1.0], [1.0], [2.0], [2.0]]
  )


def test_three_to_two_by_hand():
  v = np.array([3.0, 6.0, 9.0])
  # New worker 0 covers all of old 0 and half of old 1: (3 + 6/2) * 2/3.
  np.testing.assert_allclose(resplit_workers(v, 2), [4.0, 8.0])


def test_integers_are_taken_from_a_worker_and_dtypes_kept():
  state = {
    'n': np.array([7, 8, 9, 10], np.int32),
    'h': np.array([1, 3, 5, 7], ml_dtypes.bfloat16),
  }
  out = resplit_workers(state, 2)
  np.testing.assert_array_equal(out['n'], [7, 9])
  assert out['n'].dtype == np.int32
  np.testing.assert_array_equal(out['h'].astype(float), [2.0, 6.0])
  assert out['h'].dtype == ml_dtypes.bfloat16


def test_same_count_is_untouched_and_empty_state_stays_empty():
  v = np.array([0.1, 0.2], np.float32)
  np.testing.assert_array_equal(resplit_workers(v, 2), v)
  assert resplit_workers((), 3) == ()
  assert jax.tree.leaves(resplit_workers({'a': {}}, 3)) == []


def test_bad_arguments():
  with pytest.raises(ValueError, match='workers=0'):
    resplit_workers(np.zeros(2), 0)
  with pytest.raises(ValueError, match='leading axes'):
    resplit_workers([np.zeros(2), np.zeros(3)], 2)
