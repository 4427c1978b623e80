"""What must not change while walls move, recorded before they did.

Resolved configs of all files and modes, the bytes of compressed files, and the
bytes that compiled steps send. `test_golden.py` has the losses. A difference
means that results/ is out of date; where it was meant, `record` writes the new
values, and the commit says why:

python -c 'import conftest; from tests import test_unchanged as t; t.record()'
"""

import functools
import hashlib
import importlib.util
import json
import pathlib
import tempfile

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bandwidth import coding, collectives
from bandwidth.collectives.traffic import accounting

ROOT = pathlib.Path(__file__).parent.parent
RECORD = ROOT / 'tests' / 'unchanged.json'
WITH_FILE = ('policy=', 'whole=')
MODES = {
  'brown_lstm': ('', 'runlocal'),
  'brown_lstm_dgc': ('', 'dense', 'top_k', 'runlocal'),
  'cifar10_resnet20': ('', 'runlocal'),
  'cifar10_resnet20_amc': ('', 'narrow', 'runlocal', 'whole=DIR'),
  'cifar10_resnet20_deep_compression': ('', 'runlocal'),
  'cifar10_resnet20_dgc': (
    '', 'dense', 'top_k', '8', 'dense_8', 'top_k_8', '16', 'dense_16',
    'top_k_16', '32', 'dense_32', 'top_k_32', 'short', 'dense_short',
    'top_k_short', 'small', 'dense_small', 'top_k_small', 'runlocal',
  ),
  'cifar10_resnet20_rate': ('', 'runlocal'),
  'cifar10_resnet20_ttq': ('', 'runlocal'),
  'cifar10_resnet56_amc': ('', 'runlocal', 'whole=DIR'),
  'fashion_mnist_lenet300_joint': ('', 'runlocal'),
  'fashion_mnist_mobilenet_amc': ('', 'runlocal'),
  'mnist_lenet300_deep_compression': ('', 'runlocal'),
  'mnist_lenet300_rate': ('', 'small', 'accurate', 'runlocal'),
  'mnist_lenet5': ('', 'runlocal'),
  'mnist_lenet5_deep_compression': ('', 'runlocal'),
  'mnist_lenet5_dgc': ('', 'dense', 'top_k', 'runlocal'),
  'mnist_lenet5_rate': ('', 'small', 'accurate', 'runlocal'),
  'mnist_mlp_dgc': ('', 'dense', 'runlocal'),
  'quickstart': ('', 'runlocal'),
  'quickstart_search': ('', 'bits', 'joint', 'runlocal'),
}  # fmt: skip
POLICY = {
  'cifar10_resnet20_amc', 'cifar10_resnet56_amc',
  'fashion_mnist_mobilenet_amc', 'quickstart_search',
}  # fmt: skip
PARAMS = {
  'conv': {'kernel': (5, 5, 3, 8), 'bias': (8,)},
  'dense': {'kernel': (200, 30), 'bias': (30,)},
  'scale': {'value': ()},
}
REDUCERS = {
  'dense': lambda axis: collectives.dense_all_reduce(axis, dtype='float32'),
  'dense_bfloat16': lambda axis: collectives.dense_all_reduce(
    axis, dtype='bfloat16'
  ),
  'dgc': lambda axis: collectives.deep_gradient_compression(
    axis, density=0.01, momentum=0.9
  ),
  'dgc_owners': lambda axis: collectives.deep_gradient_compression(
    axis, density=0.01, exchange='owner_sharded', workers=4
  ),
  'shared_mask': lambda axis: collectives.shared_mask(axis, density=0.1),
  'random_k': lambda axis: collectives.random_k(axis, density=0.1),
  'qsgd': lambda axis: collectives.qsgd(axis),
  'terngrad': lambda axis: collectives.terngrad(axis),
  'sign': lambda axis: collectives.sign_error_feedback(axis, workers=4),
  'power_sgd': lambda axis: collectives.power_sgd(axis, rank=2),
}


