"""Depthwise convolution by shifts against XLA's grouped one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax import lax

from experiments.models.depthwise import (
  convolve_by_shifts,
  convolve_depthwise,
)


def grouped(x, kernel, strides, padding):
  return lax.conv_general_dilated(
    x,
    kernel,
    strides,
    padding,
    dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
    feature_group_count=x.shape[-1],
  )


@pytest.mark.parametrize('padding', ['SAME', 'VALID', ((2, 0), (1, 3))])
@pytest.mark.parametrize(
  ('shape', 'size', 'strides'),
  [
    ((2, 8, 8, 3), (3, 3), (1, 1)),
    ((2, 9, 7, 3), (3, 3), (2, 2)),
    ((2, 8, 8, 2), (5, 5), (2, 1)),
    ((1, 5, 6, 1), (1, 3), (3, 2)),
  ],
)
def test_results_and_gradients(shape, size, strides, padding):
  rng = np.random.default_rng(0)
  x = jnp.asarray(rng.normal(size=shape), jnp.float32)
  kernel = jnp.asarray(rng.normal(size=(*size, 1, shape[-1])), jnp.float32)
  options = {
    'dimension_numbers': ('NHWC', 'HWIO', 'NHWC'),
    'feature_group_count': shape[-1],
  }
  ways = (
    lambda *a: convolve_depthwise(*a, strides, padding, **options),
    lambda *a: grouped(*a, strides, padding),
  )
  like = jax.eval_shape(ways[1], x, kernel)
  gradient = jnp.asarray(rng.normal(size=like.shape), jnp.float32)

  # One program each: operation by operation takes ten times as long.
  def with_gradients(way):
    y, pull = jax.vjp(way, x, kernel)
    return y, *pull(gradient)

  found, wanted = (jax.jit(with_gradients, static_argnums=0)(w) for w in ways)
  for own, other in zip(found, wanted, strict=True):
    np.testing.assert_allclose(own, other, rtol=1e-5, atol=1e-5)


def test_sum_by_hand():
  x = jnp.arange(1.0, 5.0).reshape(1, 1, 4, 1)
  kernel = jnp.array([1.0, 10.0, 100.0]).reshape(1, 3, 1, 1)
  found = convolve_by_shifts(x, kernel, (1, 1), ((0, 0), (1, 1)))
  assert found.ravel().tolist() == [210, 321, 432, 43]


def test_one_program_for_each_platform():
  layer = nn.Conv(
    4, (3, 3), feature_group_count=4, conv_general_dilated=convolve_depthwise
  )
  x = jnp.ones((1, 5, 5, 4))
  variables = layer.init(jax.random.key(0), x)
  lowered = jax.jit(layer.apply).trace(variables, x)
  assert (
    'convolution' not in lowered.lower(lowering_platforms=('cpu',)).as_text()
  )
  assert 'convolution' in lowered.lower(lowering_platforms=('tpu',)).as_text()


def test_others_are_left_to_xla():
  x = jnp.ones((1, 6, 6, 2))
  dilated = nn.Conv(
    2,
    (3, 3),
    kernel_dilation=2,
    feature_group_count=2,
    conv_general_dilated=convolve_depthwise,
  )
  variables = dilated.init(jax.random.key(0), x)
  text = jax.jit(dilated.apply).lower(variables, x).as_text()
  assert 'convolution' in text
