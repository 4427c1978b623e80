"""Files that are whole or not there: written aside, then renamed."""

import os
import pathlib
import tempfile


def replace_text(path: str | pathlib.Path, text: str) -> None:
  """Writes a file so that a reader sees the old text or the new, never a part.

  Raises:
    OSError: it can't be written; the old file stands.
  """
  replace_bytes(path, text.encode('utf-8'))


def replace_bytes(path: str | pathlib.Path, data: bytes) -> None:
  """Does for bytes what `replace_text` does for text."""
  path = pathlib.Path(path)
  handle, aside = tempfile.mkstemp(dir=path.parent, prefix=f'.{path.name}.')
  try:
    with os.fdopen(handle, 'wb') as file:
      file.write(data)
    umask = os.umask(0)
    os.umask(umask)
    os.chmod(aside, 0o666 & ~umask)
    os.replace(aside, path)
  except BaseException:
    os.unlink(aside)
    raise


def make_writable(directory: str | pathlib.Path) -> pathlib.Path:
  """Makes a directory, and makes sure that files can be written there.

  Raises:
    ValueError: they can't; the message says why.
  """
  directory = pathlib.Path(directory)
  try:
    directory.mkdir(parents=True, exist_ok=True)
    handle, probe = tempfile.mkstemp(dir=directory, prefix='.probe.')
    os.close(handle)
    os.unlink(probe)
  except OSError as error:
    raise ValueError(
      f'workdir={str(directory)!r} cannot be written: {error.strerror}'
    ) from None
  return directory
