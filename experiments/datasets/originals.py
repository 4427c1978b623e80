"""The original files of MNIST, Fashion-MNIST and CIFAR-10.

Every file is verified before it is used: its size, then the published digest
of its content. Digests of MNIST and of the binary version of CIFAR-10 are the
md5s in circulation with them; those of Fashion-MNIST are of the unpacked
content of the archives whose sha256 tensorflow-datasets records.
"""

import dataclasses
import gzip
import hashlib
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from experiments.datasets.splits import Split


@dataclasses.dataclass(frozen=True, kw_only=True)
class OriginalFile:
  """A file as its authors published it."""

  name: str  # without the ending .gz, with which it may lie on disk as well
  size: int  # number of bytes, unpacked
  # Md5 (32 hexadecimal digits) or sha256 (64) of the unpacked content.
  digest: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Originals:
  """The files of a data set and how to read them."""

  num_classes: int  # labels are 0 to `num_classes` - 1
  folder: str  # name of the folder that the authors' archive holds the files in
  files: dict[str, tuple[OriginalFile, ...]]  # the files of each split
  # Makes a split of the contents of its files, in the same order.
  decode: Callable[[Sequence[bytes]], Split]
  # Of the classes, where TFDS reads them from a file.
  label_names: tuple[str, ...] = ()


def parse_idx(raw: bytes) -> np.ndarray:
  """Returns the array in an IDX file of unsigned bytes.

  The header is two zero bytes, 8 for unsigned bytes, the number of dimensions,
  and each dimension as a big-endian 32-bit number; the values follow in row
  order.

  Raises:
    ValueError: the header is another, or the number of values is not the
      product of the dimensions.

  >>> parse_idx(bytes([0, 0, 8, 1, 0, 0, 0, 3, 5, 0, 4]))
  array([5, 0, 4], dtype=uint8)
  """
  if len(raw) < 4 or raw[:3] != b'\0\0\x08' or len(raw) < 4 + 4 * raw[3]:
    raise ValueError(f'no IDX header of unsigned bytes: {raw[:8].hex()}')
  start = 4 + 4 * raw[3]
  shape = np.frombuffer(raw, '>u4', count=raw[3], offset=4).astype(np.int64)
  if len(raw) - start != shape.prod():
    raise ValueError(
      f'IDX header says {shape.tolist()}, but {len(raw) - start} values follow'
    )
  return np.frombuffer(raw, np.uint8, offset=start).reshape(shape)


def _idx_split(contents: Sequence[bytes]) -> Split:
  image, label = map(parse_idx, contents)
  if image.ndim != 3 or label.ndim != 1:
    raise ValueError(
      f'IDX shapes {image.shape} and {label.shape} are not [N, H, W] and [N]'
    )
  return Split(image=image[..., None], label=label.astype(np.int32))


