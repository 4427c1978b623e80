r"""CMA-ES: adapts a normal distribution over kept fractions to ranked scores.

Equations and symbols are those of N. Hansen, The CMA Evolution Strategy: A
Tutorial, arXiv 1604.00772: n decisions, and :math:`\lambda` candidates in a
generation, :math:`\mu` of them with positive weights.
"""

import functools
import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bandwidth.base import unknown_name
from bandwidth.search.baselines import fractions_of, uniform_fraction
from bandwidth.search.dynamic import check_chain, solve
from bandwidth.search.linear_algebra import eigh
from bandwidth.search.problem.budget import fit
from bandwidth.search.problem.interface import (
  Data,
  History,
  Problem,
  Searcher,
  evaluate,
  join,
)

_matmul = functools.partial(jnp.matmul, precision=jax.lax.Precision.HIGHEST)

# Fractions lie in [0, 1]; a wider distribution draws corners only.
_LARGEST_SIGMA = 1.0


class Constants(NamedTuple):
  """Constants that depend on n and the population only (Table 1).

  Attributes:
    weights: w, best first, the worse half negative, float64 [population].
    mu: number of positive weights.
    mu_eff: variance-effective selection mass of the positive weights.
    c_sigma: learning rate of the evolution path of sigma.
    d_sigma: damping of the change of sigma.
    c_c: learning rate of the evolution path of the covariance.
    c_1: learning rate of the rank-one update.
    c_mu: learning rate of the rank-mu update.
    length: expected length of a standard normal vector.
  """

  weights: np.ndarray
  mu: int
  mu_eff: float
  c_sigma: float
  d_sigma: float
  c_c: float
  c_1: float
  c_mu: float
  length: float


class CmaState(NamedTuple):
  """The distribution and its two evolution paths.

  Attributes:
    mean: m, of the kept fractions, float32 [n].
    sigma: step size, float32 [].
    covariance: C, float32 [n, n].
    path_sigma: p_sigma, evolution path of sigma, float32 [n].
    path_c: p_c, evolution path of the covariance, float32 [n].
    generation: g, number of generations so far, int32 [].
  """

  mean: jax.Array
  sigma: jax.Array
  covariance: jax.Array
  path_sigma: jax.Array
  path_c: jax.Array
  generation: jax.Array


def cma_constants(n: int, population: int) -> Constants:
  """Computes the constants of a search.

  Args:
    n: number of decisions, positive.
    population: candidates in a generation, at least 4.

  >>> constants = cma_constants(10, 10)
  >>> [round(x, 3) for x in constants.weights[:5].tolist()]
  [0.456, 0.271, 0.162, 0.085, 0.026]
  >>> round(constants.mu_eff, 2), round(constants.c_sigma, 3)
  (3.17, 0.284)
  """
  mu = population // 2
  ranks = np.arange(1, population + 1)
  raw = math.log((population + 1) / 2) - np.log(ranks)
  mu_eff = _effective(raw[:mu])
  c_1 = 2 / ((n + 1.3) ** 2 + mu_eff)
  gain = 0.25 + mu_eff + 1 / mu_eff - 2
  c_mu = min(1 - c_1, 2 * gain / ((n + 2) ** 2 + mu_eff))
  c_sigma = (mu_eff + 2) / (n + mu_eff + 5)
  excess = max(0.0, math.sqrt((mu_eff - 1) / (n + 1)) - 1)
  negative = min(
    1 + c_1 / c_mu,
    1 + 2 * _effective(raw[mu:]) / (mu_eff + 2),
    (1 - c_1 - c_mu) / (n * c_mu),
  )
  positive = raw > 0
  scale = np.where(
    positive, 1 / raw[positive].sum(), negative / -raw[~positive].sum()
  )
  return Constants(
    weights=raw * scale,
    mu=mu,
    mu_eff=mu_eff,
    c_sigma=c_sigma,
    d_sigma=1 + 2 * excess + c_sigma,
    c_c=(4 + mu_eff / n) / (n + 4 + 2 * mu_eff / n),
    c_1=c_1,
    c_mu=c_mu,
    length=math.sqrt(n) * (1 - 1 / (4 * n) + 1 / (21 * n**2)),
  )


