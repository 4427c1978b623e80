"""Compiled kernels on disk: whose they must be, and that they must be whole."""

import os
import pathlib
import platform
import stat

import jax.numpy as jnp
import numpy as np
import pytest

from bandwidth import inference
from bandwidth.inference import backends, kernel_folder, native

# What stands in for a compiler: it makes a file that is no library.
COMPILER = """#!/bin/sh
echo once >> "$0.calls"
while [ $# -gt 0 ]; do
  if [ "$1" = -o ]; then echo 'no library, but whole' > "$2"; fi
  shift
done
"""


@pytest.fixture
def home(tmp_path, monkeypatch):
  """A cache of its own, and no library that was loaded before."""
  cached = (native.library, backends.native_problem, backends.warn)
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))
  for function in cached:
    function.cache_clear()
  yield tmp_path / 'cache'
  for function in cached:
    function.cache_clear()


@pytest.fixture
def compiler(tmp_path, monkeypatch):
  path = tmp_path / 'cxx'
  path.write_text(COMPILER)
  path.chmod(0o700)
  monkeypatch.setenv('CXX', str(path))
  return path


def calls(compiler):
  return len(pathlib.Path(f'{compiler}.calls').read_text().splitlines())


def test_a_library_is_private_and_found_again(home, compiler):
  built = native.build()
  folder = home / 'bandwidth' / 'native'
  assert built.parent == folder
  for path in (folder.parent, folder, built):
    assert stat.S_IMODE(path.stat().st_mode) == 0o700
  assert os.listdir(folder) == [built.name]
  before = calls(compiler)
  assert native.build() == built
  # It was asked for its version and machine, and no more.
  assert calls(compiler) == before + 2


@pytest.mark.parametrize('damage', ['cut off', 'another', 'writable', 'a link'])
def test_what_is_not_as_it_was_left_is_built_again(
  damage, home, compiler, tmp_path
):
  built = native.build()
  whole = built.read_bytes()
  if damage == 'cut off':
    built.write_bytes(whole[:5])
  elif damage == 'another':
    built.write_bytes(whole[::-1])
  elif damage == 'writable':
    built.chmod(0o722)
  else:
    built.rename(tmp_path / 'elsewhere')
    built.symlink_to(tmp_path / 'elsewhere')
  before = calls(compiler)
  assert native.build() == built
  assert calls(compiler) > before + 2
  assert built.read_bytes() == whole
  assert not built.is_symlink()
  assert stat.S_IMODE(built.stat().st_mode) == 0o700


def test_libraries_of_other_machines_have_other_names(
  home, compiler, monkeypatch
):
  built = {native.build()}
  monkeypatch.setattr(platform, 'machine', lambda: 'riscv64')
  built.add(native.build())
  monkeypatch.setattr(platform, 'libc_ver', lambda: ('glibc', '2.17'))
  built.add(native.build())
  assert len(built) == 3


def spoil(folder, problem):
  """Makes the folder of the kernels one that they can't be in."""
  folder.parent.mkdir(parents=True, mode=0o700)
  if problem == 'no folder':
    folder.touch()
  elif problem == 'a link':
    (folder.parent / 'elsewhere').mkdir()
    folder.symlink_to('elsewhere')
  elif problem == 'writable':
    folder.mkdir()
    folder.chmod(0o770)
  elif problem == 'the one above is writable':
    folder.parent.chmod(0o777)


PROBLEMS = {
  'no folder': 'File exists',
  'a link': "native' is a symbolic link",
  'writable': "native' may be written to by others",
  'the one above is writable': "bandwidth' may be written to by others",
}


@pytest.mark.parametrize('problem', PROBLEMS)
def test_without_a_private_folder_xla_multiplies(problem, home):
  spoil(home / 'bandwidth' / 'native', problem)
  matrix = inference.uniform_matrix(np.array([[1, -2], [0, 3]]), 0.5)
  x = jnp.array([1.0, 2.0])
  with pytest.warns(UserWarning, match=PROBLEMS[problem]) as said:
    y = inference.matmul(x, matrix)
  assert y.tolist() == [-1.5, 3.0]
  assert len(said) == 1
  assert 'XLA multiplies' in str(said[0].message)
  # Warnings are errors here: there is no second one.
  assert inference.matmul(x * 2, matrix).tolist() == [-3.0, 6.0]
  with pytest.raises(ValueError, match=f"'native': .*{PROBLEMS[problem]}"):
    inference.matmul(x, matrix, backend='native')


def test_the_folder_of_someone_else_is_refused(home, monkeypatch):
  kernel_folder.make(home)
  monkeypatch.setattr(os, 'geteuid', lambda: home.stat().st_uid + 1)
  with pytest.raises(OSError, match="cache' belongs to another user"):
    kernel_folder.make(home)


def test_what_is_no_library_is_not_loaded(home, compiler):
  matrix = inference.uniform_matrix(np.array([[1, -2], [0, 3]]), 0.5)
  with pytest.warns(UserWarning, match="native kernels can't be loaded"):
    y = inference.matmul(jnp.array([1.0, 2.0]), matrix)
  assert y.tolist() == [-1.5, 3.0]


def test_where_the_folder_is(monkeypatch):
  monkeypatch.setenv('HOME', '/home/of')
  for given, base in (
    ('/cache', '/cache'), ('relative', '/home/of/.cache'),
    ('', '/home/of/.cache'),
  ):  # fmt: skip
    monkeypatch.setenv('XDG_CACHE_HOME', given)
    wanted = pathlib.Path(base, 'bandwidth', 'native')
    assert kernel_folder.default() == wanted


def test_kernels_of_the_environment(home, monkeypatch):
  monkeypatch.setenv('BANDWIDTH_KERNELS', 'neon')
  matrix = inference.uniform_matrix(np.array([[1, -2], [0, 3]]), 0.5)
  with pytest.raises(ValueError, match="BANDWIDTH_KERNELS='neon' is unknown"):
    inference.matmul(jnp.ones(2), matrix)
  if native.compiler() is None:
    pytest.skip('there is no C++ compiler')
  # Those that were built before.
  monkeypatch.delenv('XDG_CACHE_HOME')
  monkeypatch.setenv('BANDWIDTH_KERNELS', 'scalar')
  native.library()
  try:
    assert native.use() == 'scalar'
    monkeypatch.delenv('BANDWIDTH_KERNELS')
    assert native.use() == native.use('best')
  finally:
    native.use('best')
