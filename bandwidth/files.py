"""Files that are whole or not there: written aside, then renamed."""

import contextlib
import os
import re
import secrets
from collections.abc import Generator
from pathlib import Path
from typing import BinaryIO

# 'gs://bucket/x', also as pathlib spells it; no letter of a drive.
_REMOTE = re.compile(r'[A-Za-z][A-Za-z0-9+.-]+:/')


@contextlib.contextmanager
def replacing(path: str | os.PathLike[str]) -> Generator[BinaryIO]:
  """Opens a stream to a file that takes the place of another one at the end.

  A reader sees the old file or the new one, never a part, also after a crash of
  the machine: what is written is on disk before it gets its name. Permissions
  are those of any new file.

  Args:
    path: of the file; its directory must be there.

  Raises:
    ValueError: the path is of a remote file system.
    OSError: the file can't be written; the old one stands.
  """
  path = local_path(path)
  aside = path.with_name(f'.{path.name}.{secrets.token_hex(4)}')
  try:
    with aside.open('xb') as stream:
      yield stream
      stream.flush()
      os.fsync(stream.fileno())
    aside.replace(path)
  except BaseException:
    aside.unlink(missing_ok=True)
    raise
  with contextlib.suppress(OSError):
    folder = os.open(path.parent, os.O_RDONLY)
    try:
      os.fsync(folder)
    finally:
      os.close(folder)


def replace_bytes(path: str | os.PathLike[str], data: bytes) -> None:
  """Writes a file, aside first; see `replacing`."""
  with replacing(path) as stream:
    stream.write(data)


def replace_text(path: str | os.PathLike[str], text: str) -> None:
  """Writes a file in UTF-8, aside first; see `replacing`."""
  replace_bytes(path, text.encode('utf-8'))


def local_path(path: str | os.PathLike[str], *, argument: str = 'path') -> Path:
  """Returns a path of this machine, and refuses `gs://…` and its like.

  As a path of this machine that would be a new folder named `gs:`.

  Args:
    path: that somebody gave.
    argument: by which it was given, for the message.

  Raises:
    ValueError: it begins with a scheme.

  >>> local_path('gs://bucket/run', argument='workdir')
  Traceback (most recent call last):
  ...
  ValueError: workdir='gs://bucket/run' is on a remote file system; mount it, \
or give a local path
  """
  if _REMOTE.match(os.fspath(path)):
    raise ValueError(
      f'{argument}={os.fspath(path)!r} is on a remote file system; mount it, '
      'or give a local path'
    )
  return Path(path)
