"""Searchers on equal budgets, beside each other, from results/benchmark.

Rows are what `benchmark search` writes to search.json and search_equal*.json: a
row is a network, a budget and a searcher. Networks and budgets are cells.
"""

import itertools
import json
import math
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from bandwidth.report import markdown_table
from experiments.reports.plots import figure_at

Row = Mapping[str, Any]
Cells = Mapping[tuple[str, float], Mapping[str, Row]]

DEFAULT = 'cma_es_dynamic'
"""The searcher of a config that names none."""

EVERY_OTHER = 'every other'
_MARKERS = 'osD^v<>PXhdp'
# Colors of matplotlib's cycle; lines beyond it are dashed.
_COLORS = 10


class Measure(NamedTuple):
  """What searchers are compared by."""

  field: str  # name of a row's field
  title: str  # for people, with its unit
  name: str  # a shorter title
  form: str  # format of a number, as `format` takes it
  sign: int  # 1 if more is better, -1 if less is
  scale: int = 1  # factor from what the file has to the unit of the title


MEASURES = (
  Measure('check_loss', 'loss on unseen examples', 'loss', '.4f', -1),
  Measure(
    'accuracy', 'test accuracy, not fine-tuned, %', 'not fine-tuned', '.2f', 1
  ),
  Measure('tuned', 'test accuracy, fine-tuned, %', 'fine-tuned', '.2f', 1),
)
"""Of `benchmark search`, whose accuracies are in per cent."""


def measures_in(
  rows: Iterable[Row], measures: Iterable[Measure] = MEASURES
) -> list[Measure]:
  """Returns those that some row has."""
  fields = {field for row in rows for field in row}
  return [measure for measure in measures if measure.field in fields]


class Comparison(NamedTuple):
  """The default searcher beside another one, over networks and budgets.

  Beside `EVERY_OTHER` it is as good as, and better than, all others of a cell,
  and worse than any one of them.
  """

  other: str  # name of the other searcher
  measure: str  # a field of `MEASURES`
  cells: int  # in which both were measured
  as_good: int  # of `cells`, those in which the default's mean is no worse
  tested: int  # of `cells`, those whose paired difference has a standard error
  # Of `tested`, those in which the default is better by more than two standard
  # errors of the paired difference.
  better: int
  worse: int  # of `tested`, those in which it is worse by as much


def compare(rows: Iterable[Row]) -> list[Comparison]:
  """Counts the cells in which the default is as good as, or beats, others.

  Args:
    rows: means over seeds, as `benchmark search` writes them.

  Returns:
    One for each other searcher and measure, the searchers in the order of the
    rows; then those beside `EVERY_OTHER`. Pairs that no cell has are left out.

  Raises:
    ValueError: two rows are of one network, budget and searcher.
  """
  cells = _by_cell(rows)
  names = dict.fromkeys(name for cell in cells.values() for name in cell)
  others = [name for name in names if name != DEFAULT]
  groups = {**{name: [name] for name in others}, EVERY_OTHER: others}
  counted = [
    _count(other, group, measure, cells)
    for other, group in groups.items()
    for measure in MEASURES
  ]
  return [each for each in counted if each.cells]


def _count(
  other: str, group: Sequence[str], measure: Measure, cells: Cells
) -> Comparison:
  field, sign = measure.field, measure.sign
  counts = {'cells': 0, 'as_good': 0, 'tested': 0, 'better': 0, 'worse': 0}
  for cell in cells.values():
    rows = [cell[o] for o in group if o in cell and field in cell[o]]
    if field not in cell.get(DEFAULT, {}) or not rows:
      continue
    mean = sign * cell[DEFAULT][field]
    counts['cells'] += 1
    counts['as_good'] += all(mean >= sign * row[field] for row in rows)
    # A row has its searcher minus the default.
    beside = f'{field}_minus_{DEFAULT}'
    pairs = [
      (-sign * row.get(beside, math.nan), row.get(f'{beside}_error', math.nan))
      for row in rows
    ]
    if any(map(math.isnan, itertools.chain(*pairs))):
      continue
    counts['tested'] += 1
    counts['better'] += all(lead > 2 * error for lead, error in pairs)
    counts['worse'] += any(lead < -2 * error for lead, error in pairs)
  return Comparison(other, field, **counts)


