import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from traces import Counted

from bandwidth import pruning
from bandwidth.pruning import transforms

RIGL = functools.partial(pruning.sparse_training, end=4, frequency=2)
NINE_TENTHS = functools.partial(pruning.magnitude_masks, sparsity=0.9)
TRANSFORMS = {
  'keep_masks': lambda: optax.chain(
    optax.adam(0.1), pruning.keep_masks(NINE_TENTHS)
  ),
  'prune': lambda: optax.chain(
    optax.sgd(0.1, momentum=0.9), pruning.prune(pruning.cubic(0.9, end=3))
  ),
  'prune_erk': lambda: pruning.prune(
    0.8, distribution=pruning.erdos_renyi_kernel
  ),
  'prune_global': lambda: pruning.prune(
    pruning.every(pruning.cubic(0.9, end=2), 2),
    distribution=pruning.global_threshold,
  ),
  'prune_n_m': lambda: pruning.prune(
    0.5,
    structure=pruning.n_m(2, 4),
    score=pruning.random,
    key=jax.random.key(1),
  ),
  'rigl': lambda: RIGL(optax.adamw(0.1, weight_decay=0.1), NINE_TENTHS),
  'set': lambda: RIGL(
    optax.sgd(0.1, momentum=0.9),
    NINE_TENTHS,
    grow=pruning.random,
    key=jax.random.key(2),
  ),
}
OPTIMIZERS = {
  'momentum': optax.sgd(0.3, momentum=0.9),
  'nesterov': optax.sgd(0.3, momentum=0.9, nesterov=True),
  'adamw': optax.adamw(0.3, weight_decay=0.2),
  'adafactor': optax.adafactor(0.3, min_dim_size_to_factor=4),
  'clipped': optax.chain(
    optax.clip_by_global_norm(1.0),
    optax.add_decayed_weights(0.3),
    optax.lion(0.1),
  ),
}


def network(dtype=jnp.float32):
  rng = np.random.default_rng(0)
  leaves = {
    'kernel': rng.normal(size=(8, 10)),
    'conv': {'kernel': rng.normal(size=(2, 2, 4, 4))},
    'bias': rng.normal(size=10),
    'scalar': np.array(3.0),
    'empty': np.zeros((0, 4)),
  }
  return jax.tree.map(lambda x: jnp.asarray(x, dtype), leaves)


def gradients(params, seed):
  rng = np.random.default_rng(seed)
  return jax.tree.map(
    lambda p: jnp.asarray(rng.normal(size=p.shape), p.dtype), params
  )


def signature(tree):
  return jax.tree.map(lambda x: (x.shape, x.dtype, x.weak_type), tree)


@pytest.mark.parametrize(
  ('name', 'dtype'),
  [
    *((name, jnp.float32) for name in TRANSFORMS),
    *((name, jnp.bfloat16) for name in ('keep_masks', 'prune', 'rigl')),
  ],
)
def test_battery(name, dtype):
  tx = TRANSFORMS[name]()
  params = network(dtype)
  abstract = jax.eval_shape(
    tx.init,
    jax.tree.map(lambda p: jax.ShapeDtypeStruct(p.shape, p.dtype), params),
  )
  state = jax.jit(tx.init)(params)
  assert signature(state) == signature(abstract)
  update = Counted(tx.update)
  step = jax.jit(update)
  for seed in range(5):
    updates, after = step(gradients(params, seed), state, params)
    assert signature(after) == signature(state)
    assert jax.tree.map(jnp.shape, updates) == jax.tree.map(jnp.shape, params)
    params, state = optax.apply_updates(params, updates), after
  assert update.traces == 1
  masks = optax.tree_utils.tree_get(state, 'masks')
  assert masks['bias'].shape == ()
  assert bool(masks['bias'])
  for leaf, mask in zip(
    jax.tree.leaves(params), jax.tree.leaves(masks), strict=True
  ):
    assert leaf.dtype == dtype
    np.testing.assert_array_equal(np.asarray(leaf)[~np.asarray(mask)], 0)
  assert int(masks['kernel'].sum()) < 80


@pytest.mark.parametrize('name', ['keep_masks', 'prune', 'rigl'])
def test_jit_equals_no_jit(name):
  tx, params = TRANSFORMS[name](), network()
  state, step = jax.jit(tx.init)(params), jax.jit(tx.update)
  for seed in range(2):
    updates, state = step(gradients(params, seed), state, params)
    params = optax.apply_updates(params, updates)
  grads = gradients(params, 2)
  jax.tree.map(
    functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6),
    tx.update(grads, state, params),
    step(grads, state, params),
  )


