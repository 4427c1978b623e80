"""Tables and plots of the search of compression policies, from results/.

Benchmarks are results/benchmark/search*.json. Kept searches are
results/NAME/search_SEED.json. What became of one by training is
results/NAME-policy/SEED.json, and results/NAME-whole/SEED.json is the whole
network trained on as long. What is absent is left out.
"""

import json
import pathlib
import statistics
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from bandwidth.report import markdown_table
from experiments.reports.gradient import read_reports, standard_error
from experiments.reports.policy import plot_frontier, plot_policy
from experiments.reports.search_comparison import (
  MEASURES,
  Measure,
  Row,
  measures_in,
  origin,
  plot_searchers,
  plus_minus,
  read_benchmarks,
  rows_of,
  searcher_sections,
  short_commit,
)

_JOINT = 'joint'
_JOINT_MEASURES = (
  MEASURES[0],
  Measure(
    'check_accuracy', 'accuracy on unseen examples, %', '', '.2f', 1, 100
  ),
  MEASURES[1]._replace(field='test_accuracy', scale=100),
  MEASURES[2]._replace(scale=100),
)


class PublishedSearch(NamedTuple):
  """A network that AMC made smaller and fine-tuned."""

  dataset: str  # as in a config
  network: str  # what the paper calls it
  fraction: float  # of the multiply-adds that it was to keep
  whole_percent: float  # test accuracy of the whole network
  found_percent: float  # of the smaller one, fine-tuned
  source: str  # the paper, with its arXiv number


_AMC = 'AMC: He et al., ECCV 2018, arXiv 1802.03494'
PUBLISHED = (
  PublishedSearch('cifar10', 'Plain-20', 0.5, 90.5, 90.2, _AMC),
  PublishedSearch('cifar10', 'ResNet-56', 0.5, 92.8, 91.9, _AMC),
)


def tables(results: pathlib.Path) -> str:
  """Returns Markdown made of the files below a directory.

  Args:
    results: with `benchmark/` and a directory for each config.

  Raises:
    ValueError: two rows are of one network, budget and searcher, or an accuracy
      that ought to be a fraction is none.
  """
  sections = (searcher_sections, _timing, _frontiers, _joint, _kept, _tuned)
  parts = [part for section in sections for part in section(results)]
  return '\n\n'.join(['# Search of compression policies', *parts]) + '\n'


def _timing(results: pathlib.Path) -> list[str]:
  files = read_benchmarks(results, 'search_timing*.json')
  parts = ['## Where the time of a search goes'] if files else []
  for file in files:
    columns = dict.fromkeys(column for row in file['rows'] for column in row)
    rows = [
      [_timed(column, row.get(column)) for column in columns]
      for row in file['rows']
    ]
    parts += [
      origin(file),
      markdown_table([column.replace('_', ' ') for column in columns], rows),
    ]
  return parts


def _timed(column: str, value: Any) -> str:
  if column == 'outside_evaluation' and value is not None:
    return f'{value:.1%}'
  if isinstance(value, float):
    return f'{value:,.2f}'
  return f'{value:,}' if isinstance(value, int) else value or ''


def _percent(row: Row, field: str = 'accuracy') -> float:
  """An accuracy of a row in per cent."""
  if not 0 <= row[field] <= 1:
    raise ValueError(f'{field}={row[field]} is not in [0, 1]')
  return 100 * row[field]


def _frontiers(results: pathlib.Path) -> list[str]:
  files = read_benchmarks(results, 'search_frontier.json')
  if not files:
    return []
  header = [
    'budget', 'way', 'cost', 'error of layers', 'loss on unseen examples',
    'accuracy on unseen examples, %', 'same candidate',
  ]  # fmt: skip
  parts = ['## All budgets in one pass', *map(origin, files)]
  rows = rows_of(files)
  for network in dict.fromkeys(row['network'] for row in rows):
    own = [row for row in rows if row['network'] == network]
    lines = [
      [
        f'{100 * row["budget"]:g} %',
        row['way'],
        f'{row["cost"]:.2%}',
        f'{row["error"]:.5g}' if row.get('error') is not None else '',
        f'{row["check_loss"]:.4f}',
        f'{_percent(row, "check_accuracy"):.2f}',
        {True: 'yes', False: 'no', None: ''}[row.get('same_candidate')],
      ]
      for row in sorted(own, key=lambda row: row['budget'])
    ]
    parts += [f'### Frontier of {network}', markdown_table(header, lines)]
  return parts


