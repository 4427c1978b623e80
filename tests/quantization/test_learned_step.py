import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bandwidth.quantization.learned_step import (
  initial_step,
  learned_step_params,
  quantize_learned,
)
from bandwidth.quantization.uniform import Grid


def paper(values, step, low, high, grad, elements):
  """Equations 1 to 5 and section 2.2, one value at a time."""
  out, to_values, to_step = [], [], 0.0
  for v, g in zip(values, grad, strict=True):
    ratio = v / step
    out.append(step * np.rint(min(max(ratio, low), high)))
    inside = low < ratio < high
    to_values.append(g if inside else 0.0)
    if inside:
      to_step += g * (np.rint(ratio) - ratio)
    else:
      to_step += g * (low if ratio <= low else high)
  return out, to_values, to_step / math.sqrt(elements * high)


@pytest.mark.parametrize('signed', [True, False])
@pytest.mark.parametrize('bits', [2, 3, 8])
def test_values_and_gradients_are_the_papers(signed, bits):
  rng = np.random.default_rng(bits)
  values = rng.standard_normal(60).astype(np.float32)
  grad = rng.standard_normal(60).astype(np.float32)
  grid = Grid(bits=bits, signed=signed)
  value, pullback = jax.vjp(
    lambda v, s: quantize_learned(v, s, grid=grid),
    jnp.asarray(values),
    jnp.float32(0.31),
  )
  wanted = paper(values, 0.31, grid.low, grid.high, grad, 60)
  for ours, theirs in zip(
    (value, *pullback(jnp.asarray(grad))), wanted, strict=True
  ):
    np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4)


def test_three_weights_by_hand():
  # Q_n is 2, Q_p is 1. In steps: 0.6, -2.5, 1.0, the last on the edge.
  grid = Grid(bits=2)
  values = jnp.array([0.3, -1.25, 0.5])
  value, pullback = jax.vjp(
    lambda v, s: quantize_learned(v, s, grid=grid), values, jnp.float32(0.5)
  )
  np.testing.assert_array_equal(value, [0.5, -1, 0.5])
  to_values, to_step = pullback(jnp.ones(3))
  np.testing.assert_array_equal(to_values, [1, 0, 0])
  assert float(to_step) == pytest.approx((0.4 - 2 + 1) / math.sqrt(3))


def test_channels_are_alone():
  values = jax.random.normal(jax.random.key(0), (6, 3, 2))
  steps = jnp.array([0.1, 0.2, 0.4])
  grid = Grid(bits=3, axis=1)

  def both(grid):
    return jax.jit(
      jax.value_and_grad(
        lambda v, s: jnp.sum(quantize_learned(v, s, grid=grid) ** 2), (0, 1)
      )
    )

  value, (to_values, to_steps) = both(grid)(values, steps)
  alone = both(Grid(bits=3))
  total = 0
  for i in range(3):
    one, (grad, to_step) = alone(values[:, i], steps[i])
    np.testing.assert_allclose(to_values[:, i], grad)
    np.testing.assert_allclose(to_steps[i], to_step, rtol=1e-5)
    total += one
  assert float(value) == pytest.approx(float(total), rel=1e-5)


def test_features_scale_the_step_of_activations():
  values = jnp.ones((10, 4)) * 0.3
  grid = Grid(bits=2, signed=False)

  def gradient(elements):
    return jax.grad(
      lambda s: jnp.sum(
        quantize_learned(values, s, grid=grid, elements=elements)
      )
    )(jnp.float32(0.4))

  ratio = gradient(None) / gradient(4)
  assert float(ratio) == pytest.approx(math.sqrt(4 / 40))


def test_initial_step():
  values = np.random.default_rng(0).standard_normal((5, 3)).astype(np.float32)
  ours = initial_step(jnp.asarray(values), Grid(bits=4, axis=1))
  np.testing.assert_allclose(
    ours, 2 * np.abs(values).mean(0) / math.sqrt(7), rtol=1e-6
  )
  assert float(initial_step(jnp.zeros(3), Grid(bits=4))) == 1
  assert float(initial_step(jnp.zeros((0,)), Grid(bits=4))) == 1


@pytest.mark.parametrize('dtype', [jnp.float32, jnp.bfloat16])
def test_export_decodes_to_the_network(dtype):
  key = jax.random.key(1)
  params = {'a': jax.random.normal(key, (9, 4), dtype), 'b': jnp.ones(3, dtype)}
  lsq = learned_step_params([('a', Grid(bits=3, axis=0)), ('b', None)])
  variables = lsq.init(params)
  decoded, exported = lsq.decode(variables), lsq.export(variables)
  assert set(exported) == {'a'}
  ours = jnp.asarray(exported['a'].decode()).astype(dtype)
  np.testing.assert_array_equal(ours, decoded['a'])


def test_training_shrinks_the_error():
  values = jax.random.normal(jax.random.key(2), (500,))
  grid = Grid(bits=2)

  def loss(step):
    return jnp.mean((quantize_learned(values, step, grid=grid) - values) ** 2)

  gradient = jax.jit(jax.grad(loss))
  step = jnp.float32(0.2)
  start = loss(step)
  for _ in range(100):
    step -= 5.0 * gradient(step)
  assert loss(step) < 0.5 * start


def test_bad_elements():
  with pytest.raises(ValueError, match='elements=0'):
    quantize_learned(jnp.ones(2), jnp.float32(1), grid=Grid(bits=2), elements=0)
