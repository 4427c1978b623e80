"""Files that open into what runs, and networks that run from them."""

import contextlib
import math
import tracemalloc

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bandwidth import coding, inference, tree
from bandwidth.inference import packing
from bandwidth.inference.loading import executable
from experiments.evaluate import main
from experiments.inference.evaluation import evaluate
from experiments.models import make_model

RNG = np.random.default_rng(2)


def shared(shape, entries=12, density=1.0, grid=()):
  """Shared weights, those of code 0 pruned."""
  book = RNG.normal(size=(*grid, entries)).astype(np.float32)
  book[..., 0] = 0
  codes = RNG.integers(1, entries, shape) * (RNG.random(shape) < density)
  return coding.CodebookTensor(codes, book)


TENSORS = {
  'shared': (shared((40, 30)), 'codebook'),
  'many': (shared((40, 30), entries=200), 'codebook'),
  'too many': (shared((40, 30), entries=300), 'dense'),
  'pruned': (shared((40, 30), density=0.1), 'sparse'),
  'by output': (shared((40, 30), grid=(30,)), 'codebook'),
  'by input': (shared((40, 30), grid=(4, 1)), 'codebook'),
  'convolution': (shared((3, 3, 8, 16)), 'codebook'),
  'pruned convolution': (shared((3, 3, 8, 16), density=0.1), 'sparse'),
  'convolution by output': (shared((3, 3, 8, 16), grid=(16,)), 'codebook'),
  'convolution by input': (shared((3, 3, 8, 16), grid=(8, 1)), 'dense'),
  'levels': (
    coding.UniformTensor(RNG.integers(-5, 9, (40, 30)), np.float32(0.1)),
    'codebook',
  ),
  'far levels': (
    coding.UniformTensor(RNG.integers(-300, 300, (40, 30)), np.float32(0.1)),
    'dense',
  ),
  'few far levels': (
    coding.UniformTensor(
      np.where(RNG.random((40, 30)) < 0.5, 100, -100), np.float32(0.1)
    ),
    'codebook',
  ),
  'raw': (coding.RawTensor(np.ones((40, 30), np.float32)), 'dense'),
  'bias': (shared((30,)), 'dense'),
}
# Why those that the file has compressed are dense.
REASONS = {
  'too many': 'it shares 300 weights, more than 256',
  'far levels': 'its levels reach from -[0-9]+ to [0-9]+ at least',
  'convolution by input': 'its groups are of inputs of a convolution',
}
KINDS = {
  inference.CodebookMatrix: 'codebook',
  inference.SparseMatrix: 'sparse',
}


def as_matrix(array):
  """A kernel as it multiplies patches: channel by channel."""
  if array.ndim == 2:
    return array
  _height, _width, _inputs, outputs = array.shape
  return array.transpose(2, 0, 1, 3).reshape(-1, outputs)


def said(reason):
  """What is expected to be warned of; warnings are errors otherwise."""
  if not reason:
    return contextlib.nullcontext()
  return pytest.warns(UserWarning, match=f'stays dense: {reason}')


@pytest.mark.parametrize('name', TENSORS)
def test_forms_of_tensors(name, tmp_path):
  tensor, kind = TENSORS[name]
  path = tmp_path / 'model.bwz'
  coding.write(path, {'params/Dense_0/kernel': tensor})
  with said(REASONS.get(name)):
    found = inference.load_compressed(path)['params']['Dense_0']['kernel']
  assert KINDS.get(type(found), 'dense') == kind
  if kind == 'dense':
    np.testing.assert_array_equal(found, tensor.to_array())
    return
  wanted = as_matrix(tensor.to_array())
  np.testing.assert_allclose(inference.decode(found), wanted, rtol=1e-6)


def test_as_few_bits_as_there_are_levels():
  levels = np.where(RNG.random((4, 8)) < 0.5, 100, -100)
  for leaf, shape in (('kernel', (4, 8)), ('embedding', (8, 4))):
    tensor = coding.UniformTensor(levels, np.float32(0.1))
    found = executable(leaf, tensor)
    assert (found.bits, found.shape) == (2, shape)


