import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
import safetensors.numpy

from bandwidth import coding
from experiments import compress
from experiments.compression import pretrained
from experiments.compression.weights import read_weights, write_safetensors
from experiments.training.checkpoints import Checkpoints
from experiments.training.step import TrainState


def run(source, target, *arguments):
  return compress.main([f'--input={source}', f'--output={target}', *arguments])


def error_of(capsys):
  lines = capsys.readouterr().err.splitlines()
  assert len(lines) == 1, lines
  assert lines[0].startswith('compress: error: ')
  return lines[0]


@pytest.fixture
def params():
  rng = np.random.default_rng(0)
  return {
    'Dense_0': {
      'kernel': jnp.asarray(rng.normal(size=(64, 32)), jnp.float32),
      'bias': jnp.asarray(rng.normal(size=32), jnp.bfloat16),
    }
  }


def check_params(arrays, params):
  for name in ('kernel', 'bias'):
    found = arrays[f'params/Dense_0/{name}']
    assert isinstance(found, np.ndarray)
    assert found.dtype == params['Dense_0'][name].dtype
    np.testing.assert_array_equal(found, params['Dense_0'][name])


def test_checkpoint_of_a_run(tmp_path, params):
  means = jnp.array([[1.0, 2.0], [3.0, 6.0]])
  checkpoints = Checkpoints(tmp_path / 'checkpoints')
  for step in (9, 10):
    state = TrainState(
      step=jnp.int32(step),
      params=jax.tree.map(lambda leaf, s=step: leaf * (s - 9), params),
      opt_state={'trace': params},
      reducer_state=jnp.zeros((2, 3)),
      model_state={'batch_stats': {'BatchNorm_0': {'mean': means}}},
      window=(jnp.zeros(2),),
    )
    checkpoints.save(step, state, {'stage': 'train'})
    checkpoints.wait()
  checkpoints.close()
  for directory in (tmp_path, tmp_path / 'checkpoints'):
    arrays = read_weights(directory)
    check_params(arrays, params)
    name = 'batch_stats/BatchNorm_0/mean'
    np.testing.assert_array_equal(arrays.pop(name), [2, 4])
    assert set(arrays) == {'params/Dense_0/bias', 'params/Dense_0/kernel'}
  assert run(tmp_path, tmp_path / 'm.bwz', '--bits=8') == 0
  packed = coding.read_arrays(tmp_path / 'm.bwz')
  np.testing.assert_array_equal(packed[name], [2, 4])
  kernel = params['Dense_0']['kernel']
  assert (
    pretrained.relative_error(kernel, packed['params/Dense_0/kernel']) < 0.02
  )


@pytest.mark.parametrize('checkpointer', ['standard', 'pytree', 'manager'])
def test_checkpoint_of_another_program(tmp_path, params, checkpointer):
  tree = {'params': params, 'opt_state': [params], 'step': jnp.int32(3)}
  path = tmp_path / 'ckpt'
  if checkpointer == 'standard':
    with ocp.StandardCheckpointer() as saver:
      saver.save(path, tree)
  elif checkpointer == 'pytree':
    with ocp.PyTreeCheckpointer() as saver:
      saver.save(path, tree)
  else:
    with ocp.CheckpointManager(path) as saver:
      saver.save(7, args=ocp.args.StandardSave(tree))
  arrays = read_weights(path)
  check_params(arrays, params)
  assert len(arrays) == 2


def test_a_bare_tree_keeps_its_names(tmp_path, params):
  with ocp.StandardCheckpointer() as saver:
    saver.save(tmp_path / 'c', {'layers': [params, params], 'step': 4})
  assert set(read_weights(tmp_path / 'c')) == {
    'layers/0/Dense_0/bias', 'layers/0/Dense_0/kernel',
    'layers/1/Dense_0/bias', 'layers/1/Dense_0/kernel', 'step',
  }  # fmt: skip


def test_directories_without_a_network(tmp_path, params, capsys):
  (tmp_path / 'notes.txt').write_text('none')
  assert run(tmp_path, tmp_path / 'm.bwz') == 2
  assert 'is a directory without an Orbax checkpoint' in error_of(capsys)
  with ocp.StandardCheckpointer() as saver:
    # One array: of several, those still being read complain in the background.
    saver.save(tmp_path / 'c', {'kernel': params['Dense_0']['kernel']})
  for file in (tmp_path / 'c').rglob('*'):
    if file.is_file() and '_METADATA' not in file.name:
      file.write_bytes(b'')
  assert run(tmp_path / 'c', tmp_path / 'm.bwz') == 2
  assert "c' is malformed: " in error_of(capsys)
  assert not (tmp_path / 'm.bwz').exists()


