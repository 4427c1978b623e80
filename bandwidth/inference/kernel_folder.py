"""Compiled kernels on disk, which are loaded only as this user has left them.

What is loaded runs with all rights of its user. So the folder belongs to that
user, and no one else may write to it; and a library has the digest of its bytes
in its name, so that one that was cut off, or that is another, is built again.
"""

import hashlib
import os
import pathlib
import stat

_OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH


def default() -> pathlib.Path:
  """Returns $XDG_CACHE_HOME/bandwidth/native, or that in ~/.cache.

  Raises:
    OSError: this user has no home.
  """
  base = os.environ.get('XDG_CACHE_HOME', '')
  # A relative one is to be ignored (XDG Base Directory Specification).
  if not os.path.isabs(base):
    try:
      base = pathlib.Path.home() / '.cache'
    except RuntimeError as error:
      raise OSError(f'{error}') from None
  return pathlib.Path(base) / 'bandwidth' / 'native'


def make(folder: pathlib.Path) -> None:
  """Makes a private folder, unless it is there.

  Raises:
    OSError: it can't be made, is no folder, belongs to someone else, or someone
      else may write to it.
  """
  folder.parent.mkdir(parents=True, exist_ok=True)
  folder.mkdir(mode=0o700, exist_ok=True)
  if reason := _why_not_private(folder):
    raise OSError(f'{str(folder)!r} {reason}')


def _why_not_private(path: pathlib.Path) -> str:
  """Why a path is not to be trusted; empty where it is."""
  found = path.lstat()
  if stat.S_ISLNK(found.st_mode):
    return 'is a symbolic link'
  if found.st_uid != os.geteuid():
    return f'belongs to another user, {found.st_uid}'
  if found.st_mode & _OTHERS_WRITE:
    return 'may be written to by others (chmod go-w)'
  return ''


def _name(key: str, data: bytes) -> str:
  return f'{key}-{hashlib.sha256(data).hexdigest()}.so'


def find(folder: pathlib.Path, key: str) -> pathlib.Path | None:
  """Returns a library that is whole and this user's; None: there is none.

  Args:
    folder: folder of built kernels, from `make`.
    key: hash of what the kernel was built from.
  """
  for path in sorted(folder.glob(f'{key}-*.so')):
    if _why_not_private(path):
      continue
    if _name(key, path.read_bytes()) == path.name:
      return path
  return None


def keep(aside: pathlib.Path, key: str) -> pathlib.Path:
  """Gives a library, written aside in its folder, its name; returns that."""
  aside.chmod(0o700)
  return aside.replace(aside.with_name(_name(key, aside.read_bytes())))
