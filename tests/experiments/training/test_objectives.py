import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from experiments.training.objectives import (
  make_augment,
  make_classification_counts,
  make_classification_loss,
  make_preprocess,
)
from experiments.training.optimizers import make_optimizer, make_schedule


class Fixed:
  """A model whose logits are its parameters."""

  def apply(self, variables, images, *, train=False, mutable=()):
    del train
    logits = variables['params'] + 0 * images.sum()
    return (logits, {}) if mutable != () or mutable == [] else logits


def test_preprocess_standardizes_channels():
  out = make_preprocess({'mean': (0.5, 0.0), 'std': (0.25, 1.0)})(
    jnp.full((1, 1, 1, 2), 255, jnp.uint8)
  )
  np.testing.assert_allclose(out.ravel(), [2.0, 1.0])


def test_augment_cuts_windows_out_of_the_padded_image():
  images = jnp.arange(1, 10, dtype=jnp.uint8).reshape(1, 3, 3, 1)
  images = jnp.tile(images, (200, 1, 1, 1))
  out = np.asarray(
    make_augment({'pad': 1, 'flip': True})(images, jax.random.key(0))
  )[..., 0]
  padded = np.pad(np.arange(1, 10).reshape(3, 3), 1)
  windows = [padded[i : i + 3, j : j + 3] for i in range(3) for j in range(3)]
  windows += [w[:, ::-1] for w in windows]
  seen = {w.tobytes() for w in np.asarray(windows, np.uint8)}
  assert {o.tobytes() for o in out} == seen


def test_augment_does_nothing_unless_asked():
  images = jnp.ones((2, 3, 3, 1), jnp.uint8)
  out = make_augment({})(images, jax.random.key(0))
  np.testing.assert_array_equal(out, images)
  with pytest.raises(ValueError, match=r'augment.pad=-1'):
    make_augment({'pad': -1})


def test_counts_leave_padding_out():
  counts = make_classification_counts(Fixed(), make_preprocess({}))
  logits = jnp.array([[3.0, 0.0], [0.0, 1.0], [0.0, 9.0]])
  out = counts(
    logits,
    {},
    {
      'image': jnp.zeros((3, 1, 1, 1), jnp.uint8),
      'label': jnp.array([0, 0, 1]),
      'weight': jnp.array([1.0, 1.0, 0.0]),
    },
  )
  expected = np.log1p(np.exp(-3.0)) + np.log1p(np.exp(1.0))
  assert float(out['correct']) == 1.0
  assert float(out['examples']) == 2.0
  np.testing.assert_allclose(out['loss'], expected, rtol=1e-6)


def test_loss_is_the_mean_cross_entropy():
  loss = make_classification_loss(
    Fixed(), make_preprocess({}), make_augment({})
  )
  batch = {
    'image': jnp.zeros((2, 1, 1, 1), jnp.uint8),
    'label': jnp.array([0, 1]),
  }
  value, (_, metrics) = loss(
    jnp.array([[3.0, 0.0], [1.0, 0.0]]), {}, batch, jax.random.key(0)
  )
  expected = (np.log1p(np.exp(-3.0)) + np.log1p(np.exp(1.0))) / 2
  np.testing.assert_allclose(value, expected, rtol=1e-6)
  assert float(metrics['accuracy']) == 0.5


@pytest.mark.parametrize(
  ('config', 'points'),
  [
    ({'schedule': 'constant'}, {0: 1.0, 99: 1.0}),
    ({'schedule': 'cosine'}, {0: 1.0, 50: 0.5, 100: 0.0}),
    ({'schedule': 'steps'}, {0: 1.0, 49: 1.0, 51: 0.1, 76: 0.01}),
    (
      {'schedule': 'cosine', 'warmup': 0.2},
      {0: 0.0, 10: 0.5, 20: 1.0, 60: 0.5},
    ),
    ({'schedule': 'steps', 'warmup': 0.1}, {5: 0.5, 49: 1.0, 51: 0.1}),
  ],
)
@pytest.mark.parametrize('first', [0, 40])
def test_schedules(config, points, first):
  schedule = make_schedule(
    {'learning_rate': 1.0, **config}, span=(first, first + 100)
  )
  for step, rate in points.items():
    np.testing.assert_allclose(schedule(first + step), rate, atol=1e-6)


def test_weight_decay_spares_biases():
  optimizer = make_optimizer(
    {'name': 'sgd', 'learning_rate': 1.0, 'weight_decay': 0.5}, span=(0, 1)
  )
  params = {'kernel': jnp.ones((1, 1)), 'bias': jnp.ones(1)}
  zero = jax.tree.map(jnp.zeros_like, params)
  updates, _ = optimizer.update(zero, optimizer.init(params), params)
  assert float(updates['kernel'][0, 0]) == -0.5
  assert float(updates['bias'][0]) == 0.0


def test_sgd_with_momentum_by_hand():
  optimizer = make_optimizer(
    {'name': 'sgd', 'learning_rate': 0.1, 'momentum': 0.9}, span=(0, 9)
  )
  params, grad = jnp.zeros(1), jnp.ones(1)
  state = optimizer.init(params)
  for expected in (-0.1, -0.29):
    updates, state = optimizer.update(grad, state, params)
    params = optax.apply_updates(params, updates)
    np.testing.assert_allclose(params, [expected], rtol=1e-6)


@pytest.mark.parametrize('name', ['adam', 'adamw'])
def test_adaptive_optimizers_move_by_the_learning_rate(name):
  optimizer = make_optimizer({'name': name, 'learning_rate': 0.1}, span=(0, 9))
  params = jnp.ones(2)
  grads = jnp.array([1e-3, 10.0])
  updates, _ = optimizer.update(grads, optimizer.init(params), params)
  np.testing.assert_allclose(updates, [-0.1, -0.1], rtol=1e-4)


@pytest.mark.parametrize(
  ('config', 'message'),
  [
    ({'name': 'sdg'}, "optimizer.name='sdg' is unknown.*'sgd'"),
    ({'name': 'sgd', 'schedule': 'cosin'}, "schedule='cosin'.*'cosine'"),
    ({'name': 'sgd', 'warmup': 1.5}, r'optimizer.warmup=1.5'),
    ({'name': 'sgd', 'learning_rate': -1.0}, r'learning_rate=-1.0'),
  ],
)
def test_bad_optimizers(config, message):
  with pytest.raises(ValueError, match=message):
    make_optimizer({'learning_rate': 0.1, **config}, span=(0, 10))
