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

import argparse
import json
import pathlib
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from experiments.benchmark.engineer.search import (
  network_arrays,
  network_config,
  read_lines,
)
from experiments.policy.choice import SearchResult, measure_all, search
from experiments.policy.export import export_file
from experiments.policy.plan import budget_of, make_plan, network_variables
from experiments.policy.setup import SearchSetup, prepare
from experiments.runtime import table
from experiments.runtime.startup import InputError

NAME = 'search_joint'
WAYS = ('joint', 'quantize', 'prune, then quantize')
_ROWS = 'joint.jsonl'

Config = Mapping[str, Any]
Arrays = Mapping[str, np.ndarray]
Searched = tuple[SearchSetup, SearchResult]


def prepared_as(
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


def pruned_first(
  config: Config,
  arrays: Arrays,
  name: str,
  *,
  part: float,
  evaluations: int,
) -> SearchSetup:
  """Chooses channels; steps of what is left are then to be searched.

  Args:
    config: resolved.
    arrays: of the network, by name.
    name: of the network, for error messages.
    part: of the parameters that stays.
    evaluations: of this search, and of the next.
  """
  prepared = prepared_as(
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
  return prepared_as(config, arrays, name, **given)


def _prepared(
  config: Config, arrays: Arrays, name: str, given: argparse.Namespace
) -> dict[str, list[SearchSetup]]:
  """What each way searches; of several the best counts."""
  whole = (config, arrays, name)
  each = given.evaluations // (2 * len(given.pruned))
  return {
    'joint': [prepared_as(*whole, **_of_file(given.evaluations))],
    'quantize': [
      prepared_as(*whole, **_of_file(given.evaluations, kept='all'))
    ],
    'prune, then quantize': [
      pruned_first(*whole, part=part, evaluations=each) for part in given.pruned
    ],
  }


def within(ways: Sequence[SearchSetup], budget: float) -> Searched:
  """Searches within a budget of bytes; the best of several.

  Raises:
    ValueError: no file is within the budget.
  """
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
  place: Mapping[str, Any],
  way: str,
  ways: Sequence[SearchSetup],
  given: argparse.Namespace,
) -> dict[str, Any]:
  prepared, found = within(ways, place['bytes_budget'])
  directory = given.runs / place['network'].replace(':', '-') / 'joint'
  directory.mkdir(parents=True, exist_ok=True)
  exported = export_file(prepared, found.best, directory)
  measured = measure_all(prepared, found.best[None])
  size = exported.tested['file_bytes']
  row = {
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
  print(
    f'{row["network"]} {row["bytes_budget"]:g} {way} seed {row["seed"]}: '
    f'{size:,} bytes, loss {row["check_loss"]:.4f}, '
    f'{row["test_accuracy"]:.2%}',
    flush=True,
  )
  return row


def all_rows(given: argparse.Namespace) -> list[dict[str, Any]]:
  """Computes every row that is not in the file of rows yet."""
  given.runs.mkdir(parents=True, exist_ok=True)
  path = given.runs / _ROWS
  rows = read_lines(path)
  for name in given.networks:
    arrays = network_arrays(name, given.runs)
    for seed in range(given.seeds):
      places = [
        {'network': name, 'bytes_budget': budget, 'seed': seed}
        for budget in given.budgets
      ]
      missing = [
        place
        for place in places
        if not any(place.items() <= row.items() for row in rows)
      ]
      if not missing:
        continue
      config: dict[str, Any] = {**network_config(name), 'seed': seed}
      if given.images:
        config['search'] = {**config['search'], 'images': given.images}
      ways = _prepared(config, arrays, name, given)
      for place in missing:
        made = [_row(place, way, ways[way], given) for way in WAYS]
        rows += made
        with path.open('a', encoding='utf-8') as file:
          file.writelines(json.dumps(row) + '\n' for row in made)
  return [row for row in rows if row['network'] in given.networks]


def _check(given: argparse.Namespace) -> None:
  for field in ('budgets', 'pruned'):
    for value in getattr(given, field):
      if not 0 < value <= 1:
        raise ValueError(f'{field}={value} is not in (0, 1]')
  if given.seeds < 1:
    raise ValueError(f'seeds={given.seeds} is not positive')
  least = 2 * len(given.pruned)
  if given.evaluations < least:
    raise ValueError(
      f'evaluations={given.evaluations} are less than two for each of pruned='
      f'{given.pruned}'
    )


def main(argv: Sequence[str]) -> int:
  """Searches and compares; returns the exit status."""
  parser = argparse.ArgumentParser(
    prog=f'benchmark {NAME}',
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  add = parser.add_argument
  add('--networks', nargs='+', default=['quickstart_search'])
  add('--budgets', type=float, nargs='+', default=[0.015, 0.03])
  add('--pruned', type=float, nargs='+', default=[0.3, 0.6])
  add('--seeds', type=int, default=5, help='0, 1, … of them')
  add('--evaluations', type=int, default=400)
  add('--images', type=int, help='that score candidates; as the config has it')
  add('--runs', type=pathlib.Path, default=pathlib.Path('runs/search'))
  add('--output', help='JSON file')
  given = parser.parse_args(argv)
  try:
    _check(given)
    rows = all_rows(given)
    if given.output:
      table.write(given.output, NAME, rows)
  except (ValueError, OSError, InputError) as error:
    message = ' '.join(str(error).split())
    print(f'benchmark {NAME}: error: {message}', file=sys.stderr)
    return 2
  table.show([{k: v for k, v in row.items() if k != 'policy'} for row in rows])
  return 0
