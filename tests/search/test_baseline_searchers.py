"""Uniform and random candidates."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from toy import Toy, chain, check_history, costs_in_numpy

from bandwidth.search.baselines import (
  fractions_of,
  make_random,
  make_uniform,
  random_candidates,
)
from bandwidth.search.problem.budget import levels_of

TOY = Toy()


def uniform_in_numpy(toy, budget):
  """Largest uniform candidate, by trying a thousand fractions."""
  found = np.zeros(toy.space.decisions, int)
  for fraction in np.linspace(0, 1, 1001):
    candidate = np.array(
      [
        max(sum(c <= fraction * levels[-1] + 1e-9 for c in levels) - 1, 0)
        for levels in toy.space.levels
      ]
    )
    if costs_in_numpy(toy.costs, candidate[None])[0] <= budget:
      found = candidate
  return found


def test_uniform_is_the_largest_fraction_that_fits():
  toy = Toy()
  search = jax.jit(make_uniform(toy.problem))
  for share in (0.1, 0.3, 0.5, 0.75, 0.999, 1.0):
    budget = toy.budget(share)
    history = search(jax.random.key(0), toy.data, budget)
    check_history(toy, history, budget, 1)
    expected = uniform_in_numpy(toy, int(budget))
    np.testing.assert_array_equal(history.candidates[0], expected)
  assert toy.traces == 1
  np.testing.assert_array_equal(history.candidates[0], toy.space.full())


def test_uniform_maps_over_budgets():
  budgets = jnp.stack([TOY.budget(0.2), TOY.budget(0.6)])
  mapped = jax.jit(jax.vmap(make_uniform(TOY.problem), (None, None, 0)))
  found = mapped(jax.random.key(0), TOY.data, budgets).candidates[:, 0]
  expected = [uniform_in_numpy(TOY, int(budget)) for budget in budgets]
  np.testing.assert_array_equal(found, expected)


@settings(deadline=None)
@given(st.data())
def test_fractions_lead_back_to_their_levels(data):
  space = chain(24, 40, 20, divisor=4)
  candidate = [
    data.draw(st.integers(0, len(levels) - 1)) for levels in space.levels
  ]
  widths, counts = jnp.asarray(space.widths()), jnp.asarray(space.counts())
  fractions = fractions_of(widths, jnp.array(candidate, jnp.int32))
  found = levels_of(widths, counts, fractions)
  np.testing.assert_array_equal(found, candidate)


def test_random_search_is_one_program_within_its_budget():
  toy = Toy()
  search = jax.jit(make_random(toy.problem, evaluations=40))
  for seed, share in enumerate((0.1, 0.3, 1.0, 0.7)):
    budget = toy.budget(share)
    key = jax.random.key(seed)
    history = search(key, toy.data, budget)
    check_history(toy, history, budget, 40)
    again = search(key, toy.data, budget)
    np.testing.assert_array_equal(history.candidates, again.candidates)
  assert toy.traces == 1
  keys = jax.random.split(jax.random.key(5), 2)
  mapped = jax.jit(jax.vmap(search, (0, None, None)))(keys, toy.data, budget)
  for i in range(2):
    alone = search(keys[i], toy.data, budget)
    np.testing.assert_array_equal(mapped.candidates[i], alone.candidates)
  assert (alone.candidates != history.candidates).any()


def test_random_candidates_use_their_budget_and_differ():
  budget = TOY.budget(0.4)
  drawn = np.asarray(
    random_candidates(jax.random.key(0), TOY.data, budget, 200)
  )
  costs = costs_in_numpy(TOY.costs, drawn)
  counts = TOY.space.counts()
  # Raising any one decision would exceed the budget, in nearly all of them.
  spent = []
  for candidate in drawn:
    raised = np.minimum(candidate[None] + np.eye(4, dtype=int), counts - 1)
    more = costs_in_numpy(TOY.costs, raised)
    spent.append(((more > int(budget)) | (candidate == counts - 1)).all())
  assert np.mean(spent) > 0.9
  assert costs.mean() > 0.93 * int(budget)
  assert len(np.unique(drawn, axis=0)) > 50
  assert all(len(np.unique(drawn[:, g])) >= 5 for g in range(4))


def test_evaluations_must_be_positive():
  with pytest.raises(ValueError, match='evaluations=0'):
    make_random(TOY.problem, evaluations=0)