def _cifar_split(contents: Sequence[bytes]) -> Split:
  """Reads records of a label and 32 x 32 values of red, green and blue each."""
  records = np.frombuffer(b''.join(contents), np.uint8).reshape(-1, 3073)
  image = records[:, 1:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
  return Split(
    image=np.ascontiguousarray(image), label=records[:, 0].astype(np.int32)
  )


def _of_idx(folder: str, digests: Sequence[str]) -> Originals:
  """A set of MNIST's names and sizes; of each split images, then labels."""
  sizes = {
    f'{prefix}-{kind}-ubyte': header + count * bytes_each
    for prefix, count in (('train', 60_000), ('t10k', 10_000))
    for kind, header, bytes_each in (
      ('images-idx3', 16, 28 * 28), ('labels-idx1', 8, 1),
    )
  }  # fmt: skip
  files = tuple(
    OriginalFile(name=name, size=size, digest=digest)
    for (name, size), digest in zip(sizes.items(), digests, strict=True)
  )
  return Originals(
    num_classes=10,
    folder=folder,
    files={'train': files[:2], 'test': files[2:]},
    decode=_idx_split,
  )


def _cifar_files(digests: Mapping[str, str]) -> tuple[OriginalFile, ...]:
  return tuple(
    OriginalFile(name=f'{name}.bin', size=10_000 * 3073, digest=digest)
    for name, digest in digests.items()
  )


ORIGINALS: dict[str, Originals] = {
  'mnist': _of_idx(
    'mnist',
    (
      '6bbc9ace898e44ae57da46a324031adb',
      'a25bea736e30d166cdddb491f175f624',
      '2646ac647ad5339dbf082846283269ea',
      '27ae3e4e09519cfbb04c329615203637',
    ),
  ),
  'fashion_mnist': _of_idx(
    'fashion_mnist',
    (
      'c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888',
      'bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9',
      '5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b',
      '0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34',
    ),
  ),
  'cifar10': Originals(
    num_classes=10,
    folder='cifar-10-batches-bin',
    files={
      'train': _cifar_files(
        {
          'data_batch_1': '5dd7e06a14cb22eb9f671a540d1b7c25',
          'data_batch_2': '5ea93a67294ea407fff1d09f752e9692',
          'data_batch_3': '942cd6a4bcdd0dd3c604fbe906cb4421',
          'data_batch_4': 'ae636b3ba5c66a11e91e8cb52e771fcb',
          'data_batch_5': '53f37980c15c3d472c316c40844f3f0d',
        }
      ),
      'test': _cifar_files({'test_batch': '803d5f7f4d78ea53de84dbe85f74fb6d'}),
    },
    decode=_cifar_split,
    label_names=(
      *('airplane', 'automobile', 'bird', 'cat', 'deer'),
      *('dog', 'frog', 'horse', 'ship', 'truck'),
    ),
  ),
}


def read_originals(originals: Originals, folder: Path) -> dict[str, Split]:
  """Reads and verifies all files of a data set.

  Args:
    originals: the entry of `ORIGINALS`.
    folder: where the files lie, each as it is or as .gz.

  Returns:
    The splits by name, in the order of the files.

  Raises:
    ValueError: a file is missing, truncated or altered; the message names it.
  """
  splits = {}
  for name, files in originals.files.items():
    contents = [read_verified(folder, file) for file in files]
    try:
      splits[name] = originals.decode(contents)
    except ValueError as error:
      raise ValueError(f'{folder / files[0].name}: {error}') from None
  return splits


def read_verified(folder: Path, file: OriginalFile) -> bytes:
  """Returns the unpacked content of an original file.

  Raises:
    ValueError: the file is missing, truncated or altered; the message names it.
  """
  path = folder / file.name
  if not path.exists():
    path = folder / f'{file.name}.gz'
  if not path.exists():
    raise ValueError(f'{folder / file.name} is missing, and so is its .gz')
  raw = _unpacked(path, limit=file.size + 1)
  if len(raw) != file.size:
    problem = 'truncated' if len(raw) < file.size else 'altered: too long'
    raise ValueError(
      f'{path} is {problem}: {len(raw)} bytes unpacked, not {file.size}'
    )
  algorithm = 'md5' if len(file.digest) == 32 else 'sha256'
  digest = hashlib.new(algorithm, raw, usedforsecurity=False).hexdigest()
  if digest != file.digest:
    raise ValueError(
      f'{path} is altered: {algorithm} of its content is {digest}, '
      f'not {file.digest}'
    )
  return raw


def _unpacked(path: Path, *, limit: int) -> bytes:
  """Returns at most the first `limit` bytes of a file's unpacked content."""
  opened = gzip.open if path.suffix == '.gz' else open
  try:
    with opened(path, 'rb') as stream:
      return stream.read(limit)
  except (EOFError, zlib.error, gzip.BadGzipFile) as error:
    raise ValueError(
      f'{path} is truncated or altered: cannot be unpacked: {error}'
    ) from None
  except OSError as error:
    raise ValueError(f'{path} cannot be read: {error.strerror}') from None
