"""Files that a run leaves: from stages to measured bytes and accuracy."""

import json
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest

from bandwidth import coding
from experiments import evaluate as evaluate_module
from experiments.compression.tables import run_tables
from experiments.compression.weights import read_weights
from experiments.config import resolve
from experiments.runtime.startup import InputError
from experiments.training.run import run
from experiments.training.stages import make_stages

RULES = (('.*/kernel', 3), ('.*', None))


def make_config(**fields):
  config = {
    'workers': 2,
    'batch_size': 64,
    'dataset': {'validation': 200},
    'eval_batch_size': 200,
    'model': {'name': 'lenet300', 'features': (16, 8)},
    'stage_order': ('dense', 'prune', 'share'),
    'stages': {
      'dense': {'steps': 30, 'files': (('dense', 'safetensors'),)},
      'prune': {
        'steps': 12,
        'method': {'name': 'prune', 'sparsity': 0.8, 'frequency': 2},
        'files': (('P', 'fixed'),),
      },
      'share': {
        'steps': 8,
        'method': {'name': 'share', 'rules': RULES},
        'optimizer': {'learning_rate': 0.01},
        'files': (('P+Q', 'fixed'), ('P+Q+H', 'huffman')),
      },
    },
    'baselines': True,
    'eval_every_epochs': 0.0,
    'checkpoint_every_epochs': 0.0,
    'keep_checkpoints': 9,
  }
  return {**config, **fields}


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
  workdir = tmp_path_factory.mktemp('whole')
  return workdir, run(make_config(), str(workdir))


def test_report_counts_what_lies_on_disk(whole):
  workdir, report = whole
  names = ['dense', 'P', 'P+Q', 'P+Q+H']
  files = ['dense.safetensors', 'P.bwz', 'P+Q.bwz', 'model.bwz']
  memory = report.memory
  assert [row.name for row in memory.stages] == names
  for row, file in zip(memory.stages, files, strict=True):
    assert row.bytes == (workdir / file).stat().st_size
    assert row.ratio == pytest.approx(memory.dense_bytes / row.bytes)
  assert memory.dense_bytes == 4 * (784 * 16 + 16 * 8 + 8 * 10 + 34)
  assert memory.file_bytes == memory.stages[-1].bytes
  sizes = [row.bytes for row in memory.stages]
  assert sizes == sorted(sizes, reverse=True)
  assert report.accuracy['final'] == memory.stages[-1].accuracy
  assert report.accuracy['baseline'] == memory.stages[0].accuracy > 0.3
  # Both come after the same training; coding loses nothing.
  assert memory.stages[2].accuracy == memory.stages[3].accuracy
  assert len(memory.baselines) == 6
  saved = json.loads((workdir / 'report.json').read_text())
  assert saved['memory']['file_bytes'] == memory.file_bytes


def test_files_hold_pruned_and_shared_weights(whole):
  workdir, _ = whole
  pruned = read_weights(workdir / 'P.bwz')
  kernels = [a for name, a in pruned.items() if name.endswith('kernel')]
  zeros = sum(int((kernel == 0).sum()) for kernel in kernels)
  assert zeros == pytest.approx(0.8 * sum(k.size for k in kernels), abs=3)
  with coding.open_file(workdir / 'model.bwz') as reader:
    assert reader.ledger().total == reader.file_bytes
    assert reader.metadata['model']['name'] == 'lenet300'
    tensor = reader.tensor('params/Dense_0/kernel')
  assert len(np.unique(tensor.to_array())) <= 8
  before = pruned['params/Dense_0/kernel'] == 0
  np.testing.assert_array_equal(tensor.to_array() == 0, before)


def test_resumed_run_leaves_the_same_files(whole, tmp_path):
  workdir, report = whole
  shutil.copytree(workdir, tmp_path / 'w')
  for directory in (tmp_path / 'w' / 'checkpoints').iterdir():
    if int(directory.name) > 42:
      shutil.rmtree(directory)
  for name in ('model.bwz', 'P+Q.bwz', 'report.json'):
    (tmp_path / 'w' / name).unlink()
  again = run(make_config(), str(tmp_path / 'w'))
  assert again.memory == report.memory
  for name in ('model.bwz', 'P+Q.bwz'):
    assert (tmp_path / 'w' / name).read_bytes() == (workdir / name).read_bytes()


def test_file_alone_is_evaluated_as_the_run_did(whole, tmp_path, capsys):
  workdir, report = whole
  model = tmp_path / 'alone.bwz'
  shutil.copyfile(workdir / 'model.bwz', model)
  output = tmp_path / 'result.json'
  arguments = ['--model', str(model), '--split', 'validation']
  arguments += ['--batch_size', '100', '--output', str(output)]
  assert evaluate_module.main(arguments) == 0
  assert f'{report.accuracy["final"]:.2%}' in capsys.readouterr().out
  result = json.loads(output.read_text())
  assert result['accuracy'] == report.accuracy['final']
  assert result['file_bytes'] == report.memory.file_bytes


