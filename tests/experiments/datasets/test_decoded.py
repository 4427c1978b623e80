import os
import time

import numpy as np
import pytest
from toy_sets import examples, write_set

from experiments.datasets import decoded
from experiments.datasets.tfds_sets import open_set

KEPT = 'decoded_train_8x8.npz'


def _decode(toy, image_size=0):
  opened = open_set('toy', data_dir=toy['data_dir'], image_size=image_size)
  return decoded.decode(opened.split('train'), directory=opened.directory)


def _is_train(toy, split):
  image, label = toy['train']
  return np.array_equal(split.image, image) and np.array_equal(
    split.label, label
  )


@pytest.fixture
def counted(monkeypatch):
  """Counts how often a split is decoded."""
  calls = []
  real = decoded._decode_all
  monkeypatch.setattr(
    decoded, '_decode_all', lambda split: calls.append(1) or real(split)
  )
  return calls


def test_decoded_once(toy, counted):
  for _ in range(3):
    assert _is_train(toy, _decode(toy))
  assert len(counted) == 1
  assert (toy['directory'] / KEPT).exists()
  assert not list(toy['directory'].glob('*.partial'))


def test_other_size_is_kept_apart(toy, counted):
  _decode(toy)
  assert _decode(toy, image_size=4).image_shape == (4, 4, 3)
  _decode(toy, image_size=8)
  assert len(counted) == 2


def test_changed_data_is_seen(toy, counted):
  _decode(toy)
  image, label, written = examples(23, seed=9)
  directory = toy['directory']
  (directory / KEPT).rename(toy['data_dir'] / KEPT)
  for path in directory.iterdir():
    path.unlink()
  directory.rmdir()
  write_set(
    toy['data_dir'], splits={'train': written, 'test': written}, shards=2
  )
  (toy['data_dir'] / KEPT).rename(directory / KEPT)
  split = _decode(toy)
  np.testing.assert_array_equal(split.image, image)
  np.testing.assert_array_equal(split.label, label)
  assert len(counted) == 2


def test_altered_shard_is_not_masked(toy):
  _decode(toy)
  shard = toy['directory'] / 'toy-train.array_record-00001-of-00002'
  raw = bytearray(shard.read_bytes())
  raw[raw.index(b'IDAT') + 10] ^= 0xFF
  shard.write_bytes(raw)
  with pytest.raises(ValueError, match=shard.name):
    _decode(toy)


def _truncate(path):
  path.write_bytes(path.read_bytes()[:-100])


def _alter(path):
  raw = bytearray(path.read_bytes())
  raw[len(raw) // 2] ^= 0xFF
  path.write_bytes(raw)


def _empty(path):
  path.write_bytes(b'')


def _pickle(path):
  np.savez(path, image=np.array([{}]), label=np.array([1]))


@pytest.mark.parametrize('damage', [_truncate, _alter, _empty, _pickle])
def test_damaged_file_is_made_anew(toy, counted, damage):
  _decode(toy)
  damage(toy['directory'] / KEPT)
  assert _is_train(toy, _decode(toy))
  assert _is_train(toy, _decode(toy))
  assert len(counted) == 2


def test_without_permission_nothing_is_kept(toy, counted, monkeypatch):
  def refuse(*args, **kwargs):
    raise PermissionError(13, 'Permission denied')

  monkeypatch.setattr(decoded.os, 'replace', refuse)
  assert _is_train(toy, _decode(toy))
  assert _is_train(toy, _decode(toy))
  assert len(counted) == 2
  assert not list(toy['directory'].glob('decoded*'))


def test_another_writer_is_left_alone_until_stale(toy, counted):
  partial = toy['directory'] / KEPT.replace('.npz', '.partial')
  partial.write_bytes(b'being written')
  assert _is_train(toy, _decode(toy))
  assert partial.exists()
  assert not (toy['directory'] / KEPT).exists()
  old = time.time() - 2 * 3600
  os.utime(partial, (old, old))
  _decode(toy)
  assert not partial.exists()
  assert (toy['directory'] / KEPT).exists()


def test_sizes(toy):
  opened = open_set('toy', data_dir=toy['data_dir'], image_size=0)
  assert decoded.decoded_bytes(opened.split('train')) == 23 * 8 * 8 * 3
