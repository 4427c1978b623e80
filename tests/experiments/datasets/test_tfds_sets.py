import numpy as np
import pytest
import tensorflow_datasets as tfds
from toy_sets import examples, image_features, png, write_set

from experiments.datasets import load
from experiments.datasets.tfds_sets import open_set, parse_name


@pytest.mark.parametrize(
  ('name', 'parts'),
  [
    ('cifar10', ('cifar10', '', '')),
    ('imagenet2012:5.1.0', ('imagenet2012', '', '5.1.0')),
    ('cifar10_corrupted/fog_1', ('cifar10_corrupted', 'fog_1', '')),
    ('a/b-c:1.*.*', ('a', 'b-c', '1.*.*')),
  ],
)
def test_names(name, parts):
  assert parse_name(name) == parts


@pytest.mark.parametrize('name', ['', 'hf:mnist', '../x', 'a/b/c', '/', 'a b'])
def test_malformed_names(name, tmp_path):
  with pytest.raises(ValueError, match=r'dataset\.name='):
    load(name=name, data_dir=str(tmp_path))


def test_highest_or_named_version(tmp_path):
  for version, count in (('9.0.0', 2), ('10.0.0', 3), ('10.1.0', 4)):
    _, _, train = examples(count)
    splits = {'train': train, 'test': train}
    write_set(tmp_path, version=version, splits=splits)
  (tmp_path / 'toy' / 'incomplete.ABC_11.0.0').mkdir()
  (tmp_path / 'toy' / '12.0.0').mkdir()

  def count(name):
    return len(load(name=name, data_dir=str(tmp_path)).train)

  assert count('toy') == 4
  assert count('toy:9.0.0') == 2
  assert count('toy:10.0.*') == 3
  with pytest.raises(ValueError, match=r'which has version 9\.0\.0, 10\.0\.0'):
    count('toy:8.0.0')


def test_configs(tmp_path):
  directory = write_set(tmp_path, splits={'train': examples(2)[2]})
  (tmp_path / 'toy' / 'big').mkdir()
  directory.rename(tmp_path / 'toy' / 'big' / '1.0.0')
  opened = open_set('toy', data_dir=tmp_path, image_size=0)
  assert opened.directory == tmp_path / 'toy' / 'big' / '1.0.0'
  directory = write_set(tmp_path, splits={'train': examples(3)[2]})
  (tmp_path / 'toy' / 'small').mkdir()
  directory.rename(tmp_path / 'toy' / 'small' / '1.0.0')
  with pytest.raises(ValueError, match=r'several configs.*toy/big, toy/small'):
    open_set('toy', data_dir=tmp_path, image_size=0)
  opened = open_set('toy/small:1.0.0', data_dir=tmp_path, image_size=0)
  assert len(opened.split('train')) == 3


def _error(name, tmp_path):
  with pytest.raises(ValueError, match=r'\w') as error:
    load(name=name, data_dir=str(tmp_path))
  message = str(error.value)
  assert '\n' not in message
  return message


def test_unknown_name_suggests(tmp_path):
  assert "Did you mean 'mnist'?" in _error('mnits', tmp_path)
  message = _error('imagenet2021', tmp_path)
  assert message.startswith("dataset.name='imagenet2021' is unknown")
  assert "Did you mean 'imagenet2012'?" in message


@pytest.mark.parametrize('name', ['mnist', 'fashion_mnist', 'cifar10:3.0.2'])
def test_missing_set_tells_how_to_prepare_it(tmp_path, name):
  message = _error(name, tmp_path)
  bare = name.partition(':')[0]
  assert (
    f'python -m experiments.datasets.prepare {bare} --from DIR '
    f'--data_dir {tmp_path}'
  ) in message


def test_missing_set_of_tfds_tells_how_to_get_it(tmp_path):
  message = _error('imagenet2012:5.1.0', tmp_path)
  assert (
    f"tfds.builder('imagenet2012:5.1.0', data_dir='{tmp_path}')"
    ".download_and_prepare(file_format='array_record')"
  ) in message


def test_missing_version_lists_those_there(tmp_path):
  write_set(tmp_path, name='mnist', splits={'train': examples(2)[2]})
  assert 'which has version 1.0.0' in _error('mnist:3.0.1', tmp_path)


