"""Searchers by name, each with the same number of evaluations."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

from bandwidth.base import check_name, make_named
from bandwidth.search.amc import make_amc
from bandwidth.search.baselines import make_random, make_uniform
from bandwidth.search.cma_es import make_cma_es
from bandwidth.search.dynamic import make_dynamic
from bandwidth.search.genetic import make_genetic
from bandwidth.search.haq import make_haq
from bandwidth.search.measured import make_measured
from bandwidth.search.problem.interface import Problem, Searcher
from bandwidth.search.spdy import make_spdy

SEARCHERS: Mapping[str, Callable[..., Searcher]] = {
  'random': make_random,
  'amc': functools.partial(make_amc, agent='ddpg'),
  'td3': functools.partial(make_amc, agent='td3'),
  'genetic': make_genetic,
  'cma_es': make_cma_es,
  'spdy': make_spdy,
  'cma_es_dynamic': functools.partial(make_cma_es, start='dynamic'),
  'dynamic_measured': functools.partial(
    make_measured, searcher='dynamic', share=0.95
  ),
  'cma_es_measured': functools.partial(
    make_measured, searcher='cma_es', share=0.4
  ),
}
"""Factories that take `evaluations`."""

BITS: Mapping[str, Callable[..., Searcher]] = {'haq': make_haq}
"""Factories for decisions on bits only, see `bit_options`. All others except
'amc' and 'td3' also accept such decisions."""

SINGLE: Mapping[str, Callable[..., Searcher]] = {
  'uniform': make_uniform,
  'dynamic': make_dynamic,
}
"""Factories of searchers that evaluate one candidate."""


ALL: Mapping[str, Callable[..., Searcher]] = {**SEARCHERS, **BITS, **SINGLE}
"""All factories, by name."""


def check_searcher(name: str) -> None:
  """Raises ValueError if a searcher is unknown."""
  check_name('searcher', name, ALL)


def make_searcher(
  name: str, problem: Problem, *, evaluations: int, **options: Any
) -> Searcher:
  """Makes a searcher by name.

  Args:
    name: a key of `ALL`.
    problem: space to search and objective to maximize.
    evaluations: number of candidates, the rows of the history; those of
      `SINGLE` evaluate one.
    **options: passed to the factory.

  Raises:
    ValueError: the name or an option is unknown, or an option out of range.
  """
  return make_named(
    'searcher', name, ALL, options, problem=problem, evaluations=evaluations
  )
