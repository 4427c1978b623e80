import contextlib
import gzip

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from toy_sets import idx

from experiments.datasets.loading import bundle
from experiments.datasets.originals import (
  ORIGINALS,
  parse_idx,
  read_originals,
)

TRAIN_COUNTS = [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
TEST_COUNTS = [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]


@given(hnp.arrays(np.uint8, hnp.array_shapes(max_dims=3, max_side=5)))
def test_idx_round_trip(array):
  np.testing.assert_array_equal(parse_idx(idx(array)), array)


@given(st.binary(max_size=40))
def test_idx_of_any_bytes_is_an_array_or_a_value_error(raw):
  with contextlib.suppress(ValueError):
    assert parse_idx(raw).nbytes <= len(raw)


@pytest.mark.parametrize(
  ('raw', 'message'),
  [
    (b'', 'no IDX header'),
    (bytes([0, 0, 9, 1, 0, 0, 0, 1, 5]), 'no IDX header'),
    (bytes([0, 0, 8, 2, 0, 0, 0, 1]), 'no IDX header'),
    (bytes([0, 0, 8, 1, 0, 0, 0, 2, 5]), r'says \[2\], but 1 values'),
    (bytes([0, 0, 8, 3, *([255] * 12)]), 'but 0 values'),
  ],
)
def test_bad_idx(raw, message):
  with pytest.raises(ValueError, match=message):
    parse_idx(raw)


def test_bundled_mnist_is_the_published_one():
  splits = read_originals(ORIGINALS['mnist'], bundle('mnist'))
  train, test = splits['train'], splits['test']
  assert train.image.shape == (60_000, 28, 28, 1)
  assert test.image.shape == (10_000, 28, 28, 1)
  assert np.bincount(train.label).tolist() == TRAIN_COUNTS
  assert np.bincount(test.label).tolist() == TEST_COUNTS
  assert train.label[:5].tolist() == [5, 0, 4, 1, 9]
  np.testing.assert_allclose(train.image.mean() / 255, 0.1307, atol=1e-4)


def test_readme_lists_the_digests():
  text = (bundle('mnist') / 'README.md').read_text()
  for files in ORIGINALS['mnist'].files.values():
    for file in files:
      row = next(line for line in text.splitlines() if file.name in line)
      assert file.digest in row
      assert f'{file.size:,}' in row


@pytest.mark.parametrize('name', ['mnist', 'fashion_mnist', 'cifar10'])
def test_reads_files_as_they_are_and_packed(small_originals, name):
  folder, expected = small_originals[name]
  for packed in (False, True):
    if packed:
      for path in list(folder.iterdir()):
        with gzip.open(f'{path}.gz', 'wb') as stream:
          stream.write(path.read_bytes())
        path.unlink()
    splits = read_originals(ORIGINALS[name], folder)
    for key, (image, label) in expected.items():
      np.testing.assert_array_equal(splits[key].image, image)
      np.testing.assert_array_equal(splits[key].label, label)
      assert splits[key].label.dtype == np.int32


def _truncate(path):
  path.write_bytes(path.read_bytes()[:-7])


def _alter(path):
  raw = bytearray(path.read_bytes())
  raw[-1] ^= 1
  path.write_bytes(raw)


def _lengthen(path):
  path.write_bytes(path.read_bytes() + b'x')


def _pack_and_truncate(path):
  raw = gzip.compress(path.read_bytes())
  path.with_name(path.name + '.gz').write_bytes(raw[: len(raw) // 2])
  path.unlink()


def _pack_and_alter(path):
  raw = bytearray(gzip.compress(path.read_bytes()))
  raw[-8] ^= 1
  path.with_name(path.name + '.gz').write_bytes(raw)
  path.unlink()


@pytest.mark.parametrize(
  ('damage', 'message'),
  [
    (_truncate, 'is truncated: 3833 bytes unpacked, not 3840'),
    (_lengthen, 'is altered: too long'),
    (_alter, 'is altered: sha256 of its content is'),
    (_pack_and_truncate, r'\.gz is truncated or altered'),
    (_pack_and_alter, r'\.gz is truncated or altered'),
    (lambda path: path.unlink(), 'is missing'),
  ],
)
def test_damaged_file_is_named(small_originals, damage, message):
  folder, _ = small_originals['mnist']
  path = folder / 't10k-images-idx3-ubyte'
  size = path.stat().st_size
  damage(path)
  with pytest.raises(ValueError, match=path.name) as error:
    read_originals(ORIGINALS['mnist'], folder)
  assert '\n' not in str(error.value)
  error.match(message.replace('3833', str(size - 7)).replace('3840', str(size)))


def test_files_of_another_set_are_refused(small_originals):
  folder, _ = small_originals['fashion_mnist']
  with pytest.raises(ValueError, match='train-images-idx3-ubyte is altered'):
    read_originals(ORIGINALS['mnist'], folder)
