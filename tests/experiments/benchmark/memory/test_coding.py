import json
import os

import numpy as np
import pytest

from bandwidth import coding as bwz
from experiments.benchmark.memory import coding

SHAPES = {
  'params/conv/kernel': (3, 3, 16, 24),
  'params/norm/scale': (24,),
  'params/head/kernel': (24, 10),
}


@pytest.fixture
def small(monkeypatch):
  monkeypatch.setattr(coding, 'resnet50_shapes', lambda: SHAPES)


def test_shapes_are_those_of_resnet50():
  shapes = coding.resnet50_shapes()
  kernels = [s for name, s in shapes.items() if name.endswith('kernel')]
  assert len(kernels) == 54
  assert kernels[0] == (7, 7, 3, 64)
  assert kernels[-1] == (2048, 1000)
  # Published counts: 25,557,032 parameters, 53,120 running statistics.
  trained = {n: s for n, s in shapes.items() if n.startswith('params/')}
  assert sum(int(np.prod(s)) for s in trained.values()) == 25_557_032
  assert sum(int(np.prod(s)) for s in shapes.values()) == 25_610_152


@pytest.mark.parametrize('name', coding.NETWORKS)
def test_networks_are_what_they_say(small, name):
  recipe = coding.NETWORKS[name]
  network = coding.make_network(recipe)
  assert {n: np.shape(t) for n, t in network.items()} == SHAPES
  kernel = network['params/conv/kernel']
  if recipe.integers:
    assert isinstance(kernel, bwz.UniformTensor)
    assert np.abs(kernel.levels).max() == 127
    return
  density = np.count_nonzero(kernel.codes) / kernel.codes.size
  if recipe.conv < 1:
    assert density == pytest.approx(recipe.conv, abs=0.01)
    assert kernel.zero_reserved
  assert kernel.codebook.shape == (2**recipe.bits,)


def test_rows_are_measured(small, tmp_path, capsys):
  path = tmp_path / 'c.json'
  before = os.sched_getaffinity(0)
  arguments = ['--network', 'pruned', 'int8', '--repeats', '1']
  assert coding.main([*arguments, '--output', str(path)]) == 0
  assert os.sched_getaffinity(0) == before
  rows = json.loads(path.read_text())['rows']
  assert [row['method'] for row in rows[:6]] == [
    'bwz huffman', 'bwz auto', 'bwz ans', 'bwz fixed',
    'zstandard 3', 'zstandard 19',
  ]  # fmt: skip
  network = coding.make_network(coding.NETWORKS['pruned'])
  assert rows[0]['bytes'] == len(bwz.encode(network, coder='huffman'))
  assert rows[1]['bytes'] < rows[5]['bytes']
  assert rows[5]['by_zstandard_19'] == 1
  assert all(row['decode_s'] >= 0 <= row['decode_by_limit'] for row in rows)
  assert 'zstandard 19' in capsys.readouterr().out


def test_bad_repeats(capsys):
  assert coding.main(['--repeats', '0']) == 2
  assert 'repeats=0 is not positive' in capsys.readouterr().err
