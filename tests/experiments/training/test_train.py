"""The main job in this process: what it leaves, and how it resumes."""

import json
import pathlib
import shutil

import jax
import numpy as np
import pytest

from bandwidth import coding, tree
from experiments.compression.weights import write_safetensors
from experiments.config import resolve
from experiments.models import make_model
from experiments.runtime.startup import InputError
from experiments.training import run as run_module
from experiments.training.run import run

KEYS = {
  'config',
  'commit',
  'versions',
  'device',
  'seconds',
  'seed',
  'accuracy',
  'network',
  'command',
  'details',
}
CLOCK = ('steps_per_second', 'seconds')


def make_config(**fields):
  base = {
    'workers': 4,
    'batch_size': 64,
    'model': {'name': 'lenet300', 'features': (16, 8)},
    'stages': {'train': {'steps': 24}},
    'log_every': 4,
    'checkpoint_every_epochs': 8 / 937,
    'eval_every_epochs': 0.0,
    'keep_checkpoints': 9,
  }
  return {**base, **fields}


def state_of(config, workdir):
  setup = run_module.make_setup(resolve(config))
  checkpoints = run_module.Checkpoints(
    pathlib.Path(workdir) / 'checkpoints', keep=9
  )
  state, step, _ = run_module._begin(setup, checkpoints)
  checkpoints.close()
  return jax.device_get(state._asdict()), step


def lines_of(workdir):
  text = (pathlib.Path(workdir) / 'metrics.jsonl').read_text()
  lines = [json.loads(line) for line in text.splitlines()]
  return [{k: v for k, v in line.items() if k not in CLOCK} for line in lines]


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
  workdir = tmp_path_factory.mktemp('whole')
  return make_config(), workdir, run(make_config(), str(workdir))


def test_report_is_complete_and_matches_the_files(whole):
  _, workdir, report = whole
  saved = json.loads((workdir / 'report.json').read_text())
  assert set(saved) == KEYS
  assert set(saved['versions']) == {'python', 'jax', 'jaxlib', 'flax', 'optax'}
  assert saved['accuracy']['final'] == report.accuracy['final']
  assert 0.2 < saved['accuracy']['final'] <= 1
  network = saved['network']
  parameters = 784 * 16 + 16 + 16 * 8 + 8 + 8 * 10 + 10
  assert network == {
    'workers': 4,
    'dense_bytes_per_step': 2 * 3 * parameters,
    'sent_bytes_per_step': 2 * 3 * parameters,
    'ratio_steady': 1.0,
    'ratio_run': 1.0,
    'hlo_bytes_per_step': 2 * 3 * parameters,
  }
  assert saved['details']['parameters'] == parameters
  assert saved['details']['flops_per_example'] >= 2 * 784 * 16
  assert (workdir / 'report.md').read_text().startswith('# Bandwidth report')
  assert json.loads((workdir / 'config.json').read_text()) == saved['config']
  assert list(workdir.glob('events.out.tfevents.*'))


def test_metrics_have_one_line_a_window(whole):
  _, workdir, _ = whole
  lines = lines_of(workdir)
  logged = [line['step'] for line in lines if 'loss' in line]
  assert logged == [4, 8, 12, 16, 20, 24]
  assert all(line['stage'] == 'train' for line in lines)
  assert lines[-1]['step'] == 24
  assert 0 < lines[-1]['eval_accuracy'] < 1


@pytest.mark.parametrize('stopped', [8, 16])
def test_resumed_run_has_the_same_bits(whole, tmp_path, stopped):
  config, workdir, report = whole
  shutil.copytree(workdir, tmp_path / 'w')
  for directory in (tmp_path / 'w' / 'checkpoints').iterdir():
    if int(directory.name) > stopped:
      shutil.rmtree(directory)
  (tmp_path / 'w' / 'report.json').unlink()
  again = run(config, str(tmp_path / 'w'))
  assert again.accuracy == report.accuracy
  expected, _ = state_of(config, workdir)
  got, step = state_of(config, tmp_path / 'w')
  assert step == 24
  jax.tree.map(np.testing.assert_array_equal, got, expected)
  assert lines_of(tmp_path / 'w') == lines_of(workdir)


