r"""Dynamic programming: the smallest sum of errors within a budget.

If every layer couples at most two consecutive decisions, the decisions are a
chain. With e the errors of decisions at levels and c their costs,

.. math:: D_g[k', b] = e_g(k') + \min_k D_{g-1}[k, b - c_g(k, k')]

is the smallest error of decisions 0 to g with decision g at level k' and a cost
of at most b buckets. One pass solves for all budgets.

The cost of each decision in excess of its cheapest step is rounded up to
buckets. Every solution is therefore within its budget, and optimal among the
candidates whose rounded cost is: exact when a bucket is one unit.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from bandwidth.search.problem.cost import Costs, cost_of
from bandwidth.search.problem.interface import (
  Data,
  History,
  Problem,
  Searcher,
  evaluate,
)
from bandwidth.search.problem.space import FIXED, Space


class Chain(NamedTuple):
  """The costs of a chain of decisions, in buckets.

  Attributes:
    steps: cost of a decision in buckets, by its predecessor's level and its
      own, int32 [G, M, M].
    least: cost in units of the cheapest steps and of everything fixed, int32
      [].
    bucket: units in a bucket, int32 [].
  """

  steps: jax.Array
  least: jax.Array
  bucket: jax.Array


class Frontier(NamedTuple):
  """The smallest errors by budget.

  Attributes:
    budgets: in units, int32 [N].
    candidates: the best levels for each budget, int32 [N, G]; the smallest
      candidate where none was found to fit.
    errors: sum of the candidate's errors, float32 [N].
  """

  budgets: jax.Array
  candidates: jax.Array
  errors: jax.Array


def check_chain(space: Space) -> None:
  """Checks that layers couple consecutive decisions only.

  Raises:
    ValueError: a layer couples others; the message names it.
  """
  sides = zip(space.layers, space.reads, space.writes, strict=True)
  for layer, reads, writes in sides:
    if FIXED not in (reads, writes) and abs(reads - writes) > 1:
      names = [space.groups[side].name for side in (reads, writes)]
      raise ValueError(
        f'{layer.name}: it couples {names[0]} with {names[1]}, which do not '
        f'follow each other, so that the decisions are no chain'
      )


def make_chain(
  space: Space, costs: Costs, largest: jax.Array, *, buckets: int = 10_000
) -> Chain:
  """Makes a chain of decisions, with costs rounded up to buckets.

  Args:
    space: a chain, see `check_chain`.
    costs: tables of the space, of `tabulate`.
    largest: largest budget of interest in units, int32 []; what it leaves
      beyond the cheapest steps is divided into buckets.
    buckets: number of buckets; each is at least one unit.
  """
  steps, fixed = _steps(space, costs)
  cheapest = jnp.min(steps, axis=(1, 2), keepdims=True)
  least = fixed + jnp.sum(cheapest)
  dearest = fixed + jnp.sum(jnp.max(steps, axis=(1, 2)))
  room = jnp.maximum(jnp.minimum(largest, dearest) - least, 0)
  bucket = jnp.maximum(_divided_up(room, buckets), 1)
  return Chain(_divided_up(steps - cheapest, bucket), least, bucket)


def minimize(
  chain: Chain,
  data: Data,
  budgets: jax.Array,
  *,
  weights: jax.Array | None = None,
  buckets: int = 10_000,
) -> jax.Array:
  """Finds the candidates of smallest error within budgets, in one pass.

  Ties go to the smallest level, from the last decision back. Where the smallest
  error of all candidates fits, it is found whatever the rounding to buckets.

  Args:
    chain: made of `data.costs`, with the same `buckets`.
    data: errors and costs of the space of the chain.
    budgets: in units, at most the chain's largest, int32 [N].
    weights: factors of the decisions' errors, float32 [G]; None: 1.
    buckets: number of buckets of the chain.

  Returns:
    int32 [N, G]; all 0 where nothing was found to fit.
  """
  exists = jnp.arange(data.errors.shape[1])[None] < data.counts[:, None]
  errors = data.errors if weights is None else weights[:, None] * data.errors
  errors = jnp.where(exists, errors, jnp.inf)
  free = jnp.argmin(errors, axis=1).astype(jnp.int32)
  free_cost = cost_of(data.costs, free)
  least, before = _pass(chain.steps, errors, buckets + 1)

  def one(budget: jax.Array) -> jax.Array:
    place = jnp.clip((budget - chain.least) // chain.bucket, 0, buckets)
    found = _trace(chain.steps, least, before, place)
    return jnp.where(free_cost <= budget, free, found)

  return jax.vmap(one)(budgets)


def frontier(
  space: Space,
  data: Data,
  budgets: jax.Array | None = None,
  *,
  buckets: int = 10_000,
) -> Frontier:
  """Finds the smallest sums of `data.errors` for many budgets, in one pass.

  Args:
    space: decisions that are a chain, see `check_chain`.
    data: errors and costs of the space.
    budgets: in units, int32 [N]. None: one for each bucket, from the cheapest
      network to the whole one.
    buckets: number of buckets that the largest budget is divided into; more are
      more exact and take longer.

  Raises:
    ValueError: the space is not a chain, or `buckets` is not positive.
  """
  _check(space, buckets)
  if budgets is None:
    unlimited = jnp.asarray(2**31 - 1, jnp.int32)
    chain = make_chain(space, data.costs, unlimited, buckets=buckets)
    budgets = chain.least + chain.bucket * jnp.arange(buckets + 1)
  else:
    chain = make_chain(space, data.costs, jnp.max(budgets), buckets=buckets)
  candidates = minimize(chain, data, budgets, buckets=buckets)
  decisions = jnp.arange(space.decisions)[None]
  errors = jnp.sum(data.errors[decisions, candidates], axis=1)
  return Frontier(budgets, candidates, errors)


def solve(
  space: Space, data: Data, budget: jax.Array, *, buckets: int = 10_000
) -> jax.Array:
  """Finds the candidate of smallest sum of `data.errors` within a budget.

  Args:
    space: decisions that are a chain, see `check_chain`.
    data: errors and costs of the space.
    budget: in units, int32 [].
    buckets: number of buckets that the budget is divided into.

  Returns:
    int32 [G].

  Raises:
    ValueError: the space is not a chain, or `buckets` is not positive.
  """
  budgets = jnp.reshape(budget, 1)
  return frontier(space, data, budgets, buckets=buckets).candidates[0]


def make_dynamic(problem: Problem, *, buckets: int = 10_000) -> Searcher:
  """Evaluates one candidate: that of the smallest sum of `data.errors`.

  Args:
    problem: space and objective; the space must be a chain.
    buckets: number of buckets that the budget is divided into.

  Returns:
    A searcher whose history has one row; it ignores its key.

  Raises:
    ValueError: the space is not a chain, or `buckets` is not positive.
  """
  _check(problem.space, buckets)

  def search(key: jax.Array, data: Data, budget: jax.Array) -> History:
    del key
    candidate = solve(problem.space, data, budget, buckets=buckets)
    return evaluate(problem, data, candidate[None])

  return search


def _check(space: Space, buckets: int) -> None:
  check_chain(space)
  if buckets < 1:
    raise ValueError(f'buckets={buckets} is not positive')


def _divided_up(units: jax.Array, bucket: jax.Array | int) -> jax.Array:
  return -(-units // bucket)


def _steps(space: Space, costs: Costs) -> tuple[jax.Array, jax.Array]:
  """Units by predecessor's level and own, [G, M, M]; and what is fixed, []."""
  shape = (space.decisions, space.most_levels, space.most_levels)
  steps, fixed = jnp.zeros(shape, jnp.int32), jnp.zeros((), jnp.int32)
  sides = enumerate(zip(space.reads, space.writes, strict=True))
  for layer, (reads, writes) in sides:
    table = costs.units[layer]
    if reads == writes == FIXED:
      fixed += table[0, 0]
    elif reads == writes:
      steps = steps.at[reads].add(jnp.diagonal(table)[None])
    elif reads == FIXED:
      steps = steps.at[writes].add(table[0][None])
    elif writes == FIXED:
      steps = steps.at[reads].add(table[:, 0][None])
    elif reads < writes:
      steps = steps.at[writes].add(table)
    else:
      steps = steps.at[reads].add(table.T)
  return steps, fixed


