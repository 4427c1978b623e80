"""SPDY: searched weights of a sum of errors."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toy import Toy, chain, check_history

from bandwidth.search.dynamic import solve
from bandwidth.search.problem.interface import Problem
from bandwidth.search.spdy import SpdyState, _keep, _propose, make_spdy

# Errors that mislead: the score has another importance.
TOY = Toy()
MISLED = TOY.data._replace(
  errors=TOY.data.errors * jnp.array([[3.0], [0.2], [5.0], [1.0]])
)


EVALUATIONS = 120


def make(toy):
  return make_spdy(
    toy.problem, evaluations=EVALUATIONS, starts=60, patience=10, buckets=500
  )


SEARCH = jax.jit(make(TOY))


def test_one_program_within_its_budget_that_repeats():
  for seed in range(2):
    for share in (0.1, 0.25, 0.6, 1.0):
      budget = TOY.budget(share)
      history = SEARCH(jax.random.key(seed), MISLED, budget)
      check_history(TOY, history, budget, EVALUATIONS)
  again = SEARCH(jax.random.key(seed), MISLED, budget)
  np.testing.assert_array_equal(history.candidates, again.candidates)
  assert TOY.traces == 1


def test_it_begins_at_the_dynamic_program_and_leaves_it_behind():
  budget = TOY.budget(0.35)
  first = jax.jit(lambda data: solve(TOY.space, data, budget, buckets=500))
  best = TOY.best(budget)
  for seed in range(4):
    history = SEARCH(jax.random.key(seed), MISLED, budget)
    np.testing.assert_array_equal(history.candidates[0], first(MISLED))
    gaps = best - np.asarray(history.scores)
    assert gaps[0] > 0.2 * abs(best)
    assert gaps.min() < 0.35 * gaps[0]


@pytest.mark.slow
def test_searches_map_over_keys_and_budgets():
  keys = jax.random.split(jax.random.key(0), 2)
  budgets = jnp.stack([TOY.budget(0.3), TOY.budget(0.6)])
  mapped = jax.jit(jax.vmap(make(Toy()), (0, None, 0)))(keys, MISLED, budgets)
  for i in range(2):
    alone = SEARCH(keys[i], MISLED, budgets[i])
    np.testing.assert_array_equal(mapped.candidates[i], alone.candidates)


def state(**fields):
  values = {'weights': jnp.arange(1.0, 31.0), 'score': 0.5, 'resampled': 3}
  arrays = jax.tree.map(jnp.asarray, {**values, 'failures': 0, **fields})
  return SpdyState(**arrays)


def test_local_trials_draw_exactly_some_weights_anew():
  for seed in range(5):
    found = _propose(jax.random.key(seed), state(), jnp.int32(7), 7)
    changed = np.asarray(found) != np.asarray(state().weights)
    assert changed.sum() == 3
    assert (np.asarray(found)[changed] < 1).all()


def test_starts_draw_all_weights_except_the_first():
  first = _propose(jax.random.key(0), state(), jnp.int32(0), 7)
  np.testing.assert_array_equal(first, np.ones(30))
  other = np.asarray(_propose(jax.random.key(0), state(), jnp.int32(6), 7))
  assert (other < 1).all()
  assert len(np.unique(other)) == 30


@pytest.mark.parametrize(
  ('score', 'local', 'failures', 'expected'),
  [
    (0.6, True, 1, (0.6, 3, 0)),
    (0.5, True, 0, (0.5, 3, 1)),
    (0.4, True, 1, (0.5, 2, 0)),
    (np.nan, True, 0, (0.5, 3, 1)),
    (0.4, False, 0, (0.5, 3, 0)),
  ],
)
def test_patience_is_two_failures(score, local, failures, expected):
  weights = jnp.zeros(30)
  after = _keep(
    state(failures=failures), weights, jnp.float32(score), jnp.array(local), 2
  )
  found = float(after.score), int(after.resampled), int(after.failures)
  np.testing.assert_allclose(found, expected, rtol=1e-6)
  kept = weights if score > 0.5 else state().weights
  np.testing.assert_array_equal(after.weights, kept)


def test_at_least_one_weight_is_drawn():
  after = _keep(
    state(resampled=1),
    jnp.zeros(30),
    jnp.float32(0.0),
    jnp.array(True),
    1,
  )
  assert int(after.resampled) == 1


@pytest.mark.parametrize(
  ('arguments', 'message'),
  [
    ({'evaluations': 0}, 'evaluations=0'),
    ({'starts': 0}, 'starts=0'),
    ({'patience': 0}, 'patience=0'),
    ({'buckets': 0}, 'buckets=0'),
    ({'resampled': 0.0}, r'resampled=0\.0'),
  ],
)
def test_arguments_are_checked(arguments, message):
  with pytest.raises(ValueError, match=message):
    make_spdy(TOY.problem, **{'evaluations': 10, **arguments})


def test_a_space_that_is_no_chain_is_refused():
  space = chain(8, 8, 8)
  coupled = space._replace(reads=(-1, 0, 0, 2), writes=(0, 1, 2, -1))
  with pytest.raises(ValueError, match='Dense_2'):
    make_spdy(Problem(coupled, TOY.problem.objective), evaluations=10)
