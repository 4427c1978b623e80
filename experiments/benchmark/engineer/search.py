"""Searchers on equal budgets of cost and of evaluations.

    python -m experiments.benchmark search [--networks quickstart_search …]
      [--budgets 0.1 0.2] [--seeds 10] [--evaluations 400] [--runs DIR]

A network is a config with a group `search`, NAME or NAME:MODE. Each is trained
once. A seed then chooses the images that layers are refitted on, those that
candidates are scored on, what a searcher draws, and the order of training;
differences are paired by seed. What a searcher found best is measured on
examples that it has not seen, and on the test set, before and after as many
steps of training as `--steps` says. A row is a network, a budget and a
searcher. Cells that a stopped benchmark left in DIR are not computed again.

    python -m experiments.benchmark search --timing [--evaluations 800]

measures where the time of an AMC search goes, one program beside its parts.

    python -m experiments.benchmark search --frontier [--budgets …]

compares all budgets from one pass of dynamic programming with a pass for each,
and with the search of `--searchers`, the first of them.
"""

import functools
import itertools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from bandwidth.search.searchers import SEARCHERS, SINGLE, make_searcher
from experiments.benchmark.engineer import cells
from experiments.benchmark.engineer.cells import KeptRows, Program
from experiments.benchmark.engineer.frontier import frontier_rows
from experiments.benchmark.engineer.summary import REFERENCE, Cell, summarized
from experiments.benchmark.engineer.timing import time_search
from experiments.benchmark.harness import Benchmark
from experiments.policy.choice import measure_all
from experiments.policy.plan import make_plan, network_variables
from experiments.policy.setup import SearchSetup, prepare
from experiments.policy.tuning import Tuning, make_tuning
from experiments.runtime import options

_CELLS = 'cells.jsonl'
_AGENTS = ('amc', 'td3')


def _prepare(
  name: str, arrays: Mapping[str, np.ndarray], seed: int, given: Any
) -> SearchSetup:
  """Prepares the options and examples of a seed."""
  plan = make_plan({**cells.network_config(name, given.images), 'seed': seed})
  return prepare(plan, network_variables(plan, arrays, name))


def _make_programs(
  prepared: SearchSetup, names: Sequence[str], evaluations: int
) -> dict[str, Program]:
  """Returns compiled searchers `(key, data, budget) -> history`, by name."""
  return {
    name: jax.jit(
      make_searcher(
        name,
        prepared.problem,
        evaluations=evaluations,
        **(_schedule(evaluations) if name in _AGENTS else {}),
      )
    )
    for name in names
  }


