"""The benchmark of opening files, on a network that takes seconds."""

import json
import math

import pytest

from experiments.benchmark.inference import loading


@pytest.mark.slow
def test_rows(tmp_path, capsys):
  output = tmp_path / 'l.json'
  assert not loading.main(
    ['--weights', '24000000', '--networks', 'one kernel', '--kinds', 'uniform',
     '--output', str(output)]
  )  # fmt: skip
  rows = {row['read_by']: row for row in json.loads(output.read_text())['rows']}
  assert set(rows) == set(loading.WAYS)
  compressed = rows['load_compressed']
  dense = compressed['dense_bytes']
  assert dense == 4 * (24_000_000 // 4096) * 4096
  # Fifteen levels: four bits each, packed.
  assert dense / 8 < compressed['peak_bytes'] < dense / 3
  assert compressed['of_dense'] == round(compressed['peak_bytes'] / dense, 3)
  # The control.
  assert rows['load_tree']['kept_bytes'] > dense
  assert 'of dense' in capsys.readouterr().out


@pytest.mark.parametrize('network', loading.NETWORKS)
def test_networks_have_the_weights_that_are_wanted(network):
  shapes = loading.shapes_of(network, 20_000_000)
  found = sum(map(math.prod, shapes.values()))
  assert found == pytest.approx(20_000_000, rel=0.1)


def test_bad_input(capsys):
  assert loading.main(['--weights', '0']) == 2
  assert 'weights=0 is not positive' in capsys.readouterr().err
