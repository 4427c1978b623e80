import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bandwidth import pruning

EXCHANGE = jax.jit(pruning.drop_and_grow)


def rigl_exchange(weight, mask, growth, fraction):
  """Drop the smallest, then grow the highest score of all inactive."""
  active = int(mask.sum())
  count = int(np.floor(fraction * active + 1e-5))
  order = np.argsort(-np.where(mask, np.abs(weight), -1), kind='stable')
  kept = np.zeros_like(mask)
  kept[order[: active - count]] = True
  order = np.argsort(-np.where(kept, -1, growth), kind='stable')
  new = kept.copy()
  new[order[:count]] = True
  return new


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6), st.floats(0, 1), st.integers(0, 100))
def test_drop_and_grow_equals_rigl(seed, density, percent):
  fraction = percent / 100
  rng = np.random.default_rng(seed)
  mask = rng.random(40) < density
  weight = np.where(mask, rng.normal(size=40), 0).astype(np.float32)
  growth = rng.integers(0, 5, 40).astype(np.float32)
  new = np.asarray(EXCHANGE(weight, mask, growth, fraction))
  assert new.sum() == mask.sum()
  np.testing.assert_array_equal(
    new, rigl_exchange(weight, mask, growth, fraction)
  )


def setup(inner, **options):
  rng = np.random.default_rng(0)
  params = {
    'k': jnp.asarray(rng.normal(size=(6, 10)), jnp.float32),
    'b': jnp.ones(10),
  }
  masks = pruning.make_masks(
    params, 0.5, score=pruning.random, key=jax.random.key(0)
  )
  params = pruning.apply_masks(params, masks)
  tx = pruning.sparse_training(inner, masks, **options)
  return tx, params, masks


def gradients(params, seed):
  rng = np.random.default_rng(seed)
  return jax.tree.map(
    lambda p: jnp.asarray(rng.normal(size=p.shape), p.dtype), params
  )


def test_rigl_equals_its_transcription():
  lr, momentum, alpha, end, every = 0.1, 0.9, 0.4, 9, 3
  tx, params, masks = setup(
    optax.sgd(lr, momentum=momentum), end=end, frequency=every, fraction=alpha
  )
  state, step = tx.init(params), jax.jit(tx.update)
  w, b = np.asarray(params['k']), np.asarray(params['b'])
  mask, v, vb = np.asarray(masks['k']), np.zeros((6, 10)), np.zeros(10)
  for t in range(12):
    grads = gradients(params, t)
    updates, state = step(grads, state, params)
    params = optax.apply_updates(params, updates)
    g = np.asarray(grads['k'])
    if t and t % every == 0 and t < end:
      fraction = alpha / 2 * (1 + np.cos(t * np.pi / end))
      new = rigl_exchange(w.ravel(), mask.ravel(), np.abs(g).ravel(), fraction)
      new = new.reshape(6, 10)
      assert (new != mask).any()
      v, w = np.where(new != mask, 0, v), np.where(new & mask, w, 0)
      mask = new
    else:
      v = momentum * v + np.where(mask, g, 0)
      vb = momentum * vb + np.asarray(grads['b'])
      w, b = w - lr * v, b - lr * vb
    np.testing.assert_array_equal(state.masks['k'], mask)
    np.testing.assert_allclose(params['k'], w, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(params['b'], b, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(
      state.inner_state[0].trace['k'], v, rtol=1e-4, atol=1e-5
    )
    assert int(state.masks['k'].sum()) == 30


@pytest.mark.parametrize(
  'inner',
  [
    optax.adamw(optax.cosine_decay_schedule(0.1, 100), weight_decay=0.1),
    optax.chain(optax.clip_by_global_norm(1.0), optax.adam(0.1)),
    optax.inject_hyperparams(optax.adam)(0.1),
    optax.masked(optax.adam(0.1), {'k': True, 'b': False}),
    optax.adafactor(0.1, min_dim_size_to_factor=4),
  ],
  ids=['adamw', 'chain', 'inject', 'masked', 'adafactor'],
)
def test_slots_are_reset_where_the_mask_changed(inner):
  tx, params, _ = setup(inner, end=100, frequency=2, fraction=0.5)
  state, step = tx.init(params), jax.jit(tx.update)
  for t in range(2):
    updates, state = step(gradients(params, t), state, params)
    params = optax.apply_updates(params, updates)
  before = state
  updates, state = step(gradients(params, 2), state, params)
  params = optax.apply_updates(params, updates)
  changed = np.asarray(before.masks['k'] != state.masks['k'])
  assert changed.any()
  assert (np.asarray(params['k'])[changed] == 0).all()
  for (path, old), (_, new) in zip(
    jax.tree_util.tree_leaves_with_path(before.inner_state),
    jax.tree_util.tree_leaves_with_path(state.inner_state),
    strict=True,
  ):
    name = jax.tree_util.keystr(path)
    if np.shape(old) == (6, 10):
      np.testing.assert_array_equal(new, np.where(changed, 0, old))
    elif 'count' in name:
      assert int(new) == int(old) + 1, name


def test_set_grows_at_random_by_its_key():
  def run(key):
    tx, params, _ = setup(
      optax.sgd(0.1), end=9, frequency=1, grow=pruning.random, key=key
    )
    state = tx.init(params)
    step = jax.jit(tx.update)
    for t in range(3):
      _, state = step(gradients(params, t), state, params)
    return np.asarray(state.masks['k'])

  one, same, other = (run(jax.random.key(i)) for i in (3, 3, 4))
  np.testing.assert_array_equal(one, same)
  assert (one != other).any()
  assert one.sum() == 30


def test_dense_start_is_sparse_after_one_update():
  masks = {'k': jnp.array([[True, False], [False, True]])}
  tx = pruning.sparse_training(optax.adam(0.1), masks, end=10)
  params = {'k': jnp.ones((2, 2))}
  updates, _ = tx.update(params, tx.init(params), params)
  after = optax.apply_updates(params, updates)
  np.testing.assert_array_equal(after['k'] != 0, masks['k'])


def test_masks_freeze_at_the_end():
  tx, params, _ = setup(
    optax.sgd(0.1), end=2, frequency=1, fraction=lambda t: 0.9
  )
  state, step = tx.init(params), jax.jit(tx.update)
  history = []
  for t in range(5):
    _, state = step(gradients(params, t), state, params)
    history.append(np.asarray(state.masks['k']))
  assert (history[0] != history[1]).any()
  for later in history[2:]:
    np.testing.assert_array_equal(later, history[1])


def test_bad_arguments():
  params = {'k': jnp.ones((2, 2))}
  masks = {'k': jnp.ones((2, 2), bool)}
  sgd = optax.sgd(0.1)
  with pytest.raises(ValueError, match='frequency=0'):
    pruning.sparse_training(sgd, masks, end=1, frequency=0)
  with pytest.raises(ValueError, match='fraction=2'):
    pruning.sparse_training(sgd, masks, end=1, fraction=2.0)
  with pytest.raises(ValueError, match='end=0'):
    pruning.sparse_training(sgd, masks, end=0)
  with pytest.raises(ValueError, match='key=None'):
    pruning.sparse_training(sgd, masks, end=1, grow=pruning.random).init(params)
  wrong = {'k': jnp.ones((2, 3), bool)}
  with pytest.raises(ValueError, match='k: the mask has shape'):
    pruning.sparse_training(sgd, wrong, end=1).init(params)
