"""Networks from compressed parameters, with products done together."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bandwidth import inference, tree
from bandwidth.inference.networks.joined_products import Part
from experiments.models.minilm import MiniLM

RNG = np.random.default_rng(0)
MODEL = MiniLM(vocabulary=20, positions=9, width=12, heads=3, features=(16, 8))
TOKENS = np.array([[3, 7, 1, 19, 4, 5]], np.int32)
MASK = TOKENS > 1


@pytest.fixture
def dense():
  shapes = jax.eval_shape(MODEL.init, jax.random.key(0), TOKENS, MASK)
  return jax.tree.map(
    lambda like: jnp.asarray(RNG.normal(size=like.shape), jnp.float32), shapes
  )


def compressed(name, array, *, together=1):
  if not name.endswith('kernel'):
    return array
  codes = RNG.integers(0, 16, array.shape[::-1])
  book = RNG.normal(size=(array.shape[1] // together, 1, 16))
  return inference.codebook_matrix(codes, book)


def decoded(variables):
  return jax.tree.map(
    lambda leaf: inference.decode(leaf) if inference.is_matrix(leaf) else leaf,
    variables,
    is_leaf=inference.is_matrix,
  )


@pytest.mark.parametrize(
  'backend', [pytest.param('xla', marks=pytest.mark.slow), 'auto']
)
def test_joined_products_are_those_of_the_decoded_network(dense, backend):
  variables = tree.map_named(compressed, dense)
  # Outputs of a key share codebooks by four, those of others have their own.
  key = variables['params']['layer_0']['key']
  key['kernel'] = compressed('kernel', np.zeros((12, 12)), together=4)
  network = inference.CompressedNetwork(MODEL, backend=backend)
  joined = network.join(variables, TOKENS, MASK)
  parts = {
    tree.path_name(path): leaf
    for path, leaf in jax.tree_util.tree_leaves_with_path(
      joined, is_leaf=lambda leaf: isinstance(leaf, Part)
    )
    if isinstance(leaf, Part)
  }
  names = {name.split('/')[2] for name in parts}
  assert names == {'query', 'key', 'value'}
  assert sum(part.whole is not None for part in parts.values()) == 2
  wanted = MODEL.apply(decoded(variables), TOKENS, MASK)
  run = jax.jit(network.apply)
  np.testing.assert_allclose(run(joined, TOKENS, MASK), wanted, atol=1e-5)
  np.testing.assert_allclose(run(variables, TOKENS, MASK), wanted, atol=1e-5)
  assert inference.nbytes(joined) >= inference.nbytes(variables)


def test_dense_kernels_are_joined_too(dense):
  network = inference.CompressedNetwork(MODEL)
  joined = network.join(dense, TOKENS, MASK)
  whole = joined['params']['layer_1']['query']['kernel'].whole
  kernels = dense['params']['layer_1']
  np.testing.assert_array_equal(
    whole,
    np.concatenate(
      [kernels[name]['kernel'] for name in ('query', 'key', 'value')], axis=1
    ),
  )
  np.testing.assert_allclose(
    network.apply(joined, TOKENS, MASK),
    MODEL.apply(dense, TOKENS, MASK),
    atol=1e-5,
  )


def test_kernels_of_other_kinds_stay_apart(dense):
  variables = tree.map_named(compressed, dense)
  layer = variables['params']['layer_0']
  layer['key']['kernel'] = dense['params']['layer_0']['key']['kernel']
  layer['value']['kernel'] = inference.codebook_matrix(
    RNG.integers(0, 200, (12, 12)), RNG.normal(size=200)
  )
  network = inference.CompressedNetwork(MODEL, backend='xla')
  joined = network.join(variables, TOKENS, MASK)['params']
  for name in ('query', 'key', 'value'):
    assert joined['layer_0'][name]['kernel'] is layer[name]['kernel']
    assert isinstance(joined['layer_1'][name]['kernel'], Part)


def test_rows_that_kernels_multiply(dense):
  variables = tree.map_named(compressed, dense)
  rows = inference.CompressedNetwork(MODEL).rows(variables, TOKENS, MASK)
  kernels = {n for n in tree.names(dense['params']) if n.endswith('/kernel')}
  assert rows == dict.fromkeys(kernels, 6)
