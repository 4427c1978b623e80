import json

import pytest

from experiments.benchmark import search_joint


def test_ways_are_compared_at_equal_bytes(tmp_path, capsys):
  runs, output = tmp_path / 'runs', tmp_path / 'rows.json'
  arguments = [
    *('--networks', 'quickstart_search:runlocal'),
    *('--budgets', '0.06', '--pruned', '0.5', '--seeds', '1'),
    *('--evaluations', '4', '--images', '64'),
    *('--runs', str(runs), '--output', str(output)),
  ]
  assert search_joint.main(arguments) == 0, capsys.readouterr().err
  rows = json.loads(output.read_text())['rows']
  assert tuple(row['way'] for row in rows) == search_joint.WAYS
  for row in rows:
    # Of 431,080 float32 numbers.
    assert row['file_bytes'] <= 0.06 * 4 * 431_080
    assert row['difference'] < 1e-4
    assert 0 <= row['test_accuracy'] <= 1
  quantized = rows[search_joint.WAYS.index('quantize')]
  assert all(x['kept'] == x['channels'] for x in quantized['policy'])


@pytest.mark.parametrize(
  ('arguments', 'message'),
  [
    (['--seeds', '0'], 'seeds=0 is not positive'),
    (['--budgets', '2'], 'budgets=2.0 is not in (0, 1]'),
    (['--pruned', '0'], 'pruned=0.0 is not in (0, 1]'),
    (['--evaluations', '3'], 'evaluations=3 are less than two for each'),
    (['--networks', 'nothing'], "config='nothing' is no file"),
  ],
)
def test_bad_arguments(arguments, message, capsys, tmp_path):
  assert search_joint.main([*arguments, '--runs', str(tmp_path)]) == 2
  assert f'benchmark search_joint: error: {message}' in capsys.readouterr().err
