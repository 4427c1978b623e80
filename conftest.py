"""Test settings: eight CPU devices, strict shapes, no accelerator.

What one test compiled, another, or a process that it starts, need not: programs
are kept on disk as long as the tests run.
"""

import os
import shutil
import tempfile

os.environ['JAX_PLATFORMS'] = 'cpu'
_CACHE = 'JAX_COMPILATION_CACHE_DIR'
_own_cache = ''
if _CACHE not in os.environ:
  # The processes of pytest-xdist inherit it.
  _own_cache = os.environ[_CACHE] = tempfile.mkdtemp(prefix='jax_cache.')
  os.environ['JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS'] = '0.2'
  os.environ['JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES'] = '0'

import jax

jax.config.update('jax_num_cpu_devices', 8)
jax.config.update('jax_numpy_rank_promotion', 'raise')


def pytest_unconfigure():
  if _own_cache:
    shutil.rmtree(_own_cache, ignore_errors=True)
