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

import argparse
import functools
import itertools
import json
import pathlib
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bandwidth.base import unknown_name
from bandwidth.search.problem.budget import check_budget
from bandwidth.search.problem.interface import History, best
from bandwidth.search.searchers import SEARCHERS, SINGLE, make_searcher
from experiments.benchmark.engineer.frontier import frontier_rows
from experiments.benchmark.engineer.summary import REFERENCE, Cell, summarized
from experiments.benchmark.engineer.timing import time_search
from experiments.benchmark.engineer.tuning import Tuning, make_tuning
from experiments.compression.weights import read_weights
from experiments.config import named_config, resolve
from experiments.policy.choice import measure_all
from experiments.policy.plan import make_plan, network_variables
from experiments.policy.setup import SearchSetup, prepare
from experiments.runtime import table
from experiments.runtime.startup import InputError
from experiments.training.run import run as train

NAME = 'search'
_CELLS = 'cells.jsonl'
_AGENTS = ('amc', 'td3')

Programs = Mapping[str, Callable[..., History]]


def network_config(name: str) -> dict[str, Any]:
  """The resolved config of a network's name."""
  file, _, mode = name.partition(':')
  return dict(resolve(named_config(file, mode).to_dict()))


def network_arrays(name: str, runs: pathlib.Path) -> dict[str, np.ndarray]:
  """Trains the network of a config once; returns its arrays by name.

  Where `search.network` of the config names one, that is taken.
  """
  given = network_config(name)['search']['network']
  if given:
    return dict(read_weights(pathlib.Path(given)))
  directory = runs / name.replace(':', '-') / 'network'
  plain = {k: v for k, v in network_config(name).items() if k != 'search'}
  train(plain, str(directory))
  return dict(read_weights(directory))


def prepared_for(
  name: str, arrays: Mapping[str, np.ndarray], given: argparse.Namespace
) -> Callable[[int], SearchSetup]:
  """Returns what prepares the options and examples of a seed."""
  config = network_config(name)
  if given.images:
    config['search'] = {**config['search'], 'images': given.images}

  def of_seed(seed: int) -> SearchSetup:
    plan = make_plan({**config, 'seed': seed})
    return prepare(plan, network_variables(plan, arrays, name))

  return of_seed


def make_programs(
  prepared: SearchSetup, names: Sequence[str], evaluations: int
) -> Programs:
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


def cell(
  name: str,
  fraction: float,
  searcher: str,
  prepared: SearchSetup,
  program: Callable[..., History],
  finish: Callable[[tuple[int, ...]], dict[str, float]],
) -> Cell:
  """Searches once and measures what was found.

  Args:
    name: of the network.
    fraction: of the whole cost, the budget.
    searcher: its name.
    prepared: what is searched.
    program: the searcher, compiled.
    finish: `levels -> accuracies on the test set`.
  """
  priced, seed = prepared.priced, prepared.plan.config['seed']
  budget = check_budget(priced.space, priced.costs, fraction * priced.whole)
  start = time.monotonic()
  history = jax.device_get(
    program(jax.random.key(seed), prepared.data, jnp.int32(budget))
  )
  seconds = time.monotonic() - start
  place = int(best(history))
  candidate = np.asarray(history.candidates[place])
  found = measure_all(prepared, candidate[None])
  return {
    'network': name,
    'budget': fraction,
    'searcher': searcher,
    'seed': seed,
    'evaluations': len(history.scores),
    'cost': priced.exact(candidate) / priced.whole,
    'score': float(history.scores[place]),
    'check_loss': float(found['loss'][0]),
    'check_accuracy': float(found['accuracy'][0]),
    **finish(tuple(candidate.tolist())),
    'seconds': seconds,
    'levels': candidate.tolist(),
  }