def test_forms_may_be_chosen(tmp_path):
  path = tmp_path / 'model.bwz'
  tensor = shared((40, 30), density=0.1)
  coding.write(path, {'a/kernel': tensor, 'b/kernel': tensor})
  for form, kind in (
    ('dense', np.ndarray),
    ('codebook', inference.CodebookMatrix),
    ('sparse', inference.SparseMatrix),
  ):
    found = inference.load_compressed(path, forms={'a/kernel': form})
    assert isinstance(found['a']['kernel'], kind)
    assert isinstance(found['b']['kernel'], inference.SparseMatrix)
  with pytest.raises(ValueError, match=r"forms\['a/kernel'\]='csr' is unknown"):
    inference.load_compressed(path, forms={'a/kernel': 'csr'})
  with pytest.raises(ValueError, match="forms='c/kernel' is unknown"):
    inference.load_compressed(path, forms={'c/kernel': 'dense'})


@pytest.mark.parametrize(
  'name', ['weight', 'w', 'layers/0/kernel/value', 'embedding/w', 'kernels']
)
def test_matrices_of_any_name(name, tmp_path):
  """What multiplies is the array as it stands, whatever it is called."""
  path = tmp_path / 'model.bwz'
  coding.write(path, {name: shared((40, 30))})
  found = inference.load_compressed(path)
  for part in name.split('/'):
    found = found[part]
  array = coding.read_arrays(path)[name]
  assert found.shape == array.shape
  x = RNG.normal(size=(3, 40)).astype(np.float32)
  y = inference.matmul(x, found)
  np.testing.assert_allclose(y, x @ array, rtol=1e-4, atol=1e-4)


def test_parameters_of_nnx(tmp_path):
  """They call arrays `value`; the layer's name for it is the one before."""
  arrays = {
    'a/embedding/value': shared((20, 8)),
    'b/kernel/value': shared((3, 3, 8, 16)),
    'b/bias/value': shared((16,)),
  }
  path = tmp_path / 'model.bwz'
  coding.write(path, arrays)
  found = inference.load_compressed(path)
  embedding = found['a']['embedding']['value']
  kernel = found['b']['kernel']['value']
  table = arrays['a/embedding/value'].to_array()
  np.testing.assert_array_equal(inference.decode(embedding), table.T)
  wanted = as_matrix(arrays['b/kernel/value'].to_array())
  np.testing.assert_array_equal(inference.decode(kernel), wanted)
  assert isinstance(found['b']['bias']['value'], np.ndarray)


def test_axes_that_are_unknown(tmp_path):
  path = tmp_path / 'model.bwz'
  tensor = shared((3, 3, 8, 16))
  coding.write(path, {'conv/w': tensor, 'b/bias': shared((16,))})
  with said('what its 4 axes are is unknown, as it is not called kernel'):
    found = inference.load_compressed(path)
  np.testing.assert_array_equal(found['conv']['w'], tensor.to_array())
  inference.load_compressed(path, forms={'conv/w': 'dense'})
  found = inference.load_compressed(path, forms={'conv/w': 'codebook'})
  wanted = as_matrix(tensor.to_array())
  np.testing.assert_array_equal(inference.decode(found['conv']['w']), wanted)


IMPOSSIBLE = {
  'raw': ('kernel', 'codebook', 'raw', 'the file does not have it compressed'),
  'vector': ('bias', 'codebook', 'bias', r'its shape is \(30,\)'),
  'many': ('w', 'codebook', 'too many', 'it shares 300 weights'),
  'far': ('w', 'sparse', 'far levels', 'its levels reach from'),
  'groups': ('kernel', 'codebook', 'convolution by input', 'its groups are of'),
  'books': ('w', 'sparse', 'by output', 'all weights share one codebook'),
  'rows': ('embedding', 'sparse', 'pruned', 'no vectors to be looked up'),
  'axes': ('embedding', 'codebook', 'convolution', 'two axes, not 4'),
}


@pytest.mark.parametrize('case', IMPOSSIBLE)
def test_forms_that_cannot_be_had(case, tmp_path):
  leaf, form, tensor, reason = IMPOSSIBLE[case]
  path = tmp_path / 'model.bwz'
  coding.write(path, {f'a/{leaf}': TENSORS[tensor][0]})
  message = rf"forms\['a/{leaf}'\]='{form}': .*{reason}"
  with pytest.raises(ValueError, match=message):
    inference.load_compressed(path, forms={f'a/{leaf}': form})
  with pytest.raises(ValueError, match=rf"forms\['a/{leaf}'\]='{form}': "):
    executable(f'a/{leaf}', TENSORS[tensor][0], form=form)


