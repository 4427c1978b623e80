"""The benchmark of reducers on links, with a small network."""

import json

import pytest

from experiments.benchmark.network import wire
from experiments.runtime.links import shaped_links

# 300 x 200 and 200 elements.
MATRIX, VECTOR = 60_000, 200


@pytest.fixture(scope='module')
def possible():
  try:
    with shaped_links(1, 10**9):
      return
  except ValueError as error:
    pytest.skip(str(error))


@pytest.mark.slow
def test_three_counts_of_the_bytes_agree(possible, tmp_path, capsys):
  output, plot = tmp_path / 'wire.json', tmp_path / 'wire.png'
  arguments = [
    '--processes', '2', '--rates', '1gbit', '--network', 'small',
    '--reducers', 'dense', 'dgc all_gather', '--repeats', '1',
    '--output', str(output), '--plot', str(plot),
  ]  # fmt: skip
  assert wire.main(arguments) == 0, capsys.readouterr().err
  dense, sparse = json.loads(output.read_text())['rows']
  assert [dense['reducer'], sparse['reducer']] == ['dense', 'dgc all_gather']
  # Each of two workers sends what it has once: 2 (P - 1) / P = 1.
  everything = 4 * (MATRIX + VECTOR)
  assert dense['closed_form'] == dense['compiled_bytes'] == everything
  # The rest is headers, and what processes say to start a step together.
  assert everything < dense['interface_bytes'] < 1.05 * everything
  assert sparse['closed_form'] == sparse['compiled_bytes'] < everything / 100
  assert sparse['closed_form'] < sparse['interface_bytes'] < everything / 10
  assert dense['limit_ms'] == pytest.approx(everything * 8 / 1e6, abs=0.05)
  assert dense['speedup'] == 1.0
  assert plot.read_bytes().startswith(b'\x89PNG')


@pytest.mark.parametrize(
  ('arguments', 'message'),
  [
    (['--reducers', 'dens'], "reducers='dens' is unknown"),
    (['--rates', '1gb'], "rate='1gb' is no rate"),
    (['--processes', '0'], 'processes=0 is not positive'),
    (['--repeats', '0'], 'repeats=0 is not positive'),
  ],
)
def test_bad_arguments_are_one_line(arguments, message, capsys):
  assert wire.main(arguments) == 2
  said = capsys.readouterr().err
  assert said.startswith(f'benchmark wire: error: {message}')
  assert said.count('\n') == 1
