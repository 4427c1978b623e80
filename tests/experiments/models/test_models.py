import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bandwidth import tree
from experiments.models import make_language_model, make_model
from experiments.models.shapes import NETWORKS


def init(config, shape):
  model = make_model(config, num_classes=10)
  return model, jax.eval_shape(
    model.init, jax.random.key(0), jnp.zeros((1, *shape))
  )


def resnet_parameters(n):
  # He et al., 4.2: 3x3 convolutions without biases, batch norm, a classifier.
  conv = 9 * 3 * 16 + n * 2 * 9 * 16 * 16
  conv += 9 * 16 * 32 + (2 * n - 1) * 9 * 32 * 32
  conv += 9 * 32 * 64 + (2 * n - 1) * 9 * 64 * 64
  norm = 2 * (16 + 2 * n * (16 + 32 + 64))
  return conv + norm + 64 * 10 + 10


@pytest.mark.parametrize(
  ('name', 'shape', 'parameters'),
  [
    # Han et al., 1510.00149, count weights: 266K and 431K.
    ('lenet300', (28, 28, 1), 784 * 300 + 300 + 300 * 100 + 100 + 1010),
    ('lenet5', (28, 28, 1), 520 + 25_050 + 400_500 + 5_010),
    ('resnet20', (32, 32, 3), resnet_parameters(3)),
    ('resnet56', (32, 32, 3), resnet_parameters(9)),
    ('resnet110', (32, 32, 3), resnet_parameters(18)),
  ],
)
def test_parameter_counts(name, shape, parameters):
  _, variables = init({'name': name}, shape)
  assert tree.size(variables['params']) == parameters


def test_resnet50_has_the_shapes_of_the_byte_counts():
  model = make_model({'name': 'resnet50'}, num_classes=1000)
  images = jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32)
  variables = jax.eval_shape(model.init, jax.random.key(0), images)
  found = sorted(leaf.shape for leaf in jax.tree.leaves(variables['params']))
  assert found == sorted(NETWORKS['resnet50']().values())
  assert tree.size(variables['params']) == 25_557_032


@pytest.mark.parametrize(
  ('name', 'millions'),
  [('resnet20', 0.27), ('resnet56', 0.85), ('resnet110', 1.7)],
)
def test_published_parameter_counts(name, millions):
  _, variables = init({'name': name}, (32, 32, 3))
  assert tree.size(variables['params']) / 1e6 == pytest.approx(
    millions, abs=0.05
  )


@pytest.mark.parametrize(
  ('arguments', 'parameters'),
  [
    # Lin et al., 1712.01887, send 194.68 MB, dense.
    ({'hidden': 1500}, 51_034_000),
    ({'hidden': 1500, 'tied': False}, 51_034_000 + 10_000 * 1500),
    ({'hidden': 8, 'layers': 1}, 10_000 * 9 + 4 * 8 * (8 + 8 + 2)),
  ],
)
def test_parameter_counts_of_the_language_model(arguments, parameters):
  model = make_language_model({'name': 'lstm', **arguments}, vocabulary=10_000)
  variables = jax.eval_shape(
    model.init, jax.random.key(0), jnp.zeros((1, 2), jnp.int32)
  )
  assert tree.size(variables['params']) == parameters
  if parameters == 51_034_000:
    assert 4 * parameters / 2**20 == pytest.approx(194.68, abs=0.005)


def test_layers_of_resnets():
  for depth in (20, 56, 110):
    _, variables = init({'name': f'resnet{depth}'}, (32, 32, 3))
    kernels = [n for n in tree.names(variables['params']) if 'kernel' in n]
    assert len(kernels) == depth


def test_lenet5_equals_a_plain_transcription():
  model = make_model({'name': 'lenet5'}, num_classes=10)
  images = np.random.default_rng(0).normal(size=(2, 28, 28, 1)).astype('f4')
  variables = model.init(jax.random.key(1), images)
  p = jax.device_get(variables['params'])

  def conv_pool(x, w, b):
    h = x.shape[1] - 4
    out = np.zeros((x.shape[0], h, h, w.shape[-1]))
    for i in range(5):
      for j in range(5):
        out += x[:, i : i + h, j : j + h] @ w[i, j]
    out = (out + b).reshape(x.shape[0], h // 2, 2, h // 2, 2, -1)
    return out.max(axis=(2, 4))

  x = conv_pool(images, p['Conv_0']['kernel'], p['Conv_0']['bias'])
  x = conv_pool(x, p['Conv_1']['kernel'], p['Conv_1']['bias'])
  x = x.reshape(2, 800) @ p['Dense_0']['kernel'] + p['Dense_0']['bias']
  x = np.maximum(x, 0) @ p['Dense_1']['kernel'] + p['Dense_1']['bias']
  np.testing.assert_allclose(
    model.apply(variables, images), x, rtol=1e-4, atol=1e-4
  )


@pytest.mark.slow
def test_batch_norm_keeps_running_statistics_only_in_training():
  model = make_model({'name': 'resnet20', 'depth': 8}, num_classes=10)
  images = jnp.ones((2, 8, 8, 3))
  variables = model.init(jax.random.key(0), images)
  logits, state = model.apply(
    variables, images, train=True, mutable=['batch_stats']
  )
  assert logits.shape == (2, 10)
  mean = state['batch_stats']['BatchNorm_0']['mean']
  conv = nn.Conv(16, (3, 3), use_bias=False).apply(
    {'params': variables['params']['Conv_0']}, images
  )
  np.testing.assert_allclose(mean, 0.1 * conv.mean((0, 1, 2)), rtol=1e-4)
  model.apply(variables, images)


def test_channels_are_constructor_arguments():
  config = {'name': 'resnet20', 'inner_channels': tuple(range(3, 12))}
  model, variables = init(config, (32, 32, 3))
  p = variables['params']
  assert p['Conv_1']['kernel'].shape == (3, 3, 16, 3)
  assert p['Conv_2']['kernel'].shape == (3, 3, 3, 16)
  assert model.inner_channels == tuple(range(3, 12))
  _, variables = init({'name': 'lenet300', 'features': (50, 20)}, (28, 28, 1))
  assert variables['params']['Dense_1']['kernel'].shape == (50, 20)


@pytest.mark.parametrize(
  ('config', 'message'),
  [
    ({'name': 'lenet30'}, "model.name='lenet30' is unknown.*'lenet300'"),
    (
      {'name': 'lenet5', 'chanels': 3},
      "model.chanels is no argument .*'channels'",
    ),
    ({'name': 'resnet20', 'depth': 21}, 'depth=21 is not 6n'),
    ({'name': 'resnet20', 'inner_channels': (1,)}, 'has not 9 entries'),
  ],
)
def test_bad_models(config, message):
  with pytest.raises(ValueError, match=message):
    make_model(config, num_classes=10)