@pytest.mark.parametrize('value', [np.nan, np.inf, -np.inf, 1e300])
def test_weights_that_are_not_finite(tmp_path, capsys, value):
  weights = np.ones((64, 64))
  weights[3, 4] = value
  source, target = tmp_path / 'w.safetensors', tmp_path / 'm.bwz'
  safetensors.numpy.save_file({'w': weights}, source)
  target.write_bytes(b'old')
  assert run(source, target) == 2
  assert 'w has elements that are not finite' in error_of(capsys)
  assert target.read_bytes() == b'old'
  # What is not compressed is kept to the bit, whatever it is.
  vector = np.array([value, 1.0])
  safetensors.numpy.save_file({'w': np.eye(64), 'v': vector}, source)
  assert run(source, target) == 0
  np.testing.assert_array_equal(coding.read_arrays(target)['v'], vector)
  assert not capsys.readouterr().err


@pytest.mark.parametrize(
  ('name', 'content'),
  [
    ('a.bwz', b''),
    ('a.bwz', b'BWZ\x01\xff\xff'),
    ('a.safetensors', b'junk' * 9),
    ('a.safetensors', b'\xff' * 8 + b'{}'),
    ('a.safetensors', b'\x02' + b'\0' * 7 + b'{}'),
  ],
)
def test_malformed_files_are_named(tmp_path, capsys, name, content):
  source = tmp_path / name
  source.write_bytes(content)
  target = tmp_path / ('m.safetensors' if 'bwz' in name else 'm.bwz')
  assert run(source, target) == 2
  message = error_of(capsys)
  assert f"{name}' is malformed" in message or 'holds no array' in message
  assert not target.exists()


def test_malformed_pytorch_files(tmp_path, capsys):
  torch = pytest.importorskip('torch')
  weight = torch.ones(64, 64)
  path = tmp_path / 'a.pt'
  path.write_bytes(b'junk')
  assert run(path, tmp_path / 'm.bwz') == 2
  assert 'is malformed' in error_of(capsys)
  for content, match in (
    ({'state_dict': {'w': weight}}, 'holds no array'),
    ([weight], 'is no state dictionary'),
    ({'w': weight.to_sparse()}, 'is malformed'),
  ):
    torch.save(content, path)
    assert run(path, tmp_path / 'm.bwz') == 2
    assert match in error_of(capsys)
  parameter = torch.nn.Parameter(weight.bfloat16())
  torch.save({'w': parameter, 'n': torch.tensor(5)}, path)
  arrays = read_weights(path)
  assert arrays['w'].dtype == jnp.bfloat16
  assert arrays['n'].shape == ()


def test_outputs_that_cannot_be(tmp_path, capsys, monkeypatch):
  source = tmp_path / 'w.safetensors'
  write_safetensors(source, {'w': np.ones((64, 64), np.float32)})
  assert run(source, tmp_path / 'no' / 'm.bwz') == 2
  assert 'its directory is not there' in error_of(capsys)
  (tmp_path / 'd.bwz').mkdir()
  assert run(source, tmp_path / 'd.bwz') == 2
  assert "d.bwz' is a directory" in error_of(capsys)
  target = tmp_path / 'm.bwz'
  target.write_bytes(b'old')

  def full(handle):
    raise OSError(28, 'No space left on device')

  monkeypatch.setattr('os.fsync', full)
  assert run(source, target) == 2
  assert "m.bwz' cannot be written: No space left" in error_of(capsys)
  assert target.read_bytes() == b'old'
  assert not list(tmp_path.glob('.*'))
  assert run(source, target, '--smallest=-1') == 2
  assert 'smallest=-1 is negative' in error_of(capsys)


@pytest.mark.parametrize(
  'dtype', ['bfloat16', 'float16', 'float8_e4m3fn', 'int8', 'bool', 'complex64']
)
def test_safetensors_round_trip(tmp_path, dtype):
  kind = coding.tensors.dtype_of(dtype)
  arrays = {
    'w': np.arange(6).reshape(2, 3).astype(kind),
    'transposed': np.arange(6).reshape(2, 3).astype(kind).T,
    'scalar': np.array(1).astype(kind),
    'empty': np.zeros((0, 3), kind),
  }
  write_safetensors(tmp_path / 'a.safetensors', arrays)
  back = read_weights(tmp_path / 'a.safetensors')
  for name, array in arrays.items():
    assert back[name].dtype == kind
    assert back[name].shape == array.shape
    np.testing.assert_array_equal(back[name], array)


def test_what_safetensors_cannot_hold(tmp_path, capsys):
  coding.write(tmp_path / 'm.bwz', {'w': np.ones(3, np.complex128)})
  target = tmp_path / 'a.safetensors'
  target.write_bytes(b'old')
  assert run(tmp_path / 'm.bwz', target) == 2
  assert 'safetensors hold no complex128 (w)' in error_of(capsys)
  assert target.read_bytes() == b'old'