def _joint(results: pathlib.Path) -> list[str]:
  files = read_benchmarks(results, 'search_joint*.json')
  if not files:
    return []
  parts = [
    '## Channels and bits together',
    *map(origin, files),
    'Means ± standard errors over seeds; differences are paired by seed.',
  ]
  groups: dict[tuple[str, float], dict[str, dict[int, Row]]] = {}
  for row in rows_of(files):
    ways = groups.setdefault((row['network'], row['bytes_budget']), {})
    ways.setdefault(row['way'], {})[row['seed']] = row
  for (network, budget), ways in groups.items():
    size = f'{budget:,.0f} bytes' if budget > 1 else f'{budget:.1%} of bytes'
    parts += [f'### {network}, at most {size}', _joint_table(ways)]
  return parts


def _joint_table(ways: Mapping[str, Mapping[int, Row]]) -> str:
  every = [row for seeds in ways.values() for row in seeds.values()]
  measures = measures_in(every, _JOINT_MEASURES)
  header = ['way', 'seeds', 'evaluations', 'file bytes']
  for measure in measures:
    header += [measure.title, f'minus {_JOINT}']
  lines = []
  for way, seeds in ways.items():
    rows = list(seeds.values())
    line = [
      way,
      str(len(rows)),
      f'{rows[0]["evaluations"]:,}',
      f'{statistics.mean(row["file_bytes"] for row in rows):,.0f}',
    ]
    for measure in measures:
      values = _values(seeds, measure)
      beside = _values(ways.get(_JOINT, {}), measure)
      shared = [v - beside[s] for s, v in values.items() if s in beside]
      line.append(_mean(list(values.values()), measure.form))
      line.append(_mean(shared, f'+{measure.form}') if way != _JOINT else '')
    lines.append(line)
  return markdown_table(header, lines)


def _values(seeds: Mapping[int, Row], measure: Measure) -> dict[int, float]:
  has = {s: row for s, row in seeds.items() if measure.field in row}
  if measure.scale == 1:
    return {s: row[measure.field] for s, row in has.items()}
  return {s: _percent(row, measure.field) for s, row in has.items()}


def _mean(values: Sequence[float], form: str) -> str:
  if not values:
    return ''
  return plus_minus(statistics.mean(values), standard_error(values), form)


def _kept_searches(
  results: pathlib.Path,
) -> dict[str, dict[str, dict[str, Any]]]:
  """The search.json of kept searches, by seed, by directory."""
  kept: dict[str, dict[str, Any]] = {}
  for path in sorted(results.glob('*/search_[0-9]*.json')):
    seed = path.stem.removeprefix('search_')
    outcome = json.loads(path.read_text('utf-8'))
    kept.setdefault(path.parent.name, {})[seed] = outcome
  return kept


def _kept(results: pathlib.Path) -> list[str]:
  kept = _kept_searches(results)
  if not kept:
    return []
  header = [
    'search', 'cost', 'searcher', 'evaluations', 'loss on unseen examples',
    'whole', 'accuracy on unseen examples, %', 'whole',
    'test accuracy, not fine-tuned, %', 'file bytes', 'minutes', 'device',
    'commit', 'command',
  ]  # fmt: skip
  rows = [
    _kept_row(f'{name}, {seed}', outcome)
    for name, seeds in kept.items()
    for seed, outcome in seeds.items()
  ]
  return ['## Searches that were kept', markdown_table(header, rows)]


