"""The benchmarks of one network: what they write, and what they refuse."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.benchmark.memory import convolution, sensitivity
from experiments.compression.files import named_arrays
from experiments.compression.weights import write_safetensors
from experiments.models import make_model


@pytest.mark.slow
def test_sensitivity_prunes_one_array_at_a_time(tmp_path, capsys):
  config = {'name': 'lenet300', 'features': [8, 4]}
  model = make_model(config, num_classes=10)
  images = jnp.zeros((1, 28, 28, 1))
  params = model.init(jax.random.key(0), images)['params']
  path = tmp_path / 'dense.safetensors'
  write_safetensors(path, named_arrays(params, {}))
  (tmp_path / 'config.json').write_text(
    json.dumps({'model': config, 'dataset': {'name': 'mnist'}})
  )
  output, plot = tmp_path / 'rows.json', tmp_path / 'plot.png'
  arguments = ['--model', str(path), '--validation', '1000']
  arguments += ['--sparsities', '0.0', '0.5', '--plot', str(plot)]
  assert sensitivity.main([*arguments, '--output', str(output)]) == 0
  rows = json.loads(output.read_text())['rows']
  assert [(r['name'], r['sparsity'], r['kept']) for r in rows] == [
    ('Dense_0/kernel', 0.0, 6272),
    ('Dense_0/kernel', 0.5, 3136),
    ('Dense_1/kernel', 0.0, 32),
    ('Dense_1/kernel', 0.5, 16),
    ('Dense_2/kernel', 0.0, 40),
    ('Dense_2/kernel', 0.5, 20),
  ]
  assert all(r['change'] == 0 for r in rows if r['sparsity'] == 0)
  assert plot.read_bytes().startswith(b'\x89PNG')
  capsys.readouterr()
  bad = ['--model', str(path), '--sparsities', '1.5']
  assert sensitivity.main(bad) == 2
  error = capsys.readouterr().err
  assert '1.5' in error
  assert error.count('\n') == 1


@pytest.mark.slow
def test_convolution_compares_both_in_one_run(tmp_path, capsys):
  output = tmp_path / 'rows.json'
  arguments = ['--batch', '16', '--repeats', '1', '--output', str(output)]
  assert convolution.main(arguments) == 0
  rows = json.loads(output.read_text())['rows']
  assert [row['convolution'] for row in rows] == ['xla', 'matrix']
  assert rows[0]['speedup'] == 1.0
  assert all(np.isfinite(row['by_limit']) for row in rows)
  arguments = ['--depthwise', '--batch', '2', '--repeats', '1']
  assert convolution.main([*arguments, '--output', str(output)]) == 0
  rows = json.loads(output.read_text())['rows']
  assert {row['convolution'] for row in rows} == {'grouped', 'shifts'}
  assert all(row['ms'] > 0 for row in rows)
  assert convolution.main(['--repeats', '0']) == 2
  assert 'repeats=0 is not positive' in capsys.readouterr().err
