"""The benchmark of training over links: its arithmetic, and what it refuses."""

import pytest

from experiments.benchmark.network import training


def row(rate, accuracy, *evaluations):
  return {
    'steps_per_second': rate,
    'accuracy': accuracy,
    'evaluations': evaluations,
  }


def test_rows_are_compared_with_the_first():
  dense = row(0.5, 0.92, (10, 20.0, 0.85), (20, 40.0, 0.92))
  fast = row(5.0, 0.95, (10, 4.0, 0.6), (50, 16.0, 0.93), (60, 20.0, 0.95))
  worse = row(5.0, 0.9, (50, 16.0, 0.9))
  found = training.compared([dense, fast, worse])
  assert [r['speedup'] for r in found] == [1.0, 10.0, 10.0]
  assert [r['seconds_to'] for r in found] == [40.0, 16.0, None]
  assert [r['sooner'] for r in found] == [1.0, 2.5, None]
  assert {r['goal'] for r in found} == {0.92}


@pytest.mark.parametrize(
  ('arguments', 'message'),
  [
    (['--rates', '1gb'], "rate='1gb' is no rate"),
    (['--processes', '0'], 'processes=0 is not positive'),
  ],
)
def test_bad_arguments_are_one_line(arguments, message, capsys):
  assert training.main(arguments) == 2
  said = capsys.readouterr().err
  assert said.startswith(f'benchmark training: error: {message}')
  assert said.count('\n') == 1