def _kept_row(name: str, outcome: Row) -> list[str]:
  cost, score = outcome['cost'], outcome['score']
  found, test = score['check'], score['test']
  (whole,) = (r for r in outcome['frontier'] if r['searcher'] == 'whole')
  return [
    name,
    f'{100 * cost["fraction"]:.1f} % of {cost["name"]} (at most '
    f'{100 * outcome["budget"]:g} %)',
    outcome['searcher']['name'],
    f'{outcome["evaluations"]:,}',
    *(f'{each["loss"]:.4f}' for each in (found, whole)),
    *(f'{_percent(each):.2f}' for each in (found, whole, test)),
    f'{test["file_bytes"]:,}',
    f'{outcome["seconds"]["total"] / 60:.1f}',
    outcome['device'],
    short_commit(outcome.get('commit')),
    f'`{outcome["command"]}`',
  ]


def _tuned(results: pathlib.Path) -> list[str]:
  rows, datasets = [], set()
  for name, seeds in _kept_searches(results).items():
    whole = read_reports(results / f'{name}-whole')
    found = read_reports(results / f'{name}-policy')
    if found:
      rows.append(_tuned_row(f'{name}, smaller', found, whole))
      datasets |= {o['config']['dataset']['name'] for o in seeds.values()}
    if found and whole:
      rows.append(_tuned_row(f'{name}, whole', whole, {}))
  if not rows:
    return []
  header = [
    'network', 'seeds', 'test accuracy, %', 'minus whole, paired',
    'file bytes', 'minutes', 'device', 'command of the first seed',
  ]  # fmt: skip
  parts = [
    '## Fine-tuned',
    'The smaller network, and the whole one trained on as long. Means ± '
    'standard errors over seeds.',
    markdown_table(header, rows),
  ]
  published = [p for p in PUBLISHED if p.dataset in datasets]
  return [*parts, _published_table(published)] if published else parts


def _tuned_row(
  name: str, reports: Mapping[int, Row], whole: Mapping[int, Row]
) -> list[str]:
  final = {s: _percent(r['accuracy'], 'final') for s, r in reports.items()}
  differences = [
    accuracy - _percent(whole[seed]['accuracy'], 'final')
    for seed, accuracy in final.items()
    if seed in whole
  ]
  first = next(iter(reports.values()))
  sizes = [r['memory']['file_bytes'] for r in reports.values() if 'memory' in r]
  return [
    name,
    ' '.join(map(str, reports)),
    _mean(list(final.values()), '.2f'),
    _mean(differences, '+.2f'),
    f'{statistics.median(sizes):,.0f}' if sizes else '',
    f'{statistics.median(r["seconds"] for r in reports.values()) / 60:.1f}',
    first['device'],
    f'`{first["command"]}`',
  ]


def _published_table(published: Sequence[PublishedSearch]) -> str:
  rows = [
    [
      f'{p.network}, {p.dataset}',
      f'{p.fraction:.0%}',
      f'{p.whole_percent:.1f}',
      f'{p.found_percent:.1f}',
      p.source,
    ]
    for p in published
  ]
  header = ['published', 'macs', 'whole, %', 'smaller, fine-tuned, %', 'source']
  return markdown_table(header, rows)


def plot(results: pathlib.Path) -> list[pathlib.Path]:
  """Draws what there are rows and searches for.

  Args:
    results: with `benchmark/` and a directory for each config.

  Returns:
    The files, below `plots/`: `search_searchers.png`, and `NAME_frontier.png`
    and `NAME_policy.png` of each kept search, with its seed behind if that is
    not 0.
  """
  plots = results / 'plots'
  path = plots / 'search_searchers.png'
  drawn = [path] if plot_searchers(results, path) else []
  for name, seeds in _kept_searches(results).items():
    for seed, outcome in seeds.items():
      suffix = '' if seed == '0' else f'_{seed}'
      drawn.append(plots / f'{name}_frontier{suffix}.png')
      plot_frontier(outcome['frontier'], drawn[-1], outcome)
      drawn.append(plots / f'{name}_policy{suffix}.png')
      plot_policy([_bar(row) for row in outcome['policy']], drawn[-1])
  return drawn


def _bar(row: Row) -> Row:
  """What `plot_policy` draws; a row of channels may have counts alone."""
  if 'fraction' in row:
    return row
  fraction = row['kept'] / row['channels']
  return {
    **row, 'name': row['group'], 'label': str(row['kept']), 'fraction': fraction
  }  # fmt: skip
