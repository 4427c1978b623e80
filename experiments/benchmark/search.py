"""Searchers on equal budgets of cost and of evaluations.

    python -m experiments.benchmark search [--networks quickstart_search …]
      [--budgets 0.1 0.2] [--seeds 10] [--evaluations 400] [--runs DIR]

A network is a config with a group `search`, whose mode `policy=FILE` goes on
training what was found. Each is trained once. A seed then chooses the images
that layers are refitted on, those that candidates are scored on, and what a
searcher draws; differences are paired by seed. What a searcher found best is
measured on examples that it has not seen, and, after as many steps of training
as `--steps` says, on the test set. A row is a network, a budget and a searcher.
Cells that a stopped benchmark left in DIR are not computed again.

    python -m experiments.benchmark search --timing [--evaluations 800]

measures where the time of an AMC search goes, one program beside its parts.
"""

import argparse
import functools
import json
import pathlib
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bandwidth.base import unknown_name
from bandwidth.search.budget import check_budget
from bandwidth.search.cost import exact_cost
from bandwidth.search.problem import History, best, evaluate
from bandwidth.search.searchers import SEARCHERS, SINGLE, make_searcher
from experiments.benchmark import table
from experiments.config import named_config, resolve
from experiments.gradient_results import standard_error
from experiments.search_choice import measure_all
from experiments.search_export import export_file
from experiments.search_plan import make_plan, network_variables
from experiments.search_setup import Prepared, prepare
from experiments.startup import InputError
from experiments.train import run as train
from experiments.weights import read_weights

NAME = 'search'
DEFAULT = 'cma_es_dynamic'
_REFERENCE = 'amc'
_CELLS = 'cells.jsonl'

Cell = dict[str, Any]
Programs = Mapping[str, Callable[..., History]]


def trained(name: str, directory: pathlib.Path) -> dict[str, Any]:
  """Trains the network of a config once; returns its arrays by name."""
  config = resolve(named_config(name).to_dict())
  plain = {k: v for k, v in config.items() if k != 'search'}
  train(plain, str(directory / 'network'))
  return dict(read_weights(directory / 'network'))


def prepared_for(
  name: str, arrays: Mapping[str, np.ndarray], seed: int
) -> Prepared:
  """Prepares the options and examples of a seed."""
  plan = make_plan({**resolve(named_config(name).to_dict()), 'seed': seed})
  return prepare(plan, network_variables(plan, arrays, name))


def make_programs(
  prepared: Prepared, names: Sequence[str], evaluations: int
) -> Programs:
  """Returns compiled searchers `(key, data, budget) -> history`, by name."""
  return {
    name: jax.jit(
      make_searcher(name, prepared.problem, evaluations=evaluations)
    )
    for name in names
  }


def finish(
  name: str,
  prepared: Prepared,
  candidate: np.ndarray,
  directory: pathlib.Path,
  steps: int,
) -> dict[str, float]:
  """Exports a candidate and trains it on; returns test accuracies.

  Args:
    name: of the config.
    prepared: what was searched.
    candidate: levels.
    directory: of the exported network and its run.
    steps: of training; 0: none.
  """
  directory.mkdir(parents=True, exist_ok=True)
  exported = export_file(prepared, candidate, directory)
  policy = directory / 'search.json'
  policy.write_text(
    json.dumps({'model': exported.model, 'weights': 'model.bwz'}), 'utf-8'
  )
  before = exported.tested['accuracy']
  if not steps:
    return {'accuracy': before}
  config = named_config(name, f'policy={policy}')
  config.seed = prepared.plan.config['seed']
  config.stages.train.epochs = 0.0
  config.stages.train.steps = steps
  config.eval_every_epochs = 0.0
  config.checkpoint_every_epochs = 0.0
  report = train(config.to_dict(), str(directory / 'tuned'))
  return {'accuracy': before, 'tuned': report.accuracy['final']}


