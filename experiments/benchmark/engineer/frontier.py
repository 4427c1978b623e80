"""All budgets from one pass of dynamic programming, beside separate searches.

One pass divides what the largest budget leaves into buckets, a pass of its own
what its own budget leaves, so that the latter may be finer; and a search that
evaluates candidates has the errors of layers for a start only.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bandwidth.search.dynamic import frontier
from bandwidth.search.problem.budget import check_budget
from bandwidth.search.problem.interface import History, best
from experiments.policy.choice import measure_all
from experiments.policy.setup import SearchSetup


def frontier_rows(
  prepared: SearchSetup,
  fractions: Sequence[float],
  searcher: str,
  program: Callable[..., History],
) -> list[dict[str, Any]]:
  """Returns a row for each budget and way.

  Args:
    prepared: what is searched.
    fractions: budgets, of the whole cost.
    searcher: name of the one that is compared.
    program: it, compiled, `(key, data, budget) -> history`.
  """
  priced, data = prepared.priced, prepared.data
  units = [
    check_budget(priced.space, priced.costs, part * priced.whole)
    for part in fractions
  ]
  one_pass = jax.jit(lambda data, units: frontier(priced.space, data, units))
  budgets = jnp.array(units, jnp.int32)
  together = np.asarray(one_pass(data, budgets).candidates)
  rows = []
  for part, unit, first in zip(fractions, units, together, strict=True):
    single = jnp.array([unit], jnp.int32)
    separate = np.asarray(one_pass(data, single).candidates)[0]
    key = jax.random.key(prepared.plan.config['seed'])
    history = program(key, data, jnp.int32(unit))
    searched = np.asarray(history.candidates[best(history)])
    ways = {'one pass': first, 'separate': separate, searcher: searched}
    rows += _rows(prepared, part, ways)
  return rows


def _rows(
  prepared: SearchSetup, fraction: float, ways: dict[str, np.ndarray]
) -> list[dict[str, Any]]:
  priced, errors = prepared.priced, np.asarray(prepared.data.errors, np.float64)
  measured = measure_all(prepared, np.stack(list(ways.values())))
  first = next(iter(ways.values()))
  return [
    {
      'budget': fraction,
      'way': way,
      'cost': round(priced.exact(candidate) / priced.whole, 4),
      'error': round(errors[np.arange(len(candidate)), candidate].sum(), 6),
      'check_loss': round(float(measured['loss'][i]), 4),
      'check_accuracy': round(float(measured['accuracy'][i]), 4),
      'same_candidate': bool((candidate == first).all()),
    }
    for i, (way, candidate) in enumerate(ways.items())
  ]
