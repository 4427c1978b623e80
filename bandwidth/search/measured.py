r"""Measured errors of single decisions: how much each alone lowers the score.

The closed form of `options` says how well a layer is refitted, not what that
does to the network. Here the objective itself is evaluated with all decisions
but one at their last level,

.. math:: e_g(k) = \max(0, s(\mathrm{all}) - s(\mathrm{all}, k_g = k)),

at as many levels as there are evaluations for; errors in between are
interpolated linearly in the number of channels. Frantar and Alistarh, SPDY,
2022 (arXiv 2201.13096), compare the two.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bandwidth.search.cma_es import make_cma_es
from bandwidth.search.dynamic import make_dynamic
from bandwidth.search.problem.interface import Data, History, Problem, Searcher
from bandwidth.search.problem.space import Space


class Probes(NamedTuple):
  """Candidates that differ from the whole network in one decision.

  Attributes:
    decisions: the decision that each probe lowers, int [N].
    levels: the level of that decision, int [N].
  """

  decisions: np.ndarray
  levels: np.ndarray


def probes_of(space: Space, count: int) -> Probes:
  """Picks levels to measure, evenly spaced, the same number in each decision.

  Args:
    space: the decisions to measure.
    count: largest number of probes; at least one for each decision.

  Raises:
    ValueError: `count` is less than the number of decisions.
  """
  each = count // max(space.decisions, 1)
  if each < 1:
    raise ValueError(
      f'evaluations leave {count} to measure {space.decisions} decisions'
    )
  pairs = [
    (g, level)
    for g, levels in enumerate(space.levels)
    for level in np.unique(
      np.linspace(0, len(levels) - 2, min(each, len(levels) - 1)).round()
    ).astype(int)
  ]
  decisions, levels = np.array(pairs, np.int32).reshape(-1, 2).T
  return Probes(decisions, levels)


def measured_errors(problem: Problem, data: Data, probes: Probes) -> jax.Array:
  """Measures the error of each decision at each level.

  Args:
    problem: space and objective; the objective is evaluated once for each probe
      and once for the whole network.
    data: what the objective reads, see `make_data`.
    probes: the candidates to evaluate, see `probes_of`.

  Returns:
    float32 [G, M], 0 at the last level of each decision.
  """
  space = problem.space
  whole = jnp.asarray(space.full())
  candidates = jnp.tile(whole[None], (len(probes.levels) + 1, 1))
  places = jnp.arange(len(probes.levels))
  candidates = candidates.at[places, probes.decisions].set(probes.levels)
  scores = jax.lax.map(
    lambda candidate: problem.objective(data.objective, candidate), candidates
  )
  lost = jnp.maximum(scores[-1] - scores[:-1], 0.0).astype(jnp.float32)
  # NaN is worse than any number.
  lost = jnp.where(jnp.isnan(lost), jnp.nanmax(lost) + 1.0, lost)
  widths = space.widths()
  rows = []
  for decision in range(space.decisions):
    own = np.flatnonzero(probes.decisions == decision)
    known = widths[decision, probes.levels[own]]
    at = jnp.asarray([*known, widths[decision, -1]], jnp.float32)
    values = jnp.append(lost[own], 0.0)
    wanted = jnp.asarray(widths[decision], jnp.float32)
    rows.append(jnp.interp(wanted, at, values))
  return jnp.stack(rows)


def make_measured(
  problem: Problem,
  *,
  evaluations: int,
  searcher: str,
  share: float,
  **options: Any,
) -> Searcher:
  """Measures errors, then runs a searcher that uses them.

  Args:
    problem: space and objective; the space must be a chain.
    evaluations: number of evaluations in all. Those that measure errors exceed
      the budget and are not in the history, whose first rows repeat the
      searcher's first candidate instead.
    searcher: searcher to start with the errors, 'dynamic' or 'cma_es'.
    share: fraction of the evaluations that measure errors, in (0, 1).
    **options: passed to the searcher.

  Raises:
    ValueError: an option is out of range; there are too few evaluations; the
      space is not a chain.
  """
  if not 0 < share < 1:
    raise ValueError(f'share={share!r} is not in (0, 1)')
  wanted = max(int(share * evaluations) - 1, 0)
  probes = probes_of(problem.space, wanted)
  rest = evaluations - len(probes.levels) - 1
  inner = _INNER[searcher](problem, rest, **options)

  def search(key: jax.Array, data: Data, budget: jax.Array) -> History:
    errors = measured_errors(problem, data, probes)
    history = inner(key, data._replace(errors=errors), budget)
    missing = evaluations - len(history.scores)

    def fill(rows: jax.Array) -> jax.Array:
      first = jnp.broadcast_to(rows[:1], (missing, *rows.shape[1:]))
      return jnp.concatenate([first, rows])

    return jax.tree.map(fill, history)

  return search


def _dynamic(problem: Problem, evaluations: int, **options: Any) -> Searcher:
  del evaluations  # it needs one
  return make_dynamic(problem, **options)


def _cma_es(problem: Problem, evaluations: int, **options: Any) -> Searcher:
  return make_cma_es(
    problem, evaluations=evaluations, start='dynamic', **options
  )


_INNER: dict[str, Callable[..., Searcher]] = {
  'dynamic': _dynamic,
  'cma_es': _cma_es,
}