def _by_cell(rows: Iterable[Row]) -> Cells:
  """Rows by searcher, by network and budget; budgets ascend in a network."""
  rows = list(rows)
  networks = list(dict.fromkeys(row['network'] for row in rows))
  cells: dict[tuple[str, float], dict[str, Row]] = {}
  for row in sorted(
    rows, key=lambda row: (networks.index(row['network']), row['budget'])
  ):
    cell = cells.setdefault((row['network'], row['budget']), {})
    if row['searcher'] in cell:
      raise ValueError(
        f'rows: {row["network"]}, budget {row["budget"]:g}, '
        f'{row["searcher"]} is there twice'
      )
    cell[row['searcher']] = row
  return cells


def read_benchmarks(
  results: pathlib.Path, *patterns: str
) -> list[dict[str, Any]]:
  """Returns what is in the files of `benchmark/`, by their names."""
  found = [(results / 'benchmark').glob(pattern) for pattern in patterns]
  paths = sorted(itertools.chain(*found))
  return [json.loads(path.read_text('utf-8')) for path in paths]


def _files(results: pathlib.Path) -> list[dict[str, Any]]:
  return read_benchmarks(results, 'search.json', 'search_equal*.json')


def rows_of(files: Iterable[Row]) -> list[Row]:
  """Returns the rows of all files."""
  return [row for file in files for row in file['rows']]


def origin(file: Row) -> str:
  """Returns the command, the device and the commit of a file in Markdown."""
  commit = short_commit(file.get('commit'))
  return f'`{file["command"]}`; {file["device"]}; commit {commit}.'


def short_commit(commit: str | None) -> str:
  """Returns the first digits, and the '+' of a changed tree.

  >>> short_commit('a79783c32c77645bb385ffd8b4892182a51e0825+')
  'a79783c32c+'
  """
  if not commit:
    return 'unknown'
  return commit[:10] + ('+' if commit.endswith('+') else '')


def plus_minus(mean: float, error: float, form: str) -> str:
  """Writes a mean and its standard error, unless that is NaN.

  >>> plus_minus(0.25, 0.125, '+.2f')
  '+0.25 ± 0.12'
  """
  if math.isnan(error):
    return format(mean, form)
  return f'{mean:{form}} ± {error:{form.removeprefix("+")}}'


def _optional(row: Row, field: str, form: str) -> str:
  if field not in row:
    return ''
  return plus_minus(row[field], row.get(f'{field}_error', math.nan), form)


def searcher_sections(results: pathlib.Path) -> list[str]:
  """Returns the summary and the table of each cell, paragraphs in Markdown.

  Raises:
    ValueError: two rows are of one network, budget and searcher.
  """
  files = _files(results)
  cells = _by_cell(rows_of(files))
  if not cells:
    return []
  parts = [
    '## Searchers on equal budgets',
    *map(origin, files),
    'A cost is a fraction of that of the whole network. Means ± standard '
    f'errors over seeds; differences are to {DEFAULT}, paired by seed: a '
    'positive one is worse in the loss, better in an accuracy. Seconds are '
    'the median of one search.',
    _summary(compare(rows_of(files)), len(cells)),
  ]
  for (network, budget), cell in cells.items():
    parts += [f'### {network}, budget {100 * budget:g} %', _cell_table(cell)]
  return parts


def _cell_table(cell: Mapping[str, Row]) -> str:
  measures = measures_in(cell.values())
  header = ['searcher', 'evaluations', 'seeds', 'cost']
  for measure in measures:
    header += [measure.title, 'minus default']
  rows = [
    [
      name,
      f'{row["evaluations"]:,}',
      str(row['seeds']),
      f'{row["cost"]:.2%}',
      *_measured(row, measures),
      f'{row["seconds"]:.2f}',
    ]
    for name, row in cell.items()
  ]
  return markdown_table([*header, 'seconds'], rows)


def _measured(row: Row, measures: Sequence[Measure]) -> list[str]:
  cells = []
  for field, form in ((m.field, m.form) for m in measures):
    cells.append(_optional(row, field, form))
    cells.append(_optional(row, f'{field}_minus_{DEFAULT}', f'+{form}'))
  return cells


