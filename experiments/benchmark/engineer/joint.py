"""Channels and precision chosen together, or one after the other, or one only.

    python -m experiments.benchmark search_joint [--networks NAME …]
      [--budgets 0.015 0.03] [--seeds 5] [--evaluations 400] [--runs DIR]

A budget is of the bytes of model.bwz, everything counted, as a fraction of the
network's float32 bytes. Three ways search the same options, refitted and
rounded alike, with the same searcher and as many evaluations:

joint                 channels and steps of all layers at once
quantize              steps alone
prune, then quantize  channels first, at each of `--pruned` of the parameters,
                      then steps of what is left; evaluations are shared, and
                      the best by the score of the search counts

Nothing is trained on. Rows are a network, a budget, a way and a seed; accuracy
and loss are of examples that the search has not seen, and of the test set.
"""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from experiments.benchmark.engineer import cells
from experiments.benchmark.engineer.cells import KeptRows
from experiments.benchmark.harness import Benchmark
from experiments.policy.choice import SearchResult, measure_all, search
from experiments.policy.export import export_file
from experiments.policy.plan import budget_of, make_plan, network_variables
from experiments.policy.setup import SearchSetup, prepare
from experiments.runtime import options

_KEPT = 'joint.jsonl'
WAYS = ('joint', 'quantize', 'prune, then quantize')

Config = Mapping[str, Any]
Arrays = Mapping[str, np.ndarray]
Searched = tuple[SearchSetup, SearchResult]


def _prepared_as(
  config: Config, arrays: Arrays, name: str, **given: Any
) -> SearchSetup:
  """Prepares a network with some fields of `search` changed."""
  plan = make_plan({**config, 'search': {**config['search'], **given}})
  return prepare(plan, network_variables(plan, arrays, name))


def _of_file(evaluations: int, **options: Any) -> dict[str, Any]:
  return {
    'decisions': {'name': 'joint', **options},
    'cost': {'name': 'file_bytes'},
    # Any file is within it; each search has a budget of its own.
    'budget': 1.0,
    'evaluations': evaluations,
  }


def _pruned_first(
  config: Config, arrays: Arrays, name: str, *, part: float, evaluations: int
) -> SearchSetup:
  """Chooses channels; steps of what is left are then to be searched."""
  prepared = _prepared_as(
    config,
    arrays,
    name,
    decisions={'name': 'channels'},
    cost={'name': 'parameters'},
    budget=part,
    evaluations=evaluations,
  )
  kept = prepared.priced.space.kept(search(prepared).best)
  by_kernel = {
    reader.name: kept[group.name]
    for group in prepared.priced.space.groups
    for reader in group.inputs
  }
  given = _of_file(evaluations, kept=by_kernel)
  return _prepared_as(config, arrays, name, **given)


def _prepared(
  config: Config, arrays: Arrays, name: str, given: Any
) -> dict[str, list[SearchSetup]]:
  """What each way searches; of several the best counts."""
  whole = (config, arrays, name)
  each = given.evaluations // (2 * len(given.pruned))
  return {
    'joint': [_prepared_as(*whole, **_of_file(given.evaluations))],
    'quantize': [
      _prepared_as(*whole, **_of_file(given.evaluations, kept='all'))
    ],
    'prune, then quantize': [
      _pruned_first(*whole, part=part, evaluations=each)
      for part in given.pruned
    ],
  }


def _within(ways: Sequence[SearchSetup], budget: float) -> Searched:
  """Searches within a budget of bytes; the best of several."""
  found, problem = [], ''
  for prepared in ways:
    plan = prepared.plan
    own = {**plan.config['search'], 'budget': budget}
    try:
      changed = prepared._replace(
        plan=plan._replace(config={**plan.config, 'search': own}),
        budget=budget_of(own, prepared.priced),
      )
      found.append((changed, search(changed)))
    except ValueError as error:
      # More is left than the budget has room for.
      problem = str(error)
  if not found:
    raise ValueError(problem)
  return max(found, key=_score)


def _score(result: Searched) -> float:
  return float(np.fmax.reduce(result[1].histories.scores, axis=None))


def _row(
  place: Mapping[str, Any], way: str, ways: Sequence[SearchSetup], given: Any
) -> dict[str, Any]:
  prepared, found = _within(ways, place['bytes_budget'])
  directory = given.runs / place['network'].replace(':', '-') / 'joint'
  directory.mkdir(parents=True, exist_ok=True)
  exported = export_file(prepared, found.best, directory)
  measured = measure_all(prepared, found.best[None])
  size = exported.tested['file_bytes']
  return {
    **place,
    'way': way,
    'evaluations': given.evaluations,
    'file_bytes': size,
    'of_float32': round(size / prepared.priced.whole, 5),
    'check_loss': float(measured['loss'][0]),
    'check_accuracy': float(measured['accuracy'][0]),
    'test_accuracy': exported.tested['accuracy'],
    'difference': exported.difference,
    'policy': prepared.subject.policy(found.best),
  }


def _missing(kept: KeptRows, given: Any) -> list[Mapping[str, Any]]:
  """Places of which there are no rows, by network and then by seed."""
  return kept.missing(
    {'network': name, 'bytes_budget': budget, 'seed': seed}
    for name, seed, budget in itertools.product(
      given.networks, range(given.seeds), given.budgets
    )
  )


def _rows(given: Any) -> Iterator[Sequence[dict[str, Any]]]:
  least = 2 * len(given.pruned)
  if given.evaluations < least:
    raise ValueError(
      f'evaluations={given.evaluations} are less than two for each of pruned='
      f'{given.pruned}'
    )
  kept = KeptRows(given.runs / _KEPT)
  yield kept.of(given.networks)
  for name, places in cells.grouped(_missing(kept, given), 'network'):
    arrays = cells.network_arrays(name, given.runs)
    for seed, missing in cells.grouped(places, 'seed'):
      config = {**cells.network_config(name, given.images), 'seed': seed}
      ways = _prepared(config, arrays, name, given)
      for place in missing:
        yield kept.add([_row(place, way, ways[way], given) for way in WAYS])


main = Benchmark(
  name='search_joint',
  about=__doc__,
  options={
    **cells.OPTIONS,
    'budgets': options.fraction([0.015, 0.03]),
    'pruned': options.fraction([0.3, 0.6]),
    'seeds': options.integer(5, '0, 1, … of them'),
  },
  measure=_rows,
  parts=lambda given: 1 + len(_missing(KeptRows(given.runs / _KEPT), given)),
).main