@pytest.mark.parametrize(
  ('features', 'example', 'message'),
  [
    (
      {'text': tfds.features.Text()},
      {'text': 'a'},
      r'no image classification set: .* and has text \(Text\)',
    ),
    (
      image_features() | {'label': tfds.features.Scalar(np.int64)},
      {'image': png(np.zeros((8, 8, 3), np.uint8)), 'label': 1},
      r'label \(Scalar\)',
    ),
    (
      {
        'image': tfds.features.Image(shape=(8, 8, 3), dtype=np.uint16),
        'label': tfds.features.ClassLabel(num_classes=2),
      },
      {'image': png(np.zeros((8, 8, 3), np.uint8)), 'label': 1},
      'uint16',
    ),
  ],
)
def test_other_sets_are_refused(tmp_path, features, example, message):
  splits = {'train': [example], 'test': [example]}
  write_set(tmp_path, features=features, splits=splits)
  with pytest.raises(ValueError, match=message):
    load(name='toy', data_dir=str(tmp_path))


def test_other_file_format_is_refused(tmp_path, toy):
  info = toy['directory'] / 'dataset_info.json'
  info.write_text(info.read_text().replace('array_record', 'tfrecord'))
  assert 'ArrayRecord' in _error('toy', tmp_path)


def test_damaged_metadata_is_named(tmp_path, toy):
  (toy['directory'] / 'dataset_info.json').write_text('{')
  assert str(toy['directory']) in _error('toy', tmp_path)


@pytest.mark.parametrize('label', [2, -1])
def test_unlabeled_test_split_is_not_used(tmp_path, label):
  _, _, train = examples(5)
  _, _, validation = examples(7)
  test = [{'image': train[0]['image'], 'label': label}] * 3
  splits = {'train': train, 'validation': validation, 'test': test}
  write_set(tmp_path, splits=splits)
  loaded = load(name='toy', data_dir=str(tmp_path))
  assert len(loaded.test) == (3 if label >= 0 else 7)


def test_validation_stands_in_for_a_missing_test_split(tmp_path):
  _, _, train = examples(5)
  write_set(tmp_path, splits={'train': train, 'validation': train[:2]})
  assert len(load(name='toy', data_dir=str(tmp_path)).test) == 2


def test_split_that_is_not_there(tmp_path):
  write_set(tmp_path, splits={'test': examples(2)[2]})
  assert "has no split 'train', only: test" in _error('toy', tmp_path)


def test_unequal_sizes_need_image_size(tmp_path):
  rng = np.random.default_rng(0)
  sizes = [(9, 12), (20, 8), (8, 8)]
  written = [
    {
      'image': png(rng.integers(0, 256, (*size, 3)).astype(np.uint8)),
      'label': 1,
    }
    for size in sizes
  ]
  features = image_features(shape=(None, None, 3))
  splits = {'train': written, 'test': written}
  write_set(tmp_path, features=features, splits=splits)
  assert 'give dataset.image_size' in _error('toy', tmp_path)
  for limit in (2**28, 0):
    loaded = load(
      name='toy', data_dir=str(tmp_path), image_size=8, memory_limit=limit
    )
    assert loaded.image_shape == loaded.train.image_shape == (8, 8, 3)


def test_other_features_are_left_alone(tmp_path):
  image, label, written = examples(3)
  features = image_features() | {
    'mask': tfds.features.Image(shape=(8, 8, 1)),
    'boxes': tfds.features.Sequence({'area': tfds.features.Scalar(np.int64)}),
  }
  for example in written:
    example |= {'mask': b'no image at all', 'boxes': [{'area': 1}] * 2}
  write_set(tmp_path, features=features, splits={'train': written})
  split = open_set('toy', data_dir=tmp_path, image_size=0).split('train')
  for index in range(3):
    np.testing.assert_array_equal(split[index].image, image[index])
    assert split[index].label == label[index]


@pytest.mark.parametrize('variable', [True, False])
def test_bucket_is_refused(monkeypatch, variable):
  if variable:
    monkeypatch.setenv('TFDS_DATA_DIR', 'gs://bucket/sets')
  with pytest.raises(ValueError, match=r"data_dir='gs://bucket/sets': "):
    load(name='cifar10', data_dir='' if variable else 'gs://bucket/sets')