def test_finished_run_is_only_reported_again(whole, tmp_path):
  config, workdir, report = whole
  shutil.copytree(workdir, tmp_path / 'w')
  assert run(config, str(tmp_path / 'w')).accuracy == report.accuracy
  assert lines_of(tmp_path / 'w') == lines_of(workdir)


def test_another_config_is_refused_and_nothing_is_lost(whole, tmp_path):
  config, workdir, _ = whole
  shutil.copytree(workdir, tmp_path / 'w')
  before = sorted(p.name for p in (tmp_path / 'w').rglob('*'))
  with pytest.raises(InputError, match='batch_size was 64, is 128; seed was 0'):
    run({**config, 'batch_size': 128, 'seed': 3}, str(tmp_path / 'w'))
  assert sorted(p.name for p in (tmp_path / 'w').rglob('*')) == before


@pytest.mark.slow
def test_resume_on_two_workers_conserves_what_four_had(tmp_path):
  config = make_config(
    model={'name': 'resnet20', 'depth': 8, 'channels': (2, 4, 4)},
    batch_size=8,
    dataset={'validation': 100},
    eval_batch_size=100,
    stages={'train': {'steps': 2}},
    log_every=1,
  )
  run(config, str(tmp_path))
  four, _ = state_of(config, tmp_path)
  two, step = state_of({**config, 'workers': 2}, tmp_path)
  assert step == 2
  for part in ('params', 'opt_state', 'step'):
    jax.tree.map(np.testing.assert_array_equal, two[part], four[part])
  old, new = (jax.tree.leaves(s['model_state']) for s in (four, two))
  assert old
  for a, b in zip(old, new, strict=True):
    assert (len(a), len(b)) == (4, 2)
    expected = a.reshape(2, 2, *a.shape[1:]).mean(1)
    np.testing.assert_allclose(b, expected, rtol=1e-6)
  assert run({**config, 'workers': 2}, str(tmp_path)).network.workers == 2


def test_nan_stops_the_run_and_keeps_the_last_good_checkpoint(tmp_path):
  config = make_config(
    optimizer={'learning_rate': 0.01},
    stage_order=('good', 'bad'),
    stages={
      'good': {'steps': 4},
      'bad': {'steps': 20, 'optimizer': {'learning_rate': 1e30}},
    },
  )
  with pytest.raises(InputError, match=r'not finite at step [67]; the check'):
    run(config, str(tmp_path))
  state, step = state_of(config, tmp_path)
  assert step == 4
  assert all(np.isfinite(x).all() for x in jax.tree.leaves(state['params']))


def test_two_stages_with_different_reducers(tmp_path):
  config = make_config(
    stage_order=('full', 'half'),
    stages={
      'full': {'steps': 4},
      'half': {
        'steps': 4,
        'reducer': {'name': 'dense_all_reduce', 'dtype': 'bfloat16'},
      },
    },
  )
  report = run(config, str(tmp_path))
  network = report.network
  assert network.sent_bytes_per_step == network.hlo_bytes_per_step
  assert network.ratio_steady == pytest.approx(2.0, rel=5e-3)
  assert network.ratio_run == pytest.approx(4 / 3, rel=5e-3)


def random_network(config, dtype='float32'):
  """Arrays of a network by name, none of them as it is initialized."""
  model = make_model(config, num_classes=10)
  images = jax.ShapeDtypeStruct((1, 28, 28, 1), np.float32)
  shapes = jax.eval_shape(model.init, jax.random.key(0), images)
  rng = np.random.default_rng(0)
  return {
    name: rng.uniform(0.5, 1.5, leaf.shape).astype(dtype)
    for name, leaf in tree.named_leaves(shapes)
  }