def _schedule(evaluations: int) -> dict[str, int]:
  """AMC's own, whose first 101 episodes are random, but at most half of all."""
  return {'warmup': min(100, evaluations // 2)}


def _cell(
  place: Mapping[str, Any],
  prepared: SearchSetup,
  program: Program,
  finish: Callable[[tuple[int, ...]], dict[str, float]],
) -> Cell:
  """Searches once and measures what was found."""
  priced, seed = prepared.priced, place['seed']
  found = cells.search_once(
    program, priced, prepared.data, fraction=place['budget'], seed=seed
  )
  candidate = found.candidate
  measured = measure_all(prepared, candidate[None])
  return {
    'network': place['network'],
    'budget': place['budget'],
    'searcher': place['searcher'],
    'seed': seed,
    'evaluations': found.evaluations,
    'cost': priced.exact(candidate) / priced.whole,
    'score': found.score,
    'check_loss': float(measured['loss'][0]),
    'check_accuracy': float(measured['accuracy'][0]),
    **finish(tuple(candidate.tolist())),
    'seconds': found.seconds,
    'levels': candidate.tolist(),
  }


def _finisher(
  prepared: SearchSetup, tuning: Tuning | None
) -> Callable[[tuple[int, ...]], dict[str, float]]:
  """Returns `levels -> accuracies on the test set`, before and after tuning.

  Searchers that found the same share the result.
  """

  @functools.cache
  def finish(levels: tuple[int, ...]) -> dict[str, float]:
    if tuning is None:
      return {}
    statistics_of = prepared.check['examples'].statistics
    candidate = np.array(levels, np.int32)
    variables = prepared.subject.variables(candidate, statistics_of)
    # The same order of examples for all searchers.
    key = jax.random.key(prepared.plan.config['seed'])
    return {
      'accuracy': tuning.test(variables),
      'tuned': tuning.test(tuning.train(variables, key)),
    }

  return finish


def _missing(kept: KeptRows, given: Any) -> list[Mapping[str, Any]]:
  """Places of which there is no cell, by network and then by seed."""
  fields = ('network', 'seed', 'budget', 'searcher')
  values = itertools.product(
    given.networks, range(given.seeds), given.budgets, given.searchers
  )
  return kept.missing(dict(zip(fields, each, strict=True)) for each in values)


def _cells(given: Any) -> Iterator[Sequence[Cell]]:
  """Yields the cells that are kept, then computes those that are missing."""
  kept = KeptRows(given.runs / _CELLS)
  yield kept.of(given.networks)
  for name, places in cells.grouped(_missing(kept, given), 'network'):
    arrays = cells.network_arrays(name, given.runs)
    programs: dict[str, Program] = {}
    tuning: Tuning | None = None
    for seed, missing in cells.grouped(places, 'seed'):
      prepared = _prepare(name, arrays, seed, given)
      if not programs:
        programs = _make_programs(prepared, given.searchers, given.evaluations)
        if given.steps:
          tuning = make_tuning(
            prepared.plan,
            steps=given.steps,
            learning_rate=given.learning_rate,
            tested=given.test_images,
          )
      finish = _finisher(prepared, tuning)
      for place in missing:
        program = programs[place['searcher']]
        yield kept.add([_cell(place, prepared, program, finish)])


def _timing(name: str, given: Any) -> dict[str, Any]:
  """Measures AMC searches, and their parts alone."""
  arrays = cells.network_arrays(name, given.runs)
  start = time.monotonic()
  prepared = _prepare(name, arrays, 0, given)
  taken = round(time.monotonic() - start, 2)
  timed = time_search(prepared, REFERENCE, given.evaluations, given.budgets[0])
  return {'network': name, **timed, 'options_seconds': taken}


def _frontiers(name: str, given: Any) -> list[dict[str, Any]]:
  """Compares all budgets from one pass with single ones."""
  prepared = _prepare(name, cells.network_arrays(name, given.runs), 0, given)
  searcher = given.searchers[0]
  program = _make_programs(prepared, [searcher], given.evaluations)[searcher]
  rows = frontier_rows(prepared, given.budgets, searcher, program)
  return [{'network': name, **row} for row in rows]


def _rows(given: Any) -> Iterator[Sequence[dict[str, Any]]]:
  if given.timing and given.frontier:
    raise ValueError('timing and frontier are two benchmarks: give one of them')
  if given.timing:
    yield from ([_timing(name, given)] for name in given.networks)
  elif given.frontier:
    yield from (_frontiers(name, given) for name in given.networks)
  else:
    yield from _cells(given)


def _parts(given: Any) -> int:
  if given.timing or given.frontier:
    return len(given.networks)
  return 1 + len(_missing(KeptRows(given.runs / _CELLS), given))


def _finish(rows: list[Cell], given: Any) -> list[dict[str, Any]]:
  return rows if given.timing or given.frontier else summarized(rows)


main = Benchmark(
  name='search',
  about=__doc__,
  options={
    **cells.OPTIONS,
    'budgets': options.fraction([0.1, 0.2]),
    'searchers': options.choice((*SINGLE, *SEARCHERS), [*SINGLE, *SEARCHERS]),
    'seeds': options.integer(10, '0, 1, … of them'),
    'test_images': options.integer(10_000, 'of the test set'),
    'steps': options.integer(200, 'of training what was found', least=0),
    'learning_rate': options.number(0.01, 'of it, at first'),
    'timing': options.flag('of AMC alone'),
    'frontier': options.flag('of one pass alone'),
  },
  measure=_rows,
  parts=_parts,
  finish=_finish,
).main
