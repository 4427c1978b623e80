import json

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
  assert '| quickstart | 0 1 | 1.50% | 1.00% to 2.00% |  | 2x |' in lines[2]


def test_files_have_tables_and_plots(tmp_path):
  for seed, size in ((0, 2000), (1, 3000), (2, 2500)):
    path = tmp_path / 'mnist_lenet5_rate' / f'{seed}.json'
    path.parent.mkdir(exist_ok=True)
    rows = [
      {'name': 'dense', 'bytes': 1000, 'ratio': 1.0, 'accuracy': 0.99},
      {'name': 'rate', 'bytes': size, 'ratio': 5e3 / size, 'accuracy': 0.98},
    ]
    report = {
      'seed': seed,
      'accuracy': {'baseline': 0.99, 'final': 0.98},
      'seconds': 60.0,
      'device': '1 x cpu',
      'command': 'python -m experiments.compress',
      'memory': {
        'dense_bytes': 5000,
        'file_bytes': size,
        'ratio': 5e3 / size,
        'stages': rows,
        'baselines': rows[:1],
      },
    }
    path.write_text(json.dumps(report))
  reproduce.rebuild(tmp_path)
  text = (tmp_path / 'compression.md').read_text()
  assert '| 1 | 1,000, 1.0x, 1.00% | 3,000, 1.7x, 2.00% |' in text
  assert '| mean | 1,000, 1.0x, 1.00% | 2,500, 2.1x, 2.00% |' in text
  assert '2,500 | 2.0x' in (tmp_path / 'summary.md').read_text()
  assert not (tmp_path / 'search.md').read_text().count('\n## ')
  plot = tmp_path / 'plots' / 'lenet5_rate_error.png'
  assert plot.read_bytes().startswith(b'\x89PNG')


def test_a_search_has_its_table_and_plot(tmp_path):
  row = {
    'network': 'net',
    'budget': 0.5,
    'searcher': 'uniform',
    'seeds': 1,
    'evaluations': 1,
    'cost': 0.49,
    'check_loss': 0.125,
    'check_loss_error': float('nan'),
    'seconds': 2.0,
  }
  written = {'command': 'it', 'device': '1 x cpu', 'rows': [row]}
  path = tmp_path / 'benchmark' / 'search.json'
  path.parent.mkdir()
  path.write_text(json.dumps(written))
  (tmp_path / 'plots').mkdir()
  reproduce.rebuild(tmp_path)
  text = (tmp_path / 'search.md').read_text()
  assert '| uniform | 1 | 1 | 49.00% | 0.1250 |  | 2.00 |' in text
  plot = tmp_path / 'plots' / 'search_searchers.png'
  assert plot.read_bytes().startswith(b'\x89PNG')


def test_unknown_names_are_refused(capsys):
  assert reproduce.main(['quikstart']) == 2
  assert "Did you mean 'quickstart'" in capsys.readouterr().err