@pytest.mark.parametrize(
  ('file', 'dtype'), [('net.safetensors', 'float16'), ('net.bwz', 'float32')]
)
def test_training_begins_with_the_weights_of_a_file(tmp_path, file, dtype):
  model = {'name': 'resnet20', 'depth': 8, 'channels': (2, 4, 4)}
  arrays = random_network(model, dtype)
  if file.endswith('.bwz'):
    coding.write(tmp_path / file, arrays)
  else:
    write_safetensors(tmp_path / file, arrays)
  config = make_config(
    model=model, workers=1, batch_size=8, initial=str(tmp_path / file)
  )
  setup = run_module.make_setup(resolve(config))
  found = {'params': setup.params, **setup.model_state}
  assert set(found) == {'params', 'batch_stats'}
  for name, leaf in tree.named_leaves(found):
    assert leaf.dtype == np.float32
    np.testing.assert_array_equal(leaf, arrays[name])


def test_training_goes_on_from_another_run(whole, tmp_path):
  _, workdir, report = whole
  config = make_config(
    initial=str(workdir),
    stages={'train': {'steps': 1}},
    optimizer={'learning_rate': 1e-9},
  )
  after = run(config, str(tmp_path / 'w'))
  assert after.accuracy == report.accuracy
  with pytest.raises(InputError, match=r"initial was '.*', is ''"):
    run({**config, 'initial': ''}, str(tmp_path / 'w'))


def test_weights_that_training_cannot_begin_with(tmp_path):
  arrays = random_network({'name': 'lenet300', 'features': (16, 9)})
  write_safetensors(tmp_path / 'other.safetensors', arrays)
  (tmp_path / 'broken.bwz').write_bytes(b'BWZ')
  for file, message in (
    ('none.bwz', r"initial: input='.*none.bwz' is not there"),
    ('broken.bwz', r"initial: input='.*broken.bwz' is malformed"),
    ('other.safetensors', r'initial: .*params/Dense_1/bias is \(9,\), the net'),
  ):
    config = make_config(initial=str(tmp_path / file))
    with pytest.raises(InputError, match=message) as error:
      run(config, str(tmp_path / 'w'))
    assert '\n' not in str(error.value)
    assert not (tmp_path / 'w').exists()


@pytest.mark.parametrize(
  ('fields', 'message'),
  [
    ({'dataset': {'name': 'mnits'}}, "'mnits'.*known: .*mnist"),
    ({'model': {'name': 'lenet6'}}, "model.name='lenet6'"),
    ({'mapping': 'pamp'}, "mapping='pamp' is unknown"),
    ({'batch_size': 66}, 'batch_size=66 is not divisible by workers=4'),
    ({'batch_size': 10**6}, 'exceeds the 60000 training examples'),
    ({'workers': 99, 'batch_size': 99}, 'workers=99 but there are 8 cpu'),
    ({'log_every': 0}, 'log_every=0 must be at least 1'),
    ({'keep_checkpoints': 0}, 'keep_checkpoints=0 must be at least 1'),
    ({'eval_batch_size': 0}, 'eval_batch_size=0 must be at least 1'),
    ({'seed': -1}, 'seed=-1 is negative'),
    ({'dataset': {'mean': (0.1, 0.2, 0.3)}}, 'dataset.mean=.* is for 3'),
    ({'workers': 3, 'hosts': 2}, 'workers=3 is not divisible by hosts=2'),
    ({'eval_every_epochs': -1}, 'eval_every_epochs=-1'),
  ],
)
def test_bad_input_leaves_nothing_behind(fields, message, tmp_path):
  with pytest.raises(InputError, match=message):
    run(make_config(**fields), str(tmp_path / 'w'))
  assert not (tmp_path / 'w').exists()


def test_workdir_that_cannot_be_written(tmp_path):
  (tmp_path / 'file').write_text('')
  with pytest.raises(InputError, match=r"workdir='.*file/w' cannot be written"):
    run(make_config(), str(tmp_path / 'file' / 'w'))