def _summary(comparisons: Sequence[Comparison], cells: int) -> str:
  """In how many cells the default is as good, better and worse."""
  measures = [
    m for m in MEASURES if m.field in {c.measure for c in comparisons}
  ]
  header = [f'{DEFAULT} beside']
  for measure in measures:
    header += [f'{measure.name}: as good', 'better', 'worse']
  rows = []
  by_place = {(c.other, c.measure): c for c in comparisons}
  for other in dict.fromkeys(c.other for c in comparisons):
    row = [other]
    for measure in measures:
      found = by_place.get((other, measure.field))
      row += (
        [
          f'{found.as_good} of {found.cells}',
          f'{found.better} of {found.tested}',
          f'{found.worse} of {found.tested}',
        ]
        if found
        else ['', '', '']
      )
    rows.append(row)
  return (
    f'Of {cells} cells, a network and a budget each, those in which the mean '
    f'of {DEFAULT} is at least as good as that of another searcher; then '
    'those in which it is better, and worse, by more than two standard '
    'errors of the paired difference. In the last row: than all others, '
    'and worse than any.\n\n' + markdown_table(header, rows)
  )


def plot_searchers(results: pathlib.Path, path: pathlib.Path) -> bool:
  """Draws a column of axes for each network, a row for each measure.

  Args:
    results: the directory that has `benchmark/`.
    path: of the PNG file.

  Returns:
    Whether there was anything to draw.

  Raises:
    ValueError: two rows are of one network, budget and searcher.
  """
  cells = _by_cell(rows_of(_files(results)))
  if not cells:
    return False
  networks = list(dict.fromkeys(network for network, _ in cells))
  names = list(dict.fromkeys(name for cell in cells.values() for name in cell))
  every = [row for cell in cells.values() for row in cell.values()]
  measures = measures_in(every)
  size = (3.8 * len(networks) + 1.8, 3.2 * len(measures) + 0.4)
  with figure_at(path, size) as figure:
    grid = figure.subplots(len(measures), len(networks), squeeze=False)
    for (line, measure), (column, network) in itertools.product(
      enumerate(measures), enumerate(networks)
    ):
      axes = grid[line, column]
      own = [row for row in every if row['network'] == network]
      for name, style in zip(names, _styles(names), strict=True):
        _draw(axes, [r for r in own if r['searcher'] == name], measure, style)
      if measure.sign < 0:
        axes.set_yscale('log')
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 5, 7)))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f'{y:g}'))
        axes.yaxis.set_minor_formatter(NullFormatter())
      axes.grid(alpha=0.3, which='both')
      axes.set_title(network if line == 0 else '', fontsize=10)
      axes.set_ylabel(measure.title if column == 0 else '', fontsize=9)
      axes.set_xlabel('budget, % of the whole network', fontsize=9)
    handles = [
      Line2D([], [], label=name, **style)
      for name, style in zip(names, _styles(names), strict=True)
    ]
    figure.legend(handles=handles, loc='outside right upper', fontsize=9)
  return True


def _styles(names: Sequence[str]) -> list[dict[str, Any]]:
  """How the line of each searcher looks: the default's is thick and black."""
  styles = zip(itertools.count(), itertools.cycle(_MARKERS), strict=False)
  return [
    {'color': 'black', 'linewidth': 2.2, 'marker': '*', 'zorder': 4}
    if name == DEFAULT
    else {
      'color': f'C{i % _COLORS}',
      'linewidth': 1.2,
      'marker': marker,
      'markersize': 4,
      'linestyle': '-' if i < _COLORS else '--',
    }
    for name, (i, marker) in zip(names, styles, strict=False)
  ]


def _draw(
  axes: Axes, rows: Sequence[Row], measure: Measure, style: Mapping[str, Any]
) -> None:
  points = [
    (100 * row['budget'], row[measure.field], row[f'{measure.field}_error'])
    for row in rows
    if measure.field in row
  ]
  if points:
    budgets, means, errors = zip(*points, strict=True)
    spread = [0 if math.isnan(error) else error for error in errors]
    axes.errorbar(budgets, means, yerr=spread, capsize=2, **style)
