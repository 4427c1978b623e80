"""The ablation of owner-sharded exchange: its arithmetic, and a short run."""

import json

import pytest

from experiments.benchmark import owners


def test_differences_are_paired():
  errors = {
    'all_gather': {0: 0.02, 1: 0.04},
    'owner_sharded c=1': {0: 0.03, 1: 0.06},
  }
  first, second = owners.summarized(errors, workers=4)
  assert (first['error_percent'], first['minus_all_gather']) == (3.0, 0.0)
  assert (second['error_percent'], second['minus_all_gather']) == (4.5, 1.5)
  assert second['paired_error'] == 0.5
  assert second['errors_percent'] == [3.0, 6.0]


def test_a_short_run(tmp_path, capsys):
  output = tmp_path / 'owners.json'
  arguments = ['--workers', '2', '--forward', '2', '--seeds', '0']
  arguments += ['--epochs', '0.27', '--output', str(output)]
  assert owners.main(arguments) == 0, capsys.readouterr().err
  rows = json.loads(output.read_text())['rows']
  assert [r['exchange'] for r in rows] == ['all_gather', 'owner_sharded c=2']
  assert rows[0]['sent_bytes'] < rows[1]['sent_bytes'] < 2000


@pytest.mark.parametrize(
  ('arguments', 'message'),
  [
    (['--workers', '1'], 'workers=1 is less than two'),
    (['--epochs', '0.2'], 'epochs=0.2 is not more than the warm-up'),
    (['--forward', '0'], r'forward=[0.0] is not positive'),
  ],
)
def test_bad_arguments_are_one_line(arguments, message, capsys):
  assert owners.main(arguments) == 2
  assert f'benchmark owners: error: {message}' in capsys.readouterr().err
