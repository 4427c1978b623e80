"""The search of a network that was trained elsewhere."""

import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import rel_entr, softmax

from bandwidth import coding
from experiments.benchmark.engineer import pretrained_search
from experiments.compression.files import as_variables
from experiments.compression.weights import write_safetensors
from experiments.models.efficientnet_lite import (
  EfficientNetLite,
  efficientnet_variables,
)


@pytest.fixture(scope='module')
def variables():
  """Random ones that let signals through."""
  images = jnp.zeros((1, 32, 32, 3))
  shapes = jax.eval_shape(EfficientNetLite().init, jax.random.key(0), images)
  rng = np.random.default_rng(0)

  def draw(path, like):
    name = jax.tree_util.keystr(path[-1:], simple=True)
    if name in ('scale', 'var'):
      return np.ones(like.shape, np.float32)
    fan = np.prod(like.shape[:-1]) if name == 'kernel' else 100
    drawn = rng.normal(scale=(2 / fan) ** 0.5, size=like.shape)
    return drawn.astype(np.float32)

  return jax.tree_util.tree_map_with_path(draw, shapes)


def write_pictures(folder):
  rng = np.random.default_rng(1)
  names = [f'data_batch_{i}.bin' for i in (1, 2, 3)] + ['test_batch.bin']
  for name in names:
    records = rng.integers(0, 256, (8, 3073), np.uint8)
    records[:, 0] = np.arange(8) % 2
    records.tofile(folder / name)


def test_divergence():
  rng = np.random.default_rng(0)
  logits, original = rng.normal(size=(2, 5, 7)).astype(np.float32)
  p, q = softmax(original, -1), softmax(logits, -1)
  found = pretrained_search.divergence(logits, original)
  np.testing.assert_allclose(found, rel_entr(p, q).sum(-1), rtol=1e-4)


def test_published_arrays_are_those_that_variables_are_made_of(variables):
  arrays = pretrained_search.published_arrays(variables)
  assert arrays['_conv_stem.weight'].shape == (32, 3, 3, 3)
  assert arrays['_fc.weight'].shape == (1000, 1280)
  again = efficientnet_variables(arrays)
  jax.tree.map(np.testing.assert_array_equal, again, variables)


@pytest.mark.parametrize(('count', 'batches'), [(64, 2), (30, 1), (35, 5)])
def test_pictures_come_in_equal_batches(count, batches):
  images = np.full((count, 32, 32, 3), 255, np.uint8)
  found = pretrained_search.enlarged(images, 64)
  assert found.shape == (batches, count // batches, 64, 64, 3)
  np.testing.assert_allclose(found, 1.0, atol=1e-5)


@pytest.mark.slow
def test_rows_are_of_the_files(variables, tmp_path, capsys):
  pytest.importorskip('sklearn')
  arrays = pretrained_search.published_arrays(variables)
  write_safetensors(tmp_path / 'net.safetensors', arrays)
  write_pictures(tmp_path)
  sizes = {'images': 8, 'fitted': 8, 'train': 8, 'examples': 8}
  given = [f'--{name}={value}' for name, value in sizes.items()]
  output, folder = tmp_path / 'rows.json', tmp_path / 'files'
  status = pretrained_search.main(
    [
      *('--weights', str(tmp_path / 'net.safetensors')),
      *('--cifar10', str(tmp_path)),
      *('--folder', str(folder)),
      *('--output', str(output)),
      *('--searchers', 'uniform', '--budgets', '0.8'),
      *('--image_size=32', '--most_levels=3', '--ridge=0.1'),
      *given,
    ]
  )
  assert status == 0, capsys.readouterr().err
  content = json.loads(output.read_text())
  assert content['name'] == 'pretrained_search'
  whole, found = content['rows']
  assert (whole['searcher'], found['searcher']) == ('whole', 'uniform')
  assert (whole['macs'], whole['parameters']) == (1, 4_652_008)
  assert whole['kl'] == pytest.approx(0, abs=1e-5)
  assert whole['same_top1'] == 1
  assert found['macs'] <= 0.8
  assert found['evaluations'] == 1
  assert found['kl'] > 0
  assert found['masked_minus_exported'] <= 1e-5
  path = folder / 'uniform_0.8.bwz'
  assert path.stat().st_size == found['bytes'] < whole['bytes']
  params, _ = as_variables(coding.read_arrays(path), 'uniform')
  head = params['head_conv']['kernel'].shape[-1]
  assert head == found['kept']['head_conv'] < 1280
  assert sum(x.size for x in jax.tree.leaves(params)) == found['parameters']


@pytest.mark.parametrize(
  ('arguments', 'message'),
  [
    (['--searchers', 'spdi'], "searchers='spdi' is unknown; known: .*'spdy'"),
    (['--evaluations', '0'], 'evaluations=0 is not positive'),
    (['--image_size', '100'], 'image_size=100 is no multiple of 32'),
    (['--ridge', 'nan'], 'ridge=nan is negative or not finite'),
    (['--budgets', '1.5'], r'budgets=1.5 is not in \(0, 1\]'),
    (['--weights', 'none.safetensors'], "input='none.safetensors' is not ther"),
  ],
)
def test_bad_arguments(arguments, message, capsys):
  assert pretrained_search.main(arguments) == 2
  captured = capsys.readouterr()
  assert captured.out == ''
  assert captured.err.count('\n') == 1
  assert re.search(message, captured.err)
