"""Means over seeds of what searchers found, and differences paired by seed."""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from experiments.reports.gradient import standard_error
from experiments.reports.search_comparison import DEFAULT

REFERENCE = 'amc'

# Of a cell, with the factor that a row has it by.
_MEASURES = (('check_loss', 1), ('accuracy', 100), ('tuned', 100))

Cell = dict[str, Any]


def summarized(cells: Sequence[Cell]) -> list[dict[str, Any]]:
  """Returns a row for each network, budget and searcher.

  Losses and accuracies are means over seeds, with their standard errors, and
  differences to the default and to AMC, paired by seed, with theirs.
  Accuracies are in per cent.
  """
  by_cell: dict[tuple[str, float, str], dict[int, Cell]] = {}
  for each in cells:
    place = (each['network'], each['budget'], each['searcher'])
    by_cell.setdefault(place, {})[each['seed']] = each
  rows = []
  for (network, budget, searcher), seeds in by_cell.items():
    beside = {
      other: by_cell.get((network, budget, other), {})
      for other in (DEFAULT, REFERENCE)
      if other != searcher
    }
    row: dict[str, Any] = {
      'network': network,
      'budget': budget,
      'searcher': searcher,
      'seeds': len(seeds),
      'evaluations': next(iter(seeds.values()))['evaluations'],
      'cost': round(statistics.mean(c['cost'] for c in seeds.values()), 4),
    }
    for field, scale in _MEASURES:
      row |= _measured(field, scale, seeds, beside)
    row['seconds'] = round(
      statistics.median(c['seconds'] for c in seeds.values()), 2
    )
    rows.append(row)
  return rows


def _measured(
  field: str,
  scale: float,
  seeds: Mapping[int, Cell],
  beside: Mapping[str, Mapping[int, Cell]],
) -> dict[str, float]:
  """One measure of a row, and its differences to other searchers."""
  values = {s: scale * c[field] for s, c in seeds.items() if field in c}
  if not values:
    return {}
  row = _mean(field, list(values.values()))
  for other, cells in beside.items():
    pairs = [
      value - scale * cells[s][field]
      for s, value in values.items()
      if s in cells and field in cells[s]
    ]
    if pairs:
      row |= _mean(f'{field}_minus_{other}', pairs)
  return row


def _mean(name: str, values: Sequence[float]) -> dict[str, float]:
  return {
    name: round(statistics.mean(values), 4),
    f'{name}_error': round(standard_error(list(values)), 4),
  }
