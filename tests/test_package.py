import ast
import importlib
import pathlib
import subprocess
import sys
import tomllib

ROOT = pathlib.Path(__file__).parent.parent
FOREIGN = (
  'flax',
  'ml_collections',
  'absl',
  'orbax',
  'tensorflow_datasets',
  'tensorflow',
  'experiments',
)


# Offered by `bandwidth.inference`, which does not import them by itself.
NETWORKS = ROOT / 'bandwidth' / 'inference' / 'networks'
OF_FLAX = {NETWORKS / 'linen.py', NETWORKS / 'layer_plan.py'}


def run(code):
  return subprocess.run(
    [sys.executable, '-c', code],
    capture_output=True,
    text=True,
    check=True,
    cwd=ROOT,
  ).stdout


def test_library_adds_nothing_to_what_jax_and_optax_import():
  code = (
    'import sys, jax, optax; before = set(sys.modules)\n'
    'import bandwidth.collectives, bandwidth.inference, bandwidth.report\n'
    'new = {m.split(".")[0] for m in set(sys.modules) - before}\n'
    f'print(sorted(new & set({FOREIGN!r})))'
  )
  assert run(code).strip() == '[]'


def test_bare_import_touches_no_backend():
  code = (
    'import bandwidth, sys\n'
    'print(sorted(m for m in sys.modules if m.split(".")[0] == "jax"))'
  )
  assert run(code).strip() == '[]'


def test_library_imports_point_one_way():
  for path in sorted((ROOT / 'bandwidth').rglob('*.py')):
    allowed = {'flax'} if path in OF_FLAX else set()
    for line in path.read_text('utf-8').splitlines():
      words = line.split()
      if words[:1] in (['import'], ['from']):
        foreign = set(FOREIGN) - allowed
        assert words[1].split('.')[0] not in foreign, f'{path}: {line}'


def test_configs_import_the_defaults_alone():
  for path in sorted((ROOT / 'configs').glob('*.py')):
    tree = ast.parse(path.read_text('utf-8'))
    found = {
      f'{node.module}.{alias.name}'
      if isinstance(node, ast.ImportFrom)
      else alias.name
      for node in ast.walk(tree)
      if isinstance(node, ast.Import | ast.ImportFrom)
      for alias in node.names
    }
    if path.stem in ('default', '__init__'):
      known = {'pathlib', 'typing.Any', 'ml_collections.ConfigDict'}
      known |= {'ml_collections.FieldReference'}
      assert found <= known, path
    else:
      assert found == {'configs.default'}, path


def test_requirements_agree_with_the_package():
  project = tomllib.loads((ROOT / 'pyproject.toml').read_text('utf-8'))
  lines = (ROOT / 'requirements.txt').read_text('utf-8').splitlines()
  assert set(project['project']['dependencies']) <= set(lines)


HEADLINES = (
  'compress_to_rate',
  'deep_gradient_compression',
  'load_compressed',
  'matmul',
  'open_file',
  'plan_inference',
  'prune',
  'share_params',
  'write',
)
PACKAGES = (
  'coding',
  'collectives',
  'distillation',
  'inference',
  'pruning',
  'quantization',
  'rate_allocation',
  'report',
  'search',
  'tree',
)
MODULES = ('distillation', 'rate_allocation', 'report', 'tree')


def test_the_package_offers_its_parts_when_they_are_asked_for():
  code = (
    'import bandwidth\n'
    f'assert {{*{HEADLINES}, *{PACKAGES}}} <= {{*dir(bandwidth)}}\n'
    f'for name in {PACKAGES}:\n'
    '  assert getattr(bandwidth, name).__name__ == f"bandwidth.{name}"\n'
    f'for name in {HEADLINES}:\n'
    '  assert getattr(bandwidth, name).__name__ == name\n'
    'print(hasattr(bandwidth, "no_such_name"))'
  )
  assert run(code).strip() == 'False'


def test_what_a_package_exports_is_there_and_in_order():
  packages = [name for name in PACKAGES if name not in MODULES]
  for name in ('bandwidth', *(f'bandwidth.{package}' for package in packages)):
    module = importlib.import_module(name)
    assert len({*module.__all__}) == len(module.__all__)
    assert all(hasattr(module, export) for export in module.__all__)
