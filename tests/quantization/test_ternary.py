import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from bandwidth.quantization.ternary import (
  mean_scales,
  regions,
  ternarize,
  ternary_params,
  unit_scales,
)

RULES = [('.*/bias', None), ('.*', 0.5)]


def paper(latent, positive, negative, threshold, grad):
  """Equations 6 to 9, one weight at a time."""
  delta = threshold * max(abs(w) for w in latent)
  value, to_latent, to_positive, to_negative = [], [], 0.0, 0.0
  for w, g in zip(latent, grad, strict=True):
    if w > delta:
      value.append(positive)
      to_latent.append(positive * g)
      to_positive += g
    elif w < -delta:
      value.append(-negative)
      to_latent.append(negative * g)
      to_negative -= g
    else:
      value.append(0.0)
      to_latent.append(g)
  return value, to_latent, to_positive, to_negative


@pytest.mark.parametrize('threshold', [0.0, 0.05, 0.5])
def test_values_and_gradients_are_the_papers(threshold):
  rng = np.random.default_rng(0)
  latent = rng.standard_normal(50).astype(np.float32)
  grad = rng.standard_normal(50).astype(np.float32)
  positive, negative = jnp.float32(0.7), jnp.float32(1.3)
  value, pullback = jax.vjp(
    lambda *args: ternarize(*args, threshold=threshold),
    jnp.asarray(latent),
    positive,
    negative,
  )
  wanted = paper(latent, 0.7, 1.3, threshold, grad)
  for ours, theirs in zip(
    (value, *pullback(jnp.asarray(grad))), wanted, strict=True
  ):
    np.testing.assert_allclose(ours, theirs, rtol=1e-5)


def test_three_weights_by_hand():
  # delta is 0.1: the second weight lies on it, and so is zero.
  latent = jnp.array([2.0, 0.1, -0.3])
  value, pullback = jax.vjp(ternarize, latent, jnp.float32(3), jnp.float32(5))
  np.testing.assert_array_equal(value, [3, 0, -5])
  to_latent, to_positive, to_negative = pullback(jnp.array([1.0, 10.0, 100.0]))
  np.testing.assert_array_equal(to_latent, [3, 10, 500])
  assert (to_positive, to_negative) == (1, -100)


def test_scale_gradients_are_true_derivatives():
  latent = jax.random.normal(jax.random.key(0), (40,))

  def loss(positive, negative):
    return jnp.sum(jnp.sin(3 * ternarize(latent, positive, negative)))

  check_grads(loss, (0.4, 0.9), order=1, modes='rev', atol=0.05, rtol=0.05)


def test_mean_scales_are_least_squares():
  latent = jax.random.normal(jax.random.key(1), (300,))
  scales = mean_scales(latent, threshold=0.2)

  def error(positive, negative):
    value = ternarize(latent, positive, negative, threshold=0.2)
    return float(jnp.sum((value - latent) ** 2))

  best = error(*scales)
  for change in (-0.01, 0.01):
    assert error(scales.positive + change, scales.negative) > best
    assert error(scales.positive, scales.negative + change) > best


def test_one_sided_weights_have_finite_scales():
  scales = mean_scales(jnp.ones(3), threshold=0.05)
  assert (float(scales.positive), float(scales.negative)) == (1, 1)


def test_zero_and_empty():
  for latent in (jnp.zeros(3), jnp.zeros((0, 2)), jnp.zeros(())):
    assert not np.any(regions(latent, threshold=0.05))


@pytest.mark.parametrize('dtype', [jnp.float32, jnp.bfloat16])
def test_export_decodes_to_the_network(dtype):
  key = jax.random.key(2)
  params = {
    'a': {'bias': jnp.ones(3, dtype), 'kernel': jax.random.normal(key, (9, 3))},
    'b': jax.random.normal(key, (4,)),
  }
  params = jax.tree.map(lambda x: x.astype(dtype), params)
  ternary = ternary_params(RULES, scales=unit_scales)
  variables = ternary.init(params)
  scale = variables.scales['b']._replace(positive=jnp.float32(0.3))
  variables.scales['b'] = scale
  decoded = ternary.decode(variables)
  books = ternary.export(variables)
  assert set(books) == {'a/kernel', 'b'}
  for name, leaf in [('a/kernel', decoded['a']['kernel']), ('b', decoded['b'])]:
    assert leaf.dtype == dtype
    assert len(np.unique(leaf)) == 3
    np.testing.assert_array_equal(
      books[name].decode(), np.asarray(leaf, np.float32)
    )


@pytest.mark.parametrize('threshold', [-0.1, 1.0, float('nan')])
def test_bad_threshold(threshold):
  with pytest.raises(ValueError, match=f'threshold={threshold}'):
    ternary_params([('.*', threshold)])
  with pytest.raises(ValueError, match=f'threshold={threshold}'):
    ternarize(jnp.ones(2), jnp.float32(1), jnp.float32(1), threshold=threshold)
