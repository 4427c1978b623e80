"""Directories that programs write to."""

import os
import pathlib
import tempfile

from bandwidth.files import local_path


def make_writable(directory: str | pathlib.Path) -> pathlib.Path:
  """Makes a directory, and makes sure that files can be written there.

  Raises:
    ValueError: they can't, or it is on a remote file system; the message says
      why.
  """
  directory = local_path(directory, argument='workdir')
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