def cell(
  name: str,
  fraction: float,
  searcher: str,
  prepared: Prepared,
  program: Callable[..., History],
  given: argparse.Namespace,
) -> Cell:
  """Searches once and measures what was found."""
  plan = prepared.plan
  seed = plan.config['seed']
  budget = check_budget(plan.space, plan.costs, fraction * plan.whole)
  start = time.monotonic()
  history = jax.device_get(
    program(jax.random.key(seed), prepared.data, jnp.int32(budget))
  )
  seconds = time.monotonic() - start
  place = int(best(history))
  candidate = np.asarray(history.candidates[place])
  found = measure_all(prepared, candidate[None])
  levels = '-'.join(map(str, candidate.tolist()))
  directory = given.runs / name / f'seed{seed}' / levels
  return {
    'network': name,
    'budget': fraction,
    'searcher': searcher,
    'seed': seed,
    'evaluations': len(history.scores),
    'cost': exact_cost(plan.space, plan.cost, candidate) / plan.whole,
    'score': float(history.scores[place]),
    'check_loss': float(found['loss'][0]),
    'check_accuracy': float(found['accuracy'][0]),
    **finish(name, prepared, candidate, directory, given.steps),
    'seconds': seconds,
    'levels': candidate.tolist(),
  }


def all_cells(given: argparse.Namespace) -> list[Cell]:
  """Computes every cell that is not in the file of cells yet."""
  path = given.runs / _CELLS
  given.runs.mkdir(parents=True, exist_ok=True)
  cells = _read_cells(path)
  wanted = [
    (name, fraction, searcher)
    for name in given.networks
    for fraction in given.budgets
    for searcher in given.searchers
  ]
  for name in given.networks:
    arrays = trained(name, given.runs / name)
    programs: Programs = {}
    for seed in range(given.seeds):
      done = {
        (c['network'], c['budget'], c['searcher'], c['seed']) for c in cells
      }
      missing = [w for w in wanted if w[0] == name and (*w, seed) not in done]
      if not missing:
        continue
      prepared = prepared_for(name, arrays, seed)
      programs = programs or make_programs(
        prepared, given.searchers, given.evaluations
      )
      for _, fraction, searcher in missing:
        made = cell(
          name, fraction, searcher, prepared, programs[searcher], given
        )
        cells.append(made)
        with path.open('a', encoding='utf-8') as file:
          file.write(json.dumps(made) + '\n')
        print(
          f'{name} {fraction:g} {searcher} seed {seed}: '
          f'loss {made["check_loss"]:.4f}, {made["accuracy"]:.2%}'
          + (f', {made["tuned"]:.2%}' if 'tuned' in made else ''),
          flush=True,
        )
      if given.output:
        table.write(given.output, NAME, summarized(cells))
  return cells


def _read_cells(path: pathlib.Path) -> list[Cell]:
  if not path.exists():
    return []
  return [json.loads(line) for line in path.read_text('utf-8').splitlines()]


def summarized(cells: Sequence[Cell]) -> list[dict[str, Any]]:
  """Returns a row for each network, budget and searcher.

  Losses and accuracies are means over seeds, with their standard errors, and
  differences to the default and to AMC, paired by seed, with theirs.
  """
  by_cell: dict[tuple[str, float, str], dict[int, Cell]] = {}
  for each in cells:
    place = (each['network'], each['budget'], each['searcher'])
    by_cell.setdefault(place, {})[each['seed']] = each
  rows = []
  for (network, budget, searcher), seeds in by_cell.items():
    row: dict[str, Any] = {
      'network': network,
      'budget': budget,
      'searcher': searcher,
      'seeds': len(seeds),
      'evaluations': next(iter(seeds.values()))['evaluations'],
      'cost': round(statistics.mean(c['cost'] for c in seeds.values()), 4),
    }
    for field, scale in (('check_loss', 1), ('accuracy', 100), ('tuned', 100)):
      values = {s: scale * c[field] for s, c in seeds.items() if field in c}
      if not values:
        continue
      row[field] = round(statistics.mean(values.values()), 4)
      row[f'{field}_error'] = round(standard_error(list(values.values())), 4)
      for other in (DEFAULT, _REFERENCE):
        beside = by_cell.get((network, budget, other), {})
        pairs = [
          value - scale * beside[s][field]
          for s, value in values.items()
          if s in beside and field in beside[s]
        ]
        if other != searcher and pairs:
          row[f'{field}_minus_{other}'] = round(statistics.mean(pairs), 4)
          row[f'{field}_minus_{other}_error'] = round(standard_error(pairs), 4)
    row['seconds'] = round(
      statistics.median(c['seconds'] for c in seeds.values()), 2
    )
    rows.append(row)
  return rows


