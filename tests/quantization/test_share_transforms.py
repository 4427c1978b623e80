import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from bandwidth.quantization.codebook import Sharing
from bandwidth.quantization.transforms import (
  cluster_mean,
  codes_by_value,
  read_codebooks,
  share_gradients,
  share_params,
)

RULES = [
  ('.*/bias', None),
  ('dense/kernel', 3),
  ('rows/kernel', Sharing(entries=4, axis=1)),
  ('.*', Sharing(entries=6, reserve_zero=False)),
]


def make_params(dtype=jnp.float32):
  rng = np.random.default_rng(0)
  kernel = rng.standard_normal((37, 11)) * (rng.random((37, 11)) < 0.4)
  arrays = {
    'dense': {'kernel': kernel, 'bias': rng.standard_normal(11)},
    'rows': {'kernel': rng.standard_normal((13, 5))},
    'last': rng.standard_normal((7, 3, 3)),
  }
  return jax.tree.map(lambda x: jnp.asarray(x, dtype), arrays)


def make_grads(params, step):
  leaves, structure = jax.tree.flatten(params)
  keys = jax.random.split(jax.random.key(step), len(leaves))
  return structure.unflatten(
    [
      jax.random.normal(k, x.shape, x.dtype)
      for k, x in zip(keys, leaves, strict=True)
    ]
  )


def test_gradient_is_that_of_the_codebook():
  # jax.grad through codebook[codes] is the definition.
  made = share_params(make_params(), RULES)
  params, book = made.params, made.codebooks['dense/kernel']
  grads = make_grads(params, 1)
  tx = share_gradients(RULES)
  shared, _ = jax.jit(tx.update)(grads, tx.init(params))

  def linear(centroids):
    return jnp.sum(centroids[book.codes] * grads['dense']['kernel'])

  wanted = np.array(jax.grad(linear)(jnp.asarray(book.centroids)))
  wanted[0] = 0
  np.testing.assert_allclose(
    shared['dense']['kernel'], wanted[book.codes], rtol=1e-5, atol=1e-6
  )
  np.testing.assert_array_equal(shared['dense']['bias'], grads['dense']['bias'])


def test_three_weights_by_hand():
  params = {'w': jnp.array([2.0, 0.0, 2.0, -1.0])}
  grads = {'w': jnp.array([1.0, 7.0, 2.0, 4.0])}
  tx = share_gradients([('w', 2)])
  updates, _ = tx.update(grads, tx.init(params))
  np.testing.assert_array_equal(updates['w'], [3, 0, 3, 4])
  tx = share_gradients([('w', 2)], reduction=cluster_mean)
  updates, _ = tx.update(grads, tx.init(params))
  np.testing.assert_array_equal(updates['w'], [1.5, 0, 1.5, 4])


OPTIMIZERS = {
  'sgd': optax.sgd(0.01, momentum=0.9, nesterov=True),
  'adamw': optax.adamw(0.02, weight_decay=0.1),
  'rmsprop': optax.rmsprop(0.01),
  'clipped': optax.chain(
    optax.clip_by_global_norm(1.0), optax.lion(0.01, weight_decay=0.1)
  ),
}


@pytest.mark.parametrize(
  ('name', 'dtype'),
  [(name, jnp.float32) for name in OPTIMIZERS] + [('adamw', jnp.bfloat16)],
)
def test_values_stay_shared(name, dtype):
  shared = share_params(make_params(dtype), RULES)
  params = shared.params
  zeros = np.asarray(params['dense']['kernel'] == 0)
  tx = optax.chain(share_gradients(RULES), OPTIMIZERS[name])
  state = jax.jit(tx.init)(params)

  @jax.jit
  def step(params, state, grads):
    updates, state = tx.update(grads, state, params)
    return optax.apply_updates(params, updates), state

  make = jax.jit(make_grads)
  for i in range(6):
    params, state = step(params, state, make(params, i))
  books = read_codebooks(params, state[0], RULES)
  assert set(books) == {'dense/kernel', 'rows/kernel', 'last'}
  np.testing.assert_array_equal(params['dense']['kernel'] == 0, zeros)
  assert len(np.unique(params['dense']['kernel'])) <= 8
  for column in np.asarray(params['rows']['kernel'], np.float32).T:
    assert len(np.unique(column)) <= 3
  for path, book in books.items():
    leaf = params['last'] if path == 'last' else params[path.split('/')[0]]
    leaf = leaf if path == 'last' else leaf['kernel']
    np.testing.assert_array_equal(book.decode(), np.asarray(leaf, np.float32))
    assert not np.array_equal(book.centroids, shared.codebooks[path].centroids)


def test_params_keep_zeros_structure_and_dtype():
  params = make_params(jnp.bfloat16)
  shared = share_params(params, RULES)
  assert jax.tree.map(lambda x: (x.shape, x.dtype), shared.params) == (
    jax.tree.map(lambda x: (x.shape, x.dtype), params)
  )
  np.testing.assert_array_equal(
    shared.params['dense']['kernel'] == 0, params['dense']['kernel'] == 0
  )


def test_masks():
  params = {'a': jnp.array([1.0, 2.0, 3.0]), 'b': jnp.ones(2)}
  masks = {'a': jnp.array([True, False, True]), 'b': True}
  shared = share_params(params, [('.*', 4)], masks=masks)
  np.testing.assert_array_equal(shared.params['a'], [1, 0, 3])
  np.testing.assert_array_equal(shared.params['b'], [1, 1])


def test_codes_by_value_under_jit():
  weights = jnp.asarray(make_params()['rows']['kernel'].round(0))
  sharing = Sharing(entries=16, axis=1)
  plain = codes_by_value(weights, sharing)
  jitted = jax.jit(lambda w: codes_by_value(w, sharing))(weights)
  np.testing.assert_array_equal(plain, jitted)
  for column, codes in zip(
    np.asarray(weights).T, np.asarray(plain).T, strict=True
  ):
    distinct = np.unique(column[column != 0])
    ranks = np.where(column == 0, 0, np.searchsorted(distinct, column) + 1)
    np.testing.assert_array_equal(codes, ranks)


@pytest.mark.parametrize('bits', [0, 17, True, 'four', 2.5])
def test_bad_rule(bits):
  with pytest.raises(ValueError, match="rules: 'w' has"):
    share_gradients([('w', bits)])


def test_errors_name_the_parameter():
  params = {'w': jnp.arange(9.0)}
  with pytest.raises(ValueError, match='w: 9 distinct values exceed'):
    share_gradients([('w', 3)]).init(params)
  with pytest.raises(ValueError, match='w: weights must be finite'):
    share_params({'w': jnp.array([jnp.nan])}, [('w', 3)])
  with pytest.raises(ValueError, match='no rule matches w'):
    share_gradients([('v', 3)]).init(params)


def test_broken_sharing_is_found():
  params = {'w': jnp.array([1.0, 1.0])}
  state = share_gradients([('w', 1)]).init(params)
  with pytest.raises(ValueError, match='w: weights of one code'):
    read_codebooks({'w': jnp.array([1.0, 2.0])}, state, [('w', 1)])
