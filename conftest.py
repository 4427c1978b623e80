"""Test settings: eight CPU devices, strict shapes, no accelerator.

Most of the time of most tests is XLA's. What it compiled is kept in
`.pytest_cache`, for other tests, processes and runs, and the fast tests, those
of the default selection, are compiled without most optimizations. Where bits
hang on what the compiler makes of a program (a product contracted into a sum),
the marker `compiler` has it optimized, as all programs are in other selections.
"""

import ctypes
import gc
import hashlib
import os
import pathlib
import resource
import shutil

os.environ['JAX_PLATFORMS'] = 'cpu'
# Several processes may compile for TPUs at a time.
os.environ.setdefault('ALLOW_MULTIPLE_LIBTPU_LOAD', '1')

import jax
import jaxlib
import pytest

jax.config.update('jax_num_cpu_devices', 8)
jax.config.update('jax_numpy_rank_promotion', 'raise')

_CACHE = pathlib.Path(__file__).parent / '.pytest_cache' / 'jax'
_SLOW = pathlib.Path(__file__).parent / 'tests' / 'slow.txt'
_CACHE_BYTES = 2**29
_MEMORY_BYTES = 3 * 2**29
_FAST = 'not slow'
_STARTED = pytest.StashKey[float]()


def _cache_folder() -> str:
  """Of this version of XLA on this processor; what took too much is removed."""
  if sum(x.stat().st_size for x in _CACHE.glob('*/*')) > _CACHE_BYTES:
    shutil.rmtree(_CACHE)
  lines = pathlib.Path('/proc/cpuinfo').read_text().splitlines()
  features = [x for x in lines if x.lower().startswith(('flags', 'features'))]
  made_by = jaxlib.__version__ + ''.join(features[:1])
  return str(_CACHE / hashlib.sha256(made_by.encode()).hexdigest()[:16])


if 'JAX_COMPILATION_CACHE_DIR' not in os.environ:
  # The processes of pytest-xdist, and those that tests start, inherit it.
  for name, value in (
    ('jax_compilation_cache_dir', _cache_folder()),
    ('jax_persistent_cache_min_compile_time_secs', 0.0),
    ('jax_persistent_cache_min_entry_size_bytes', 0),
  ):
    os.environ[name.upper()] = str(value)
    jax.config.update(name, value)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
  """Marks as slow the parameters that `tests/slow.py` has listed."""
  listed = set(_SLOW.read_text('utf-8').splitlines())
  for item in items:
    if item.nodeid in listed:
      item.add_marker('slow')


def _cpu_seconds() -> float:
  """Of this process and of those that it has waited for."""
  used = map(
    resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
  )
  return sum(each.ru_utime + each.ru_stime for each in used)


def pytest_addoption(parser: pytest.Parser) -> None:
  """CPU seconds, which other work on the machine changes less than time."""
  parser.addoption(
    '--cpu-limit',
    type=float,
    help='fail where a test takes more CPU seconds, processes included',
  )


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
  """Before any fixture: whether programs are optimized."""
  item.stash[_STARTED] = _cpu_seconds()
  fast = item.config.getoption('markexpr') == _FAST
  plain = fast and item.get_closest_marker('compiler') is None
  if jax.config.read('jax_disable_most_optimizations') != plain:
    jax.clear_caches()  # JAX knows a program by its function alone.
    jax.config.update('jax_disable_most_optimizations', plain)


def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item) -> None:
  """Frees programs between modules: JAX keeps them, several GB in all."""
  if nextitem is None or nextitem.path != item.path:
    pages = int(pathlib.Path('/proc/self/statm').read_text().split()[1])
    if pages * resource.getpagesize() > _MEMORY_BYTES:
      jax.clear_caches()
      gc.collect()
      ctypes.CDLL(None).malloc_trim(0)  # Programs told glibc to keep memory.


def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo) -> None:
  """What a test took, fixtures included, into its report."""
  if call.when == 'teardown':
    taken = _cpu_seconds() - item.stash[_STARTED]
    item.user_properties.append(('cpu_seconds', taken))


def pytest_sessionfinish(session: pytest.Session) -> None:
  """Fails a run with tests above the limit, and lists them."""
  limit = session.config.getoption('cpu_limit')
  reporter = session.config.pluginmanager.getplugin('terminalreporter')
  if limit is None or reporter is None:
    return
  taken = {
    report.nodeid: dict(report.user_properties)['cpu_seconds']
    for report in reporter.stats.get('', ())
    if report.when == 'teardown'
  }
  above = [f'{taken[x]:.1f} {x}' for x in taken if taken[x] > limit]
  if above:
    reporter.section(f'above {limit} CPU seconds: mark slow or make shorter')
    reporter.write_line('\n'.join(sorted(above)))
    session.exitstatus = pytest.ExitCode.TESTS_FAILED
