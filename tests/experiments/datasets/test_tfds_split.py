import numpy as np
import pytest
import tensorflow_datasets as tfds
from toy_sets import examples, write_set

from experiments.datasets import load
from experiments.datasets.tfds_sets import open_set


def test_examples_are_those_written(toy):
  opened = open_set('toy', data_dir=toy['data_dir'], image_size=0)
  split = opened.split('train')
  image, label = toy['train']
  assert len(split) == 23
  assert len(split.files) == 2
  assert split.image_shape == (8, 8, 3)
  for index in (0, 11, 12, 22):
    np.testing.assert_array_equal(split[index].image, image[index])
    assert split[index].label == label[index]


def test_agrees_with_tfds(toy):
  opened = open_set('toy', data_dir=toy['data_dir'], image_size=0)
  source = tfds.data_source(
    'toy', data_dir=toy['data_dir'], split='test', download=False
  )
  split = opened.split('test')
  assert len(split) == len(source)
  for index, expected in enumerate(source):
    np.testing.assert_array_equal(split[index].image, expected['image'])
    assert split[index].label == expected['label']


def _shard(toy, number=1):
  return toy['directory'] / f'toy-train.array_record-0000{number}-of-00002'


@pytest.mark.parametrize('limit', [2**28, 0])
@pytest.mark.parametrize('kept', [0, 1000, -1])
def test_truncated_shard_is_named_on_loading(toy, kept, limit):
  shard = _shard(toy)
  shard.write_bytes(shard.read_bytes()[:kept])
  with pytest.raises(ValueError, match=f'{shard.name} is truncated') as error:
    load(name='toy', data_dir=str(toy['data_dir']), memory_limit=limit)
  assert '\n' not in str(error.value)


def test_missing_shard_is_named(toy):
  shard = _shard(toy)
  shard.unlink()
  with pytest.raises(ValueError, match=f'{shard.name} is missing'):
    load(name='toy', data_dir=str(toy['data_dir']))


def test_shard_of_another_set_is_named(toy):
  other = write_set(toy['data_dir'] / 'other', splits={'train': examples(5)[2]})
  (shard,) = other.glob('*array_record*')
  shard.rename(_shard(toy))
  with pytest.raises(ValueError, match=r'holds 5 records, and .* says 1[12]'):
    load(name='toy', data_dir=str(toy['data_dir']))


def _alter(shard):
  raw = bytearray(shard.read_bytes())
  # An image's pixels: the file is largely padding.
  position = raw.index(b'IDAT') + 10
  raw[position] ^= 0xFF
  shard.write_bytes(raw)


@pytest.mark.parametrize('limit', [2**28, 0])
def test_altered_shard_is_named_with_the_record(toy, limit):
  shard = _shard(toy)
  _alter(shard)

  def read():
    loaded = load(name='toy', data_dir=str(toy['data_dir']), memory_limit=limit)
    return list(loaded.train.ordered(batch_size=4, rows=slice(None)))

  with pytest.raises(
    ValueError, match=f'{shard.name}, record 0 is altered'
  ) as error:
    read()
  assert '\n' not in str(error.value)


def test_altered_first_record_of_the_test_split_is_named(toy):
  shard = min(toy['directory'].glob('toy-test*'))
  _alter(shard)
  with pytest.raises(ValueError, match=f'{shard.name}, record 0 is altered'):
    load(name='toy', data_dir=str(toy['data_dir']))


def test_label_out_of_range_is_named(tmp_path):
  _, _, written = examples(3)
  written[2]['label'] = -1
  write_set(tmp_path, splits={'train': written})
  split = open_set('toy', data_dir=tmp_path, image_size=0).split('train')
  with pytest.raises(ValueError, match='record 2: label -1 of 4 classes'):
    split[2]
