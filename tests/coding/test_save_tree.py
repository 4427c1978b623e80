"""Trees of parameters go into a file with their codebooks, and come back."""

import collections

import flax
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from bandwidth import coding, pruning, quantization, tree

RNG = np.random.default_rng(0)
Pair = collections.namedtuple('Pair', 'kernel bias')


def normal(*shape):
  return RNG.normal(size=shape).astype(np.float32)


TREES = {
  'dict': {'a': {'kernel': normal(3, 2), 'bias': normal(2)}, 'b': normal()},
  'frozen dict': flax.core.freeze({'a': {'kernel': normal(3, 2)}}),
  'lists': [normal(2), [normal(3), {'w': normal(1, 4)}]],
  'tuples': (normal(2), Pair(normal(3), normal(1))),
  'none': {'a': None, 'b': normal(2), 'c': [None, normal(1)], 'd': {}},
  'scalars': {'step': np.int32(7), 'rate': 0.1, 'on': True},
  'slashes': {'a/b': normal(2), 'c': {'d/e': normal(3)}},
  'dtypes': {
    'half': normal(3).astype(ml_dtypes.bfloat16),
    'device': jnp.arange(3),
    'nan': np.array([np.nan, -0.0, np.inf], np.float32),
  },
  'nothing': {},
}


def assert_same(found, wanted):
  assert jax.tree.structure(found) == jax.tree.structure(wanted)
  for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
    b = np.asarray(b)
    assert (a.dtype, a.shape, a.tobytes()) == (b.dtype, b.shape, b.tobytes())


@pytest.mark.parametrize('kind', TREES)
def test_trees_come_back_to_the_bit(tmp_path, kind):
  path = tmp_path / 'm.bwz'
  ledger = coding.save_tree(path, TREES[kind])
  assert ledger.total == path.stat().st_size
  assert_same(coding.load_tree(path, like=TREES[kind]), TREES[kind])
  if kind == 'dict':
    assert_same(coding.load_tree(path), TREES[kind])


def test_without_a_tree_they_are_nested_dictionaries(tmp_path):
  path = tmp_path / 'm.bwz'
  coding.save_tree(path, TREES['lists'])
  assert tree.names(coding.load_tree(path)) == ['0', '1/0', '1/1/w']
  shapes = jax.eval_shape(lambda: TREES['lists'])
  assert_same(coding.load_tree(path, like=shapes), TREES['lists'])


def network():
  return {
    'first': {'kernel': normal(40, 30), 'bias': normal(30)},
    'last': {'kernel': normal(30, 8)},
  }


def trained(params):
  """Codebooks as training leaves them."""
  rules = [('.*/kernel', quantization.Sharing(entries=9, axis=1)), ('.*', None)]
  shared = quantization.share_params(params, rules)
  state = quantization.share_gradients(rules).init(shared.params)
  return shared.params, quantization.read_codebooks(shared.params, state, rules)


def shared(params):
  found = quantization.share_params(params, [('.*/kernel', 4), ('.*', None)])
  return found.params, found.codebooks


def ternary(params):
  model = quantization.ternary_params([('.*/kernel', 0.05), ('.*', None)])
  variables = model.init(params)
  return model.decode(variables), model.export(variables)


def uniform(params):
  rules = [
    ('.*/kernel', quantization.Grid(bits=4, axis=-1)),
    ('.*', None),
  ]
  model = quantization.uniform_params(rules)
  variables = model.init(params)
  return model.decode(variables), model.export(variables)


def feedback(params):
  books = {}
  for name, kernel in tree.named_leaves(params):
    if name.endswith('kernel'):
      sensitivity = quantization.Sensitivity(
        np.eye(kernel.shape[1]), np.ones(len(kernel))
      )
      books[name] = quantization.share_with_feedback(
        kernel, sensitivity, entries=8, together=2, rounds=1
      )
  decoded = tree.map_named(
    lambda name, x: books[name].decode() if name in books else x, params
  )
  return decoded, books


@pytest.mark.parametrize('way', [trained, shared, ternary, uniform, feedback])
def test_what_quantization_makes_is_stored_as_such(tmp_path, way):
  params, books = way(network())
  params = jax.device_get(params)
  path = tmp_path / 'm.bwz'
  coding.save_tree(path, params, books, coder='huffman')
  assert_same(coding.load_tree(path), params)
  tensors = coding.read(path)
  assert not isinstance(tensors['first/kernel'], coding.RawTensor)
  assert isinstance(tensors['first/bias'], coding.RawTensor)
  assert path.stat().st_size < tree.nbytes(params) / 3


