import ast
import json
import os
import pathlib
import subprocess
import sys

import nbformat
import numpy as np
import pytest
from IPython.core.inputtransformer2 import TransformerManager

from experiments.reports.published import DEEP_COMPRESSION_STAGES

EXECUTE = pathlib.Path(__file__).with_name('execute_notebook.py')
ROOT = pathlib.Path(__file__).parents[3]
COLABS = ROOT / 'experiments' / 'colabs'
NOTEBOOKS = sorted(COLABS.glob('*.ipynb'))


def read(path):
  return nbformat.read(path, as_version=nbformat.NO_CONVERT)


def code_cells(notebook):
  return [cell for cell in notebook.cells if cell.cell_type == 'code']


def execute(notebook, folder, tmp_path):
  """Runs a notebook in a folder; nothing is read or written in the home."""
  environment = dict(os.environ)
  for name in ('TMPDIR', 'IPYTHONDIR', 'MPLCONFIGDIR', 'JUPYTER_CONFIG_DIR',
               'JUPYTER_DATA_DIR', 'JUPYTER_RUNTIME_DIR'):  # fmt: skip
    environment[name] = str(tmp_path / name.lower())
    os.mkdir(environment[name])
  path = tmp_path / 'executed.ipynb'
  nbformat.write(notebook, path)
  done = subprocess.run(
    [sys.executable, EXECUTE, path, folder],
    env=environment,
    capture_output=True,
    text=True,
  )
  assert done.returncode == 0, done.stderr
  return read(path)


def outputs(notebook, kind):
  return [
    output
    for cell in code_cells(notebook)
    for output in cell.outputs
    if output.output_type == kind
  ]


# Appended to deep_compression.ipynb: what its variables say.
PROBE = """
import json as _json

_named = {
  which: dict(tree.named_leaves(jax.device_get(params)))
  for which, params in {'pruned': pruned, 'shared': shared}.items()
}
_back = coding.read_arrays(work / 'P+Q+H.bwz')
print(_json.dumps({
  'stages': [[s.name, s.bytes, s.ratio, s.accuracy] for s in stages],
  'files': [(work / f'{s.name}.bwz').stat().st_size for s in stages],
  'parts': left.tolist(),
  'dense': dense_accuracy,
  'restored': restored_accuracy,
  'mine': [source.stat().st_size, small.stat().st_size],
  'kept': [int(np.count_nonzero(_named['pruned'][n])) for n, _ in SPARSITY],
  'still_kept': [
    int(np.count_nonzero(_named['shared'][n])) for n, _ in SPARSITY
  ],
  'values': [len(np.unique(_named['shared'][n])) for n, _ in SPARSITY],
  'trained': [
    bool((codebooks[n].centroids != clustered.codebooks[n].centroids).any())
    for n, _ in SPARSITY
  ],
  'decoded': all(
    np.array_equal(array, _named['shared'][n]) for n, array in _back.items()
  ),
}))
"""


def check_deep_compression(found):
  names, sizes, ratios, accuracies = zip(*found['stages'], strict=True)
  assert names == ('P', 'P+Q', 'P+Q+H', 'P+Q+auto')
  assert list(sizes) == found['files'] == found['parts']
  assert list(sizes) == sorted(sizes, reverse=True)
  published = DEEP_COMPRESSION_STAGES['lenet300']
  for name, size, ratio in zip(names, sizes, ratios, strict=True):
    assert ratio == pytest.approx(4 * 266_610 / size)
    assert ratio > 0.9 * published.get(name, published['P+Q+H'])
  assert found['dense'] > 0.975
  # Half a percent: a run has one seed.
  assert min(accuracies) > found['dense'] - 0.005
  kept = [784 * 300 * 0.07, 300 * 100 * 0.08, 100 * 10 * 0.25]
  np.testing.assert_allclose(found['kept'], kept, atol=1)
  assert found['still_kept'] == found['kept']
  assert max(found['values']) <= 32
  assert found['trained'] == [True] * 3
  assert found['decoded']
  assert found['restored'] > found['dense'] - 0.01
  assert found['mine'][0] > 10 * found['mine'][1]


