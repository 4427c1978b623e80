"""Baseline searchers: one fraction for all decisions, and random candidates."""

import jax
import jax.numpy as jnp

from bandwidth.search.problem.budget import fit, levels_of
from bandwidth.search.problem.cost import cost_of
from bandwidth.search.problem.interface import (
  Data,
  History,
  Problem,
  Searcher,
  evaluate,
)


def fractions_of(widths: jax.Array, candidate: jax.Array) -> jax.Array:
  """Returns the fraction of its channels that each decision keeps.

  Args:
    widths: channels by decision and level, int32 [G, M].
    candidate: levels, int32 [G], each below its decision's number of levels.

  Returns:
    float32 [G]; `budget.levels_of` inverts it.

  >>> widths = jnp.array([[8, 16, 32], [8, 24, 24]])
  >>> fractions_of(widths, jnp.array([1, 1])).tolist()
  [0.5, 1.0]
  """
  kept = jnp.take_along_axis(widths, candidate[:, None], axis=1)[:, 0]
  return kept / widths[:, -1]


def uniform_fraction(data: Data, budget: jax.Array) -> jax.Array:
  """Returns the largest fraction that all decisions can keep.

  Exact for any cost model: the candidate changes only at the fractions of
  levels, and the cost of each of those is computed.

  Args:
    data: costs and levels of the problem, see `make_data`.
    budget: in units of `data.costs`, int32 [].

  Returns:
    float32 []; 0 if none fits.
  """
  fractions = (data.widths / data.widths[:, -1:]).reshape(-1)

  def price(fraction: jax.Array) -> jax.Array:
    return cost_of(data.costs, _uniform(data, fraction))

  fits = jax.vmap(price)(fractions) <= budget
  return jnp.max(jnp.where(fits, fractions, 0.0))


def make_uniform(problem: Problem) -> Searcher:
  """Evaluates one candidate: every decision keeps the same fraction.

  It is the largest fraction that fits the budget, rounded down to levels; what
  the rounding saves is not spent elsewhere.

  Args:
    problem: space to search and objective to maximize.

  Returns:
    A searcher whose history has one row; it ignores its key.
  """

  def search(key: jax.Array, data: Data, budget: jax.Array) -> History:
    del key
    candidate = _uniform(data, uniform_fraction(data, budget))
    return evaluate(problem, data, candidate[None])

  return search


def random_candidates(
  key: jax.Array, data: Data, budget: jax.Array, count: int
) -> jax.Array:
  """Draws candidates that just fit the budget.

  The fraction of each decision is drawn uniformly between that of its smallest
  level and 1. Published searches draw until a candidate happens to cost just
  less than the budget; here `budget.fit` shifts every draw to the budget, so
  that no draw is wasted and none is much smaller than allowed.

  Args:
    key: typed PRNG key, of `jax.random.key`.
    data: costs and levels of the problem, see `make_data`.
    budget: in units of `data.costs`, int32 [].
    count: number of candidates to draw.

  Returns:
    int32 [count, G].

  References:
    Li et al., Revisiting Random Channel Pruning, CVPR 2022; Li et al.,
    EagleEye, ECCV 2020.
  """
  smallest = (data.widths[:, 0] / data.widths[:, -1])[None]
  drawn = jax.random.uniform(key, (count, data.widths.shape[0]))
  fractions = smallest + (1.0 - smallest) * drawn

  def one(fractions: jax.Array) -> jax.Array:
    return fit(data.costs, data.widths, data.counts, fractions, budget)

  return jax.vmap(one)(fractions)


def make_random(problem: Problem, *, evaluations: int) -> Searcher:
  """Evaluates random candidates, see `random_candidates`.

  Args:
    problem: space to search and objective to maximize.
    evaluations: number of candidates, positive.

  Raises:
    ValueError: `evaluations` is not positive.
  """
  if evaluations < 1:
    raise ValueError(f'evaluations={evaluations} is not positive')

  def search(key: jax.Array, data: Data, budget: jax.Array) -> History:
    candidates = random_candidates(key, data, budget, evaluations)
    return evaluate(problem, data, candidates)

  return search


def _uniform(data: Data, fraction: jax.Array) -> jax.Array:
  fractions = jnp.broadcast_to(fraction, data.counts.shape)
  return levels_of(data.widths, data.counts, fractions)
