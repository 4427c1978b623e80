"""Evaluation of a file whose layers are kept in their fastest forms."""

import json

import numpy as np
import pytest

from bandwidth import coding
from experiments.evaluate import main

RNG = np.random.default_rng(5)


def test_a_line_for_each_layer(tmp_path, monkeypatch, capsys):
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
  shapes = {'Dense_0': (784, 300), 'Dense_1': (300, 100), 'Dense_2': (100, 10)}
  arrays = {}
  for layer, shape in shapes.items():
    levels = RNG.integers(-7, 8, shape)
    arrays[f'params/{layer}/kernel'] = coding.UniformTensor(levels, 0.01)
    arrays[f'params/{layer}/bias'] = np.zeros(shape[1:], np.float32)
  path = tmp_path / 'model.bwz'
  metadata = {
    'model': {'name': 'lenet300'},
    'dataset': {'name': 'mnist', 'validation': 0, 'mean': 0.0, 'std': 0.3081},
  }
  coding.write(path, arrays, metadata=metadata)
  output = tmp_path / 'out.json'
  arguments = ['--model', str(path), '--output', str(output)]
  planned = [*arguments, '--backend', 'xla', '--plan']
  assert main(planned) == 0
  lines = capsys.readouterr().out.splitlines()
  found = json.loads(output.read_text())
  assert [line.split()[0] for line in lines[:3]] == [
    f'params/{layer}/kernel' for layer in shapes
  ]
  for line, choice in zip(lines, found['plan'].values(), strict=False):
    assert choice['kind'] in line
    assert ('nothing is gained' in line) == (choice['kind'] == 'dense')
  assert main(arguments) == 0
  decoded = json.loads(output.read_text())
  assert found['accuracy'] == pytest.approx(decoded['accuracy'], abs=2e-4)
  assert found['dense_bytes'] == decoded['dense_bytes']
  assert main([*arguments, '--plan']) == 2
  assert 'plan: it needs a --backend' in capsys.readouterr().err
