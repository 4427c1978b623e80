"""Reducers whose workers all send the same places."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bandwidth.collectives import no_memory, random_k, shared_mask
from bandwidth.collectives.aligned import one_of_each_stratum

P = 4
N = 300


def run(reducer, grads):
  state = jax.tree.map(lambda x: jnp.stack([x] * P), reducer.init(jnp.zeros(N)))
  step = jax.jit(jax.vmap(reducer.reduce, axis_name='data', out_axes=(None, 0)))
  means = []
  for g in grads:
    mean, state = step(jnp.asarray(g), state)
    means.append(np.asarray(mean))
  return means, state


def gradients(steps):
  rng = np.random.default_rng(0)
  return [rng.normal(size=(P, N)).astype(np.float32) for _ in range(steps)]


def test_shared_mask_takes_turns():
  grads = gradients(6)
  means, state = run(shared_mask('data', density=0.1), grads)
  v = np.zeros((P, N))
  for t, (g, mean) in enumerate(zip(grads, means, strict=True)):
    v = v + g
    top = np.argsort(-np.abs(v[t % P]), kind='stable')[:30]
    expected = np.zeros(N)
    expected[top] = v[:, top].mean(0)
    v[:, top] = 0
    np.testing.assert_allclose(mean, expected, rtol=1e-5, atol=1e-6)
  np.testing.assert_allclose(state.kept.residual, v, atol=1e-5)


def test_random_k_waits_for_its_turn():
  grads = gradients(5)
  means, state = run(random_k('data', density=0.1), grads)
  put_in = sum(np.float64(g).mean(0) for g in grads)
  left = np.asarray(state.kept.residual, np.float64).mean(0)
  np.testing.assert_allclose(sum(means) + left, put_in, atol=1e-5)
  for mean in means:
    assert np.count_nonzero(mean) == 30


def test_random_k_without_memory_is_unbiased():
  g = gradients(1)[0]
  means, _ = run(random_k('data', density=0.3, memory=no_memory()), [g] * 2000)
  error = np.mean(means, axis=0) - g.mean(0)
  # Standard error: sqrt((1/0.3 - 1) / 2000) of the element.
  assert (np.abs(error) < 6 * 0.035 * np.abs(g.mean(0)) + 1e-6).all()


@pytest.mark.parametrize(('size', 'count'), [(10, 3), (300, 300), (7, 1)])
def test_strata_are_covered(size, count):
  keys = jax.random.split(jax.random.key(0), 200)
  draw = jax.jit(jax.vmap(lambda key: one_of_each_stratum(key, size, count)))
  found = np.asarray(draw(keys))
  assert (np.diff(found, axis=1) > 0).all()
  assert set(found.ravel()) == set(range(size))


def test_bad_arguments():
  for make in (random_k, shared_mask):
    with pytest.raises(ValueError, match=r'density=2 is not in'):
      make('data', density=2)
    with pytest.raises(ValueError, match="scope='leaf' is unknown"):
      make('data', density=0.1, scope='leaf')
    with pytest.raises(ValueError, match='not for the wire'):
      make('data', density=0.1, dtype='float64')
