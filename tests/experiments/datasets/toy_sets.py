"""Small data sets for tests."""

import hashlib
import io
import struct

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

from experiments.datasets.originals import ORIGINALS, OriginalFile, Originals


def write_set(
  data_dir,
  *,
  name='toy',
  version='1.0.0',
  splits=None,
  features=None,
  file_format='array_record',
  shards=1,
):
  """Writes a TFDS set of {split: [example]}; returns its folder."""
  splits = splits or {}

  class Toy(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    VERSION = tfds.core.Version(version)

    def _info(self):
      return tfds.core.DatasetInfo(
        builder=self,
        features=tfds.features.FeaturesDict(features or image_features()),
        disable_shuffling=True,
      )

    def _split_generators(self, dl_manager):
      return {split: self._generate_examples(split) for split in splits}

    def _generate_examples(self, split):
      yield from enumerate(splits[split])

  Toy.name = name
  builder = Toy(data_dir=data_dir, file_format=file_format)
  builder.download_and_prepare(
    download_dir=data_dir / 'downloads',
    download_config=tfds.download.DownloadConfig(
      try_download_gcs=False, num_shards=shards
    ),
  )
  return data_dir / name / version


def image_features(shape=(8, 8, 3), classes=4):
  return {
    'image': tfds.features.Image(shape=shape),
    'label': tfds.features.ClassLabel(num_classes=classes),
  }


def examples(count, *, seed=0, shape=(8, 8, 3), classes=4):
  """Returns TFDS examples with their images as arrays, and those to write."""
  rng = np.random.default_rng(seed)
  image = rng.integers(0, 256, (count, *shape)).astype(np.uint8)
  label = rng.integers(0, classes, count).astype(np.int32)
  written = [
    {'image': png(x), 'label': int(y)}
    for x, y in zip(image, label, strict=True)
  ]
  return image, label, written


def png(array, mode=None, format='PNG'):
  array = array[..., 0] if array.shape[-1] == 1 else array
  image = Image.fromarray(array)
  stream = io.BytesIO()
  (image.convert(mode) if mode else image).save(stream, format=format)
  return stream.getvalue()


def idx(array):
  header = bytes([0, 0, 8, array.ndim])
  return header + struct.pack(f'>{array.ndim}I', *array.shape) + array.tobytes()


def small_set(name, folder):
  real = ORIGINALS[name]
  gray = len(real.files['test']) == 2
  shape = (28, 28, 1) if gray else (32, 32, 3)
  files, splits = {}, {}
  for seed, split in enumerate(real.files):
    count = 5 * len(real.files[split])
    image, label, _ = examples(
      count, seed=len(name) + seed, shape=shape, classes=10
    )
    splits[split] = image, label
    if gray:
      contents = [idx(image[..., 0]), idx(label.astype(np.uint8))]
    else:
      planes = image.transpose(0, 3, 1, 2).reshape(count, 3072)
      rows = np.concatenate([label[:, None].astype(np.uint8), planes], axis=1)
      contents = [part.tobytes() for part in np.split(rows, count // 5)]
    files[split] = tuple(
      _write(folder, file.name, raw)
      for file, raw in zip(real.files[split], contents, strict=True)
    )
  entry = Originals(
    num_classes=10,
    folder=real.folder,
    files=files,
    decode=real.decode,
    label_names=real.label_names,
  )
  return entry, splits


def _write(folder, name, raw):
  (folder / name).write_bytes(raw)
  digest = hashlib.sha256(raw).hexdigest()
  return OriginalFile(name=name, size=len(raw), digest=digest)
