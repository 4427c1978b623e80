import json

import pytest

from experiments import reproduce


def test_summary_has_a_row_for_each_config(tmp_path):
  for seed, accuracy in ((0, 0.98), (1, 0.99)):
    path = tmp_path / 'quickstart' / f'{seed}.json'
    path.parent.mkdir(exist_ok=True)
    report = {
      'seed': seed,
      'accuracy': {'baseline': accuracy, 'final': accuracy},
      'network': {'ratio_run': 2.0},
      'seconds': 90.0,
      'device': '4 x cpu',
      'command': 'python -m experiments.train',
    }
    path.write_text(json.dumps(report))
  (tmp_path / 'plots').mkdir()
  lines = reproduce.summarize(tmp_path).splitlines()
  assert len(lines) == 3
  assert '| quickstart | 0 1 | 1.50% | 1.00% to 2.00% | 2x | 1.5 |' in lines[2]


def test_unknown_names_are_refused(capsys):
  with pytest.raises(SystemExit, match='2'):
    reproduce.main(['quikstart'])
  assert "Did you mean 'quickstart'" in capsys.readouterr().err
