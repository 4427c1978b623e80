"""Deep Gradient Compression against a transcription of its section 3."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bandwidth.collectives import deep_gradient_compression

P = 4
SHAPES = {'bias': (6,), 'kernel': (20, 10)}


def make_params():
  rng = np.random.default_rng(9)
  return {k: np.float32(rng.normal(size=s)) for k, s in SHAPES.items()}


def gradients(steps, seed=0):
  rng = np.random.default_rng(seed)
  return [
    {k: np.float32(rng.normal(size=(P, *s))) for k, s in SHAPES.items()}
    for _ in range(steps)
  ]


def run(grads, params=None, state=None, **arguments):
  """Means and last state of simulated workers."""
  params = make_params() if params is None else params
  reducer = deep_gradient_compression('data', values='float32', **arguments)
  if state is None:
    state = jax.tree.map(
      lambda leaf: jnp.stack([leaf] * P), reducer.init(params)
    )
  step = jax.jit(
    jax.vmap(
      lambda g, s: reducer.reduce(g, s, params),
      axis_name='data',
      out_axes=(None, 0),
    )
  )
  means = []
  for g in grads:
    mean, state = step(g, state)
    means.append(jax.device_get(mean))
  return means, state, reducer


def transcription(
  grads,
  *,
  density,
  momentum=0.9,
  nesterov=False,
  masking=True,
  clip_norm=0.0,
  weight_decay=0.0,
  dense=(),
):
  """Section 3 in float64, gradients divided by N beforehand and summed."""
  params = make_params()
  zeros = {k: np.zeros((P, *s)) for k, s in SHAPES.items()}
  u, v = {**zeros}, {**zeros}
  d = {k: np.zeros(s) for k, s in SHAPES.items()}
  updates = []
  for g in grads:
    g = {k: np.float64(x) / P for k, x in g.items()}
    if clip_norm:
      for p in range(P):
        norm = math.sqrt(sum((x[p] ** 2).sum() for x in g.values()))
        limit = clip_norm / math.sqrt(P)
        for k in g:
          g[k][p] *= min(1.0, limit / norm)
    update = {}
    for k, x in g.items():
      if k in dense:
        # The same momentum everywhere, of the sum.
        total = x.sum(0)
        mine = momentum * (u[k][0] + (total if nesterov else 0))
        u[k] = np.stack([mine + (0 if nesterov else total)] * P)
        update[k] = u[k][0] + (total if nesterov else 0)
        continue
      u[k] = momentum * (u[k] + x) if nesterov else momentum * u[k] + x
      v[k] = v[k] + u[k] + (x if nesterov else 0)
      total = np.zeros(SHAPES[k])
      for p in range(P):
        flat = v[k][p].reshape(-1)
        count = math.ceil(round(density * flat.size, 6))
        sent = np.argsort(-np.abs(flat), kind='stable')[:count]
        total.reshape(-1)[sent] += flat[sent]
        flat[sent] = 0
        if masking:
          u[k][p].reshape(-1)[sent] = 0
      update[k] = total
    for k, w in params.items():
      if weight_decay and w.ndim > 1:
        pull = weight_decay * np.float64(w)
        d[k] = momentum * (d[k] + pull) if nesterov else momentum * d[k] + pull
        update[k] = update[k] + d[k] + (pull if nesterov else 0)
    updates.append(update)
  return updates, u, v


OPTIONS = {
  'plain': {},
  'nesterov': {'nesterov': True},
  'no_masking': {'masking': False},
  'clipped': {'clip_norm': 0.7},
  'decay': {'weight_decay': 0.1},
  'nesterov_decay': {'weight_decay': 0.1, 'nesterov': True},
  'everything': {'nesterov': True, 'clip_norm': 0.7, 'weight_decay': 0.01},
}


@pytest.mark.parametrize('name', sorted(OPTIONS))
@pytest.mark.parametrize('dense', [(), ('bias',)])
def test_is_what_section_3_says(name, dense):
  options = {'density': 0.05, **OPTIONS[name]}
  rules = [('bias', True), ('.*', False)] if dense else ()
  grads = gradients(6)
  means, state, _ = run(grads, dense_rules=rules, **options)
  expected, u, v = transcription(grads, dense=dense, **options)
  for mean, update in zip(means, expected, strict=True):
    for k in SHAPES:
      np.testing.assert_allclose(mean[k], update[k], rtol=2e-5, atol=2e-6)
  kept = state.sparse.kept
  for k in SHAPES:
    # Ours are means: local gradients are not divided by N.
    scale = 1 if k in dense else P
    np.testing.assert_allclose(
      kept.momentum[k], scale * u[k], rtol=1e-4, atol=1e-5
    )
    if k not in dense:
      np.testing.assert_allclose(
        kept.residual[k], P * v[k], rtol=1e-4, atol=1e-5
      )


def momentum_sgd(grads, momentum, nesterov):
  u = {k: np.zeros(s) for k, s in SHAPES.items()}
  for g in grads:
    mean = {k: np.float64(x).mean(0) for k, x in g.items()}
    if nesterov:
      u = {k: momentum * (u[k] + mean[k]) for k in u}
      yield {k: u[k] + mean[k] for k in u}
    else:
      u = {k: momentum * u[k] + mean[k] for k in u}
      yield u


@pytest.mark.parametrize('nesterov', [False, True])
@pytest.mark.parametrize('density', [1, 0.9999])
def test_everything_sent_is_momentum_sgd(density, nesterov):
  # Just below one all elements are selected, by the sparse path.
  grads = gradients(5)
  means, _, _ = run(grads, density=density, masking=False, nesterov=nesterov)
  expected = momentum_sgd(grads, 0.9, nesterov)
  for mean, update in zip(means, expected, strict=True):
    for k in SHAPES:
      np.testing.assert_allclose(mean[k], update[k], rtol=2e-5, atol=1e-6)


@pytest.mark.parametrize('exchange', ['all_gather', 'owner_sharded'])
@pytest.mark.parametrize('values', ['float32', 'float16', 'float8', 'sign'])
def test_nothing_is_lost(exchange, values):
  # Without momentum: what was put in is what came out and what is left.
  params = make_params()
  reducer = deep_gradient_compression(
    'data', density=0.05, momentum=0.0, values=values, exchange=exchange,
    workers=P,
  )  # fmt: skip
  state = jax.tree.map(lambda x: jnp.stack([x] * P), reducer.init(params))
  step = jax.jit(jax.vmap(reducer.reduce, axis_name='data', out_axes=(None, 0)))
  flush = jax.jit(jax.vmap(reducer.flush, axis_name='data', out_axes=(None, 0)))
  put_in = {k: np.zeros(s) for k, s in SHAPES.items()}
  got = {k: np.zeros(s) for k, s in SHAPES.items()}
  for g in gradients(4, seed=3):
    mean, state = step(g, state)
    for k in SHAPES:
      put_in[k] += np.float64(g[k]).mean(0)
      got[k] += mean[k]
  left, empty = flush(state, jax.tree.map(lambda x: jnp.stack([x] * P), params))
  for k in SHAPES:
    np.testing.assert_allclose(got[k] + left[k], put_in[k], atol=3e-6)
  for leaf in jax.tree.leaves((empty.sparse.kept.residual, empty.sparse.owned)):
    assert not np.asarray(leaf).any()


@pytest.mark.slow
def test_workers_see_gradients_of_their_own():
  # Already summed gradients, which `check_vma=True` gives, would be equal.
  seen = []

  def loss(w, x):
    return jnp.sum(w * x)

  reducer = deep_gradient_compression('data', density=0.5)

  def step(w, x, state):
    grads = jax.grad(loss)(w, x)
    mean, _ = reducer.reduce(grads, state, w)
    return grads, mean

  mesh = jax.make_mesh(
    (P,), ('data',), axis_types=(jax.sharding.AxisType.Auto,)
  )
  spec = jax.sharding.PartitionSpec
  x = jnp.arange(1.0, P + 1).reshape(P, 1) * jnp.ones((P, 3))
  for check in (False, True):
    mapped = jax.shard_map(
      lambda w, x: jax.grad(loss)(w, x[0])[None],
      mesh=mesh,
      in_specs=(spec(), spec('data')),
      out_specs=spec('data'),
      check_vma=check,
    )
    seen.append(np.asarray(mapped(jnp.ones(3), x))[:, 0])
  np.testing.assert_array_equal(seen[0], [1, 2, 3, 4])
  assert (seen[1] == 10).all()
  state = jax.tree.map(
    lambda leaf: jnp.stack([leaf] * P), reducer.init(jnp.ones(3))
  )
  grads, _ = jax.vmap(step, in_axes=(None, 0, 0), axis_name='data')(
    jnp.ones(3), x, state
  )
  np.testing.assert_array_equal(grads, x)


@pytest.mark.parametrize('exchange', ['all_gather', 'owner_sharded'])
@pytest.mark.parametrize('values', ['float32', 'float16', 'float8', 'sign'])
@pytest.mark.parametrize('bad', [np.nan, np.inf])
def test_gradient_that_is_not_finite_is_seen_by_all(exchange, values, bad):
  reducer = deep_gradient_compression(
    'data', density=0.1, values=values, exchange=exchange, workers=P
  )
  params = {'w': jnp.ones(50)}
  state = jax.tree.map(lambda x: jnp.stack([x] * P), reducer.init(params))
  grads = {'w': jnp.ones((P, 50)).at[2, 17].set(bad)}
  mean, _ = jax.jit(jax.vmap(reducer.reduce, axis_name='data'))(grads, state)
  assert not np.isfinite(np.asarray(mean['w'])).all(axis=1).any()


@pytest.mark.parametrize(
  ('arguments', 'message'),
  [
    ({'density': 0.0}, r'density=0\.0 is not in \(0, 1\]'),
    ({'density': 1.5}, r'density=1\.5 is not in \(0, 1\]'),
    ({'momentum': 1.0}, r'momentum=1\.0 is not in \[0, 1\)'),
    ({'clip_norm': -1.0}, r'clip_norm=-1\.0 is negative'),
    ({'weight_decay': -1.0}, r'weight_decay=-1\.0 is negative'),
    ({'values': 'float9'}, "values='float9' is unknown"),
    ({'exchange': 'all_gathr'}, "Did you mean 'all_gather'"),
    ({'exchange': 'owner_sharded'}, 'workers=0'),
    ({'scope': 'leaf'}, "scope='leaf' is unknown"),
    ({'forward': 0.0, 'exchange': 'all_gather'}, r'forward=0\.0'),
  ],
)
def test_bad_arguments(arguments, message):
  with pytest.raises(ValueError, match=message):
    deep_gradient_compression('data', **arguments)


def test_bad_use():
  reducer = deep_gradient_compression('data')
  with pytest.raises(ValueError, match="axis_name='data' is not bound"):
    reducer.reduce({'w': jnp.ones(3)}, reducer.init({'w': jnp.ones(3)}))
  alone = deep_gradient_compression(None)
  grads = {'w': jnp.ones(3, jnp.int32)}
  with pytest.raises(ValueError, match='grads: w is int32'):
    alone.reduce(grads, alone.init(grads))
  decay = deep_gradient_compression(None, weight_decay=0.1)
  params = {'w': jnp.ones((3, 3))}
  with pytest.raises(ValueError, match='params=None'):
    decay.reduce(params, decay.init(params))
  owners = deep_gradient_compression(
    'data', exchange='owner_sharded', workers=3
  )
  state = jax.tree.map(lambda x: jnp.stack([x] * P), owners.init(jnp.ones(9)))
  with pytest.raises(ValueError, match="workers=3, but axis 'data' has 4"):
    jax.vmap(owners.reduce, axis_name='data')(jnp.ones((P, 9)), state)


def test_warm_up_goes_on_with_one_state():
  # Dense, then sparser: the state of one stage fits the next.
  state, made = None, functools.partial(run, params=make_params())
  for density in (1, 0.25, 0.05):
    means, state, _ = made(gradients(2), state=state, density=density)
    assert all(np.isfinite(m['kernel']).all() for m in means)