# Appended to gradient_compression.ipynb.
GRADIENT_PROBE = """
import json as _json

print(_json.dumps({
  'errors': [dense['error'], sparse['error']],
  'sent': [[sum(run['sent']), run['sent'][-1]] for run in (dense, sparse)],
  'message': message.nbytes,
  'residual': sparse['residual'][-1],
  'selected': sum(counts),
}))
"""


def check_gradient_compression(found):
  (dense_run, dense_step), (sparse_run, sparse_step) = found['sent']
  assert dense_step == 2 * 3 * 266_610 * 4 // 4
  assert sparse_step == 3 * found['message']
  # The paper: 600 times fewer bytes with float32 and runs of zeros.
  assert dense_step > 700 * sparse_step
  assert dense_run > 30 * sparse_run
  assert found['selected'] == 236 + 1 + 30 + 1 + 1 + 1
  assert found['residual'] > 0
  assert max(found['errors']) < 0.04


# Appended to compression_search.ipynb.
SEARCH_PROBE = """
import json as _json

print(_json.dumps({
  'decisions': [group.channels for group in space.groups],
  'over': [int((h.costs > budget).sum()) for h in found.values()],
  'evaluations': [len(history.scores) for history in found.values()],
  'best': {name: float(h.scores.max()) for name, h in found.items()},
  'kept': space.kept(winner),
  'small': [*small_model.channels, small_model.features],
  'macs': [whole, small_macs],
  'difference': difference,
  'policies': {name: space.kept(policy) for name, policy in policies.items()},
  'accuracy': [float(r['test accuracy'].rstrip('%')) for r in results],
  'bytes': [r['bytes of the file'] for r in results],
  'files': [(work / f'{i}.bwz').stat().st_size for i in range(3)],
}))
"""


def lenet5_macs(first, second, hidden):
  convolutions = 25 * (24 * 24 * first + 8 * 8 * first * second)
  return convolutions + 16 * second * hidden + hidden * 10


def lenet5_parameters(first, second, hidden):
  convolutions = 26 * first + (25 * first + 1) * second
  return convolutions + (16 * second + 1) * hidden + hidden * 10 + 10


def check_compression_search(found):
  assert found['decisions'] == [20, 50, 500]
  assert found['over'] == [0] * 5
  assert found['evaluations'] == [1, 1, 24, 24, 24]
  # It begins with the solution of the dynamic program.
  assert found['best']['cma_es_dynamic'] >= found['best']['dynamic']
  kept = list(found['kept'].values())
  assert found['small'] == kept
  assert found['macs'] == [2_293_000, lenet5_macs(*kept)]
  assert 10 * found['macs'][1] <= found['macs'][0]
  assert found['difference'] < 1e-4
  by_macs, by_parameters = (
    list(policy.values()) for policy in found['policies'].values()
  )
  assert lenet5_macs(*by_macs) <= 229_300
  assert lenet5_parameters(*by_parameters) <= 43_108
  assert by_parameters[0] > by_macs[0]
  assert by_parameters[2] < by_macs[2]
  whole, cut, tuned = found['accuracy']
  assert whole > 98
  assert 95 < cut < tuned
  assert tuned > whole - 0.8
  assert found['bytes'] == found['files']
  assert found['bytes'][1] < found['bytes'][0] / 4


# What takes long and shows the same with fewer.
SHORTER = {
  'compression_search.ipynb': ('EVALUATIONS = 64', 'EVALUATIONS = 24'),
}


def shorten(notebook, long, short):
  """Writes another number into the one cell that has it."""
  (cell,) = [each for each in code_cells(notebook) if long in each.source]
  cell.source = cell.source.replace(long, short)


PROBES = {
  'compression_search.ipynb': (SEARCH_PROBE, check_compression_search, 4),
  'deep_compression.ipynb': (PROBE, check_deep_compression, 5),
  'gradient_compression.ipynb': (
    GRADIENT_PROBE,
    check_gradient_compression,
    1,
  ),
}