def test_values_of_codebooks_have_the_dtype_of_the_parameter(tmp_path):
  weights = jnp.asarray([0.5, 0.5, -1.0], jnp.bfloat16)
  book = quantization.fit_codebook(weights, quantization.Sharing(entries=3))
  coding.save_tree(tmp_path / 'm.bwz', {'w': weights}, {'w': book})
  assert_same(coding.load_tree(tmp_path / 'm.bwz'), {'w': weights})


def test_masks_prune(tmp_path):
  params = network()
  pruned = pruning.prune_params(params, 0.9)
  path = tmp_path / 'm.bwz'
  size = coding.save_tree(path, params, masks=pruned.masks).total
  assert_same(coding.load_tree(path), jax.device_get(pruned.params))
  assert size < tree.nbytes(params) / 4
  found = quantization.share_params(
    pruned.params, [('.*/kernel', 5), ('.*', None)], masks=pruned.masks
  )
  coding.save_tree(path, params, found.codebooks, masks=pruned.masks)
  assert_same(coding.load_tree(path), jax.device_get(found.params))
  _, books = shared(params)
  with pytest.raises(ValueError, match='first/kernel is not zero where its'):
    coding.save_tree(path, params, books, masks=pruned.masks)


def test_masks_leave_dtypes(tmp_path):
  params = {
    'on': np.ones(3, bool),
    'half': np.ones(3, ml_dtypes.bfloat16),
    'whole': np.arange(3),
  }
  masks = {'on': np.arange(3) > 0, 'half': np.arange(3) > 1, 'whole': np.True_}
  coding.save_tree(tmp_path / 'm.bwz', params, masks=masks)
  found = coding.load_tree(tmp_path / 'm.bwz')
  assert found['on'].tolist() == [False, True, True]
  assert found['half'].tolist() == [0, 0, 1]
  assert found['whole'].tolist() == [0, 1, 2]
  for name, leaf in params.items():
    assert found[name].dtype == leaf.dtype


def test_metadata_and_coder_are_those_of_write(tmp_path):
  path = tmp_path / 'm.bwz'
  coding.save_tree(path, {'w': normal(9)}, metadata={'a': 1})
  with coding.open_file(path) as reader:
    assert reader.metadata == {'a': 1}
  with pytest.raises(ValueError, match="coder='zip'"):
    coding.save_tree(path, {'w': normal(9)}, coder='zip')


BOOK = quantization.fit_codebook(normal(4), quantization.Sharing(entries=2))


@pytest.mark.parametrize(
  ('params', 'options', 'message'),
  [
    ({'a/b': normal(2), 'a': {'b': normal(2)}}, {}, "have the name 'a/b'"),
    ({'a': normal(2), 'a/b': normal(2)}, {}, "'a/b' continues the name"),
    (normal(2), {}, "name '' is not a string"),
    ({'w': 'text'}, {}, 'w: array has dtype'),
    ({'w': jax.random.key(0)}, {}, 'params: w is no array'),
    ({'w': normal(4)}, {'codebooks': {'v': BOOK}}, "codebooks='v' is unknown"),
    ({'w': normal(3)}, {'codebooks': {'w': BOOK}}, r'w has shape \(4,\), the'),
    (
      {'w': np.arange(4)},
      {'codebooks': {'w': BOOK}},
      "codebooks: w: dtype='int64' is none of",
    ),
    ({'w': normal(4)}, {'masks': {}}, "not shaped as params: see 'w'"),
    ({'w': normal(4)}, {'masks': {'w': np.ones(4)}}, 'w is float64'),
    ({'w': normal(4)}, {'masks': {'w': np.ones(3, bool)}}, r'w is bool \(3,\)'),
  ],
)
def test_what_cannot_be_stored_is_named(tmp_path, params, options, message):
  with pytest.raises(ValueError, match=message):
    coding.save_tree(tmp_path / 'm.bwz', params, **options)
  assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
  ('like', 'message'),
  [
    ({'a': normal(2)}, 'like: b are no leaves of the tree'),
    ({'a': normal(2), 'b': normal(1), 'c': normal(1)}, 'like: c have no value'),
    ({'a': normal(3), 'b': normal(1)}, r'a has shape \(3,\), in the file \(2,'),
    (
      {'a/b': normal(1), 'a': {'b': normal(1)}},
      "two leaves have the name 'a/b'",
    ),
  ],
)
def test_other_trees_are_not_filled(tmp_path, like, message):
  coding.save_tree(tmp_path / 'm.bwz', {'a': normal(2), 'b': normal(1)})
  with pytest.raises(ValueError, match=message):
    coding.load_tree(tmp_path / 'm.bwz', like=like)
