"""Splits decoded once and kept: in memory, and beside the set on disk.

The kept file is tied to names, sizes and modification times of the files that
it was made from, and has checksums of its own: whatever does not fit is
decoded anew, so that changed data is never masked.
"""

import json
import logging
import os
import time
import zipfile
import zlib
from pathlib import Path

import numpy as np

from experiments.datasets.splits import Split
from experiments.datasets.tfds_split import TfdsSplit

_FORMAT = 1
# Of two processes one writes; what a killed one left is in the way this long.
_STALE_SECONDS = 3600

_UNREADABLE = (
  OSError,
  ValueError,
  KeyError,
  EOFError,
  zipfile.BadZipFile,
  zlib.error,
)

_log = logging.getLogger(__name__)


def decoded_bytes(examples: TfdsSplit) -> int:
  """Returns the size of the split's images in memory."""
  height, width, channels = examples.image_shape
  return len(examples) * height * width * channels


def decode(examples: TfdsSplit, *, directory: Path) -> Split:
  """Returns the split, decoded now or kept from an earlier time.

  Args:
    examples: the split on disk.
    directory: the version's folder, where the decoded split is kept if it can
      be written to.

  Raises:
    ValueError: an example cannot be read or decoded; the message names its
      file.
  """
  height, width, _ = examples.image_shape
  path = directory / f'decoded_{examples.name}_{height}x{width}.npz'
  # Taken before decoding, so that a change meanwhile is noticed next time.
  fingerprint = _fingerprint(examples, directory)
  split = _kept(path, fingerprint)
  if split is None:
    split = _decode_all(examples)
    _keep(path, fingerprint, split)
  return split


def _decode_all(examples: TfdsSplit) -> Split:
  _log.info('decoding %d examples of %s', len(examples), examples.name)
  image = np.empty((len(examples), *examples.image_shape), np.uint8)
  label = np.empty(len(examples), np.int32)
  for index in range(len(examples)):
    image[index], label[index] = examples[index]
  return Split(image=image, label=label)


def _fingerprint(examples: TfdsSplit, directory: Path) -> str:
  metadata = [directory / 'dataset_info.json', directory / 'features.json']
  status = [(path.name, path.stat()) for path in examples.files + metadata]
  return json.dumps(
    {
      'format': _FORMAT,
      'image_shape': examples.image_shape,
      'fit': examples.fit,
      'files': [(name, s.st_size, s.st_mtime_ns) for name, s in status],
    }
  )


def _kept(path: Path, fingerprint: str) -> Split | None:
  """Returns the kept split, if there is one, whole and of the same files."""
  try:
    # numpy leaves a file open that it has opened and finds damaged.
    with (
      open(path, 'rb') as stream,
      np.load(stream, allow_pickle=False) as kept,
    ):
      if str(kept['fingerprint']) != fingerprint:
        return None
      return Split(image=kept['image'], label=kept['label'])
  except _UNREADABLE:
    return None


def _keep(path: Path, fingerprint: str, split: Split) -> None:
  """Writes the split aside, then renames; without success, does nothing."""
  aside = path.with_suffix('.partial')
  try:
    if aside.exists() and time.time() - aside.stat().st_mtime > _STALE_SECONDS:
      aside.unlink(missing_ok=True)
    with open(aside, 'xb') as stream:
      try:
        np.savez(
          stream,
          fingerprint=np.array(fingerprint),
          image=split.image,
          label=split.label,
        )
        os.replace(aside, path)
      finally:
        aside.unlink(missing_ok=True)
  except OSError as error:
    _log.info('%s is not kept: %s', path, error)
