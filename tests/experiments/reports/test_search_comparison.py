import math

import pytest

from experiments.reports.search_comparison import (
  EVERY_OTHER,
  Comparison,
  compare,
)

DEFAULT = 'cma_es_dynamic'


def row(network, budget, searcher, loss, beside=(), **more):
  """A row; `beside` is the difference to the default, and its error."""
  names = (f'check_loss_minus_{DEFAULT}', f'check_loss_minus_{DEFAULT}_error')
  return {
    'network': network,
    'budget': budget,
    'searcher': searcher,
    'check_loss': loss,
    **dict(zip(names, beside, strict=False)),
    **more,
  }


ROWS = [
  # As good as AMC by far more than twice 0.01; uniform is better, by less.
  row('n', 0.1, 'uniform', 0.48, (-0.02, 0.02)),
  row('n', 0.1, 'amc', 0.60, (0.10, 0.01)),
  row('n', 0.1, DEFAULT, 0.50),
  # Equal to AMC; better than uniform by two errors, and not by more.
  row('n', 0.2, 'uniform', 0.50, (0.10, 0.05)),
  row('n', 0.2, 'amc', 0.40, (0.00, 0.01)),
  row('n', 0.2, DEFAULT, 0.40),
  # Another network: AMC is better by three errors, uniform much worse.
  row('m', 0.1, 'uniform', 2.00, (1.70, 0.10)),
  row('m', 0.1, 'amc', 0.27, (-0.03, 0.01)),
  row('m', 0.1, DEFAULT, 0.30),
  # Better than both.
  row('m', 0.2, 'uniform', 0.90, (0.50, 0.10)),
  row('m', 0.2, 'amc', 0.50, (0.10, 0.02)),
  row('m', 0.2, DEFAULT, 0.40),
]


def test_cells_are_counted():
  assert compare(ROWS) == [
    Comparison('uniform', 'check_loss', 4, 3, 4, 2, 0),
    Comparison('amc', 'check_loss', 4, 3, 4, 2, 1),
    Comparison(EVERY_OTHER, 'check_loss', 4, 2, 4, 1, 1),
  ]


@pytest.mark.parametrize('field', ['accuracy', 'tuned'])
def test_more_accuracy_is_better(field):
  beside = f'{field}_minus_{DEFAULT}'
  rows = [
    {'network': 'n', 'budget': 0.1, 'searcher': DEFAULT, field: 90.0},
    {
      'network': 'n', 'budget': 0.1, 'searcher': 'amc', field: 89.0,
      beside: -1.0, f'{beside}_error': 0.4,
    },
    {
      'network': 'n', 'budget': 0.1, 'searcher': 'td3', field: 91.0,
      beside: 1.0, f'{beside}_error': 0.4,
    },
  ]  # fmt: skip
  assert compare(rows) == [
    Comparison('amc', field, 1, 1, 1, 1, 0),
    Comparison('td3', field, 1, 0, 1, 0, 1),
    Comparison(EVERY_OTHER, field, 1, 0, 1, 0, 1),
  ]


def test_one_seed_tests_nothing():
  rows = [row('n', 0.1, 'amc', 0.6, (0.1, math.nan)), row('n', 0.1, DEFAULT, 1)]
  assert compare(rows)[0] == Comparison('amc', 'check_loss', 1, 0, 0, 0, 0)


def test_what_was_not_measured_counts_for_nothing():
  rows = [
    *ROWS[:3],
    row('n', 0.3, 'amc', 0.1, (0.1, 0.01)),
    row('n', 0.4, DEFAULT, 0.1),
    row('n', 0.5, 'td3', 0.2, (0.1, 0.01)),
    row('n', 0.5, DEFAULT, 0.1),
  ]
  counts = {c.other: (c.cells, c.better) for c in compare(rows)}
  assert counts == {
    'uniform': (1, 0),
    'amc': (1, 1),
    'td3': (1, 1),
    EVERY_OTHER: (2, 1),
  }
  assert compare([]) == []
  assert compare(ROWS[:2]) == []


def test_a_cell_that_is_there_twice():
  with pytest.raises(ValueError, match=r'n, budget 0.1, amc is there twice'):
    compare([*ROWS, ROWS[1]])