def config_of(name, mode, tmp):
  """The resolved config, flat; paths below `tmp` are written as $TMP."""
  from experiments.config import flatten, resolve

  path = ROOT / 'configs' / f'{name}.py'
  spec = importlib.util.spec_from_file_location(name, path)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  flat = flatten(resolve(module.get_config(mode.replace('$TMP', str(tmp)))))
  return json.loads(json.dumps(flat).replace(str(tmp), '$TMP'))


def cases():
  for name, modes in MODES.items():
    for mode in modes:
      yield name, mode
    if name in POLICY:
      yield name, 'policy=$TMP/search.json'


def file_digests():
  """Digest of a file of all kinds of tensors, by coder."""
  rng = np.random.default_rng(7)
  keep = rng.random((60, 40)) < 0.1
  codes = np.where(keep, rng.integers(1, 16, (60, 40)), 0)
  book = np.arange(16, dtype=np.float32) / 8
  levels = rng.integers(-20, 21, (40, 30))
  arrays = {
    'a/kernel': coding.CodebookTensor(codes, book),
    'a/bias': rng.integers(-9, 9, 40).astype(np.float32),
    'b/kernel': coding.UniformTensor(levels, np.float32(0.25)),
    'b/empty': np.zeros((0, 3), np.float16),
    'c/step': np.int32(3),
    'd/embedding': coding.CodebookTensor(
      rng.integers(0, 256, (50, 20)), np.arange(256, dtype=np.float32)
    ),
  }
  return {
    coder: hashlib.sha256(coding.encode(arrays, coder=coder)).hexdigest()
    for coder in coding.CODERS
  }


def sent_bytes(name):
  """Bytes that a worker sends, read from the compiled program of 4 workers."""
  reducer = REDUCERS[name]('data')
  params = jax.tree.map(
    lambda shape: jnp.zeros(shape),
    PARAMS,
    is_leaf=lambda node: isinstance(node, tuple),
  )
  state = reducer.init(params)
  stack = functools.partial(jax.tree.map, lambda x: jnp.stack([x] * 4))
  mapped = jax.pmap(
    lambda grads, state: reducer.reduce(grads, state),
    'data',
    devices=jax.devices()[:4],
  )
  text = mapped.lower(stack(params), stack(state)).compile().as_text()
  return accounting.wire_bytes(text)


def record():
  with tempfile.TemporaryDirectory() as folder:
    write_record(pathlib.Path(folder))


def write_record(folder):
  write_policy(folder)
  found = {
    'configs': {
      f'{name}:{mode}': config_of(name, mode, folder) for name, mode in cases()
    },
    'files': file_digests(),
    'sent': {name: sent_bytes(name) for name in REDUCERS},
  }
  RECORD.write_text(json.dumps(found, sort_keys=True, indent=0) + '\n')


def write_policy(folder):
  policy = {'model': {'name': 'lenet300'}, 'weights': 'found.bwz'}
  (folder / 'search.json').write_text(json.dumps(policy))


@pytest.fixture(scope='module')
def recorded():
  return json.loads(RECORD.read_text('utf-8'))


@pytest.mark.parametrize(('name', 'mode'), list(cases()))
def test_configs_resolve_as_before(recorded, tmp_path, name, mode):
  write_policy(tmp_path)
  found = config_of(name, mode, tmp_path)
  assert found == recorded['configs'][f'{name}:{mode}']


def test_every_config_is_recorded():
  files = {path.stem for path in (ROOT / 'configs').glob('*.py')}
  assert files - {'default', '__init__'} == set(MODES)


def test_files_have_the_same_bytes(recorded):
  assert file_digests() == recorded['files']


@pytest.mark.parametrize('name', sorted(REDUCERS))
def test_compiled_steps_send_the_same_bytes(recorded, name):
  assert sent_bytes(name) == recorded['sent'][name]
