"""The interface of all searchers.

A searcher is a pure function of a key, the problem's data and a budget. It runs
as one compiled program that also evaluates the candidates, and can be mapped
over keys and budgets.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from bandwidth.search.problem.cost import Costs, cost_of
from bandwidth.search.problem.space import Space


class Data(NamedTuple):
  """What a searcher reads: arguments of its program, not constants in it.

  Attributes:
    costs: tables of the space, of `cost.tabulate`.
    widths: channels by decision and level, int32 [G, M].
    counts: levels of each decision, int32 [G].
    errors: damage that a decision alone does to the network at a level, float32
      [G, M], 0 at the last level; for searchers that sum them.
    objective: what the objective reads: weights, images, labels.
  """

  costs: Costs
  widths: jax.Array
  counts: jax.Array
  errors: jax.Array
  objective: Any


class Problem(NamedTuple):
  """A search problem: decisions, and a score to maximize.

  Attributes:
    space: the decisions; static under `jax.jit`.
    objective: `(data.objective, candidate int32 [G]) -> float32 []`, a score to
      maximize. Traced once.
  """

  space: Space
  objective: Callable[[Any, jax.Array], jax.Array]


class History(NamedTuple):
  """Every candidate that a search evaluated, in order.

  Attributes:
    candidates: level of each decision, int32 [N, G].
    scores: value of the objective, float32 [N].
    costs: cost in units, int32 [N]; none exceeds the budget.
  """

  candidates: jax.Array
  scores: jax.Array
  costs: jax.Array


Searcher = Callable[[jax.Array, Data, jax.Array], History]
"""`(key, data, budget) -> History`. `key` is typed, `budget` int32 [] in units,
at least the cost of the smallest candidate (see `budget.check_budget`)."""


def make_data(
  space: Space,
  costs: Costs,
  *,
  errors: jax.Array | None = None,
  objective: Any = None,
) -> Data:
  """Returns the data of a problem, as a searcher takes them.

  Args:
    space: the decisions, G, with at most M levels.
    costs: tables of the space, of `cost.tabulate`.
    errors: damage of each decision at each level, float32 [G, M]; None: zeros.
    objective: arrays that the objective reads, any pytree.
  """
  widths = jnp.asarray(space.widths())
  if errors is None:
    errors = jnp.zeros(widths.shape, jnp.float32)
  return Data(costs, widths, jnp.asarray(space.counts()), errors, objective)


def evaluate(problem: Problem, data: Data, candidates: jax.Array) -> History:
  """Scores candidates one after another.

  They are not batched: on CPUs, a convolution with a different kernel for each
  example is many times slower than as many ordinary convolutions.

  Args:
    problem: space to search and objective to maximize.
    data: what the objective reads, and the costs.
    candidates: level of each decision, int32 [N, G].
  """

  def one(candidate: jax.Array) -> tuple[jax.Array, jax.Array]:
    score = problem.objective(data.objective, candidate)
    return score.astype(jnp.float32), cost_of(data.costs, candidate)

  scores, costs = jax.lax.map(one, candidates)
  return History(candidates, scores, costs)


def join(parts: History) -> History:
  """Flattens the two leading axes of a history: [A, B, …] -> [A * B, …]."""
  return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), parts)


def best(history: History) -> jax.Array:
  """Returns the index of the highest score, the first of equals: int32 [].

  NaN counts as the lowest score.
  """
  scores = jnp.where(jnp.isnan(history.scores), -jnp.inf, history.scores)
  return jnp.argmax(scores)