def timing(given: argparse.Namespace) -> list[dict[str, Any]]:
  """Measures an AMC search as one program, and its evaluations alone."""
  rows = []
  for name in given.networks:
    arrays = trained(name, given.runs / name)
    start = time.monotonic()
    prepared = prepared_for(name, arrays, 0)
    options = time.monotonic() - start
    rows.append(
      {
        'network': name,
        'evaluations': given.evaluations,
        **_time_search(prepared, given.evaluations, given.budgets[0]),
        'options_seconds': round(options, 2),
      }
    )
  return rows


def _time_search(
  prepared: Prepared, evaluations: int, fraction: float
) -> dict[str, Any]:
  traces = 0

  def counted(data: Any, candidate: jax.Array) -> jax.Array:
    nonlocal traces
    traces += 1
    return prepared.problem.objective(data, candidate)

  problem, plan = prepared.problem._replace(objective=counted), prepared.plan
  budget = check_budget(plan.space, plan.costs, fraction * plan.whole)
  search = make_searcher(_REFERENCE, problem, evaluations=evaluations)
  arguments = (jax.random.key(0), prepared.data, jnp.int32(budget))
  start = time.monotonic()
  program = jax.jit(search).lower(*arguments).compile()
  compiled = time.monotonic() - start
  in_search = traces
  alone = jax.jit(functools.partial(evaluate, problem))
  history = jax.block_until_ready(program(*arguments))
  jax.block_until_ready(alone(prepared.data, history.candidates))
  whole, parts = [], []
  for _ in range(3):
    for fn, inputs, into in (
      (program, arguments, whole),
      (alone, (prepared.data, history.candidates), parts),
    ):
      start = time.monotonic()
      jax.block_until_ready(fn(*inputs))
      into.append(time.monotonic() - start)
  total, evaluating = statistics.median(whole), statistics.median(parts)
  return {
    'traces': in_search,
    'compile_seconds': round(compiled, 2),
    'seconds': round(total, 2),
    'ms_per_episode': round(1000 * total / evaluations, 2),
    'evaluation_seconds': round(evaluating, 2),
    'outside_evaluation': round(1 - evaluating / total, 4),
  }


def _check(given: argparse.Namespace) -> None:
  for field in ('seeds', 'evaluations'):
    if getattr(given, field) < 1:
      raise ValueError(f'{field}={getattr(given, field)} is not positive')
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
  add('--steps', type=int, default=200, help='of training what was found')
  add('--runs', type=pathlib.Path, default=pathlib.Path('runs/search'))
  add('--timing', action='store_true', help='of AMC, and nothing else')
  add('--output', help='JSON file')
  given = parser.parse_args(argv)
  try:
    _check(given)
    rows = timing(given) if given.timing else summarized(all_cells(given))
    if given.output:
      table.write(given.output, NAME, rows)
  except (ValueError, OSError, InputError) as error:
    message = ' '.join(str(error).split())
    print(f'benchmark {NAME}: error: {message}', file=sys.stderr)
    return 2
  table.show(rows)
  return 0
