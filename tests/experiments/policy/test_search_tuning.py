"""Training on in the whole network's shapes, against the smaller network."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.config import named_config, resolve
from experiments.policy.plan import make_plan
from experiments.policy.setup import prepare
from experiments.policy.tuning import make_tuning
from experiments.training.objectives import (
  make_classification_loss,
  make_preprocess,
)
from experiments.training.tasks import make_task

STEPS = 3
RATE = 0.05


@pytest.fixture(scope='module')
def prepared():
  config = resolve(named_config('quickstart_search', 'runlocal').to_dict())
  config['model'] = {'name': 'lenet5', 'channels': (4, 6), 'features': 10}
  config['batch_size'] = 16
  config['search'] = {**config['search'], 'smallest': 0.5}
  config['search'] |= {'images': 32, 'budget': 0.9}
  plan = make_plan(config)
  variables = plan.task.model.init(jax.random.key(0), plan.task.example)
  return prepare(plan, variables)


@pytest.mark.slow
def test_equals_training_of_the_smaller_network(prepared):
  plan, subject = prepared.plan, prepared.subject
  candidate = np.array([0, 1, 2], np.int32)
  whole = subject.variables(candidate, None)
  tuning = make_tuning(plan, steps=STEPS, learning_rate=RATE, tested=1500)
  key = jax.random.key(3)
  tuned = tuning.train(whole, key)

  model, arrays, _ = subject.network(candidate, None)
  params = {}
  for name, array in arrays.items():
    _, layer, leaf = name.split('/')
    params.setdefault(layer, {})[leaf] = jnp.asarray(array)
  loss = make_classification_loss(
    model, make_preprocess(plan.config['dataset']), lambda images, key: images
  )
  momentum = jax.tree.map(jnp.zeros_like, params)
  train = plan.task.train
  for step, own in enumerate(jax.random.split(key, STEPS)):
    chosen_key, loss_key = jax.random.split(own)
    chosen = jax.random.randint(chosen_key, (16,), 0, len(train))
    batch = {'image': train.image[chosen], 'label': train.label[chosen]}
    gradients, _ = jax.grad(loss, has_aux=True)(params, {}, batch, loss_key)
    rate = RATE * (1 + np.cos(np.pi * step / STEPS)) / 2
    gradients = jax.tree.map(
      lambda g, p: g + 1e-4 * p if p.ndim > 1 else g, gradients, params
    )
    momentum = jax.tree.map(lambda m, g: 0.9 * m + g, momentum, gradients)
    params = jax.tree.map(lambda p, m, r=rate: p - r * m, params, momentum)

  images = jnp.asarray(plan.task.evaluated.image[:20], jnp.float32) / 255
  np.testing.assert_allclose(
    plan.task.model.apply(tuned, images),
    model.apply({'params': params}, images),
    rtol=1e-4,
    atol=1e-4,
  )
  test = make_task(
    {
      **plan.config,
      'dataset': {**plan.config['dataset'], 'validation': 0},
    }
  ).evaluated
  images = make_preprocess(plan.config['dataset'])(test.image[:1500])
  hits = plan.task.model.apply(tuned, images).argmax(-1) == test.label[:1500]
  assert tuning.test(tuned) == pytest.approx(float(hits.mean()))
