import pytest

from experiments.benchmark.engineer import search
from experiments.benchmark.engineer.summary import summarized
from experiments.reports.search_comparison import DEFAULT


def cell(searcher, seed, loss, accuracy, tuned):
  return {
    'network': 'n',
    'budget': 0.5,
    'searcher': searcher,
    'seed': seed,
    'evaluations': 10,
    'cost': 0.49,
    'check_loss': loss,
    'accuracy': accuracy,
    'tuned': tuned,
    'seconds': 2.0,
  }


def test_differences_are_paired_by_seed():
  cells = [
    cell('amc', 0, 0.5, 0.80, 0.90),
    cell('amc', 1, 0.9, 0.70, 0.80),
    cell(DEFAULT, 0, 0.4, 0.82, 0.91),
    cell(DEFAULT, 1, 0.7, 0.74, 0.83),
  ]
  amc, ours = summarized(cells)
  assert (amc['check_loss'], amc['accuracy'], amc['tuned']) == (0.7, 75, 85)
  # Differences 0.1 and 0.2: their mean, and half of their distance.
  key = f'check_loss_minus_{DEFAULT}'
  assert amc[key] == 0.15
  assert amc[f'{key}_error'] == 0.05
  assert ours['accuracy_minus_amc'] == pytest.approx(3)
  assert ours['accuracy_minus_amc_error'] == pytest.approx(1)
  assert f'accuracy_minus_{DEFAULT}' not in ours
  assert ours['seeds'] == 2


def test_cells_without_fine_tuning_have_no_such_columns():
  without = {
    k: v for k, v in cell('amc', 0, 0.5, 0.8, 0).items() if k != 'tuned'
  }
  (row,) = summarized([without])
  assert 'tuned' not in row
  assert 'accuracy' in row


@pytest.mark.parametrize(
  ('arguments', 'message'),
  [
    (['--seeds', '0'], 'seeds=0 is not positive'),
    (['--budgets', '0.5', '1.5'], 'budgets=1.5 is not in (0, 1]'),
    (['--steps', '-1'], 'steps=-1 is negative'),
    (['--networks', 'nothing'], "config='nothing' is unknown"),
    (['--searchers', 'cmaes'], "searchers='cmaes' is unknown"),
  ],
)
def test_bad_arguments(arguments, message, capsys, tmp_path):
  assert search.main([*arguments, '--runs', str(tmp_path)]) == 2
  assert f'benchmark search: error: {message}' in capsys.readouterr().err
