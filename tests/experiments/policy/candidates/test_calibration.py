import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bandwidth import tree
from bandwidth.search.decisions.options import Moments, to_matrix
from experiments.models.lenet import LeNet5
from experiments.policy.candidates.calibration import input_moments

ALL = 10**6


class Convolutions(nn.Module):
  """Every kind of padding and stride, then a dense layer on what is flat."""

  @nn.compact
  def __call__(self, images):
    x = nn.relu(nn.Conv(3, (3, 3), name='same')(images))
    x = nn.Conv(4, (3, 2), padding='VALID', name='valid')(x)
    x = nn.Conv(3, (3, 3), strides=(2, 2), name='strided')(x)
    x = nn.Conv(2, (2, 3), 2, padding=((1, 0), (2, 1)), name='explicit')(x)
    x = nn.Conv(3, (1, 1), padding=1, name='number')(x)
    x = nn.Dense(5, name='hidden')(x.reshape(x.shape[0], -1))
    return nn.Dense(2, name='last')(x)


# Name: kernel, strides, zeros before and after each axis.
GEOMETRY = {
  'same': ((3, 3), (1, 1), ((1, 1), (1, 1))),
  'valid': ((3, 2), (1, 1), ((0, 0), (0, 0))),
  # Of 5x6 inputs: an even number of columns needs zeros on one side only.
  'strided': ((3, 3), (2, 2), ((1, 1), (0, 1))),
  'explicit': ((2, 3), (2, 2), ((1, 0), (2, 1))),
  'number': ((1, 1), (1, 1), ((1, 1), (1, 1))),
}


def draw(model, shape, seed=0):
  """Weights of a network and images, B of N."""
  rng = np.random.default_rng(seed)
  images = rng.normal(size=shape).astype('f4')
  abstract = jax.eval_shape(model.init, jax.random.key(0), images[0])
  variables = jax.tree.map(
    lambda leaf: rng.normal(size=leaf.shape).astype('f4'), abstract
  )
  return variables, images


def inputs_of(model, variables, images):
  """What each layer reads, from what all layers return."""
  seen = {}

  def watch(call, args, kwargs, context):
    result = call(*args, **kwargs)
    seen['/'.join(context.module.path)] = (
      np.asarray(args[0]),
      np.asarray(result),
    )
    return result

  with nn.intercept_methods(watch):
    model.apply(variables, images)
  return seen


def rows_in_numpy(x, kernel, strides, zeros):
  """A row for each result, its entries by channel, then by tap."""
  x = np.pad(x, ((0, 0), *zeros, (0, 0)))
  height = (x.shape[1] - kernel[0]) // strides[0] + 1
  width = (x.shape[2] - kernel[1]) // strides[1] + 1
  rows = []
  for example in x:
    for i in range(height):
      for j in range(width):
        top, left = i * strides[0], j * strides[1]
        patch = example[top : top + kernel[0], left : left + kernel[1]]
        rows.append(patch.transpose(2, 0, 1).ravel())
  return np.array(rows)


def check(found, rows):
  np.testing.assert_allclose(
    found.gram, rows.T @ rows / len(rows), rtol=1e-4, atol=1e-5
  )
  np.testing.assert_allclose(found.mean, rows.mean(0), rtol=1e-4, atol=1e-5)


@pytest.fixture(scope='module')
def convolutions():
  model = Convolutions()
  variables, images = draw(model, (2, 3, 7, 7, 2))
  layers = [*GEOMETRY, 'hidden', 'last']
  found = input_moments(
    model, variables, images, layers, points=ALL, key=jax.random.key(0)
  )
  return model, variables, images, found


@pytest.mark.parametrize('name', GEOMETRY)
def test_moments_of_convolutions(convolutions, name):
  model, variables, images, found = convolutions
  x, y = inputs_of(model, variables, images.reshape(-1, 7, 7, 2))[name]
  rows = rows_in_numpy(x, *GEOMETRY[name])
  # They are what the layer multiplies by its kernel's matrix.
  kernel = variables['params'][name]['kernel']
  made = rows @ np.asarray(to_matrix(jnp.asarray(kernel)))
  made = made.reshape(y.shape) + variables['params'][name]['bias']
  np.testing.assert_allclose(made, y, rtol=1e-4, atol=1e-3)
  check(found[name], rows)


@pytest.mark.parametrize('name', ['hidden', 'last'])
def test_moments_of_dense_layers(convolutions, name):
  model, variables, images, found = convolutions
  x, _ = inputs_of(model, variables, images.reshape(-1, 7, 7, 2))[name]
  check(found[name], x)


class One(nn.Module):
  layer: nn.Module

  def __call__(self, images):
    return self.layer(images)


def test_points_are_few_and_the_same_in_all_images():
  model = One(nn.Conv(2, (3, 3), padding='VALID'))
  variables, images = draw(model, (1, 1, 6, 6, 1))

  def of(images, points, seed):
    key = jax.random.key(seed)
    return input_moments(
      model, variables, images, ['layer'], points=points, key=key
    )['layer']

  # Three rows of nine numbers.
  assert np.linalg.matrix_rank(of(images, 3, 0).gram, tol=1e-5) == 3
  twice = np.concatenate([images, images], axis=1)
  first, second = (of(twice, 1, seed) for seed in (0, 1))
  for found in (first, second):
    np.testing.assert_allclose(
      found.gram, np.outer(found.mean, found.mean), rtol=1e-5, atol=1e-6
    )
  assert not np.allclose(first.mean, second.mean)


@pytest.mark.parametrize(
  ('layer', 'message'),
  [
    (
      nn.Conv(4, (3, 3), feature_group_count=4),
      'layer: feature_group_count=4 cannot be refitted',
    ),
    (nn.ConvTranspose(4, (3, 3)), 'layer: ConvTranspose cannot be refitted'),
    (nn.Conv(4, (3, 3), kernel_dilation=2), 'layer: .* without dilation'),
    (nn.Conv(4, (3, 3), padding='CIRCULAR'), "layer: padding='CIRCULAR'"),
  ],
)
def test_layers_that_cannot_be_refitted(layer, message):
  model = One(layer)
  variables, images = draw(model, (1, 2, 6, 6, 4))
  with pytest.raises(ValueError, match=message):
    input_moments(
      model, variables, images, ['layer'], points=2, key=jax.random.key(0)
    )


def test_a_layer_must_be_called(convolutions):
  model, variables, images, _ = convolutions
  with pytest.raises(ValueError, match='layers: Conv_7 is not called'):
    input_moments(
      model,
      variables,
      images,
      ['same', 'Conv_7'],
      points=1,
      key=jax.random.key(0),
    )


def test_lenet5_by_matrix_products():
  plain, matrix = (
    LeNet5(channels=(2, 3), features=4, convolution=how)
    for how in ('xla', 'matrix')
  )
  variables, images = draw(plain, (1, 2, 28, 28, 1))
  layers = ['Conv_1', 'Dense_0', 'Dense_1']
  found, expected = (
    input_moments(
      model, variables, images, layers, points=5, key=jax.random.key(1)
    )
    for model in (matrix, plain)
  )
  assert {name: m.mean.shape for name, m in found.items()} == {
    'Conv_1': (50,),
    'Dense_0': (48,),
    'Dense_1': (4,),
  }
  assert isinstance(found['Conv_1'], Moments)
  for name, leaf in tree.named_leaves(found):
    np.testing.assert_array_equal(leaf, dict(tree.named_leaves(expected))[name])
