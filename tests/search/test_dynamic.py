"""Dynamic programming against exhaustive search, and against loops."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toy import (
  Toy,
  all_candidates,
  chain,
  check_history,
  costs_in_numpy,
  group,
  random_costs,
)

from bandwidth.search.dynamic import (
  check_chain,
  frontier,
  make_chain,
  make_dynamic,
  solve,
)
from bandwidth.search.problem.cost import cost_of, macs, tabulate
from bandwidth.search.problem.interface import make_data
from bandwidth.search.problem.space import FIXED, LayerShape, Space, make_space

static = {'static_argnums': 0, 'static_argnames': 'buckets'}
jitted_chain = jax.jit(make_chain, **static)
jitted_frontier = jax.jit(frontier, **static)
jitted_solve = jax.jit(solve, **static)


def every_kind():
  """Four decisions; layers of all kinds that a chain may have, one twice.

  'back' reads the third decision and writes the second.
  """
  straight = chain(24, 16, 24, 32, divisor=4)
  conv = LayerShape('back', 'conv', 24, 16)
  extra = {
    conv: (2, 1),
    conv._replace(name='deep', kind='depthwise', outputs=24): (0, 0),
    conv._replace(name='in'): (FIXED, 3),
    conv._replace(name='out'): (3, FIXED),
    conv._replace(name='fixed'): (FIXED, FIXED),
  }
  reads, writes = zip(*extra.values(), strict=True)
  return straight._replace(
    layers=(*straight.layers, *extra),
    reads=straight.reads + reads,
    writes=straight.writes + writes,
  )


def random_data(space, seed, *, highest=6):
  """Random costs and whole errors, which sum exactly."""
  rng = np.random.default_rng(seed)
  shape = (space.decisions, space.most_levels)
  errors = rng.integers(0, 1000, shape).astype(np.float32)
  costs = random_costs(space, seed, highest=highest)
  return make_data(space, costs, errors=jnp.asarray(errors))


def least_error(space, data, budgets):
  candidates = all_candidates(space)
  costs = costs_in_numpy(data.costs, candidates)
  decisions = np.arange(space.decisions)
  errors = np.asarray(data.errors)[decisions, candidates].sum(1)
  return [errors[costs <= budget].min() for budget in budgets]


def in_loops(space, data, budget, bucket):
  """Least error of a chain of dense layers, costs rounded up a decision."""
  units = np.asarray(data.costs.units).astype(int)
  counts = space.counts()
  steps = [np.zeros_like(units[0]) + units[0][0]]
  steps += [units[i] for i in range(1, space.decisions)]
  steps[-1] = steps[-1] + units[-1][:, 0][None]
  least = sum(step.min() for step in steps)
  places = (budget - least) // bucket
  best = {(0, 0): 0.0}  # (level, buckets spent) -> error
  for g, step in enumerate(steps):
    after = {}
    for (k, spent), error in best.items():
      for level in range(counts[g]):
        total = spent + -(-(step[k, level] - step.min()) // bucket)
        value = error + float(data.errors[g, level])
        if total <= places and value < after.get((level, total), np.inf):
          after[level, total] = value
    best = after
  return min(best.values())


@pytest.mark.parametrize('seed', range(4))
def test_exhaustive_search_finds_nothing_better(seed):
  space = every_kind()
  data = random_data(space, seed)
  most = int(costs_in_numpy(data.costs, all_candidates(space)).max())
  least = int(cost_of(data.costs, jnp.zeros(4, jnp.int32)))
  budgets = np.unique(np.linspace(least, most, 17).astype(np.int32))
  made = jitted_chain(space, data.costs, budgets.max(), buckets=200)
  assert int(made.bucket) == 1  # exact
  found = jitted_frontier(space, data, jnp.asarray(budgets), buckets=200)
  np.testing.assert_array_equal(found.errors, least_error(space, data, budgets))
  candidates = np.asarray(found.candidates)
  assert (candidates < space.counts()[None]).all()
  assert (costs_in_numpy(data.costs, candidates) <= budgets).all()
  decisions = np.arange(4)
  np.testing.assert_array_equal(
    found.errors, np.asarray(data.errors)[decisions, candidates].sum(1)
  )


@pytest.mark.slow
def test_each_point_of_the_frontier_is_a_separate_solution():
  space = chain(16, 24, 32, divisor=4)
  rng = np.random.default_rng(3)
  errors = jnp.asarray(rng.random((3, space.most_levels)), jnp.float32)
  data = make_data(space, tabulate(space, macs), errors=errors)
  whole = jitted_frontier(space, data, buckets=60)
  bucket = int(whole.budgets[1] - whole.budgets[0])
  assert bucket > 1
  for buckets in (3, 11, 25, 40, 60):
    budget = whole.budgets[buckets]
    alone = jitted_solve(space, data, budget, buckets=buckets)
    np.testing.assert_array_equal(whole.candidates[buckets], alone)
    expected = in_loops(space, data, int(budget), bucket)
    np.testing.assert_allclose(whole.errors[buckets], expected, rtol=1e-6)


def test_the_frontier_spans_all_budgets_and_descends():
  toy = Toy()
  points = jitted_frontier(toy.space, toy.data, buckets=100)
  costs = costs_in_numpy(toy.costs, np.asarray(points.candidates))
  assert (costs <= np.asarray(points.budgets)).all()
  assert (np.diff(points.errors) <= 1e-6).all()
  np.testing.assert_array_equal(points.candidates[0], np.zeros(4))
  np.testing.assert_array_equal(points.candidates[-1], toy.space.full())


@pytest.mark.parametrize('buckets', [7, 50])
def test_a_long_chain_equals_loops(buckets):
  space = chain(*[16, 24] * 8)
  rng = np.random.default_rng(buckets)
  errors = rng.integers(0, 1000, (16, space.most_levels)).astype(np.float32)
  # Descending, or the least of all would fit.
  errors = -np.sort(-errors, axis=1)
  data = make_data(space, tabulate(space, macs), errors=jnp.asarray(errors))
  full = int(cost_of(data.costs, jnp.asarray(space.full())))
  budget = jnp.int32(full * 0.6)
  made = jitted_chain(space, data.costs, budget, buckets=buckets)
  candidate = jitted_solve(space, data, budget, buckets=buckets)
  assert int(cost_of(data.costs, candidate)) <= int(budget)
  found = errors[np.arange(16), candidate].sum()
  assert found == in_loops(space, data, int(budget), int(made.bucket))


def test_the_smallest_candidate_fits_its_own_cost():
  toy = Toy()
  budget = cost_of(toy.costs, jnp.zeros(4, jnp.int32))
  candidate = jitted_solve(toy.space, toy.data, budget, buckets=10)
  np.testing.assert_array_equal(candidate, np.zeros(4))


def test_where_rounding_leaves_nothing_the_smallest_is_returned():
  space = chain(16, 16)
  costs = random_costs(space, 0, highest=2)
  # The steps' minima cannot be had together, and the one bucket is too coarse.
  units = np.array([[[5, 3]] * 2, [[4, 4], [9, 9]], [[0, 0], [0, 0]]], np.int32)
  data = make_data(space, costs._replace(units=jnp.asarray(units)))
  candidate = jitted_solve(space, data, jnp.int32(9), buckets=1)
  np.testing.assert_array_equal(candidate, [0, 0])


def test_searcher_is_one_program_and_maps_over_budgets():
  toy = Toy()
  search = jax.jit(make_dynamic(toy.problem, buckets=2000))
  budgets = [toy.budget(0.3), toy.budget(0.5)]
  alone = [search(jax.random.key(0), toy.data, budget) for budget in budgets]
  assert toy.traces == 1
  for history, budget in zip(alone, budgets, strict=True):
    check_history(toy, history, budget, 1)
    np.testing.assert_allclose(history.scores[0], toy.best(budget), rtol=0.05)
  mapped = jax.vmap(search, (None, None, 0))(
    jax.random.key(0), toy.data, jnp.stack(budgets)
  )
  for i, history in enumerate(alone):
    np.testing.assert_array_equal(mapped.candidates[i], history.candidates)


def test_coupled_decisions_that_are_no_neighbors_are_named():
  layers = [
    LayerShape('Conv_0', 'conv', 3, 8),
    LayerShape('Conv_1', 'conv', 8, 16),
    LayerShape('Conv_2', 'conv', 16, 8),
    LayerShape('Conv_3', 'conv', 8, 24),
    LayerShape('Conv_4', 'conv', 24, 8),
  ]
  stream = group(
    'stream',
    8,
    writers=['Conv_0', 'Conv_2', 'Conv_4'],
    readers=['Conv_1', 'Conv_3'],
  )
  first = group('first', 16, writers=['Conv_1'], readers=['Conv_2'])
  second = group('second', 24, writers=['Conv_3'], readers=['Conv_4'])
  space = make_space(layers, [stream, first, second])
  with pytest.raises(ValueError, match='Conv_3: it couples stream with second'):
    check_chain(space)
  check_chain(make_space(layers, [first, second]))
  # One block reads the stream and adds to it: neighbors, both ways.
  check_chain(make_space(layers, [stream, first]))


def test_buckets_must_be_positive():
  toy = Toy()
  assert isinstance(toy.space, Space)
  with pytest.raises(ValueError, match='buckets=0'):
    make_dynamic(toy.problem, buckets=0)
  with pytest.raises(ValueError, match='buckets=-1'):
    frontier(toy.space, toy.data, buckets=-1)
