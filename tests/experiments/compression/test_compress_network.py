"""Files of known networks: what is shared how, and what is refused."""

import numpy as np
import pytest

from bandwidth import coding, inference
from bandwidth.quantization import Sensitivity
from experiments.compression import networks

RNG = np.random.default_rng(0)


def test_kernels_have_a_codebook_of_each_output(tmp_path):
  sources = {
    'word/embedding': 'embeddings.word_embeddings.weight',
    'layer_0/hidden/kernel': 'encoder.layer.0.intermediate.dense.weight',
    'layer_0/output/kernel': 'encoder.layer.0.output.dense.weight',
  }
  arrays = {
    sources['word/embedding']: RNG.normal(size=(12, 128)),
    sources['layer_0/hidden/kernel']: RNG.normal(size=(256, 128)),
    sources['layer_0/output/kernel']: RNG.normal(size=(128, 256)),
  }
  arrays = {name: a.astype(np.float32) for name, a in arrays.items()}
  costs = {
    name: Sensitivity(np.eye(a.shape[1]), np.ones(len(a)))
    for name, a in arrays.items()
    if 'output' not in name
  }
  shared = networks.share_minilm(sources, arrays, costs)
  assert set(shared) == {'word/embedding', 'layer_0/hidden/kernel'}
  assert shared['word/embedding'].grid == (2, 1)
  assert shared['layer_0/hidden/kernel'].grid == (256,)
  for name, tensor in shared.items():
    wanted = arrays[sources[name]]
    wanted = wanted if name.endswith('embedding') else wanted.T
    error = np.linalg.norm(tensor.to_array() - wanted)
    assert error < 0.12 * np.linalg.norm(wanted)
  coding.write(
    tmp_path / 'model.bwz', {f'params/{n}': t for n, t in shared.items()}
  )
  loaded = inference.load_compressed(tmp_path / 'model.bwz')['params']
  kernel = loaded['layer_0']['hidden']['kernel']
  assert (kernel.bits, kernel.codebook.shape) == (4, (256, 1, 16))
  assert loaded['word']['embedding'].bits == 4
  # As products of integers have them, so that rounding costs nothing.
  scale = np.abs(kernel.codebook).max(-1, keepdims=True) / 127
  np.testing.assert_allclose(
    kernel.codebook / scale, np.rint(kernel.codebook / scale), atol=1e-3
  )


@pytest.mark.parametrize(
  ('arguments', 'message'),
  [
    (['--network', 'bert', '--output', 'm.bwz'], "network='bert' is unknown"),
    (['--network', 'minilm', '--output', 'm.npz'], 'is no .bwz file'),
    (
      ['--network', 'minilm', '--output', 'm.bwz', '--steps', '-1'],
      'steps=-1 is less than 0',
    ),
    (
      ['--network', 'minilm', '--output', 'm.bwz', '--calibration', '0'],
      'calibration=0 is less than 1',
    ),
    (
      ['--network', 'minilm', '--output', 'm.bwz', '--weights', 'none.pt'],
      "input='none.pt' is not there",
    ),
  ],
)
def test_bad_arguments(arguments, message, capsys):
  assert networks.main(arguments) == 2
  assert message in capsys.readouterr().err