def finisher(
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


def all_cells(given: argparse.Namespace) -> list[Cell]:
  """Computes every cell that is not in the file of cells yet."""
  path = given.runs / _CELLS
  given.runs.mkdir(parents=True, exist_ok=True)
  cells = read_lines(path)
  for name in given.networks:
    of_seed = prepared_for(name, network_arrays(name, given.runs), given)
    programs: Programs = {}
    tuning: Tuning | None = None
    for seed in range(given.seeds):
      missing = _missing(cells, name, seed, given)
      if not missing:
        continue
      prepared = of_seed(seed)
      if not programs:
        programs = make_programs(prepared, given.searchers, given.evaluations)
        if given.steps:
          tuning = make_tuning(
            prepared.plan,
            steps=given.steps,
            learning_rate=given.learning_rate,
            tested=given.test_images,
          )
      finish = finisher(prepared, tuning)
      for fraction, searcher in missing:
        program = programs[searcher]
        made = cell(name, fraction, searcher, prepared, program, finish)
        cells.append(made)
        _append(path, made)
      if given.output:
        table.write(given.output, NAME, summarized(_wanted(cells, given)))
  return _wanted(cells, given)


def _missing(
  cells: Sequence[Cell], name: str, seed: int, given: argparse.Namespace
) -> list[tuple[float, str]]:
  """Budgets and searchers of a network and seed that have no cell."""
  done = {
    (c['budget'], c['searcher'])
    for c in cells
    if (c['network'], c['seed']) == (name, seed)
  }
  wanted = itertools.product(given.budgets, given.searchers)
  return [each for each in wanted if each not in done]


def _wanted(cells: Sequence[Cell], given: argparse.Namespace) -> list[Cell]:
  return [cell for cell in cells if cell['network'] in given.networks]


def _append(path: pathlib.Path, made: Cell) -> None:
  with path.open('a', encoding='utf-8') as file:
    file.write(json.dumps(made) + '\n')
  print(
    f'{made["network"]} {made["budget"]:g} {made["searcher"]} seed '
    f'{made["seed"]}: loss {made["check_loss"]:.4f}'
    + (
      f', {made["accuracy"]:.2%}, {made["tuned"]:.2%}'
      if 'tuned' in made
      else ''
    ),
    flush=True,
  )


def read_lines(path: pathlib.Path) -> list[Cell]:
  """Returns the objects of a file, one a line; none where there is no file."""
  if not path.exists():
    return []
  return [json.loads(line) for line in path.read_text('utf-8').splitlines()]


def timing(given: argparse.Namespace) -> list[dict[str, Any]]:
  """Measures AMC searches, and their parts alone."""
  rows = []
  for name in given.networks:
    of_seed = prepared_for(name, network_arrays(name, given.runs), given)
    start = time.monotonic()
    prepared = of_seed(0)
    options = round(time.monotonic() - start, 2)
    timed = time_search(
      prepared, REFERENCE, given.evaluations, given.budgets[0]
    )
    rows.append({'network': name, **timed, 'options_seconds': options})
  return rows


def frontiers(given: argparse.Namespace) -> list[dict[str, Any]]:
  """Compares all budgets from one pass with single ones."""
  rows = []
  for name in given.networks:
    prepared = prepared_for(name, network_arrays(name, given.runs), given)(0)
    searcher = given.searchers[0]
    (program,) = make_programs(prepared, [searcher], given.evaluations).values()
    rows += [
      {'network': name, **row}
      for row in frontier_rows(prepared, given.budgets, searcher, program)
    ]
  return rows


def _check(given: argparse.Namespace) -> None:
  for field in ('seeds', 'evaluations', 'test_images'):
    if getattr(given, field) < 1:
      raise ValueError(f'{field}={getattr(given, field)} is not positive')
  if given.images is not None and given.images < 1:
    raise ValueError(f'images={given.images} is not positive')
  if given.steps < 0:
    raise ValueError(f'steps={given.steps} is negative')
  for name in given.searchers:
    if name not in SEARCHERS and name not in SINGLE:
      raise ValueError(unknown_name('searchers', name, (*SINGLE, *SEARCHERS)))
  for fraction in given.budgets:
    if not 0 < fraction <= 1:
      raise ValueError(f'budgets={fraction} is not in (0, 1]')


def main(argv: Sequence[str]) -> int:
  """Searches and compares; returns the exit status."""
  parser = argparse.ArgumentParser(
    prog=f'benchmark {NAME}',
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  add = parser.add_argument
  add('--networks', nargs='+', default=['quickstart_search'])
  add('--budgets', type=float, nargs='+', default=[0.1, 0.2])
  add('--searchers', nargs='+', default=[*SINGLE, *SEARCHERS])
  add('--seeds', type=int, default=10, help='0, 1, … of them')
  add('--evaluations', type=int, default=400)
  add('--images', type=int, help='that score candidates; as the config has it')
  add('--test_images', type=int, default=10_000, help='of the test set')
  add('--steps', type=int, default=200, help='of training what was found')
  add('--learning_rate', type=float, default=0.01, help='of it, at first')
  add('--runs', type=pathlib.Path, default=pathlib.Path('runs/search'))
  only = parser.add_mutually_exclusive_group()
  only.add_argument('--timing', action='store_true', help='of AMC alone')
  only.add_argument('--frontier', action='store_true', help='of one pass alone')
  add('--output', help='JSON file')
  given = parser.parse_args(argv)
  try:
    _check(given)
    if given.timing:
      rows = timing(given)
    elif given.frontier:
      rows = frontiers(given)
    else:
      rows = summarized(all_cells(given))
    if given.output:
      table.write(given.output, NAME, rows)
  except (ValueError, OSError, InputError) as error:
    message = ' '.join(str(error).split())
    print(f'benchmark {NAME}: error: {message}', file=sys.stderr)
    return 2
  table.show(rows)
  return 0
