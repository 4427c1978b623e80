"""Finding and opening TFDS data sets, without TensorFlow.

A set lies in DATA_DIR/NAME[/CONFIG]/VERSION, written as ArrayRecord files by
tensorflow-datasets (TFDS) or by `experiments.datasets.prepare`.
"""

import dataclasses
import difflib
import fnmatch
import os
import re
from pathlib import Path
from typing import Any, NamedTuple

from bandwidth import base
from experiments.datasets import images
from experiments.datasets.originals import ORIGINALS
from experiments.datasets.splits import ImageShape
from experiments.datasets.tfds_split import TfdsSplit

_NAME = re.compile(r'(\w+)(?:/([\w.-]+))?(?::([\d.*]+))?')
_VERSION = re.compile(r'\d+\.\d+\.\d+')


class SetName(NamedTuple):
  """NAME[/CONFIG][:VERSION]; what is not given is empty."""

  name: str
  config: str
  version: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class TfdsSet:
  """An image classification set on disk."""

  directory: Path  # folder of the set's version
  num_classes: int  # labels are 0 to `num_classes` - 1
  image_shape: ImageShape  # height, width and channels of the images given out
  fit: bool  # whether stored images may be of other sizes
  builder: Any  # TFDS's builder of the folder

  def split(self, name: str) -> TfdsSplit:
    """Opens a split.

    Raises:
      ValueError: there is none, or a file of it is damaged.
    """
    if name not in self.builder.info.splits:
      known = ', '.join(self.builder.info.splits)
      raise ValueError(f'{self.directory} has no split {name!r}, only: {known}')
    return TfdsSplit(self.builder, name, shape=self.image_shape, fit=self.fit)

  def test_split(self) -> TfdsSplit:
    """Opens 'test', or 'validation' where 'test' is missing or unlabeled.

    ImageNet's test labels, for one, are not public.
    """
    splits = self.builder.info.splits
    if 'test' in splits:
      test = self.split('test')
      if test.labeled() or 'validation' not in splits:
        return test
    return self.split('validation')


def data_folder(data_dir: str = '') -> Path:
  """Returns the folder of the TFDS sets.

  Args:
    data_dir: as it was given; when empty, TFDS_DATA_DIR of the environment, or
      else ~/tensorflow_datasets.

  Raises:
    ValueError: it is no folder of a file system.
  """
  given = data_dir or os.environ.get('TFDS_DATA_DIR', '')
  if '://' in given:
    raise ValueError(
      f'data_dir={given!r}: ArrayRecord files are read from a file system '
      'only: mount the bucket, or copy the set'
    )
  return Path(given or '~/tensorflow_datasets').expanduser()


def parse_name(name: str) -> SetName:
  """Takes NAME[/CONFIG][:VERSION] apart.

  Raises:
    ValueError: the name has another form.

  >>> parse_name('imagenet2012:5.1.0')
  SetName(name='imagenet2012', config='', version='5.1.0')
  """
  match = _NAME.fullmatch(name)
  if not match:
    raise ValueError(
      f'dataset.name={name!r} is not NAME, NAME/CONFIG, NAME:VERSION or '
      'NAME/CONFIG:VERSION'
    )
  return SetName(*(part or '' for part in match.groups()))


def open_set(name: str, *, data_dir: Path, image_size: int) -> TfdsSet:
  """Opens a prepared set.

  Args:
    name: NAME[/CONFIG][:VERSION], the highest version by default.
    data_dir: the folder of all sets.
    image_size: side of the square that images are fitted to; 0 leaves them.

  Raises:
    ValueError: the set is unknown, missing, damaged, no set of labeled 8-bit
      images, or one of images of unequal size with `image_size` 0.
  """
  import tensorflow_datasets as tfds

  directory = _find(name, data_dir)
  try:
    builder = tfds.builder_from_directory(directory, file_format='array_record')
  except Exception as error:  # Damaged metadata fails in many ways.
    reason = ' '.join(str(error).split()) or type(error).__name__
    raise ValueError(
      f'{directory} is no TFDS data set in ArrayRecord files: {reason}'
    ) from None
  _check_features(name, builder.info.features)
  stored = builder.info.features['image'].shape
  shape, fit = _image_shape(name, stored, image_size)
  return TfdsSet(
    directory=directory,
    num_classes=builder.info.features['label'].num_classes,
    image_shape=shape,
    fit=fit,
    builder=builder,
  )