def cma_init(mean: jax.Array, sigma: float) -> CmaState:
  """Returns the distribution before the first generation.

  Args:
    mean: first mean of the kept fractions, float32 [n].
    sigma: first standard deviation of every fraction.
  """
  n = mean.shape[0]
  return CmaState(
    mean=mean.astype(jnp.float32),
    sigma=jnp.asarray(sigma, jnp.float32),
    covariance=jnp.eye(n),
    path_sigma=jnp.zeros(n),
    path_c=jnp.zeros(n),
    generation=jnp.zeros((), jnp.int32),
  )


def decompose(covariance: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Returns B, float32 [n, n], and D, float32 [n]: C = B D^2 B'."""
  values, basis = eigh(covariance)
  # Rounding must not make an eigenvalue zero or negative.
  return basis, jnp.sqrt(jnp.maximum(values, 1e-7 * values[-1]))


def cma_update(
  constants: Constants,
  state: CmaState,
  basis: jax.Array,
  scales: jax.Array,
  normals: jax.Array,
) -> CmaState:
  """Adapts the distribution to a generation.

  Args:
    constants: of `cma_constants`, for this n and population.
    state: the distribution that the generation was drawn from.
    basis: B of its covariance, float32 [n, n]; see `decompose`.
    scales: D of its covariance, float32 [n]; see `decompose`.
    normals: z, with candidates at m + sigma B D z, best first, float32
      [population, n].
  """
  c = constants
  weights = jnp.asarray(c.weights[: c.mu], jnp.float32)
  steps = _matmul(normals * scales[None], basis.T)
  mean_step = _matmul(weights, steps[: c.mu])
  # C^(-1/2) of the mean step.
  mean_normal = _matmul(basis, _matmul(weights, normals[: c.mu]))
  path_sigma = _path(state.path_sigma, c.c_sigma, c.mu_eff, mean_normal)
  length = jnp.linalg.norm(path_sigma)
  steady = jnp.sqrt(1 - (1 - c.c_sigma) ** (2.0 * (state.generation + 1)))
  limit = (1.4 + 2 / (normals.shape[1] + 1)) * c.length
  moves = (length / steady < limit).astype(jnp.float32)
  path_c = _path(state.path_c, c.c_c, c.mu_eff, moves * mean_step)
  growth = jnp.exp(c.c_sigma / c.d_sigma * (length / c.length - 1))
  return CmaState(
    mean=state.mean + state.sigma * mean_step,
    sigma=jnp.minimum(state.sigma * growth, _LARGEST_SIGMA),
    covariance=_covariance(c, state.covariance, path_c, moves, normals, steps),
    path_sigma=path_sigma,
    path_c=path_c,
    generation=state.generation + 1,
  )


def make_cma_es(
  problem: Problem,
  *,
  evaluations: int,
  population: int = 16,
  sigma: float = 0.15,
  start: Sequence[float] | Literal['dynamic'] | None = None,
  buckets: int = 10_000,
) -> Searcher:
  """Searches kept fractions by covariance matrix adaptation.

  `budget.fit` turns a point into a candidate: it shifts the point to the
  budget, clips it and rounds it down. The distribution adapts to the point as
  it was drawn, by the rank of its score. The first point is the start itself.
  Where most of a generation scores the same, as within one level, sigma grows.

  Args:
    problem: space to search and objective to maximize.
    evaluations: number of candidates; the last generation is cut to fit.
    population: candidates in a generation, at least 4.
    sigma: first standard deviation of the fractions, in (0, 1].
    start: first mean: kept fractions, one for each decision; or 'dynamic',
      those of the dynamic program on `data.errors`, whose solution is also the
      first candidate; the space must be a chain. None: the largest uniform
      fraction.
    buckets: resolution of the dynamic program, see `dynamic.make_chain`.

  Raises:
    ValueError: an argument is out of range; the start has the wrong length;
      `start='dynamic'`, and the space is not a chain.

  References:
    Hansen, The CMA Evolution Strategy: A Tutorial, arXiv 1604.00772.
  """
  _check_numbers(evaluations, population, sigma, buckets)
  _check_start(problem, start)
  shape = (population, problem.space.decisions)
  constants = cma_constants(problem.space.decisions, population)

  def search(key: jax.Array, data: Data, budget: jax.Array) -> History:
    mean, candidate = _start(problem, start, buckets, data, budget)

    def generation(state: CmaState, key: jax.Array) -> tuple:
      first = (state.generation == 0) & (jnp.arange(population) == 0)[:, None]
      normals = jnp.where(first, 0.0, jax.random.normal(key, shape))
      basis, scales = decompose(state.covariance)
      steps = _matmul(normals * scales[None], basis.T)
      points = state.mean[None] + state.sigma * steps
      candidates = jax.vmap(lambda point: _decode(data, point, budget))(points)
      candidates = jnp.where(first, candidate[None], candidates)
      history = evaluate(problem, data, candidates)
      order = jnp.argsort(-history.scores)
      state = cma_update(constants, state, basis, scales, normals[order])
      return _escape(constants, state, history.scores[order]), history

    keys = jax.random.split(key, -(-evaluations // population))
    history = join(jax.lax.scan(generation, cma_init(mean, sigma), keys)[1])
    return jax.tree.map(lambda rows: rows[:evaluations], history)

  return search


def _path(
  path: jax.Array, rate: float, mu_eff: float, step: jax.Array
) -> jax.Array:
  return (1 - rate) * path + math.sqrt(rate * (2 - rate) * mu_eff) * step


def _covariance(
  constants: Constants,
  covariance: jax.Array,
  path: jax.Array,
  moves: jax.Array,
  normals: jax.Array,
  steps: jax.Array,
) -> jax.Array:
  """C after its rank-one and rank-mu updates."""
  c = constants
  weights = jnp.asarray(c.weights, jnp.float32)
  # Bad steps count by their direction, so that C stays positive definite.
  squares = jnp.maximum(jnp.sum(normals**2, axis=1), 1e-12)
  scaled = weights * normals.shape[1] / squares
  by_step = jnp.where(weights < 0, scaled, weights)
  lost = (1 - moves) * c.c_c * (2 - c.c_c)
  kept = 1 + c.c_1 * lost - c.c_1 - c.c_mu * float(c.weights.sum())
  rank_one = path[:, None] * path[None]
  rank_mu = _matmul(steps.T * by_step[None], steps)
  return kept * covariance + c.c_1 * rank_one + c.c_mu * rank_mu


def _effective(weights: np.ndarray) -> float:
  return float(weights.sum() ** 2 / (weights**2).sum())


def _check_numbers(
  evaluations: int, population: int, sigma: float, buckets: int
) -> None:
  for name, value in (('evaluations', evaluations), ('buckets', buckets)):
    if value < 1:
      raise ValueError(f'{name}={value} is not positive')
  if population < 4:
    raise ValueError(f'population={population} is less than 4')
  if not 0 < sigma <= _LARGEST_SIGMA:
    raise ValueError(f'sigma={sigma} is not in (0, {_LARGEST_SIGMA:g}]')


def _check_start(problem: Problem, start: Sequence[float] | str | None) -> None:
  if isinstance(start, str):
    if start != 'dynamic':
      raise ValueError(unknown_name('start', start, ['dynamic']))
    check_chain(problem.space)
  elif start is not None:
    fractions = np.asarray(start)
    if fractions.shape != (problem.space.decisions,):
      raise ValueError(
        f'start: shape {fractions.shape} is not ({problem.space.decisions},)'
      )
    if not ((fractions >= 0) & (fractions <= 1)).all():
      raise ValueError(f'start={fractions.tolist()} is not in [0, 1]')


def _start(
  problem: Problem,
  start: Sequence[float] | str | None,
  buckets: int,
  data: Data,
  budget: jax.Array,
) -> tuple[jax.Array, jax.Array]:
  """The first mean, float32 [G], and the first candidate, int32 [G]."""
  if isinstance(start, str):
    candidate = solve(problem.space, data, budget, buckets=buckets)
    return fractions_of(data.widths, candidate), candidate
  if start is None:
    uniform = uniform_fraction(data, budget)
    mean = jnp.broadcast_to(uniform, data.counts.shape)
  else:
    mean = jnp.asarray(start, jnp.float32)
  return mean, _decode(data, mean, budget)


def _decode(data: Data, point: jax.Array, budget: jax.Array) -> jax.Array:
  return fit(data.costs, data.widths, data.counts, point, budget)


def _escape(
  constants: Constants, state: CmaState, scores: jax.Array
) -> CmaState:
  """Widens the distribution where most scores are equal (appendix C)."""
  flat = scores[0] == scores[math.ceil(0.7 * scores.size) - 1]
  growth = math.exp(0.2 + constants.c_sigma / constants.d_sigma)
  wider = jnp.minimum(state.sigma * growth, _LARGEST_SIGMA)
  return state._replace(sigma=jnp.where(flat, wider, state.sigma))
