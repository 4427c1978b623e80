import json

import pytest

from experiments.runtime import table


def test_environment():
  found = table.environment()
  assert set(found) == {'device', 'versions', 'commit'}
  assert {'python', 'jax', 'jaxlib', 'flax', 'optax'} <= set(found['versions'])
  assert 'x' in found['device']


def test_write(tmp_path):
  path = tmp_path / 'a' / 'b.json'
  table.write(path, 'loop', [{'ms': 1.5, 'sent': [1, 2]}])
  table.write(path, 'loop', [{'ms': 2.5}])
  written = json.loads(path.read_text())
  assert written['name'] == 'loop'
  assert written['rows'] == [{'ms': 2.5}]
  assert written['versions'] == table.environment()['versions']
  assert [p.name for p in path.parent.iterdir()] == ['b.json']


def test_output_that_cannot_be_written(tmp_path):
  (tmp_path / 'file').write_text('')
  with pytest.raises(ValueError, match='output='):
    table.write(tmp_path / 'file' / 'x.json', 'loop', [])


def test_show(capsys):
  table.show(
    [
      {'name': 'a', 'bytes_sent': 28672, 'ratio': 0.12345, 'parts': [1]},
      {'name': 'longer', 'bytes_sent': 5, 'flag': True},
    ]
  )
  lines = capsys.readouterr().out.splitlines()
  assert lines == [
    'name    bytes sent   ratio  flag',
    'a           28,672  0.1235',
    'longer           5          True',
  ]
  table.show([])