def _pass(
  steps: jax.Array, errors: jax.Array, places: int
) -> tuple[jax.Array, jax.Array]:
  """D of the last decision [M, places], and the levels before [G, M, places].

  The predecessor's levels are taken one after another, so that the largest
  array is that of the levels before, int16.
  """
  most = errors.shape[1]
  place = jnp.arange(places)[None]

  def decide(least: jax.Array, inputs: tuple) -> tuple:
    errors, steps = inputs

    def come_from(best: tuple, inputs: tuple) -> tuple:
      level, least, steps = inputs
      origin = place - steps[:, None]
      error = jnp.where(origin < 0, jnp.inf, least[jnp.maximum(origin, 0)])
      better = error < best[0]
      return (
        jnp.where(better, error, best[0]),
        jnp.where(better, level, best[1]),
      ), None

    nothing = jnp.full((most, places), jnp.inf)
    best = (nothing, jnp.zeros((most, places), jnp.int16))
    levels = jnp.arange(most, dtype=jnp.int16)
    (error, before), _ = jax.lax.scan(come_from, best, (levels, least, steps))
    return error + errors[:, None], before

  # Before the first decision there is one level, free of cost.
  start = jnp.where(jnp.arange(most)[:, None] == 0, 0.0, jnp.inf)
  start = jnp.broadcast_to(start, (most, places))
  return jax.lax.scan(decide, start, (errors, steps))


def _trace(
  steps: jax.Array, least: jax.Array, before: jax.Array, place: jax.Array
) -> jax.Array:
  """Follows the levels before, from the best last one: int32 [G]."""

  def back(state: tuple, inputs: tuple) -> tuple:
    level, place = state
    steps, before = inputs
    previous = before[level, place].astype(jnp.int32)
    return (previous, place - steps[previous, level]), level

  last = jnp.argmin(least[:, place]).astype(jnp.int32)
  _, levels = jax.lax.scan(back, (last, place), (steps, before), reverse=True)
  return jnp.where(jnp.isfinite(least[last, place]), levels, 0)
