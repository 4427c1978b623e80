"""Channels and precision chosen together, or one after the other, or one only.

    python -m experiments.benchmark search_joint [--networks NAME …]
      [--budgets 0.02 0.04] [--seeds 5] [--evaluations 400] [--runs DIR]

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
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from experiments.benchmark import table
from experiments.benchmark.search import network_arrays, network_config
from experiments.search_choice import Found, measure_all, search
from experiments.search_export import export_file
from experiments.search_plan import make_plan, network_variables
from experiments.search_setup import Prepared, prepare
from experiments.startup import InputError

NAME = 'search_joint'
WAYS = ('joint', 'quantize', 'prune, then quantize')
_ROWS = 'joint.jsonl'

Config = Mapping[str, Any]
Arrays = Mapping[str, np.ndarray]
Searched = tuple[Prepared, Found]


def searched(
  config: Config, arrays: Arrays, name: str, **given: Any
) -> Searched:
  """Searches as a config says, but for some fields of its group `search`."""
  plan = make_plan({**config, 'search': {**config['search'], **given}})
  prepared = prepare(plan, network_variables(plan, arrays, name))
  return prepared, search(prepared)


def _of_file(budget: float, evaluations: int, **options: Any) -> dict[str, Any]:
  return {
    'decisions': {'name': 'joint', **options},
    'cost': {'name': 'file_bytes'},
    'budget': budget,
    'evaluations': evaluations,
  }


def _score(result: Searched) -> float:
  return float(np.fmax.reduce(result[1].histories.scores, axis=None))


def pruned_first(
  config: Config,
  arrays: Arrays,
  name: str,
  *,
  budget: float,
  evaluations: int,
  pruned: Sequence[float],
) -> Searched:
  """Chooses channels, then steps of what is left.

  Args:
    config: resolved.
    arrays: of the network, by name.
    name: of the network, for error messages.
    budget: of the file, by the float32 bytes of the network.
    evaluations: in all.
    pruned: fractions of the parameters that are tried.

  Raises:
    ValueError: no file is within the budget.
  """
  each = evaluations // (2 * len(pruned))
  found, problem = [], ''
  for part in pruned:
    prepared, first = searched(
      config,
      arrays,
      name,
      decisions={'name': 'channels'},
      cost={'name': 'parameters'},
      budget=part,
      evaluations=each,
    )
    kept = prepared.priced.space.kept(first.best)
    by_kernel = {
      reader.name: kept[group.name]
      for group in prepared.priced.space.groups
      for reader in group.inputs
    }
    try:
      own = _of_file(budget, each, kept=by_kernel)
      found.append(searched(config, arrays, name, **own))
    except ValueError as error:
      # More is left than the budget has room for.
      problem = str(error)
  if not found:
    raise ValueError(problem)
  return max(found, key=_score)


def _ways(
  config: Config,
  arrays: Arrays,
  name: str,
  budget: float,
  given: argparse.Namespace,
) -> Iterator[tuple[str, Searched]]:
  count = given.evaluations
  whole = (config, arrays, name)
  yield WAYS[0], searched(*whole, **_of_file(budget, count))
  yield WAYS[1], searched(*whole, **_of_file(budget, count, kept='all'))
  yield (
    WAYS[2],
    pruned_first(*whole, budget=budget, evaluations=count, pruned=given.pruned),
  )


def _row(result: Searched, directory: pathlib.Path) -> dict[str, Any]:
  prepared, found = result
  directory.mkdir(parents=True, exist_ok=True)
  exported = export_file(prepared, found.best, directory)
  measured = measure_all(prepared, found.best[None])
  return {
    'file_bytes': exported.tested['file_bytes'],
    'of_float32': round(
      exported.tested['file_bytes'] / prepared.priced.whole, 5
    ),
    'check_loss': float(measured['loss'][0]),
    'check_accuracy': float(measured['accuracy'][0]),
    'test_accuracy': exported.tested['accuracy'],
    'difference': exported.difference,
    'policy': prepared.subject.policy(found.best),
  }


def all_rows(given: argparse.Namespace) -> list[dict[str, Any]]:
  """Computes every row that is not in the file of rows yet."""
  given.runs.mkdir(parents=True, exist_ok=True)
  path = given.runs / _ROWS
  rows = []
  if path.exists():
    rows = [json.loads(line) for line in path.read_text('utf-8').splitlines()]
  for name in given.networks:
    arrays = network_arrays(name, given.runs)
    for seed in range(given.seeds):
      config = {**network_config(name), 'seed': seed}
      for budget in given.budgets:
        place = {'network': name, 'bytes_budget': budget, 'seed': seed}
        if any(place.items() <= row.items() for row in rows):
          continue
        made = []
        for way, result in _ways(config, arrays, name, budget, given):
          directory = given.runs / name.replace(':', '-') / 'joint'
          made.append(
            {
              **place,
              'way': way,
              'evaluations': given.evaluations,
              **_row(result, directory),
            }
          )
          _show(made[-1])
        rows += made
        with path.open('a', encoding='utf-8') as file:
          file.writelines(json.dumps(row) + '\n' for row in made)
  return [row for row in rows if row['network'] in given.networks]


def _show(row: Mapping[str, Any]) -> None:
  print(
    f'{row["network"]} {row["bytes_budget"]:g} {row["way"]} seed '
    f'{row["seed"]}: {row["file_bytes"]:,} bytes, loss '
    f'{row["check_loss"]:.4f}, {row["test_accuracy"]:.2%}',
    flush=True,
  )


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
  add('--budgets', type=float, nargs='+', default=[0.02, 0.04])
  add('--pruned', type=float, nargs='+', default=[0.3, 0.6])
  add('--seeds', type=int, default=5, help='0, 1, … of them')
  add('--evaluations', type=int, default=400)
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
