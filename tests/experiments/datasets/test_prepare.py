import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import tensorflow_datasets as tfds

from experiments.datasets import load, prepare

VERSIONS = {'mnist': '3.0.1', 'fashion_mnist': '3.0.1', 'cifar10': '3.0.2'}


@pytest.mark.parametrize('name', list(VERSIONS))
def test_reads_back_by_tfds_and_by_us(small_originals, tmp_path, name):
  folder, splits = small_originals[name]
  data_dir = tmp_path / 'new' / 'sets'
  directory = prepare.prepare(name, source=folder, data_dir=data_dir)
  assert directory == data_dir / name / VERSIONS[name]
  sources = tfds.data_source(name, data_dir=data_dir, download=False)
  ours = load(name=name, data_dir=str(data_dir))
  for key, (image, label) in splits.items():
    assert _rows(image, label) == _rows(
      np.stack([e['image'] for e in sources[key]]),
      np.array([e['label'] for e in sources[key]]),
    )
    got = getattr(ours, key)
    assert _rows(image, label) == _rows(got.image, got.label)
  info = tfds.builder(name, data_dir=data_dir).info
  assert info.splits['train'].num_examples == len(splits['train'][1])


def _rows(image, label):
  return sorted(
    (int(y), x.tobytes()) for x, y in zip(image, label, strict=True)
  )


def test_same_metadata_as_tfds(small_originals, tmp_path):
  for name, (folder, _) in small_originals.items():
    directory = prepare.prepare(name, source=folder, data_dir=tmp_path / 'd')
    info = json.loads((directory / 'dataset_info.json').read_text())
    assert info['moduleName'].startswith('tensorflow_datasets.image_class')
    assert info['fileFormat'] == 'array_record'
    assert info['version'] == VERSIONS[name]
    reference = tfds.builder(name, data_dir=tmp_path / 'none').info.features
    features = tfds.builder_from_directory(directory).info.features
    assert set(features) == set(reference)
    assert features['image'].shape == reference['image'].shape
  assert features['label'].names[:2] == ['airplane', 'automobile']
  source = tfds.data_source(
    'cifar10', data_dir=tmp_path / 'd', split='train', download=False
  )
  ids = sorted(example['id'] for example in source)
  assert ids[0] == b'train_00000'
  assert len(set(ids)) == len(source)


def test_originals_order_is_in_the_ids(small_originals, tmp_path):
  folder, splits = small_originals['cifar10']
  prepare.prepare('cifar10', source=folder, data_dir=tmp_path / 'd')
  source = tfds.data_source(
    'cifar10', data_dir=tmp_path / 'd', split='test', download=False
  )
  for example in source:
    index = int(example['id'].removeprefix(b'test_'))
    np.testing.assert_array_equal(example['image'], splits['test'][0][index])


def test_second_time_is_left_alone(small_originals, tmp_path):
  folder, _ = small_originals['mnist']
  data_dir = tmp_path / 'd'
  directory = prepare.prepare('mnist', source=folder, data_dir=data_dir)
  before = [path.stat().st_mtime_ns for path in sorted(directory.iterdir())]
  # The folder that holds the folder of the set will do as well.
  prepare.prepare('mnist', source=folder.parent, data_dir=data_dir)
  after = [path.stat().st_mtime_ns for path in sorted(directory.iterdir())]
  assert before == after
  assert sorted(path.name for path in data_dir.iterdir()) == ['mnist']


def _main_fails(capsys, *arguments):
  assert prepare.main([str(argument) for argument in arguments]) == 2
  captured = capsys.readouterr()
  assert captured.out == ''
  assert captured.err.startswith('prepare: error: ')
  assert captured.err.count('\n') == 1
  return captured.err


def test_errors_are_one_line_and_leave_nothing(
  small_originals, tmp_path, capsys
):
  folder, _ = small_originals['cifar10']
  data_dir = tmp_path / 'a' / 'b'
  tail = ('--data_dir', data_dir)
  (tmp_path / 'empty').mkdir()

  def failure(*arguments):
    message = _main_fails(capsys, *arguments, *tail)
    assert not (tmp_path / 'a').exists()
    return message

  assert "Did you mean 'cifar10'?" in failure('cifar', '--from', folder)
  assert 'is no folder' in failure('cifar10', '--from', tmp_path / 'nowhere')
  assert 'holds no data_batch_1.bin' in failure(
    'cifar10', '--from', tmp_path / 'empty'
  )
  assert 'cifar10 is not bundled: give --from DIR' in failure('cifar10')
  path = folder / 'data_batch_3.bin'
  raw = path.read_bytes()
  path.write_bytes(raw[:-1] + bytes([raw[-1] ^ 1]))
  assert f'{path} is altered' in failure('cifar10', '--from', folder)
  path.write_bytes(raw[:-1])
  assert f'{path} is truncated' in failure('cifar10', '--from', folder)
  path.unlink()
  assert f'{path} is missing' in failure('cifar10', '--from', folder)
  assert 'required: name' in failure()


def test_data_dir_that_is_a_file(small_originals, tmp_path, capsys):
  folder, _ = small_originals['mnist']
  (tmp_path / 'file').write_text('')
  message = _main_fails(
    capsys, 'mnist', '--from', folder, '--data_dir', tmp_path / 'file'
  )
  assert str(tmp_path / 'file') in message


@pytest.mark.parametrize('kind', [OSError, RuntimeError])
def test_failure_while_writing_leaves_nothing(
  small_originals, tmp_path, capsys, monkeypatch, kind
):
  def full(*args, **kwargs):
    raise kind('No space left on device')

  folder, _ = small_originals['mnist']
  monkeypatch.setattr(prepare.Image, 'fromarray', full)
  message = _main_fails(
    capsys, 'mnist', '--from', folder, '--data_dir', tmp_path / 'd'
  )
  assert 'No space left' in message
  assert not (tmp_path / 'd').exists()


def _start(data_dir):
  """Prepares the bundled MNIST; returns when TFDS has begun to write."""
  process = subprocess.Popen(
    [
      sys.executable,
      '-c',
      # A shell starts its background jobs with SIGINT ignored.
      'import runpy, signal\n'
      'signal.signal(signal.SIGINT, signal.default_int_handler)\n'
      'runpy.run_module("experiments.datasets.prepare", run_name="__main__")',
      'mnist',
      f'--data_dir={data_dir}',
    ],
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )
  deadline = time.monotonic() + 60
  while not list(data_dir.glob('mnist/incomplete.*')):
    assert process.poll() is None, process.stderr.read()
    assert time.monotonic() < deadline
    time.sleep(0.02)
  return process


def test_killed_run_is_not_seen_and_cleared_by_the_next(
  small_originals, tmp_path
):
  data_dir = tmp_path / 'd'
  process = _start(data_dir)
  process.kill()
  process.communicate()
  assert not (data_dir / 'mnist' / '3.0.1').exists()
  with pytest.raises(
    ValueError, match=r'python -m experiments\.datasets\.prep'
  ):
    load(name='mnist', data_dir=str(data_dir))
  folder, _ = small_originals['mnist']
  prepare.prepare('mnist', source=folder, data_dir=data_dir)
  names = [path.name for path in (data_dir / 'mnist').iterdir()]
  assert names == ['3.0.1']


@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGINT])
def test_stopped_run_leaves_nothing(tmp_path, number):
  data_dir = tmp_path / 'd'
  process = _start(data_dir)
  os.kill(process.pid, number)
  _, errors = process.communicate(timeout=60)
  assert process.returncode == 128 + number, errors
  assert errors.count('\n') <= 1
  assert not data_dir.exists()
