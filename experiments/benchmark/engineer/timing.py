"""Where the time of an AMC search goes: one program beside its parts."""

import functools
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from bandwidth.search.problem.budget import check_budget
from bandwidth.search.problem.interface import evaluate
from bandwidth.search.searchers import make_searcher
from experiments.measuring.turns import Turns, take_turns, timed
from experiments.policy.setup import SearchSetup

_REPEATS = 2


def time_search(
  prepared: SearchSetup, searcher: str, evaluations: int, fraction: float
) -> dict[str, Any]:
  """Times a search, its evaluations alone, and it without evaluations.

  Args:
    prepared: what is searched.
    searcher: its name.
    evaluations: how many.
    fraction: of the whole cost, the budget.
  """
  traces = 0

  def counted(data: Any, candidate: jax.Array) -> jax.Array:
    nonlocal traces
    traces += 1
    return prepared.problem.objective(data, candidate)

  priced, problem = prepared.priced, prepared.problem
  budget = check_budget(priced.space, priced.costs, fraction * priced.whole)
  arguments = (jax.random.key(0), prepared.data, jnp.int32(budget))
  search = make_searcher(
    searcher, problem._replace(objective=counted), evaluations=evaluations
  )
  start = time.monotonic()
  program = _compiled(search, arguments)
  compiled = time.monotonic() - start
  in_search = traces
  unscored = problem._replace(objective=_unevaluated)
  agent = _compiled(
    make_searcher(searcher, unscored, evaluations=evaluations), arguments
  )
  # Waited for: what still runs would be timed with what comes next.
  candidates = jax.block_until_ready(program(*arguments)).candidates
  alone = _compiled(
    functools.partial(evaluate, problem), (prepared.data, candidates)
  )
  calls = {
    'search': lambda: program(*arguments),
    'evaluation': lambda: alone(prepared.data, candidates),
    'agent': lambda: agent(*arguments),
  }
  turns = take_turns(
    {name: timed(call) for name, call in calls.items()}, _REPEATS, warm_up=0
  )
  return {
    'searcher': searcher,
    'evaluations': evaluations,
    'traces': in_search,
    'compile_seconds': round(compiled, 2),
    **_columns(turns, evaluations),
  }


def _columns(turns: Turns, evaluations: int) -> dict[str, float]:
  total, evaluating = turns.median('search'), turns.median('evaluation')
  return {
    'seconds': round(total, 2),
    'ms_per_episode': round(1e3 * total / evaluations, 3),
    'evaluation_seconds': round(evaluating, 2),
    'agent_seconds': round(turns.median('agent'), 3),
    'outside_evaluation': round(1 - evaluating / total, 4),
  }


def _unevaluated(data: Any, candidate: jax.Array) -> jax.Array:
  """Something that an agent can learn from."""
  del data
  return -jnp.abs(candidate - 1.0).sum()


def _compiled(
  fn: Callable[..., Any], arguments: tuple[Any, ...]
) -> Callable[..., Any]:
  return jax.jit(fn).lower(*arguments).compile()
