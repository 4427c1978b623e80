"""Products by C++ kernels, on CPUs: built on first use, called by XLA.

Sources are in `native/`. They are compiled by the system's compiler ($CXX, g++
or clang++) against the headers that come with jaxlib, once for each version of
sources, compiler and jaxlib and each kind of machine, into
$XDG_CACHE_HOME/bandwidth/native or ~/.cache/bandwidth/native: a folder that
must be this user's alone (`kernel_folder`). Kernels are chosen by what the
machine can do when they are called first; the environment variable
BANDWIDTH_KERNELS, one of `INSTRUCTIONS`, chooses others. A process that loads a
program which another one has compiled has to call `library` before.
"""

import ctypes
import functools
import hashlib
import os
import pathlib
import platform
import secrets
import shutil
import subprocess
import sys
import tempfile

import jax
import jax.numpy as jnp
import jaxlib
import numpy as np

from bandwidth.base import unknown_name
from bandwidth.inference import kernel_folder
from bandwidth.inference.matrices import (
  CodebookMatrix,
  Matrix,
  SparseMatrix,
  UniformMatrix,
  block_inputs,
)

INSTRUCTIONS = ('best', 'scalar', 'avx2', 'avx512')
"""Sets of kernels."""

VARIABLE = 'BANDWIDTH_KERNELS'
"""Of the environment: which of them are used from the start."""

MODES = {'exact': 0, 'int16': 1, 'int8': 2}

_SOURCES = pathlib.Path(__file__).parent / 'native'
# Rounding multiplies and then adds; both at once would round otherwise.
_FLAGS = (
  *('-O3', '-std=c++17', '-fPIC', '-ffp-contract=off'),
  *('-Wall', '-Wno-maybe-uninitialized'),
)
_X86 = {
  'avx2.cc': ('-mavx2', '-mfma', '-mf16c'),
  'avx512.cc': (
    *('-mavx2', '-mfma', '-mavx512f', '-mavx512bw', '-mavx512vl'),
    *('-mavx512dq', '-mavx512vbmi', '-mavx512vnni'),
  ),
}
_TARGETS = {
  'bandwidth_codebook': 'BandwidthCodebook',
  'bandwidth_uniform': 'BandwidthUniform',
  'bandwidth_sparse': 'BandwidthSparse',
}


class NativeError(RuntimeError):
  """The kernels can't be had on this machine; the message says why."""


def compiler() -> str | None:
  """Returns the C++ compiler that would be used, or None."""
  for name in (os.environ.get('CXX'), 'g++', 'clang++', 'c++'):
    if name and (found := shutil.which(name)):
      return found
  return None


def _key(tool: str, flags: tuple[str, ...]) -> str:
  """Tells apart libraries that must not stand in for each other."""

  def said(option: str) -> str:
    return subprocess.run(
      [tool, option], capture_output=True, text=True, check=False
    ).stdout

  machine = (sys.platform, platform.machine(), *platform.libc_ver())
  text = [path.read_text() for path in sorted(_SOURCES.iterdir())]
  told = (
    *(*text, said('--version'), said('-dumpmachine'), jaxlib.__version__),
    *(*machine, *_FLAGS, *flags),
  )
  return hashlib.sha256('\0'.join(told).encode()).hexdigest()[:16]


def build(
  directory: pathlib.Path | None = None, flags: tuple[str, ...] = ()
) -> pathlib.Path:
  """Compiles the kernels, unless they are there.

  Args:
    directory: where they are kept; None: the user's cache.
    flags: further flags of the compiler and linker.

  Returns:
    The shared library, whole and no one else's.

  Raises:
    NativeError: there is no compiler, it fails, or the directory can't be
      written to or is not this user's alone.
  """
  tool = compiler()
  if tool is None:
    raise NativeError(
      'a native kernel needs a C++ compiler ($CXX, g++ or clang++), and there '
      'is none'
    )
  try:
    if directory is None:
      directory = kernel_folder.default()
      kernel_folder.make(directory.parent)
    kernel_folder.make(directory)
    key = _key(tool, flags)
    if found := kernel_folder.find(directory, key):
      return found
    aside = directory / f'.{key}.{secrets.token_hex(4)}'
    try:
      _compile(tool, aside, flags)
      return kernel_folder.keep(aside, key)
    finally:
      aside.unlink(missing_ok=True)
  except OSError as error:
    raise NativeError(f"native kernels can't be kept: {error}") from None


