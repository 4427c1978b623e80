"""Test settings: eight CPU devices, strict shapes, no accelerator.

What one test compiled, another, or a process that it starts, need not: programs
are kept on disk as long as the tests run. The small ones too: operations one by
one take most of the time of many tests, and most tests need the same ones.
"""

import os
import shutil
import tempfile

os.environ['JAX_PLATFORMS'] = 'cpu'

import jax

jax.config.update('jax_num_cpu_devices', 8)
jax.config.update('jax_numpy_rank_promotion', 'raise')

_own_cache = ''

if 'JAX_COMPILATION_CACHE_DIR' not in os.environ:
  # The processes of pytest-xdist, and those that tests start, inherit it.
  _own_cache = tempfile.mkdtemp(prefix='jax_cache.')
  for name, value in (
    ('jax_compilation_cache_dir', _own_cache),
    ('jax_persistent_cache_min_compile_time_secs', 0.0),
    ('jax_persistent_cache_min_entry_size_bytes', 0),
  ):
    os.environ[name.upper()] = str(value)
    jax.config.update(name, value)


def pytest_unconfigure() -> None:
  """Removes what this process has made, which is the one that began."""
  if _own_cache:
    shutil.rmtree(_own_cache, ignore_errors=True)