def as_levels(shape):
  return coding.UniformTensor(
    RNG.integers(-7, 8, shape, np.int8), np.float32(0.1)
  )


@pytest.mark.parametrize(
  ('leaf', 'shape', 'count', 'coder'),
  [
    ('kernel', (512, 768), 24, 'fixed'),
    ('kernel', (2304, 4096), 1, 'ans'),
    ('kernel', (3, 3, 512, 1024), 2, 'fixed'),
    ('embedding', (24000, 384), 1, 'fixed'),
  ],
)
@pytest.mark.parametrize('kind', ['codebook', 'uniform'])
def test_memory_stays_below_a_third_of_the_dense_weights(
  kind, leaf, shape, count, coder, tmp_path
):
  """Four bits a weight; tracemalloc knows of arrays."""
  path = tmp_path / 'model.bwz'
  tensor = as_levels(shape)
  if kind == 'codebook':
    codes = (tensor.levels + 7).astype(np.uint8)
    tensor = coding.CodebookTensor(codes, np.arange(16.0))
  arrays = {f'layer_{i}/{leaf}': tensor for i in range(count)}
  coding.write(path, arrays, coder=coder)
  dense = count * 4 * math.prod(shape)

  def peak_of(read):
    tracemalloc.start()
    try:
      found = read(path)
      return found, *tracemalloc.get_traced_memory()
    finally:
      tracemalloc.stop()

  nested, kept, peak = peak_of(inference.load_compressed)
  assert len(nested) == count
  assert kept < 1.05 * dense / 8
  assert peak < dense / 3
  # Whoever reads dense weights needs more: the measurement can tell.
  assert peak_of(coding.load_tree)[2] > dense


def test_levels_that_appear_late(tmp_path):
  """Bits of codes grow while a tensor is read; codes ascend in the end."""
  for late, bits in (([3], 2), ([3, -2, 5], 4), (range(-40, 80), 8)):
    levels = np.where(RNG.random((300, 1000)) < 0.5, 1, 0)
    levels[-1, : len(late)] = late
    for leaf in ('kernel', 'embedding'):
      found = executable(leaf, coding.UniformTensor(levels, 0.5))
      assert found.bits == bits
      present = np.unique(levels)
      np.testing.assert_array_equal(
        found.codebook[0, 0, : len(present)], 0.5 * present
      )
      lying = levels.T if leaf == 'kernel' else levels
      codes = packing.unpack_rows(found.codes, bits, lying.shape[1])
      np.testing.assert_array_equal(found.codebook[0, 0, codes], 0.5 * lying)
  levels[-1, -1] = 300
  found = executable('kernel', coding.UniformTensor(levels, 0.5))
  np.testing.assert_array_equal(found, 0.5 * levels)


def test_levels_at_the_ends_of_their_range():
  for end in (-(2**31), 2**31 - 100):
    levels = end + RNG.integers(0, 99, (30, 40))
    found = executable('kernel', coding.UniformTensor(levels, 2.0**-20))
    assert found.bits == 8
    wanted = (levels * 2.0**-20).astype(np.float32)
    np.testing.assert_allclose(inference.decode(found), wanted, rtol=1e-6)


def test_a_step_of_zero_leaves_nothing():
  levels = RNG.integers(-3, 4, (30, 40))
  found = executable('kernel', coding.UniformTensor(levels, 0.0))
  assert isinstance(found, inference.SparseMatrix)
  assert found.columns.shape == (0,)


class Everything(nn.Module):
  """Layers of each kind that may be compressed."""

  @nn.compact
  def __call__(self, images, words):
    x = nn.Conv(8, (3, 3), strides=2, name='strided')(images)
    x = nn.Conv(8, (3, 3), feature_group_count=8, name='depthwise')(x)
    x = nn.Conv(12, (1, 1), use_bias=False, name='pointwise')(x)
    x = nn.Conv(12, (1, 1), strides=(2, 2), name='sampled')(x)
    x = nn.Conv(
      6, (3, 2), padding='VALID', kernel_dilation=(1, 2), name='dilated'
    )(x)
    x = nn.Conv(6, (2, 2), padding=((1, 0), (0, 1)), name='padded')(x)
    y = nn.Embed(20, 10, name='embed')(words).mean(1)
    x = jnp.concatenate([x.reshape(len(x), -1), y], 1)
    return nn.Dense(5)(nn.relu(nn.Dense(7)(x)))


