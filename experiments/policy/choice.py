"""Runs a searcher, chooses among its best, and measures what others give."""

import pathlib
import tempfile
import time
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from bandwidth.search.dynamic import check_chain, frontier
from bandwidth.search.problem.cost import cost_of
from bandwidth.search.problem.interface import Data, History
from bandwidth.search.problem.space import Space
from bandwidth.search.searchers import make_searcher
from experiments.policy.candidates.scores import better_first
from experiments.policy.export import write_network
from experiments.policy.plan import searcher_of
from experiments.policy.setup import SearchSetup


class SearchResult(NamedTuple):
  """What a search found."""

  histories: History  # of all seeds, [S, N]
  best: np.ndarray  # the candidate, int32 [G]
  finalists: int  # how many it was chosen among
  seconds: dict[str, float]  # of the search's parts, by name
  traces: int  # how often the objective was traced


def search(prepared: SearchSetup) -> SearchResult:
  """Runs a searcher, all seeds in one program, and chooses among the best.

  The candidates of highest score are scored again on examples that the search
  has not seen: the best of many noisy scores is too good to be true.
  """
  config = prepared.plan.config
  given = config['search']
  traces = 0

  def counted(data: Any, candidate: jax.Array) -> jax.Array:
    nonlocal traces
    traces += 1
    return prepared.problem.objective(data, candidate)

  searcher = searcher_of(given, prepared.problem._replace(objective=counted))

  def all_seeds(keys: jax.Array, data: Data, budget: jax.Array) -> History:
    return lax.map(lambda key: searcher(key, data, budget), keys)

  keys = jax.random.split(jax.random.key(config['seed']), given['seeds'])
  arguments = (keys, prepared.data, jnp.int32(prepared.budget))
  start = time.monotonic()
  program = jax.jit(all_seeds).lower(*arguments).compile()
  compiled = time.monotonic()
  histories = jax.device_get(program(*arguments))
  seconds = {
    'compile': compiled - start,
    'evaluate': time.monotonic() - compiled,
  }
  finalists = _finalists(prepared, histories)
  order = better_first(given['score'], measure_all(prepared, finalists))
  best = finalists[order[0]]
  return SearchResult(histories, best, len(finalists), seconds, traces)


def _finalists(prepared: SearchSetup, histories: History) -> np.ndarray:
  """The best candidates of all seeds, each once, int32 [at most count, G].

  Where the budget is of the file, those whose file is within it.

  Raises:
    ValueError: no file is.
  """
  candidates = histories.candidates.reshape(-1, histories.candidates.shape[-1])
  order = np.argsort(-histories.scores.reshape(-1), kind='stable')
  distinct = dict.fromkeys(tuple(c) for c in candidates[order].tolist())
  finalists: list[np.ndarray] = []
  for each in distinct:
    candidate = np.array(each, np.int32)
    if _file_fits(prepared, candidate):
      finalists.append(candidate)
    if len(finalists) == prepared.plan.config['search']['finalists']:
      break
  if not finalists:
    raise ValueError(
      f'search.budget={prepared.plan.config["search"]["budget"]}: none of '
      f'{len(distinct)} files is within it'
    )
  return np.stack(finalists)


def _file_fits(prepared: SearchSetup, candidate: np.ndarray) -> bool:
  if not prepared.subject.file_budget:
    return True
  most = prepared.plan.config['search']['budget'] * prepared.priced.whole
  with tempfile.TemporaryDirectory() as folder:
    path = pathlib.Path(folder) / 'model.bwz'
    write_network(prepared, candidate, path)
    return path.stat().st_size <= most


def measure_all(
  prepared: SearchSetup, candidates: np.ndarray
) -> dict[str, np.ndarray]:
  """Measures candidates on the examples that the search does not see.

  Returns:
    Accuracies, fractions, and losses, in nats: float64 [N] each.
  """
  rows = [
    jax.device_get(prepared.measure(prepared.check, jnp.asarray(candidate)))
    for candidate in np.asarray(candidates, np.int32)
  ]
  return {
    name: np.array([float(row[name]) for row in rows])
    for name in ('accuracy', 'loss')
  }


def measure_frontier(
  prepared: SearchSetup, found: SearchResult
) -> list[dict[str, Any]]:
  """Measures the whole network, what was found, and what other ways give.

  One fraction for all layers, at several budgets; and, where the decisions are
  a chain, dynamic programming, which gives the candidates of all budgets in one
  pass. All are measured on the examples that the search has not seen.

  Returns:
    Rows, the whole network's and the found one's first.
  """
  priced = prepared.priced
  space, budgets = priced.space, _budgets(prepared)
  ways = {'whole': space.full()[None], 'searched': found.best[None]}
  ways['uniform'] = _uniform(prepared, budgets)
  if _is_chain(space):
    best = jax.jit(lambda data, units: frontier(space, data, units))
    ways['dynamic programming'] = np.asarray(
      best(prepared.data, budgets).candidates
    )
  names = [name for name, candidates in ways.items() for _ in candidates]
  candidates = np.concatenate(list(ways.values()))
  measured = measure_all(prepared, candidates)
  return [
    {
      'searcher': name,
      'cost': priced.exact(candidate) / priced.whole,
      'accuracy': measured['accuracy'][i].item(),
      'loss': measured['loss'][i].item(),
      'levels': candidate.tolist(),
    }
    for i, (name, candidate) in enumerate(zip(names, candidates, strict=True))
  ]


def _budgets(prepared: SearchSetup) -> jax.Array:
  """Budgets of the frontier in units, ascending, int32 [N]."""
  priced = prepared.priced
  given = prepared.plan.config['search']
  wanted = {*np.atleast_1d(given['frontier']).tolist(), given['budget']}
  units = [priced.costs.budget(part * priced.whole) for part in sorted(wanted)]
  smallest = jnp.zeros(priced.space.decisions, jnp.int32)
  least = int(cost_of(priced.costs, smallest))
  return jnp.array([each for each in units if each >= least], jnp.int32)


def _uniform(prepared: SearchSetup, budgets: jax.Array) -> np.ndarray:
  """Candidates of one fraction for all layers, int32 [N, G]."""
  unscored = prepared.problem._replace(
    objective=lambda data, candidate: jnp.float32(0)
  )
  searcher = make_searcher('uniform', unscored, evaluations=1)

  @jax.jit
  def all_of(data: Data, budgets: jax.Array) -> jax.Array:
    key = jax.random.key(0)
    return jax.vmap(lambda b: searcher(key, data, b).candidates[0])(budgets)

  return np.asarray(all_of(prepared.data, budgets))


def _is_chain(space: Space) -> bool:
  try:
    check_chain(space)
  except ValueError:
    return False
  return True
