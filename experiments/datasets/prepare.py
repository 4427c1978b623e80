"""Makes TFDS data sets of original files: no network, no TensorFlow.

  python -m experiments.datasets.prepare cifar10 --from DIR [--data_dir D]

DIR holds the files of mnist or fashion_mnist (IDX, unpacked or .gz), or those
of the binary version of cifar10. All are verified before anything is written.
The result is the folder that tensorflow-datasets (TFDS) writes for the set, in
ArrayRecord files: `tfds.data_source(NAME, data_dir=D)` reads it.
"""

import contextlib
import fcntl
import io
import os
import shutil
import sys
import tempfile
from collections.abc import Generator, Iterator, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from bandwidth import base
from experiments.datasets import loading, tfds_sets
from experiments.datasets.originals import ORIGINALS, Originals, read_originals
from experiments.datasets.splits import Split
from experiments.runtime import options
from experiments.runtime.command import cli


def prepare(name: str, *, source: Path | None, data_dir: Path) -> Path:
  """Writes a TFDS data set, unless it is there already.

  TFDS writes aside and renames, so that a set is there whole or not at all.

  Args:
    name: 'mnist', 'fashion_mnist' or 'cifar10'.
    source: folder of the original files, or one that holds that folder; None
      for the bundled files of MNIST.
    data_dir: folder of the TFDS sets, made if need be.

  Returns:
    The folder of the set's version.

  Raises:
    ValueError: the name is unknown, or an original file missing or altered.
    OSError: the set cannot be written.
  """
  base.check_known('NAME', name, ORIGINALS)
  originals = ORIGINALS[name]
  splits = read_originals(originals, _original_folder(name, originals, source))
  with _new_folders(data_dir / name), _locked(data_dir / name):
    return _write(name, originals, splits, data_dir)


def _original_folder(
  name: str, originals: Originals, source: Path | None
) -> Path:
  if source is None:
    if name not in loading.BUNDLED:
      raise ValueError(
        f'{name} is not bundled: give --from DIR, the folder of its files'
      )
    return loading.bundle(name)
  if not source.is_dir():
    raise ValueError(f'--from {source} is no folder')
  first = originals.files['train'][0].name
  for folder in (source, source / name, source / originals.folder):
    if (folder / first).exists() or (folder / f'{first}.gz').exists():
      return folder
  raise ValueError(f'--from {source} holds no {first}, and no {first}.gz')


@contextlib.contextmanager
def _new_folders(folder: Path) -> Generator[None]:
  """Makes a folder and its parents; those left empty are removed again."""
  new = [path for path in (folder, *folder.parents) if not path.exists()]
  try:
    folder.mkdir(parents=True, exist_ok=True)
    yield
  finally:
    with contextlib.suppress(OSError):  # The first that is not empty.
      for path in new:
        path.rmdir()


@contextlib.contextmanager
def _locked(folder: Path) -> Generator[None]:
  """Waits until no other process prepares a set in the folder."""
  handle = os.open(folder, os.O_RDONLY)
  try:
    fcntl.flock(handle, fcntl.LOCK_EX)
    yield
  finally:
    os.close(handle)


def _write(
  name: str, originals: Originals, splits: dict[str, Split], data_dir: Path
) -> Path:
  import tensorflow_datasets as tfds

  builder = _builder_class(name, originals, splits)(
    data_dir=data_dir, file_format='array_record'
  )
  directory = Path(builder.data_path)
  if directory.exists():
    return directory
  # Where TFDS writes aside. Under the lock, only a killed process can have
  # left one.
  for incomplete in directory.parent.glob(f'incomplete.*_{directory.name}'):
    shutil.rmtree(incomplete)
  with (
    tempfile.TemporaryDirectory() as downloads,
    contextlib.redirect_stdout(io.StringIO()),
  ):
    try:
      builder.download_and_prepare(
        download_dir=downloads,
        download_config=tfds.download.DownloadConfig(try_download_gcs=False),
      )
    except RuntimeError as error:  # ArrayRecord's, for a full disk.
      raise OSError(str(error)) from None
  return directory


def _builder_class(
  name: str, originals: Originals, splits: dict[str, Split]
) -> Any:
  """Returns TFDS's own builder of the set, with its input replaced."""
  import tensorflow_datasets as tfds

  parent: Any = tfds.builder_cls(name)

  class FromOriginals(parent, skip_registration=True):
    """Differs from its parent in where the examples come from only."""

    name = parent.name
    __module__ = parent.__module__  # Recorded in dataset_info.json.

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterator[Any]]:
      del dl_manager
      if originals.label_names:
        self.info.features['label'].names = list(originals.label_names)
      return {key: self._generate_examples(key) for key in splits}

    def _generate_examples(self, key: str) -> Iterator[tuple[int, Any]]:
      """Yields what the parent does; a Pillow image needs no TensorFlow."""
      split = splits[key]
      gray = split.image_shape[2] == 1
      for index, (image, label) in enumerate(
        zip(split.image, split.label, strict=True)
      ):
        picture = Image.fromarray(image[..., 0] if gray else image)
        example: dict[str, Any] = {'image': picture, 'label': int(label)}
        if 'id' in self.info.features:
          example['id'] = f'{key}_{index:05d}'
        yield index, example

  return FromOriginals


def main(argv: Sequence[str]) -> int:
  """Runs the command; returns the exit status."""
  return cli('prepare', lambda: _run(argv))


def _run(argv: Sequence[str]) -> None:
  given = options.parse(
    'prepare',
    __doc__,
    {
      'name': options.text(
        options.REQUIRED, ', '.join(ORIGINALS), positional=True
      ),
      'from': options.path(
        None,
        'folder of the original files; for mnist, the bundled files if absent',
      ),
      'data_dir': options.text(
        '',
        'folder of the TFDS sets; TFDS_DATA_DIR of the environment if absent, '
        'or else ~/tensorflow_datasets',
      ),
    },
    argv,
  )
  _quiet()
  directory = prepare(
    given.name,
    source=getattr(given, 'from'),
    data_dir=tfds_sets.data_folder(given.data_dir),
  )
  print(f'{given.name} is in {directory}')


def _quiet() -> None:
  """Leaves TFDS its progress bars on a terminal, and nothing else."""
  import tensorflow_datasets as tfds
  from absl import logging

  logging.set_verbosity(logging.FATAL)
  if not sys.stderr.isatty():
    tfds.disable_progress_bar()


if __name__ == '__main__':
  sys.exit(main(sys.argv[1:]))
