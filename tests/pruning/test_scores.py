import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bandwidth import pruning

RNG = np.random.default_rng(0)
NET = {'k': RNG.normal(size=(3, 4)).astype(np.float32), 'b': np.float32(2)}
GRADS = jax.tree.map(lambda x: np.float32(0.5) * x - 1, NET)


def test_magnitude_and_gradient_equal_numpy():
  np.testing.assert_array_equal(pruning.magnitude(NET)['k'], np.abs(NET['k']))
  taylor = pruning.gradient(NET, grads=GRADS)
  np.testing.assert_allclose(
    taylor['k'], np.abs(NET['k'] * GRADS['k']), rtol=1e-6
  )
  growth = pruning.gradient_magnitude(NET, grads=GRADS)
  np.testing.assert_array_equal(growth['k'], np.abs(GRADS['k']))


def test_gradient_score_does_not_underflow_in_half_precision():
  small = jnp.full((2,), 1e-30, jnp.bfloat16)
  score = pruning.gradient(small, grads=jnp.full((2,), 1e-5, jnp.bfloat16))
  assert score.dtype == jnp.float32
  assert float(score[0]) > 0


def test_gradient_predicts_change_of_a_linear_loss():
  w = jnp.array([[1.0, -2.0], [0.5, 3.0]])
  x = jnp.array([[0.3, 4.0], [-1.0, 0.1]])
  grads = jax.grad(lambda w: jnp.sum(w * x))(w)
  score = pruning.gradient(w, grads=grads)
  for i in range(2):
    for j in range(2):
      change = jnp.sum(w * x) - jnp.sum(w.at[i, j].set(0) * x)
      np.testing.assert_allclose(score[i, j], abs(change), rtol=1e-5)


def test_random_is_fixed_by_its_key_and_differs_by_leaf():
  net = {'a': jnp.zeros((50,)), 'b': jnp.zeros((50,))}
  one = pruning.random(net, key=jax.random.key(1))
  same = pruning.random(net, key=jax.random.key(1))
  other = pruning.random(net, key=jax.random.key(2))
  np.testing.assert_array_equal(one['a'], same['a'])
  assert not np.array_equal(one['a'], other['a'])
  assert not np.array_equal(one['a'], one['b'])


def test_missing_inputs_are_named():
  with pytest.raises(ValueError, match='key=None'):
    pruning.random(NET)
  with pytest.raises(ValueError, match=r"grads=None.*'gradient'"):
    pruning.gradient(NET)
  with pytest.raises(ValueError, match='grads=None'):
    pruning.gradient_magnitude(NET)