@pytest.mark.parametrize(
  'backend', [pytest.param('xla', marks=pytest.mark.slow), 'auto']
)
def test_layers_of_flax(backend, tmp_path):
  model = Everything()
  images = jnp.asarray(RNG.normal(size=(2, 16, 14, 3)), jnp.float32)
  words = jnp.array([[1, 19, 3], [0, 0, 7]])
  variables = model.init(jax.random.key(0), images, words)
  arrays = {}
  for name, leaf in tree.named_leaves(variables):
    kind = name.rpartition('/')[2]
    tensor = shared(leaf.shape) if kind != 'bias' else np.asarray(leaf) + 0.5
    arrays[name] = tensor
  path = tmp_path / 'model.bwz'
  coding.write(path, arrays)
  compressed = inference.load_compressed(path)
  matrices = jax.tree.leaves(
    compressed, is_leaf=lambda x: isinstance(x, np.ndarray) or
    inference.is_matrix(x),
  )  # fmt: skip
  assert sum(map(inference.is_matrix, matrices)) == 9
  network = inference.CompressedNetwork(model, backend=backend)
  with pytest.warns(UserWarning, match='params/depthwise/kernel is decoded'):
    y = jax.jit(network.apply)(compressed, images, words)
  wanted = model.apply(coding.load_tree(path), images, words)
  np.testing.assert_allclose(y, wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
  'name', ['lenet300', pytest.param('lenet5', marks=pytest.mark.slow)]
)
def test_accuracy_of_a_file_is_the_same(name, tmp_path):
  config = {
    'model': {'name': name},
    'dataset': {'name': 'mnist', 'validation': 0, 'mean': 0.0, 'std': 0.3081},
  }
  if name == 'lenet5':
    config['model'] |= {'channels': (4, 6), 'features': 20}
    config['model']['convolution'] = 'matrix'
  model = make_model(config['model'], num_classes=10)
  variables = model.init(jax.random.key(0), jnp.zeros((1, 28, 28, 1)))
  arrays = {}
  for leaf_name, leaf in tree.named_leaves(variables):
    array = np.asarray(leaf)
    if leaf_name.endswith('kernel'):
      step = np.abs(array).max() / 7
      levels = np.rint(array / step).astype(int)
      arrays[leaf_name] = coding.UniformTensor(levels, step)
    else:
      arrays[leaf_name] = array
  path = tmp_path / 'model.bwz'
  coding.write(path, arrays)
  decoded = evaluate(path, config)
  # Convolutions by XLA alone take a minute.
  for backend in ('xla', 'auto') if name == 'lenet300' else ('auto',):
    found = evaluate(path, config, backend=backend)
    assert found['accuracy'] == pytest.approx(decoded['accuracy'], abs=2e-4)
    assert found['loss'] == pytest.approx(decoded['loss'], rel=1e-4)
    assert found['dense_bytes'] == decoded['dense_bytes']
  rounded = evaluate(path, config, backend='auto', mode='int8')
  assert rounded['loss'] == pytest.approx(decoded['loss'], rel=1e-2)
  other = {**config, 'model': {**config['model'], 'features': (300, 90)}}
  if name == 'lenet300':
    with pytest.raises(ValueError, match=r'Dense_1/bias is \(100,\)'):
      evaluate(path, other, backend='xla')


def test_a_mode_without_a_backend_is_refused(tmp_path, capsys):
  arguments = ['--model', str(tmp_path / 'model.bwz'), '--mode', 'int8']
  assert main(arguments) == 2
  assert "mode='int8' needs a --backend" in capsys.readouterr().err
  for backend in ((), ('--backend', 'xla')):
    assert main([*arguments[:2], '--kernels', 'scalar', *backend]) == 2
    assert "'scalar' needs --backend native or auto" in capsys.readouterr().err
