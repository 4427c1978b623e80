"""PowerSGD against a transcription of algorithms 1 and 2 of Vogels et al."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bandwidth.collectives import power_sgd
from bandwidth.collectives.power_sgd import orthogonalize
from bandwidth.collectives.traffic import accounting

P = 4
SHAPES = {
  'bias': (7,),
  'conv': (3, 3, 4, 6),
  'dense': (30, 20),
  'small': (2, 2),
}


def gradients(steps=1, workers=P, seed=0):
  rng = np.random.default_rng(seed)
  return [
    {k: np.float32(rng.normal(size=(workers, *s))) for k, s in SHAPES.items()}
    for _ in range(steps)
  ]


def make_params():
  return {k: jnp.ones(s) for k, s in SHAPES.items()}


def make_state(reducer, params, workers=P):
  return jax.tree.map(
    lambda leaf: jnp.stack([leaf] * workers), reducer.init(params)
  )


def mapped(fn):
  return jax.jit(jax.vmap(fn, axis_name='data', out_axes=(None, 0)))


def run(reducer, grads, params=None):
  params = make_params() if params is None else params
  state = make_state(reducer, params)
  step, means, states = mapped(reducer.reduce), [], []
  for g in grads:
    mean, state = step(g, state)
    means.append(jax.device_get(mean))
    states.append(jax.device_get(state))
  return means, states


def gram_schmidt(p):
  for i in range(p.shape[1]):
    for j in range(i):
      p[:, i] -= (p[:, i] @ p[:, j]) * p[:, j]
    p[:, i] /= np.linalg.norm(p[:, i])
  return p


def transcription(grads, q):
  """Yields the decoded mean and the errors of one matrix, float64."""
  q, e = np.float64(q), 0
  for g in grads:
    m = np.float64(g).reshape(P, -1, g.shape[-1]) + e
    p = gram_schmidt(np.mean([x @ q for x in m], axis=0))
    q = np.mean([x.T @ p for x in m], axis=0)
    e = m - p @ q.T
    yield p @ q.T, e


@pytest.mark.parametrize('rank', [1, 2, 4])
def test_steps_are_those_of_the_algorithms(rank):
  grads = gradients(4)
  reducer = power_sgd('data', rank=rank, seed=3)
  first = reducer.init(make_params())
  means, states = run(reducer, grads)
  for i, name in enumerate(['conv', 'dense']):
    expected = transcription([g[name] for g in grads], first.q[i])
    for mean, state, (m, e) in zip(means, states, expected, strict=True):
      np.testing.assert_allclose(
        mean[name].reshape(m.shape), m, rtol=1e-3, atol=1e-4
      )
      np.testing.assert_allclose(state.residual[i], e, rtol=1e-3, atol=1e-4)
  for mean, g in zip(means, grads, strict=True):
    for name in ('bias', 'small'):
      np.testing.assert_allclose(mean[name], g[name].mean(0), atol=1e-6)


def test_nothing_is_lost():
  grads = gradients(5)
  means, states = run(power_sgd('data', rank=2), grads)
  for i, name in enumerate(['conv', 'dense']):
    sent = P * np.sum([m[name] for m in means], axis=0, dtype=np.float64)
    waits = states[-1].residual[i].sum(0, dtype=np.float64)
    given = np.sum([g[name] for g in grads], axis=(0, 1), dtype=np.float64)
    np.testing.assert_allclose(
      sent + waits.reshape(sent.shape), given, atol=1e-4
    )


def test_a_mean_of_low_rank_is_exact():
  rng = np.random.default_rng(0)
  left, right = rng.normal(size=(30, 2)), rng.normal(size=(2, 20))
  low = np.float32(np.stack([left @ right] * P))
  params = jnp.ones((30, 20))
  means, _ = run(power_sgd('data', rank=2), [low], params)
  np.testing.assert_allclose(means[0], low[0], rtol=1e-3, atol=1e-4)


def test_a_step_of_zeros_or_of_low_rank_does_not_end_it():
  params = jnp.ones((30, 20))
  (full,) = (g['dense'] for g in gradients())
  rank_one = np.ones_like(full)
  zeros = np.zeros_like(full)
  means, states = run(
    power_sgd('data', rank=2), [zeros, rank_one, zeros, full], params
  )
  np.testing.assert_array_equal(means[0], 0)
  np.testing.assert_allclose(means[1], rank_one[0], rtol=1e-5)
  assert np.linalg.matrix_rank(means[3]) == 2
  for state in states:
    assert (np.abs(state.q[0]).max(axis=1) > 0).all()


def test_orthogonalize():
  x = np.float32(np.random.default_rng(1).normal(size=(50, 4)))
  x *= np.float32([1e-25, 1, 1e20, 3])
  out = np.asarray(jax.jit(orthogonalize)(x))
  np.testing.assert_allclose(out.T @ out, np.eye(4), atol=1e-5)
  expected = gram_schmidt(np.float64(x))
  np.testing.assert_allclose(out, expected, atol=1e-5)
  np.testing.assert_array_equal(orthogonalize(jnp.zeros((3, 2))), 0)
  broken = orthogonalize(jnp.array([[jnp.nan, 1.0], [0.0, 1.0]]))
  assert np.isnan(broken).all()


def test_flush_averages_what_waits():
  reducer = power_sgd('data', rank=1)
  _, states = run(reducer, gradients(2))
  mean, state = mapped(lambda s: reducer.flush(s, make_params()))(states[-1])
  for i, name in enumerate(['conv', 'dense']):
    waits = states[-1].residual[i].mean(0)
    np.testing.assert_allclose(
      mean[name].reshape(waits.shape), waits, atol=1e-6
    )
    np.testing.assert_array_equal(state.residual[i], 0)
    np.testing.assert_array_equal(state.q[i], states[-1].q[i])
  assert not mean['bias'].any()
  assert not mean['small'].any()


@pytest.mark.parametrize('workers', [4, 8])
def test_compiled_bytes_are_the_predicted_ones(workers):
  reducer = power_sgd('data', rank=2)
  grads = gradients(1, workers)[0]
  step = jax.pmap(reducer.reduce, axis_name='data')
  state = make_state(reducer, make_params(), workers)
  compiled = step.lower(grads, state).compile()
  sent = accounting.wire_bytes(compiled)
  assert sent == reducer.wire_bytes(make_params(), workers=workers)
  floats = 7 + 4 + 2 * (36 + 6) + 2 * (30 + 20)
  assert sent == 2 * (workers - 1) * 4 * floats // workers
  # Two messages, whatever the number of leaves.
  assert sum(row.count for row in accounting.wire_table(compiled)) == 2


def test_two_axes_are_as_one():
  (grads,) = gradients()
  reducer = power_sgd(('slow', 'fast'), rank=2)
  state = make_state(reducer, make_params())
  pairs = jax.tree.map(lambda x: x.reshape(2, 2, *x.shape[1:]), (grads, state))
  inner = jax.vmap(reducer.reduce, axis_name='fast', out_axes=(None, 0))
  outer = jax.vmap(inner, axis_name='slow', out_axes=(None, 0))
  mean, _ = jax.jit(outer)(*pairs)
  (flat,), _ = run(power_sgd('data', rank=2), [grads])
  jax.tree.map(
    functools.partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-5),
    jax.device_get(mean),
    flat,
  )


@pytest.mark.slow
@pytest.mark.compiler
def test_large_matrices_have_the_same_bits_under_pmap_and_vmap():
  shapes = [(3, 3, 32, 16), (50,), (512, 129)]
  rng = np.random.default_rng(7)
  steps = [
    [np.float32(rng.normal(size=(P, *s))) for s in shapes] for _ in range(2)
  ]
  reducer, out = power_sgd('data', rank=3), {}
  ways = {
    'vmap': jax.jit(jax.vmap(reducer.reduce, axis_name='data')),
    'pmap': jax.pmap(reducer.reduce, axis_name='data'),
  }
  for name, step in ways.items():
    state = make_state(reducer, [jnp.zeros(s) for s in shapes])
    _, state = step(steps[0], state)
    out[name] = jax.device_get(step(steps[1], state))
  jax.tree.map(np.testing.assert_array_equal, out['vmap'], out['pmap'])


@pytest.mark.parametrize('name', ['bias', 'dense'])
def test_what_is_not_finite_stays_so(name):
  reducer = power_sgd('data', rank=2)
  step, state = mapped(reducer.reduce), make_state(reducer, make_params())
  for bad in (np.nan, np.inf, -np.inf):
    (grads,) = gradients()
    grads[name].reshape(P, -1)[2, 3] = bad
    mean, _ = step(grads, state)
    assert not np.isfinite(mean[name].reshape(-1)[3])
    assert np.isfinite(mean['small']).all()


def test_bad_arguments():
  with pytest.raises(ValueError, match='rank=0'):
    power_sgd('data', rank=0)
  reducer = power_sgd(None)
  with pytest.raises(ValueError, match='is int32'):
    reducer.reduce(jnp.ones(2, jnp.int32), reducer.init(jnp.ones(2)))
