"""Evolution: repair, inheritance, budgets."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toy import Toy, check_history, costs_in_numpy

from bandwidth.search.genetic import _breed, make_genetic, repair

EVALUATIONS, POPULATION = 250, 40


def make(toy, evaluations=EVALUATIONS):
  return make_genetic(
    toy.problem, evaluations=evaluations, population=POPULATION
  )


TOY = Toy()
SEARCH = jax.jit(make(TOY))


def test_one_program_within_its_budget_that_repeats():
  for seed in range(3):
    for share in (0.1, 0.25, 0.6, 1.0):
      budget = TOY.budget(share)
      history = SEARCH(jax.random.key(seed), TOY.data, budget)
      check_history(TOY, history, budget, EVALUATIONS)
  again = SEARCH(jax.random.key(seed), TOY.data, budget)
  np.testing.assert_array_equal(history.candidates, again.candidates)
  assert TOY.traces == 1


def test_the_best_is_found():
  budget = TOY.budget(0.3)
  for seed in range(3):
    scores = SEARCH(jax.random.key(seed), TOY.data, budget).scores
    np.testing.assert_allclose(scores.max(), TOY.best(budget), rtol=0.05)
    # Parents pass on what made them good.
    assert scores[-POPULATION:].mean() > scores[:POPULATION].mean()


@pytest.mark.slow
def test_a_shorter_search_begins_alike_and_maps_over_keys_and_budgets():
  keys = jax.random.split(jax.random.key(0), 2)
  budgets = jnp.stack([TOY.budget(0.3), TOY.budget(0.6)])
  # As many generations, and so the same keys; its last one is cut to 2.
  search = jax.jit(jax.vmap(make(Toy(), EVALUATIONS - 8), (0, None, 0)))
  mapped = search(keys, TOY.data, budgets).candidates
  for i in range(2):
    alone = SEARCH(keys[i], TOY.data, budgets[i]).candidates
    np.testing.assert_array_equal(mapped[i], alone[:-8])


FIXED = jax.jit(jax.vmap(repair, (0, None, None, None)))


def test_repair_changes_nothing_that_fits_tightly():
  keys = jax.random.split(jax.random.key(0), 200)
  budget = TOY.budget(0.4)
  tight = FIXED(keys, TOY.data, jnp.array([3, 4, 3, 3]), budget)[0]
  again = np.asarray(FIXED(keys, TOY.data, tight, budget))
  assert (again == np.asarray(tight)[None]).all(1).mean() > 0.9
  assert (costs_in_numpy(TOY.costs, again) <= int(budget)).all()
  full = FIXED(keys, TOY.data, jnp.asarray(TOY.space.full()), TOY.budget(1.0))
  assert (np.asarray(full) == TOY.space.full()[None]).all()


def test_repair_favors_no_decision():
  # A level costs a unit; two of four decisions must go down by one.
  level = np.broadcast_to(np.arange(7), (4, 7, 7))
  units = np.concatenate([level, np.zeros((1, 7, 7), int)]).astype(np.int32)
  costs = TOY.costs._replace(units=jnp.asarray(units), unit=1.0)
  data = TOY.data._replace(costs=costs)
  keys = jax.random.split(jax.random.key(0), 200)
  found = np.asarray(FIXED(keys, data, jnp.full(4, 3), jnp.int32(10)))
  assert (np.sort(found, axis=1) == np.array([[2, 2, 3, 3]])).all()
  np.testing.assert_allclose((found == 2).mean(0), 0.5, atol=0.15)


def test_levels_are_inherited_or_drawn():
  parents = jnp.array([[0, 1, 2, 3], [4, 5, 6, 4]], jnp.int32)
  counts = jnp.array([5, 6, 7, 8], jnp.int32)
  children = np.asarray(
    _breed(jax.random.key(0), parents, counts, 500, 250, 0.1)
  )
  from_parents = (children[:, None] == np.asarray(parents)[None]).any(1)
  mutants, crossed = from_parents[:250], from_parents[250:]
  assert crossed.all()
  # A level drawn anew is a parent's in 2 of about 6.5 cases.
  np.testing.assert_allclose(1 - mutants.mean(), 0.1 * 0.7, atol=0.03)
  mixed = (children[250:, None] != np.asarray(parents)[None]).any(2).all(1)
  # Both parents are the same one half of the time.
  np.testing.assert_allclose(mixed.mean(), 0.5 * 14 / 16, atol=0.1)
  assert (children >= 0).all()
  assert (children < np.asarray(counts)[None]).all()


@pytest.mark.parametrize(
  ('arguments', 'message'),
  [
    ({'evaluations': 0}, 'evaluations=0'),
    ({'population': 1}, 'population=1'),
    ({'parents': 0.0}, r'parents=0\.0'),
    ({'mutation': 1.5}, r'mutation=1\.5'),
    ({'mutated': -0.5}, r'mutated=-0\.5'),
  ],
)
def test_arguments_are_checked(arguments, message):
  with pytest.raises(ValueError, match=message):
    make_genetic(TOY.problem, **{'evaluations': 10, **arguments})