def test_file_without_metadata_needs_a_config(whole, tmp_path, capsys):
  workdir, _ = whole
  arrays = read_weights(workdir / 'model.bwz')
  bare = tmp_path / 'bare.bwz'
  coding.write(bare, arrays)
  assert evaluate_module.main(['--model', str(bare)]) == 2
  assert 'does not say which network' in capsys.readouterr().err
  shutil.copyfile(workdir / 'config.json', tmp_path / 'config.json')
  assert evaluate_module.main(['--model', str(bare)]) == 0
  config = json.loads((workdir / 'config.json').read_text())
  config['model']['features'] = [8, 8]
  (tmp_path / 'config.json').write_text(json.dumps(config))
  assert evaluate_module.main(['--model', str(bare)]) == 2
  assert 'params/Dense_0/bias is (16,)' in capsys.readouterr().err


@pytest.mark.parametrize(
  ('content', 'message'),
  [(b'BWZ\x01junk', 'header'), (b'', 'not a .bwz file')],
)
def test_malformed_models_are_one_line(content, message, tmp_path, capsys):
  path = tmp_path / 'm.bwz'
  path.write_bytes(content)
  assert evaluate_module.main(['--model', str(path)]) == 2
  error = capsys.readouterr().err
  assert message in error
  assert error.count('\n') == 1


def test_tables_have_the_rows_of_the_paper(whole):
  workdir, report = whole
  text = run_tables(report, str(workdir))
  for name in ('| P |', '| P+Q |', '| P+Q+H |', '| 4-bit k-means + zstd 19 |'):
    assert name in text
  assert '| params/Dense_0/kernel | 12,544 |' in text
  assert f'| total | {report.memory.file_bytes:,} |' in text


@pytest.mark.parametrize(
  ('files', 'message'),
  [
    ((('P', 'hufman'),), "coder='hufman' is unknown"),
    ((('../P', 'auto'),), "'../P' can be no file"),
    (('P',), 'are not pairs'),
    ((('P', 'auto'), ('P', 'ans')), 'P is written twice'),
  ],
)
def test_bad_files(files, message):
  stages = {'train': {'steps': 1, 'files': files}}
  with pytest.raises(ValueError, match=message):
    make_stages(
      resolve({'stages': stages}),
      steps_per_epoch=1,
      axis_name='data',
      workers=(2,),
    )


def test_model_must_come_from_the_last_stage(tmp_path):
  config = make_config()
  config['stages']['share'].pop('files')
  with pytest.raises(InputError, match=r'stages\.share\.files is empty'):
    run(config, str(tmp_path / 'w'))
  assert not (tmp_path / 'w').exists()


@pytest.mark.slow
def test_batch_norm_statistics_are_in_the_file(tmp_path):
  config = make_config(
    model={'name': 'resnet20', 'depth': 8, 'channels': (2, 4, 4)},
    batch_size=8,
    dataset={'validation': 100},
    eval_batch_size=100,
    stage_order=('train',),
    stages={
      'train': {
        'steps': 2,
        'method': {
          'name': 'ternary',
          'rules': (('(Conv_0|Dense_0)/kernel', False), ('.*/kernel', True),
                    ('.*', False)),
        },
        'files': (('TTQ', 'auto'),),
      }
    },
    baselines=False,
  )  # fmt: skip
  report = run(config, str(tmp_path / 'w'))
  arrays = read_weights(tmp_path / 'w' / 'model.bwz')
  assert any(name.startswith('batch_stats/') for name in arrays)
  ternary = [
    name for name, a in arrays.items() if a.ndim == 4 and np.unique(a).size <= 3
  ]
  assert len(ternary) == 6
  assert report.accuracy['final'] == report.memory.stages[0].accuracy


@pytest.mark.slow
def test_program_compresses_by_a_config(tmp_path):
  command = [sys.executable, '-m', 'experiments.compress']
  found = subprocess.run(
    [
      *command,
      '--config=configs/mnist_lenet300_rate.py:runlocal',
      f'--workdir={tmp_path / "w"}',
      '--config.dataset.validation=1000',
      '--config.baselines=False',
    ],
    capture_output=True,
    text=True,
    check=False,
  )
  assert found.returncode == 0, found.stderr
  assert '| rate |' in found.stdout
  assert (tmp_path / 'w' / 'compression.md').is_file()
  assert (tmp_path / 'w' / 'model.bwz').stat().st_size < 20_000
  bad = subprocess.run(
    [*command, '--config=configs/mnist_lenet5.py', f'--workdir={tmp_path}'],
    capture_output=True,
    text=True,
    check=False,
  )
  assert bad.returncode == 2
  assert bad.stderr.strip().splitlines()[-1] == (
    'compress: error: config: no stage writes a file; see stages.NAME.files'
  )


def test_decoded_parameters_are_finite(whole):
  workdir, _ = whole
  nested = coding.load_tree(workdir / 'model.bwz')
  assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(nested))
