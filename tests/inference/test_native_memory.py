"""The native kernels under AddressSanitizer, on random shapes."""

import os
import pathlib
import subprocess
import sys

import pytest

from bandwidth.inference import native

FUZZ = pathlib.Path(__file__).with_name('fuzz_native.py')
FLAGS = ('-fsanitize=address', '-fno-omit-frame-pointer', '-O1', '-g')


def libraries():
  """What has to be loaded first; empty where it is not to be had."""
  tool = native.compiler()
  if tool is None or not sys.platform.startswith('linux'):
    return []
  found = []
  # That of C++ too, or exceptions of other libraries are not found.
  for name in ('libasan.so', 'libstdc++.so.6'):
    asked = subprocess.run(
      [tool, f'-print-file-name={name}'],
      capture_output=True, text=True, check=False,
    )  # fmt: skip
    path = asked.stdout.strip()
    if not os.path.isabs(path) or not pathlib.Path(path).exists():
      return []
    found.append(path)
  return found


@pytest.mark.slow
def test_nothing_is_read_or_written_out_of_bounds():
  first = libraries()
  if not first:
    pytest.skip('there is no AddressSanitizer')
  found = subprocess.run(
    [sys.executable, str(FUZZ), '12', *FLAGS],
    capture_output=True, text=True, check=False,
    env={
      **os.environ,
      'LD_PRELOAD': ' '.join(first),
      'JAX_PLATFORMS': 'cpu',
      # Python and XLA keep memory until they end.
      'ASAN_OPTIONS': 'detect_leaks=0',
    },
  )  # fmt: skip
  assert not found.returncode, found.stderr[-4000:]
  assert found.stdout.strip() == '12 cases'