@pytest.mark.parametrize('optimizer', OPTIMIZERS)
@pytest.mark.parametrize('dtype', [jnp.float32, jnp.bfloat16])
def test_masked_weights_are_exactly_zero(optimizer, dtype):
  params = network(dtype)
  masks = pruning.magnitude_masks(params, 0.7)
  tx = optax.chain(OPTIMIZERS[optimizer], pruning.keep_masks(masks))
  state = tx.init(params)

  @jax.jit
  def step(params, state, seed):
    updates, state = tx.update(
      jax.tree.map(lambda p: p * seed + 1, params), state, params
    )
    return optax.apply_updates(params, updates), state

  # From dense parameters on, and from the first update.
  for seed in range(3):
    params, state = step(params, state, float(seed))
    for name in ('kernel', 'conv'):
      leaf = params[name] if name == 'kernel' else params[name]['kernel']
      mask = masks[name] if name == 'kernel' else masks[name]['kernel']
      assert (np.asarray(leaf)[~np.asarray(mask)] == 0).all()
      assert (np.asarray(leaf)[np.asarray(mask)] != 0).all()


@pytest.mark.parametrize('param', [jnp.float32, jnp.bfloat16, jnp.float16])
@pytest.mark.parametrize('update', [jnp.float32, jnp.bfloat16, jnp.float16])
def test_projection_is_exact_between_dtypes(param, update):
  rng = np.random.default_rng(0)
  p = jnp.asarray(
    rng.normal(size=100) * 10.0 ** rng.integers(-4, 4, 100), param
  )
  u = jnp.asarray(rng.normal(size=100), update)
  mask = jnp.asarray(rng.random(100) < 0.5)
  after = optax.apply_updates(p, transforms.project(u, p, mask))
  assert after.dtype == param
  assert (np.asarray(after)[~np.asarray(mask)] == 0).all()
  expected = optax.apply_updates(p, u)
  np.testing.assert_array_equal(
    np.asarray(after)[np.asarray(mask)], np.asarray(expected)[np.asarray(mask)]
  )


def test_a_nan_update_does_not_reach_masked_weights():
  p, mask = jnp.array([1.0, 2.0]), jnp.array([True, False])
  tx = pruning.keep_masks(mask)
  updates, _ = tx.update(jnp.full(2, jnp.nan), tx.init(p), p)
  after = optax.apply_updates(p, updates)
  assert np.isnan(after[0])
  assert after[1] == 0


def test_prune_equals_pruning_the_updated_weights():
  params = network()
  tx = optax.chain(optax.sgd(0.1), pruning.prune(pruning.cubic(0.8, end=4)))
  state = tx.init(params)
  expected, old = params, None
  for t in range(6):
    grads = gradients(params, t)
    updates, state = tx.update(grads, state, params)
    params = optax.apply_updates(params, updates)
    expected = optax.apply_updates(
      expected, jax.tree.map(lambda g: -0.1 * g, grads)
    )
    s = 0.8 * (1 - (1 - min(t, 4) / 4) ** 3)
    w = np.asarray(expected['kernel'])
    score = np.abs(w) if old is None else np.where(old, np.abs(w), -1)
    mask = np.zeros(80, bool)
    order = np.argsort(-score.reshape(-1), kind='stable')
    mask[order[: round(80 * (1 - s))]] = True
    old = mask.reshape(8, 10)
    expected['kernel'] = jnp.where(old, w, 0)
    np.testing.assert_array_equal(state[-1].masks['kernel'], old)
    np.testing.assert_allclose(
      params['kernel'], expected['kernel'], rtol=1e-5, atol=1e-7
    )


@pytest.mark.parametrize(
  'structure',
  [pruning.unstructured, pruning.block(2, 2), pruning.channel(order=2)],
)
def test_scheduled_masks_are_nested_and_fixed_in_between(structure):
  params = {'k': jnp.asarray(np.random.default_rng(1).normal(size=(8, 12)))}
  schedule = pruning.every(pruning.cubic(0.75, end=6), 2)
  tx = optax.chain(
    optax.sgd(0.5, momentum=0.9), pruning.prune(schedule, structure=structure)
  )
  state, step = tx.init(params), jax.jit(tx.update)
  history = []
  for t in range(8):
    updates, state = step(gradients(params, t), state, params)
    params = optax.apply_updates(params, updates)
    history.append(np.asarray(state[-1].masks['k']))
  for before, after in itertools.pairwise(history):
    assert not (after & ~before).any()
  for t in range(0, 8, 2):
    np.testing.assert_array_equal(history[t], history[t + 1])
  assert history[-1].mean() == 0.25


