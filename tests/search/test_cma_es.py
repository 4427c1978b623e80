"""CMA-ES against the equations of Hansen's tutorial."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toy import Toy, chain, check_history

from bandwidth.search.baselines import make_random
from bandwidth.search.cma_es import (
  cma_constants,
  cma_init,
  cma_update,
  decompose,
  make_cma_es,
)
from bandwidth.search.dynamic import solve
from bandwidth.search.problem.budget import fit
from bandwidth.search.problem.interface import Problem

EVALUATIONS = 150

TOY = Toy()
SEARCH = jax.jit(make_cma_es(TOY.problem, evaluations=EVALUATIONS))


def constants_in_numpy(n, size):
  """Table 1 of the tutorial."""
  raw = np.log((size + 1) / 2) - np.log(np.arange(1, size + 1))
  mu = size // 2
  mu_eff = raw[:mu].sum() ** 2 / (raw[:mu] ** 2).sum()
  mu_eff_minus = raw[mu:].sum() ** 2 / (raw[mu:] ** 2).sum()
  c_1 = 2 / ((n + 1.3) ** 2 + mu_eff)
  c_mu = min(
    1 - c_1,
    2 * (1 / 4 + mu_eff + 1 / mu_eff - 2) / ((n + 2) ** 2 + 2 * mu_eff / 2),
  )
  alpha = min(
    1 + c_1 / c_mu,
    1 + 2 * mu_eff_minus / (mu_eff + 2),
    (1 - c_1 - c_mu) / (n * c_mu),
  )
  plus, minus = raw[raw >= 0].sum(), -raw[raw < 0].sum()
  c_sigma = (mu_eff + 2) / (n + mu_eff + 5)
  return {
    'weights': np.where(raw >= 0, raw / plus, alpha * raw / minus),
    'mu': mu,
    'mu_eff': mu_eff,
    'c_sigma': c_sigma,
    'd_sigma': 1 + 2 * max(0, np.sqrt((mu_eff - 1) / (n + 1)) - 1) + c_sigma,
    'c_c': (4 + mu_eff / n) / (n + 4 + 2 * mu_eff / n),
    'c_1': c_1,
    'c_mu': c_mu,
    'length': np.sqrt(n) * (1 - 1 / (4 * n) + 1 / (21 * n**2)),
  }


def update_in_numpy(k, state, steps):
  """Figure 6 of the tutorial: steps y, best first, float64."""
  m, sigma, cov, p_sigma, p_c, g = state
  n = len(m)
  w, c_s, c_c = k['weights'], k['c_sigma'], k['c_c']
  values, basis = np.linalg.eigh(cov)
  root = basis @ np.diag(values**-0.5) @ basis.T
  mean_step = sum(w[i] * steps[i] for i in range(k['mu']))
  p_sigma = (1 - c_s) * p_sigma + np.sqrt(
    c_s * (2 - c_s) * k['mu_eff']
  ) * root @ mean_step
  length = np.linalg.norm(p_sigma)
  h = (
    length / np.sqrt(1 - (1 - c_s) ** (2 * (g + 1)))
    < (1.4 + 2 / (n + 1)) * k['length']
  )
  p_c = (1 - c_c) * p_c + h * np.sqrt(c_c * (2 - c_c) * k['mu_eff']) * mean_step
  new = (
    1 + k['c_1'] * (1 - h) * c_c * (2 - c_c) - k['c_1'] - k['c_mu'] * w.sum()
  ) * cov + k['c_1'] * np.outer(p_c, p_c)
  for weight, step in zip(w, steps, strict=True):
    if weight < 0:
      weight *= n / np.linalg.norm(root @ step) ** 2
    new += k['c_mu'] * weight * np.outer(step, step)
  sigma_after = sigma * np.exp(c_s / k['d_sigma'] * (length / k['length'] - 1))
  return m + sigma * mean_step, sigma_after, new, p_sigma, p_c, g + 1


@pytest.mark.parametrize(
  ('n', 'size'), [(1, 4), (4, 16), (9, 16), (15, 16), (15, 7), (40, 100)]
)
def test_constants_are_those_of_the_tutorial(n, size):
  found = cma_constants(n, size)._asdict()
  for name, expected in constants_in_numpy(n, size).items():
    np.testing.assert_allclose(found[name], expected, rtol=1e-9, err_msg=name)
  np.testing.assert_allclose(found['weights'][: found['mu']].sum(), 1)


@pytest.mark.parametrize('scale', [1.0, 4.0])
def test_generations_update_as_in_the_tutorial(scale):
  n, size = 5, 12
  rng = np.random.default_rng(0)
  constants = cma_constants(n, size)
  found = cma_init(jnp.full(n, 0.5), 0.15)
  expected = tuple(np.asarray(x, np.float64) for x in found)
  for _ in range(3):
    # Long steps stop the path of the covariance: h = 0.
    normals = scale * rng.normal(size=(size, n)) + scale - 1
    basis, scales = decompose(found.covariance)
    steps = normals * np.asarray(scales) @ np.asarray(basis).T
    expected = update_in_numpy(constants_in_numpy(n, size), expected, steps)
    found = cma_update(
      constants, found, basis, scales, jnp.asarray(normals, jnp.float32)
    )
    sigma = min(expected[1], 1.0)
    expected = (expected[0], sigma, *expected[2:])
    for name, a, b in zip(found._fields, found, expected, strict=True):
      np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-5, err_msg=name)
  assert (scale > 1) == bool(found.sigma == 1)


def test_a_covariance_is_rebuilt_from_its_parts():
  rng = np.random.default_rng(1)
  factor = rng.normal(size=(6, 6))
  covariance = jnp.asarray(factor @ factor.T, jnp.float32)
  basis, scales = decompose(covariance)
  rebuilt = basis @ jnp.diag(scales**2) @ basis.T
  np.testing.assert_allclose(rebuilt, covariance, rtol=1e-4, atol=1e-4)
  _, flat = decompose(jnp.diag(jnp.array([1.0, 0.0, -1e-9])))
  assert (np.asarray(flat) > 0).all()


def test_one_program_within_its_budget_that_repeats():
  for seed in range(3):
    for share in (0.1, 0.25, 0.6, 1.0):
      budget = TOY.budget(share)
      history = SEARCH(jax.random.key(seed), TOY.data, budget)
      check_history(TOY, history, budget, EVALUATIONS)
  again = SEARCH(jax.random.key(seed), TOY.data, budget)
  np.testing.assert_array_equal(history.candidates, again.candidates)
  assert TOY.traces == 1


def test_the_best_is_found_and_random_search_is_beaten():
  random = jax.jit(make_random(Toy().problem, evaluations=EVALUATIONS))
  budget = TOY.budget(0.3)
  found, drawn = [], []
  for seed in range(5):
    key = jax.random.key(seed)
    found.append(SEARCH(key, TOY.data, budget).scores.max())
    drawn.append(random(key, TOY.data, budget).scores.max())
  np.testing.assert_allclose(found, TOY.best(budget), rtol=0.02)
  assert np.mean(found) > np.mean(drawn)


@pytest.mark.slow
def test_it_starts_at_the_dynamic_program():
  search = jax.jit(
    make_cma_es(Toy().problem, evaluations=32, start='dynamic', buckets=300)
  )
  budget = TOY.budget(0.5)
  history = search(jax.random.key(0), TOY.data, budget)
  first = solve(TOY.space, TOY.data, budget, buckets=300)
  np.testing.assert_array_equal(history.candidates[0], first)
  assert len(np.unique(np.asarray(history.candidates[:16]), axis=0)) > 4


@pytest.mark.slow
def test_searches_map_over_keys_and_budgets():
  search = make_cma_es(Toy().problem, evaluations=EVALUATIONS)
  keys = jax.random.split(jax.random.key(0), 2)
  budgets = jnp.stack([TOY.budget(0.3), TOY.budget(0.6)])
  mapped = jax.jit(jax.vmap(search, (0, None, 0)))(keys, TOY.data, budgets)
  for i in range(2):
    alone = SEARCH(keys[i], TOY.data, budgets[i])
    np.testing.assert_array_equal(mapped.candidates[i], alone.candidates)


def test_the_first_generation_is_normal_around_the_start():
  start = np.array([0.9, 0.3, 0.5, 0.6], np.float32)
  search = make_cma_es(
    Toy().problem, evaluations=14, population=10, start=start, sigma=0.2
  )
  budget = TOY.budget(0.35)
  key = jax.random.key(0)
  found = jax.jit(search)(key, TOY.data, budget).candidates
  assert found.shape == (14, 4)
  normals = jax.random.normal(jax.random.split(key, 2)[0], (10, 4))
  points = start[None] + 0.2 * np.asarray(normals).copy()
  points[0] = start
  decode = jax.vmap(fit, (None, None, None, 0, None))
  decoded = jax.jit(decode)(
    TOY.costs, TOY.data.widths, TOY.data.counts, points, budget
  )
  np.testing.assert_array_equal(found[:10], decoded)


@pytest.mark.parametrize(
  ('arguments', 'message'),
  [
    ({'evaluations': 0}, 'evaluations=0'),
    ({'buckets': 0}, 'buckets=0'),
    ({'population': 3}, 'population=3'),
    ({'sigma': 0.0}, r'sigma=0\.0'),
    ({'sigma': 2.0}, r'sigma=2\.0'),
    ({'start': 'dynamics'}, "Did you mean 'dynamic'"),
    ({'start': [0.5] * 3}, r'start: shape \(3,\)'),
    ({'start': [0.5, 0.5, 0.5, 1.5]}, r'start=.*1\.5'),
  ],
)
def test_arguments_are_checked(arguments, message):
  with pytest.raises(ValueError, match=message):
    make_cma_es(TOY.problem, **{'evaluations': 10, **arguments})


def test_a_space_that_is_no_chain_has_no_dynamic_start():
  space = chain(8, 8, 8)
  coupled = space._replace(reads=(-1, 0, 0, 2), writes=(0, 1, 2, -1))
  problem = Problem(coupled, TOY.problem.objective)
  make_cma_es(problem, evaluations=10)
  with pytest.raises(ValueError, match='Dense_2'):
    make_cma_es(problem, evaluations=10, start='dynamic')