def _compile(tool: str, output: pathlib.Path, flags: tuple[str, ...]) -> None:
  sources = sorted(_SOURCES.glob('*.cc'))
  if platform.machine() not in ('x86_64', 'AMD64'):
    sources = [path for path in sources if path.name not in _X86]
  headers = ('-isystem', jax.ffi.include_dir())
  with tempfile.TemporaryDirectory() as folder:
    objects = [str(pathlib.Path(folder) / f'{path.stem}.o') for path in sources]
    running = [
      subprocess.Popen(
        [tool, *_FLAGS, *_X86.get(path.name, ()), *flags, *headers, '-c',
         str(path), '-o', made],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
      )
      for path, made in zip(sources, objects, strict=True)
    ]  # fmt: skip
    for path, process in zip(sources, running, strict=True):
      said, _ = process.communicate()
      if process.returncode:
        raise NativeError(f'{tool} fails on {path.name}: {_first_error(said)}')
    linked = subprocess.run(
      [tool, '-shared', '-pthread', *flags, *objects, '-o', str(output)],
      capture_output=True, text=True, check=False,
    )  # fmt: skip
    if linked.returncode:
      raise NativeError(f'{tool} fails to link: {_first_error(linked.stderr)}')


def _first_error(said: str) -> str:
  told = said.splitlines()
  lines = [line for line in told if 'error' in line or 'failed' in line]
  return (lines or told or ['no message'])[0].strip()


def _from_environment() -> str:
  wanted = os.environ.get(VARIABLE) or INSTRUCTIONS[0]
  if wanted not in INSTRUCTIONS:
    raise ValueError(unknown_name(VARIABLE, wanted, INSTRUCTIONS))
  return wanted


@functools.cache
def library() -> ctypes.CDLL:
  """Builds, loads and registers the kernels, once a process.

  Raises:
    NativeError: they can't be built or loaded.
    ValueError: BANDWIDTH_KERNELS is none of `INSTRUCTIONS`, or of kernels that
      this machine can't run.
  """
  wanted = _from_environment()
  path = build()
  try:
    loaded = ctypes.CDLL(str(path))
  except OSError as error:
    raise NativeError(f"native kernels can't be loaded: {error}") from None
  loaded.BandwidthUse.restype = ctypes.c_char_p
  loaded.BandwidthUse.argtypes = [ctypes.c_char_p]
  used = loaded.BandwidthUse(wanted.encode()).decode()
  if wanted not in (INSTRUCTIONS[0], used):
    raise ValueError(f"{VARIABLE}={wanted!r}: this machine can't run them")
  for target, symbol in _TARGETS.items():
    handler = jax.ffi.pycapsule(getattr(loaded, symbol))
    jax.ffi.register_ffi_target(target, handler, platform='cpu')
  return loaded


def use(instructions: str | None = None) -> str:
  """Chooses kernels; returns the name of those in use then.

  Args:
    instructions: one of `INSTRUCTIONS`. Where the machine lacks them, nothing
      changes. None: those of BANDWIDTH_KERNELS, or the best.

  Raises:
    ValueError: the name is unknown; see `library`.
    NativeError: see `library`.
  """
  instructions = instructions or _from_environment()
  if instructions not in INSTRUCTIONS:
    raise ValueError(unknown_name('instructions', instructions, INSTRUCTIONS))
  return library().BandwidthUse(instructions.encode()).decode()


def why_not(matrix: Matrix) -> str:
  """Returns why kernels can't run a matrix; empty where they can."""
  if isinstance(matrix, SparseMatrix):
    return ''
  runs = (
    matrix.codebook if isinstance(matrix, CodebookMatrix) else matrix.step
  ).shape[1]
  bits = matrix.bits if isinstance(matrix, CodebookMatrix) else 8
  block = block_inputs(bits)
  if runs > 1 and matrix.shape[0] // runs % block:
    run = matrix.shape[0] // runs
    return f'runs of {run} inputs are not whole blocks of {block}'
  return ''


def product(x: jax.Array, matrix: Matrix, mode: str) -> jax.Array:
  """Returns x W, float32 [..., N].

  Args:
    x: float32 [..., K], activations.
    matrix: a compressed matrix that `why_not` accepts.
    mode: mode of arithmetic, one of `MODES`; 'exact' for a `SparseMatrix`.
  """
  library()
  result = jax.ShapeDtypeStruct((*x.shape[:-1], matrix.shape[1]), jnp.float32)
  if isinstance(matrix, CodebookMatrix):
    call = jax.ffi.ffi_call('bandwidth_codebook', result)
    arguments = (matrix.codes, matrix.codebook)
    given = {'bits': np.int64(matrix.bits), 'mode': np.int64(MODES[mode])}
    return call(x, *arguments, **given)
  if isinstance(matrix, UniformMatrix):
    call = jax.ffi.ffi_call('bandwidth_uniform', result)
    return call(x, matrix.levels, matrix.step, mode=np.int64(MODES[mode]))
  call = jax.ffi.ffi_call('bandwidth_sparse', result)
  return call(x, matrix.starts, matrix.columns, matrix.codes, matrix.codebook)