def test_dense_sparse_dense():
  params = {'k': jnp.arange(1.0, 9.0).reshape(2, 4)}
  tx = optax.chain(
    optax.sgd(0.1),
    pruning.prune(lambda t: jnp.where((t >= 1) & (t < 3), 0.5, 0.0)),
  )
  state, step = tx.init(params), jax.jit(tx.update)
  kept = []
  for _ in range(5):
    updates, state = step(jax.tree.map(jnp.ones_like, params), state, params)
    params = optax.apply_updates(params, updates)
    kept.append(int(np.count_nonzero(params['k'])))
  assert kept == [8, 4, 4, 8, 8]


def test_gradient_score_takes_gradients_as_an_extra_argument():
  params = {'k': jnp.array([[1.0, 1.0, 1.0, 1.0]])}
  grads = {'k': jnp.array([[0.1, 5.0, -4.0, 0.2]])}
  tx = optax.chain(optax.sgd(0.01), pruning.prune(0.5, score=pruning.gradient))
  state = tx.init(params)
  _, after = jax.jit(tx.update)(grads, state, params, grads=grads)
  assert after[-1].masks['k'].tolist() == [[False, True, True, False]]
  with pytest.raises(ValueError, match='grads=None'):
    tx.update(grads, state, params)


def test_transforms_run_on_mapped_workers():
  tx, params = TRANSFORMS['prune_global'](), network()
  stacked = jax.tree.map(lambda p: jnp.stack([p, 2 * p]), params)
  state = jax.jit(jax.vmap(tx.init))(stacked)
  updates, state = jax.jit(jax.vmap(tx.update))(stacked, state, stacked)
  alone, _ = jax.jit(tx.update)(params, jax.jit(tx.init)(params), params)
  # The global scale does not change which weights are the largest.
  jax.tree.map(
    lambda u, a: np.testing.assert_allclose(u[0], a, rtol=1e-6), updates, alone
  )
  masks = state.masks['kernel']
  np.testing.assert_array_equal(masks[0], masks[1])
  devices = jax.devices()[:2]
  mesh = jax.sharding.Mesh(np.array(devices), ('data',))
  spec = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec('data'))
  sharded = {'kernel': jax.device_put(params['kernel'], spec)}
  state = tx.init(sharded)
  assert state.masks['kernel'].sharding == spec
  tx = pruning.prune(0.5)
  _, after = jax.jit(tx.update)(sharded, tx.init(sharded), sharded)
  assert after.masks['kernel'].sharding.is_equivalent_to(spec, 2)
  np.testing.assert_array_equal(
    after.masks['kernel'],
    pruning.magnitude_masks({'k': 2 * params['kernel']}, 0.5)['k'],
  )


def test_state_copies_masks():
  params, masks = jnp.ones(4), jnp.array([True, False, True, True])
  tx = pruning.keep_masks(masks)
  state = tx.init(params)
  jax.jit(tx.update, donate_argnums=1)(params, state, params)
  assert masks.tolist() == [True, False, True, True]


def test_bad_arguments():
  params = network()
  with pytest.raises(ValueError, match=r'sparsity=1\.5'):
    pruning.prune(1.5)
  with pytest.raises(ValueError, match='kernel: axis -2'):
    pruning.prune(0.5, structure=pruning.n_m(2, 16)).init(params)
  with pytest.raises(ValueError, match='key=None'):
    pruning.prune(0.5, score=pruning.random).init(params)
  with pytest.raises(ValueError, match='no rule matches'):
    pruning.prune(0.5, rules=[('kernel', True)]).init(params)
  with pytest.raises(ValueError, match='only in one of them'):
    pruning.keep_masks({'kernel': jnp.array(True)}).init(params)
  for tx in (pruning.prune(0.5), pruning.keep_masks(NINE_TENTHS)):
    with pytest.raises(ValueError, match='params=None'):
      tx.update(params, tx.init(params))
