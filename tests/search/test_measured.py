"""Measured errors against NumPy, and searchers that begin with them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toy

from bandwidth.search.measured import measured_errors, probes_of
from bandwidth.search.problem.interface import Problem, make_data
from bandwidth.search.searchers import make_searcher

SPACE = toy.chain(32, 64, 16)


def table(seed=0):
  """Losses by decision and level, 0 at last levels, falling."""
  rng = np.random.default_rng(seed)
  rows = np.zeros((SPACE.decisions, SPACE.most_levels), np.float32)
  for row, count in zip(rows, SPACE.counts(), strict=True):
    row[: count - 1] = np.sort(rng.uniform(1, 2, count - 1))[::-1]
  return rows


def objective(losses, candidate):
  return 3.0 - losses[jnp.arange(losses.shape[0]), candidate].sum()


def make_problem(losses):
  costs = toy.random_costs(SPACE, 0, highest=9)
  data = make_data(SPACE, costs, objective=jnp.asarray(losses))
  return Problem(SPACE, objective), data


def test_all_levels_are_measured_where_there_are_evaluations():
  losses = table()
  problem, data = make_problem(losses)
  probes = probes_of(SPACE, 100)
  assert len(probes.levels) == sum(SPACE.counts() - 1)
  found = np.asarray(measured_errors(problem, data, probes))
  for own, row, count in zip(losses, found, SPACE.counts(), strict=True):
    np.testing.assert_allclose(row[:count], own[:count], atol=1e-5)


def test_levels_between_are_interpolated_by_channels():
  losses = table()
  problem, data = make_problem(losses)
  found = np.asarray(measured_errors(problem, data, probes_of(SPACE, 6)))
  for own, row, levels in zip(losses, found, SPACE.levels, strict=True):
    last = len(levels) - 1
    known = np.unique([0, last - 1])
    wanted = np.interp(
      levels,
      [*np.array(levels)[known], levels[-1]],
      [*own[known], 0],
    )
    np.testing.assert_allclose(row[: last + 1], wanted, atol=1e-5)


def test_scores_that_are_no_numbers_are_the_worst():
  losses = table()
  losses[1, 0] = np.nan
  problem, data = make_problem(losses)
  found = np.asarray(measured_errors(problem, data, probes_of(SPACE, 100)))
  assert found[1, 0] == pytest.approx(np.nanmax(losses) + 1, abs=1e-5)


@pytest.mark.parametrize('name', ['dynamic_measured', 'cma_es_measured'])
def test_of_sums_the_best_is_found(name):
  losses = table(1)
  problem, data = make_problem(losses)
  candidates = toy.all_candidates(SPACE)
  units = np.asarray(data.costs.units)
  reads, writes = np.array(SPACE.reads), np.array(SPACE.writes)
  padded = np.pad(candidates, ((0, 0), (0, 1)))
  costs = sum(
    units[layer, padded[:, reads[layer]], padded[:, writes[layer]]]
    for layer in range(len(SPACE.layers))
  )
  budget = int(np.median(costs))
  scores = 3 - losses[np.arange(3), candidates].sum(1)
  best = scores[costs <= budget].max()
  search = make_searcher(name, problem, evaluations=60)
  history = jax.jit(search)(jax.random.key(0), data, jnp.int32(budget))
  assert history.scores.shape == (60,)
  assert int(history.costs.max()) <= budget
  assert float(history.scores.max()) == pytest.approx(best, abs=1e-5)


def test_too_few_evaluations():
  problem, _ = make_problem(table())
  with pytest.raises(ValueError, match='leave 2 to measure 3 decisions'):
    make_searcher('dynamic_measured', problem, evaluations=4)
  with pytest.raises(ValueError, match=r'share=1\.5'):
    make_searcher('cma_es_measured', problem, evaluations=60, share=1.5)