def _check_features(name: str, features: Any) -> None:
  import tensorflow_datasets as tfds

  found = dict(features.items()) if hasattr(features, 'items') else {}
  image, label = found.get('image'), found.get('label')
  if (
    not isinstance(image, tfds.features.Image)
    or not isinstance(label, tfds.features.ClassLabel)
    or label.num_classes is None
  ):
    raise ValueError(
      f'dataset.name={name!r} is no image classification set: it needs the '
      "features 'image' (Image) and 'label' (ClassLabel), and has "
      + ', '.join(f'{k} ({type(v).__name__})' for k, v in found.items())
    )
  if image.np_dtype != 'uint8' or image.shape[-1] not in images.MODES:
    raise ValueError(
      f'dataset.name={name!r} has images {image.np_dtype} {image.shape}; only '
      f'uint8 with {", ".join(map(str, images.MODES))} channels can be read'
    )


def _image_shape(
  name: str, stored: tuple[int, int, int], image_size: int
) -> tuple[ImageShape, bool]:
  """Returns the shape to give out, and whether images are to be fitted.

  A side of `stored` is None where it differs from image to image.
  """
  height, width, channels = stored
  if image_size and (height, width) != (image_size, image_size):
    return (image_size, image_size, channels), True
  if None in stored:
    raise ValueError(
      f'dataset.name={name!r} has images of unequal size: give '
      'dataset.image_size (the shorter side is resized to it, the center '
      'square cropped)'
    )
  return stored, False


def _find(name: str, data_dir: Path) -> Path:
  """Returns the folder of the set's highest version that matches the name."""
  wanted = parse_name(name)
  folder = data_dir / wanted.name / wanted.config
  versions = _versions(folder)
  if not versions and not wanted.config:
    configs = [d for d in sorted(folder.glob('*')) if _versions(d)]
    if len(configs) > 1:
      names = ', '.join(f'{wanted.name}/{config.name}' for config in configs)
      raise ValueError(
        f'dataset.name={name!r} has several configs in {data_dir}: {names}'
      )
    versions = [v for config in configs for v in _versions(config)]
  fitting = [
    v for v in versions if fnmatch.fnmatch(v.name, wanted.version or '*')
  ]
  if fitting:
    return fitting[-1]
  raise ValueError(_missing(name, data_dir, [v.name for v in versions]))


def _versions(folder: Path) -> list[Path]:
  """Returns the folders of versions, the highest last."""
  found = [path.parent for path in folder.glob('*/features.json')]
  return sorted(
    (path for path in found if _VERSION.fullmatch(path.name)),
    key=lambda path: [int(number) for number in path.name.split('.')],
  )


def _missing(name: str, data_dir: Path, versions: list[str]) -> str:
  """Returns the message for a set that is not there: how to get it."""
  import tensorflow_datasets as tfds

  bare = parse_name(name).name
  message = f'dataset.name={name!r} is not in data_dir={str(data_dir)!r}'
  if versions:
    message += f', which has version {", ".join(versions)}'
  if bare in ORIGINALS:
    return (
      f'{message}. To prepare it from its original files in DIR: '
      f'python -m experiments.datasets.prepare {bare} --from DIR '
      f'--data_dir {data_dir}'
    )
  known = tfds.list_builders(with_community_datasets=False)
  if bare in known:
    return (
      f'{message}. To prepare it where TensorFlow is installed: '
      f'python -c "import tensorflow_datasets as tfds; '
      f"tfds.builder('{name}', data_dir='{data_dir}')"
      ".download_and_prepare(file_format='array_record')\""
    )
  if versions:
    return message
  close = difflib.get_close_matches(bare, known, n=3)
  return (
    base.unknown_name('dataset.name', name, {*ORIGINALS, *close})
    + ' (any set of tensorflow-datasets can be named, and any in '
    f'data_dir={str(data_dir)!r})'
  )
