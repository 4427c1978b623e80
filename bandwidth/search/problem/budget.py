"""Makes candidates fit a budget, exactly.

Costs are integers that were rounded up (see `cost`), and kept channels are
rounded down, so that no candidate made here exceeds its budget.
"""

import decimal

import jax
import jax.numpy as jnp

from bandwidth.search.problem.cost import Costs, cost_of, costs_by_level
from bandwidth.search.problem.space import Space

_BISECTIONS = 12


def check_budget(space: Space, costs: Costs, amount: float) -> int:
  """Returns a budget in units of `costs`, as searchers take it.

  Args:
    space: the decisions, see `make_space`.
    costs: tables of the space, of `tabulate`.
    amount: budget in the unit of the cost model, positive.

  Raises:
    ValueError: even the smallest candidate costs more; the message says how
      much.
  """
  least = int(cost_of(costs, jnp.zeros(space.decisions, jnp.int32)))
  if not amount > 0 or costs.budget(amount) < least:
    raise ValueError(
      f'budget={amount} cannot be reached: the smallest network costs '
      f'{_digits_above(least * costs.unit):g}'
    )
  return costs.budget(amount)


def _digits_above(amount: float) -> float:
  """Rounds up to six significant digits, so that the result is enough."""
  context = decimal.Context(prec=6, rounding=decimal.ROUND_CEILING)
  return float(context.create_decimal_from_float(amount))


def levels_of(
  widths: jax.Array, counts: jax.Array, ratios: jax.Array
) -> jax.Array:
  """Rounds kept fractions of channels down to levels.

  Args:
    widths: channels by decision and level, int32 [G, M].
    counts: levels of each decision, int32 [G].
    ratios: fractions to keep, float32 [G], clipped to [0, 1].

  Returns:
    int32 [G]; the first level where the fraction is smaller.

  >>> widths = jnp.array([[8, 16, 24, 32]])
  >>> levels_of(widths, jnp.array([4]), jnp.array([0.7])).tolist()
  [1]
  """
  channels = jnp.clip(ratios, 0.0, 1.0)[:, None] * widths[:, -1:]
  # The fraction of a level must round to that level.
  below = widths <= channels + 1e-3
  level = jnp.sum(below, axis=1, dtype=jnp.int32) - 1
  return jnp.clip(level, 0, counts - 1)


def wall(
  costs: Costs,
  counts: jax.Array,
  candidate: jax.Array,
  decision: jax.Array,
  level: jax.Array,
  budget: jax.Array,
) -> jax.Array:
  """Lowers a level until the candidate fits the budget.

  The result is the largest level that fits and is not above the one wanted.
  Exact for any cost model, monotonic or not: the cost of all levels is
  computed.

  Args:
    costs: tables of the space, of `tabulate`.
    counts: levels of each decision, int32 [G].
    candidate: levels, int32 [G], within the budget; the smallest level where a
      decision is not made yet.
    decision: index of the decision to lower, int32 [].
    level: level that is wanted, int32 [].
    budget: in units of `costs`, int32 [].

  Returns:
    The level, int32 []; if none fits, the candidate's own.
  """
  prices = costs_by_level(costs, candidate, decision)
  levels = jnp.arange(prices.shape[0], dtype=jnp.int32)
  fits = (prices <= budget) & (levels <= level) & (levels < counts[decision])
  best = jnp.max(jnp.where(fits, levels, -1))
  return jnp.where(best < 0, candidate[decision], best)


def fit(
  costs: Costs,
  widths: jax.Array,
  counts: jax.Array,
  ratios: jax.Array,
  budget: jax.Array,
) -> jax.Array:
  """Shifts all kept fractions by one amount so that they just fit the budget.

  The amount, positive or negative, is found by bisection; what is left of the
  budget is then spent on the decisions in order, see `fill`.

  Args:
    costs: tables of the space, of `tabulate`.
    widths: channels by decision and level, int32 [G, M].
    counts: levels of each decision, int32 [G].
    ratios: fractions to keep before the shift, float32 [G].
    budget: in units of `costs`, int32 [].

  Returns:
    int32 [G], within the budget if the smallest candidate is.
  """

  def at(shift: jax.Array) -> jax.Array:
    return levels_of(widths, counts, ratios + shift)

  def halve(bounds: tuple[jax.Array, jax.Array], _: None) -> tuple:
    low, high = bounds  # low fits
    middle = (low + high) / 2
    fits = cost_of(costs, at(middle)) <= budget
    return (jnp.where(fits, middle, low), jnp.where(fits, high, middle)), None

  top = 1.0 - jnp.min(ratios)
  bottom = -jnp.max(ratios)
  (low, _), _ = jax.lax.scan(halve, (bottom, top), length=_BISECTIONS)
  found = at(low)
  found = jnp.where(cost_of(costs, found) <= budget, found, 0)
  return fill(costs, counts, found, budget)


def fill(
  costs: Costs, counts: jax.Array, candidate: jax.Array, budget: jax.Array
) -> jax.Array:
  """Raises each decision in order by one level if the budget allows it."""

  def raise_one(candidate: jax.Array, decision: jax.Array) -> tuple:
    higher = jnp.minimum(candidate[decision] + 1, counts[decision] - 1)
    tried = candidate.at[decision].set(higher)
    fits = cost_of(costs, tried) <= budget
    return jnp.where(fits, tried, candidate), None

  decisions = jnp.arange(candidate.shape[0])
  return jax.lax.scan(raise_one, candidate, decisions)[0]
