"""Convolution as a matrix product against XLA's own, gradients included."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.models.lenet import LeNet5


@pytest.mark.parametrize('count', [pytest.param(32, marks=pytest.mark.slow), 5])
def test_network_and_gradients_are_those_of_ordinary_convolutions(count):
  images = jax.random.normal(jax.random.key(0), (count, 28, 28, 1))
  labels = jnp.arange(count) % 10

  def loss(convolution, params):
    logits = LeNet5(convolution=convolution).apply({'params': params}, images)
    return -jax.nn.log_softmax(logits)[jnp.arange(count), labels].mean()

  params = LeNet5().init(jax.random.key(1), images)['params']
  other = LeNet5(convolution='matrix').init(jax.random.key(1), images)['params']
  jax.tree.map(np.testing.assert_array_equal, params, other)
  found, wanted = (
    jax.jit(jax.value_and_grad(lambda p, c=c: loss(c, p)))(params)
    for c in ('matrix', 'xla')
  )
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6),
    found,
    wanted,
  )


def test_unknown_convolution_is_named():
  with pytest.raises(ValueError, match='fft'):
    LeNet5(convolution='fft')
