"""Loading a data set by name."""

import dataclasses
from pathlib import Path

from bandwidth import base
from experiments.datasets import images, order
from experiments.datasets.originals import ORIGINALS, read_originals
from experiments.datasets.splits import ImageShape, Split
from experiments.datasets.streamed import StreamedSplit
from experiments.datasets.text import is_text

SOURCES = ('auto', 'bundled', 'tfds', 'text')
BUNDLED = ('mnist',)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Dataset:
  """A classification data set, ready for training."""

  name: str  # as it was asked for
  num_classes: int  # labels are 0 to `num_classes` - 1
  image_shape: ImageShape  # height, width and channels of every image
  # What is trained on, without the examples held out.
  train: Split | StreamedSplit
  test: Split | StreamedSplit  # the whole test set
  # The training examples held out, or None.
  validation: Split | StreamedSplit | None = None


def load(
  *,
  name: str,
  source: str = 'auto',
  data_dir: str = '',
  validation: int = 0,
  image_size: int = 0,
  memory_limit: int = 2**28,
) -> Dataset:
  """Loads a data set of images.

  Args:
    name: 'mnist', 'fashion_mnist', 'cifar10', or any image classification set
      of tensorflow-datasets: NAME[/CONFIG][:VERSION].
    source: 'bundled' for the files in this package (MNIST), 'tfds' for a
      prepared set in `data_dir`, 'auto' for the bundled files where there are
      any and `data_dir` is empty, and else for TFDS.
    data_dir: folder of the TFDS sets; when empty, the environment's
      TFDS_DATA_DIR, or else ~/tensorflow_datasets.
    validation: how many training examples to hold out: tune on these, never on
      the test set. They are the same ones in every run, see `held_out`, but
      differ from source to source, as the stored order does.
    image_size: 0 leaves images as they are. Otherwise the shorter side is
      resized to it, bicubic, and the center square cropped.
    memory_limit: bytes; a split that takes no more, decoded, is held in memory
      (`Split`), a larger one is read as it is used (`StreamedSplit`).

  Returns:
    The data set. Its test set is the split 'test', or 'validation' where
    'test' is missing or has no labels.

  Raises:
    ValueError: an argument is out of range; the set is unknown, missing (the
      message tells how to get it) or no image classification set; a file is
      truncated or altered (the message names it).
  """
  base.check_known('dataset.source', source, SOURCES)
  for argument, value in {
    'validation': validation,
    'image_size': image_size,
    'memory_limit': memory_limit,
  }.items():
    if value < 0:
      raise ValueError(f'dataset.{argument}={value} is negative')
  if is_text(name=name, source=source):
    raise ValueError(
      f'dataset.name={name!r} is text, no image classification set'
    )
  if source == 'auto':
    source = 'bundled' if name in BUNDLED and not data_dir else 'tfds'
  if source == 'bundled':
    loaded = _load_bundled(name, image_size)
  else:
    loaded = _load_tfds(name, data_dir, image_size, memory_limit)
  return _hold_out(loaded, validation)


def bundle(name: str) -> Path:
  """Returns the folder of the original files of a set in `BUNDLED`."""
  return Path(__file__).parent / name


def _load_bundled(name: str, image_size: int) -> Dataset:
  if name not in BUNDLED:
    raise ValueError(
      f'dataset.name={name!r} is not bundled; with dataset.source=bundled: '
      f'{", ".join(BUNDLED)}'
    )
  splits = read_originals(ORIGINALS[name], bundle(name))
  if image_size:
    splits = {k: images.fit_split(v, image_size) for k, v in splits.items()}
  return Dataset(
    name=name,
    num_classes=ORIGINALS[name].num_classes,
    image_shape=splits['train'].image_shape,
    train=splits['train'],
    test=splits['test'],
  )


def _load_tfds(
  name: str, data_dir: str, image_size: int, memory_limit: int
) -> Dataset:
  # Loading the bundled set has no use for these and their start-up time.
  from experiments.datasets import decoded, tfds_sets

  folder = tfds_sets.data_folder(data_dir)
  opened = tfds_sets.open_set(name, data_dir=folder, image_size=image_size)

  def read(examples: tfds_sets.TfdsSplit) -> Split | StreamedSplit:
    if decoded.decoded_bytes(examples) > memory_limit:
      return StreamedSplit(examples)
    return decoded.decode(examples, directory=opened.directory)

  return Dataset(
    name=name,
    num_classes=opened.num_classes,
    image_shape=opened.image_shape,
    train=read(opened.split('train')),
    test=read(opened.test_split()),
  )


def _hold_out(loaded: Dataset, validation: int) -> Dataset:
  kept, held = order.held_out(len(loaded.train), validation)
  if not validation:
    return loaded
  return dataclasses.replace(
    loaded, train=loaded.train.take(kept), validation=loaded.train.take(held)
  )
