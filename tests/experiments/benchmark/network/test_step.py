"""The benchmark of a whole step, with the smallest network."""

import json

import pytest

from experiments.benchmark.network import step


@pytest.mark.slow
def test_rows_are_beside_the_momentum_update(tmp_path, capsys):
  output = tmp_path / 'step.json'
  arguments = ['--network', 'lenet300', '--batch', '2', '--repeats', '1']
  assert step.main([*arguments, '--output', str(output)]) == 0
  rows = json.loads(output.read_text())['rows']
  assert [r['way'] for r in rows] == ['momentum', 'dgc float8', 'dgc float16']
  assert rows[0]['added_percent'] == 0
  assert {r['parameters'] for r in rows} == {266_610}
  assert 'dgc float8' in capsys.readouterr().out


@pytest.mark.parametrize(
  ('arguments', 'message'),
  [
    (['--batch', '0'], 'batch=0 is not positive'),
    (['--density', '2'], 'density=2.0 is not in (0, 1]'),
    (['--network', 'lenet5', '--dtype', 'bfloat16'], 'model.dtype is no arg'),
  ],
)
def test_bad_arguments_are_one_line(arguments, message, capsys):
  assert step.main(arguments) == 2
  said = capsys.readouterr().err
  assert said.startswith(f'benchmark step: error: {message}')
  assert said.count('\n') == 1
