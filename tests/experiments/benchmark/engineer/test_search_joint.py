import json

import pytest

from experiments.benchmark.engineer import cells, joint

MODEL = {'name': 'lenet5', 'channels': (4, 6), 'features': 16}
PARAMETERS = 4 * 26 + 6 * 101 + 16 * 97 + 10 * 17


def small_config(name, images=None, whole=cells.network_config):
  """The network's config, of fewer channels: it compiles faster."""
  config = {**whole(name, images), 'model': MODEL}
  config['search'] = {**config['search'], 'divisor': 2, 'most_levels': 6}
  return config


@pytest.mark.slow
def test_ways_are_compared_at_equal_bytes(tmp_path, capsys, monkeypatch):
  monkeypatch.setattr(cells, 'network_config', small_config)
  runs, output = tmp_path / 'runs', tmp_path / 'rows.json'
  arguments = [
    *('--networks', 'quickstart_search:runlocal'),
    *('--budgets', '0.3', '--pruned', '0.7', '--seeds', '1'),
    *('--evaluations', '4', '--images', '64'),
    *('--runs', str(runs), '--output', str(output)),
  ]
  assert joint.main(arguments) == 0, capsys.readouterr().err
  rows = json.loads(output.read_text())['rows']
  assert tuple(row['way'] for row in rows) == joint.WAYS
  for row in rows:
    assert row['file_bytes'] <= 0.3 * 4 * PARAMETERS
    assert row['difference'] < 1e-4
    assert 0 <= row['test_accuracy'] <= 1
  quantized = rows[joint.WAYS.index('quantize')]
  assert all(x['kept'] == x['channels'] for x in quantized['policy'])


@pytest.mark.parametrize(
  ('arguments', 'message'),
  [
    (['--seeds', '0'], 'seeds=0 is not positive'),
    (['--budgets', '2'], 'budgets=2.0 is not in (0, 1]'),
    (['--pruned', '0'], 'pruned=0.0 is not in (0, 1]'),
    (['--evaluations', '3'], 'evaluations=3 are less than two for each'),
    (['--networks', 'nothing'], "config='nothing' is unknown"),
  ],
)
def test_bad_arguments(arguments, message, capsys, tmp_path):
  assert joint.main([*arguments, '--runs', str(tmp_path)]) == 2
  assert f'benchmark search_joint: error: {message}' in capsys.readouterr().err