@pytest.mark.slow
@pytest.mark.parametrize('path', NOTEBOOKS, ids=lambda path: path.name)
def test_notebook_shows_what_it_says(path, tmp_path):
  probe, check, plots = PROBES[path.name]
  notebook = read(path)
  if path.name in SHORTER:
    shorten(notebook, *SHORTER[path.name])
  notebook.cells.append(nbformat.v4.new_code_cell(probe))
  notebook = execute(notebook, COLABS, tmp_path)
  check(json.loads(notebook.cells.pop().outputs[0].text))
  shown = [
    output
    for kind in ('display_data', 'execute_result')
    for output in outputs(notebook, kind)
    if 'image/png' in output.data
  ]
  assert len(shown) == plots
  errors = [o.text for o in outputs(notebook, 'stream') if o.name == 'stderr']
  assert not errors


@pytest.mark.parametrize('path', NOTEBOOKS, ids=lambda path: path.name)
def test_notebook_starts_at_the_root_too(path, tmp_path):
  notebook = read(path)
  notebook.cells = code_cells(notebook)[:2]
  code = 'import bandwidth; print(bandwidth.__file__)'
  notebook.cells.append(nbformat.v4.new_code_cell(code))
  notebook = execute(notebook, ROOT, tmp_path)
  found = notebook.cells[-1].outputs[0].text.strip()
  assert found == str(ROOT / 'bandwidth' / '__init__.py')


@pytest.mark.parametrize('path', NOTEBOOKS, ids=lambda path: path.name)
def test_notebook_is_stored_without_traces_of_a_run(path):
  notebook = read(path)
  assert (notebook.nbformat, notebook.nbformat_minor) == (4, 5)
  nbformat.validate(notebook)
  for cell in notebook.cells:
    assert not cell.metadata
    assert cell.source.strip()
  for cell in code_cells(notebook):
    assert cell.outputs == []
    assert cell.execution_count is None
  assert set(notebook.metadata) == {'kernelspec', 'language_info'}
  assert notebook.metadata.kernelspec.name == 'python3'
  assert notebook.metadata.language_info == {'name': 'python'}


def first_cell(path):
  """Returns the first code cell as plain Python."""
  return TransformerManager().transform_cell(code_cells(read(path))[0].source)


@pytest.mark.parametrize('path', NOTEBOOKS, ids=lambda path: path.name)
def test_first_cell_acts_only_in_colab(path):
  *before, guarded = ast.parse(first_cell(path)).body
  for statement in before:
    assert isinstance(statement, ast.Import) or (
      isinstance(statement, ast.Assign)
      and ast.unparse(statement) == "REPOSITORY = ''"
    )
  assert isinstance(guarded, ast.If)
  assert ast.unparse(guarded.test) == "'google.colab' in sys.modules"
  assert not guarded.orelse


class Shell:
  """Takes the place of IPython's shell and runs nothing."""

  def __init__(self):
    self.commands = []

  def system(self, command):
    self.commands.append(command)

  def run_line_magic(self, name, line):
    self.commands.append(f'{name} {line}')


@pytest.mark.parametrize('path', NOTEBOOKS, ids=lambda path: path.name)
def test_first_cell_in_colab(path, monkeypatch):
  monkeypatch.setitem(sys.modules, 'google.colab', sys)
  went = []
  monkeypatch.setattr(os, 'chdir', lambda to: went.append(str(to)))
  source = first_cell(path)
  shell = Shell()
  with pytest.raises(ValueError, match="REPOSITORY='': set it to the URL"):
    exec(source, {'get_ipython': lambda: shell})
  assert not shell.commands
  assert not went
  source = source.replace("REPOSITORY = ''", "REPOSITORY = 'URL'")
  exec(source, {'get_ipython': lambda: shell})
  clone, install = shell.commands
  assert clone == 'git clone --depth 1 {REPOSITORY} {checkout}'
  assert install == 'pip install -q -e "{checkout}[experiments]"'
  assert went == ['/content/bandwidth']
