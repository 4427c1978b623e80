import os
import subprocess
import sys

import numpy as np
import pytest
from toy_sets import examples, write_set

from experiments.datasets import (
  Split,
  StreamedSplit,
  held_out,
  load,
  loading,
)


def test_bundled_mnist():
  loaded = load(name='mnist', validation=5000)
  assert loaded.name == 'mnist'
  assert loaded.num_classes == 10
  assert loaded.image_shape == (28, 28, 1)
  assert len(loaded.train) == 55_000
  assert len(loaded.validation) == 5000
  assert len(loaded.test) == 10_000
  whole = load(name='mnist', source='bundled')
  assert whole.validation is None
  kept, held = held_out(60_000, 5000)
  assert np.array_equal(loaded.train.image, whole.train.image[kept])
  np.testing.assert_array_equal(
    loaded.validation.label, whole.train.label[held]
  )


@pytest.mark.parametrize('limit', [2**28, 0])
def test_tfds(toy, limit):
  loaded = load(
    name='toy', data_dir=str(toy['data_dir']), validation=4, memory_limit=limit
  )
  kind = Split if limit else StreamedSplit
  assert all(
    isinstance(split, kind)
    for split in (loaded.train, loaded.validation, loaded.test)
  )
  assert loaded.num_classes == 4
  kept, held = held_out(23, 4)
  image, label = toy['train']
  for split, indices in ((loaded.train, kept), (loaded.validation, held)):
    got = _arrays(split)
    np.testing.assert_array_equal(got[0], image[indices])
    np.testing.assert_array_equal(got[1], label[indices])
  np.testing.assert_array_equal(_arrays(loaded.test)[0], toy['test'][0])


def _arrays(split):
  if isinstance(split, Split):
    return split.image, split.label
  (batch,) = split.ordered(batch_size=len(split), rows=slice(None))
  return batch['image'], batch['label']


def test_memory_limit_is_the_decoded_size(toy):
  size = 23 * 8 * 8 * 3
  for limit, kind in ((size, Split), (size - 1, StreamedSplit)):
    loaded = load(name='toy', data_dir=str(toy['data_dir']), memory_limit=limit)
    assert isinstance(loaded.train, kind)
    assert isinstance(loaded.test, Split)


def test_data_dir_of_the_environment(toy, monkeypatch):
  monkeypatch.setenv('TFDS_DATA_DIR', str(toy['data_dir']))
  assert len(load(name='toy').train) == 23


def test_auto_prefers_a_data_dir_to_the_bundle(tmp_path):
  write_set(tmp_path, name='mnist', splits={'train': examples(6)[2]})
  with pytest.raises(ValueError, match="has no split 'validation'"):
    load(name='mnist', data_dir=str(tmp_path))
  loaded = load(name='mnist', data_dir=str(tmp_path), source='bundled')
  assert len(loaded.train) == 60_000


def test_image_size_of_the_bundle(small_originals, monkeypatch):
  folder, splits = small_originals['mnist']
  monkeypatch.setattr(loading, 'bundle', lambda name: folder)
  loaded = load(name='mnist', image_size=14)
  assert loaded.image_shape == (14, 14, 1)
  assert loaded.test.image.shape == (len(splits['test'][1]), 14, 14, 1)


@pytest.mark.parametrize(
  ('arguments', 'message'),
  [
    ({'source': 'bundle'}, r"source='bundle' is unknown.*mean 'bundled'"),
    ({'validation': -1}, r'dataset\.validation=-1 is negative'),
    ({'validation': 60_000}, r'validation=60000 is not in 0 to 59999'),
    ({'image_size': -8}, r'dataset\.image_size=-8 is negative'),
    ({'memory_limit': -1}, r'dataset\.memory_limit=-1 is negative'),
    ({'name': 'cifar10', 'source': 'bundled'}, "'cifar10' is not bundled"),
  ],
)
def test_bad_arguments(arguments, message):
  with pytest.raises(ValueError, match=message) as error:
    load(**({'name': 'mnist'} | arguments))
  assert '\n' not in str(error.value)


CHECK = """
import sys
from experiments import datasets
datasets.load(name='mnist')
for module in ('tensorflow', 'tensorflow_datasets', 'grain', 'jax'):
  assert module not in sys.modules, module
for limit in (0, 2**28):
  split = datasets.load(name='toy', memory_limit=limit).train
  if limit == 0:
    next(split.batches(seed=0, batch_size=4, first_step=0, rows=slice(0, 4)))
assert 'tensorflow' not in sys.modules
print('checked')
"""


def test_imports_are_lazy_and_tensorflow_is_never_one(toy, tmp_path):
  # A TensorFlow that could be imported: its absence proves nothing.
  stub = tmp_path / 'path' / 'tensorflow'
  stub.mkdir(parents=True)
  (stub / '__init__.py').write_text('__version__ = "2.99.0"\n')
  path = os.pathsep.join([str(stub.parent), os.getcwd()])
  result = subprocess.run(
    [sys.executable, '-W', 'error', '-c', CHECK],
    env=os.environ
    | {'PYTHONPATH': path, 'TFDS_DATA_DIR': str(toy['data_dir'])},
    capture_output=True,
    text=True,
  )
  assert result.stdout == 'checked\n', result.stderr
