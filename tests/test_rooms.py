"""Imports point one way, go in no circle, and no room is a heap."""

import ast
import functools
import pathlib

import pytest

ROOT = pathlib.Path(__file__).parent.parent
# A room may import those before it, nobody imports an entry or a benchmark.
EXPERIMENTS = (
  'runtime', 'measuring', 'config', 'datasets', 'models', 'compression',
  'training', 'inference', 'reports', 'policy', 'program',
)  # fmt: skip
ENTRIES = (
  'train', 'compress', 'search', 'evaluate', 'launch', 'reproduce',
  'benchmark', 'colabs',
)  # fmt: skip
# What a package of the library may import beside `SHARED`.
LIBRARY = {
  'pruning': set(),
  'quantization': set(),
  'coding': set(),
  'collectives': set(),
  'inference': {'coding', 'quantization'},
  'search': {'pruning', 'quantization'},
  # They give levels their bits by the files that they make, and train the
  # codebooks of tensors of files.
  'rate_allocation': {'coding', 'quantization'},
  'distillation': {'coding', 'quantization'},
}
SHARED = {'base', 'files', 'report', 'tree', 'version'}
MODULES = 15


@functools.cache
def imports():
  """Names of all modules of ours -> those that they import anywhere."""
  files = {
    '.'.join(path.relative_to(ROOT).with_suffix('').parts): path
    for top in ('bandwidth', 'experiments', 'configs')
    for path in (ROOT / top).rglob('*.py')
  }
  names = {name.removesuffix('.__init__'): path for name, path in files.items()}
  return {name: _imported(path, names) for name, path in names.items()}


def _imported(path, names):
  found = set()
  for node in ast.walk(ast.parse(path.read_text('utf-8'))):
    if isinstance(node, ast.Import):
      found |= {alias.name for alias in node.names} & names.keys()
    elif isinstance(node, ast.ImportFrom) and node.module in names:
      for alias in node.names:
        module = f'{node.module}.{alias.name}'
        found.add(module if module in names else node.module)
  return found


def arrows(top):
  """Pairs of rooms, the second imported by the first, with an example."""
  found = {}
  for module, imported in imports().items():
    for other in imported:
      a, b = module.split('.'), other.split('.')
      if a[0] == b[0] == top and len(a) > 1 and len(b) > 1 and a[1] != b[1]:
        found[a[1], b[1]] = f'{module} imports {other}'
  return found


def test_rooms_of_experiments_import_those_before_them():
  for (room, other), example in arrows('experiments').items():
    assert other in EXPERIMENTS, example
    if room not in ENTRIES:
      before = EXPERIMENTS[: EXPERIMENTS.index(room)]
      assert other in before, example


def test_packages_of_the_library_import_what_they_may():
  for (package, other), example in arrows('bandwidth').items():
    if other not in SHARED:
      assert other in LIBRARY[package], example


def test_library_and_configs_import_nothing_of_the_programs():
  for module, imported in imports().items():
    top = module.split('.')[0]
    tops = {other.split('.')[0] for other in imported}
    if top == 'bandwidth':
      assert tops <= {'bandwidth'}, module
    if top == 'configs':
      assert imported <= {'configs', 'configs.default'}, module


def test_no_circle():
  graph, done = imports(), set()

  def visit(module, trail):
    assert module not in trail, ' -> '.join([*trail, module])
    if module not in done:
      for other in graph[module] - {module}:
        visit(other, (*trail, module))
      done.add(module)

  for module in graph:
    visit(module, ())


@pytest.mark.parametrize('top', ['bandwidth', 'experiments'])
def test_no_room_is_a_heap(top):
  for folder in (ROOT / top).rglob('*/'):
    modules = [p for p in folder.glob('*.py') if p.stem[:2] != '__']
    assert len(modules) <= MODULES, folder


def test_slow_parameters_are_of_tests_that_there_are():
  for node in (ROOT / 'tests' / 'slow.txt').read_text('utf-8').splitlines():
    path, _, name = node.partition('::')
    text = (ROOT / path).read_text('utf-8')
    assert f'def {name.partition("[")[0]}(' in text, node
