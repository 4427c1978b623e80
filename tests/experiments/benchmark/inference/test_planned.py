"""The benchmark of planned products, on a shape that takes no time."""

import json

import pytest

from experiments.benchmark.inference import planned


@pytest.mark.slow
def test_rows(tmp_path, capsys):
  output = tmp_path / 'p.json'
  assert not planned.main(
    ['--shapes', '64x32', '--batches', '3', '--repeats', '1',
     '--backend', 'xla', '--output', str(output)]
  )  # fmt: skip
  rows = json.loads(output.read_text())['rows']
  assert [(row['matrix'], row['planned_by']) for row in rows] == [
    (name, way)
    for name in planned.matrices_of(64, 32)
    for way in ('own shape', 'table')
  ]
  for row in rows:
    assert (row['shape'], row['batch']) == ('64x32', 3)
    assert row['speedup'] == pytest.approx(
      row['dense_us'] / row['planned_us'], rel=0.1, abs=0.02
    )
    # The dense form is predicted to be as fast as itself.
    assert row['form'] != 'dense' or row['predicted_speedup'] == 1
  assert 'predicted speedup' in capsys.readouterr().out


def test_bad_input(capsys):
  assert planned.main(['--shapes', '4by4']) == 2
  assert "shapes='4by4' is not INPUTSxOUTPUTS" in capsys.readouterr().err
