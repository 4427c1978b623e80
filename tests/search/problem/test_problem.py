"""Problems: what is evaluated, kept and called best."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toy import Toy, all_candidates, costs_in_numpy, scores_in_numpy

from bandwidth.search.problem.interface import (
  History,
  Problem,
  best,
  evaluate,
  join,
  make_data,
)


def test_evaluate_scores_and_prices_in_order():
  toy = Toy()
  rng = np.random.default_rng(0)
  candidates = rng.permutation(all_candidates(toy.space))[:50].astype(np.int32)
  run = jax.jit(lambda data, x: evaluate(toy.problem, data, x))
  history = run(toy.data, candidates)
  np.testing.assert_array_equal(history.candidates, candidates)
  np.testing.assert_array_equal(
    history.costs, costs_in_numpy(toy.costs, candidates)
  )
  scores = scores_in_numpy(toy.space.widths(), toy.importance, candidates)
  np.testing.assert_allclose(history.scores, scores, rtol=1e-5, atol=1e-6)
  assert history.scores.dtype == jnp.float32
  assert history.costs.dtype == history.candidates.dtype == jnp.int32
  # Candidates are data: others cost no trace.
  run(toy.data, candidates[::-1].copy())
  assert toy.traces == 1


@pytest.mark.parametrize('dtype', [jnp.bfloat16, jnp.int32, jnp.bool])
def test_scores_of_any_dtype_become_float32(dtype):
  toy = Toy()
  problem = Problem(toy.space, lambda _, candidate: candidate[0].astype(dtype))
  candidates = jnp.array([[1, 0, 0, 0], [0, 0, 0, 0]], jnp.int32)
  history = evaluate(problem, toy.data, candidates)
  assert history.scores.dtype == jnp.float32
  assert history.scores.tolist() == [1.0, 0.0]


def test_data_of_a_space():
  toy = Toy()
  data = make_data(toy.space, toy.costs)
  np.testing.assert_array_equal(data.widths, toy.space.widths())
  np.testing.assert_array_equal(data.counts, toy.space.counts())
  assert data.errors.shape == data.widths.shape
  assert data.errors.dtype == jnp.float32
  assert not data.errors.any()
  assert data.objective is None


def test_join_flattens_rounds():
  parts = History(
    candidates=jnp.arange(24).reshape(2, 3, 4),
    scores=jnp.arange(6.0).reshape(2, 3),
    costs=jnp.arange(6).reshape(2, 3),
  )
  whole = join(parts)
  assert whole.candidates.shape == (6, 4)
  np.testing.assert_array_equal(whole.candidates[4], [16, 17, 18, 19])
  assert whole.scores.tolist() == [0, 1, 2, 3, 4, 5]
  assert whole.costs.tolist() == [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize(
  ('scores', 'expected'),
  [
    ([0.1, 0.3, 0.2], 1),
    # The earliest of equals.
    ([0.1, 0.3, 0.3], 1),
    ([jnp.nan, -2.0, -1.0], 2),
    ([-1.0, jnp.nan, jnp.nan], 0),
    ([-jnp.inf, jnp.nan, -3.0], 2),
    ([0.0, jnp.inf, jnp.nan], 1),
    ([jnp.nan, jnp.nan], 0),
  ],
)
def test_best_is_a_number(scores, expected):
  scores = jnp.array(scores)
  none = jnp.zeros((len(scores), 1), jnp.int32)
  assert int(best(History(none, scores, none[:, 0]))) == expected
