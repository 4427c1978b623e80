"""Training on what a search found, one program for all candidates.

A smaller network of its own would be compiled anew for each candidate. Here it
keeps the whole one's shapes: weights that read channels that are gone are 0 and
stay 0, so that those channels get no gradient, and the others the gradient that
they would get in the smaller network.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from bandwidth import tree
from experiments import datasets
from experiments.policy.plan import SearchPlan
from experiments.training.optimizers import make_optimizer
from experiments.training.tasks import make_task

_EVALUATED = 1000


class Tuning(NamedTuple):
  """Programs of a network.

  Attributes:
    train: `(variables, key) -> variables`, some steps on.
    test: `variables -> accuracy`, a fraction, on the test set.
  """

  train: Callable[[Any, jax.Array], Any]
  test: Callable[[Any], float]


def make_tuning(
  plan: SearchPlan, *, steps: int, learning_rate: float, tested: int
) -> Tuning:
  """Compiles both when they are first called.

  Args:
    plan: of the search; its config has optimizer, augmentation and batch size.
    steps: of training.
    learning_rate: that falls to 0 by a cosine.
    tested: examples of the test set, the first of them, at most all.

  Raises:
    ValueError: the data set is not held in memory.
  """
  config, task = plan.config, plan.task
  rest = make_task(
    {**config, 'dataset': {**config['dataset'], 'validation': 0}}
  )
  if not isinstance(task.train, datasets.Split) or not isinstance(
    rest.evaluated, datasets.Split
  ):
    raise ValueError('dataset.memory_limit: the data set is larger')
  optimizer = make_optimizer(
    {
      **config['optimizer'],
      'learning_rate': learning_rate,
      'schedule': 'cosine',
      'warmup': 0.0,
    },
    span=(0, steps),
  )
  images = jnp.asarray(task.train.image)
  labels = jnp.asarray(task.train.label)
  step = _make_step(task.loss, optimizer, config['batch_size'])
  counts = jax.jit(rest.counts)

  def train(variables: Any, key: jax.Array) -> Any:
    carry, stays = _start(variables, optimizer)
    # Not a scan: inside of loops XLA:CPU convolves many times as slowly.
    for own in jax.random.split(key, steps):
      carry = step(carry, stays, images, labels, own)
    params, state, _ = carry
    return {'params': params, **state}

  return Tuning(
    train,
    lambda variables: _accuracy(counts, variables, rest.evaluated, tested),
  )


def _start(
  variables: Any, optimizer: optax.GradientTransformation
) -> tuple[tuple[Any, Any, Any], Any]:
  """Parameters, other state and the optimizer's; and what may change."""
  params = variables['params']
  state = {k: v for k, v in variables.items() if k != 'params'}
  stays = tree.map_named(
    lambda name, leaf: (leaf != 0) | (not name.endswith('kernel')), params
  )
  return (params, state, optimizer.init(params)), stays


def _make_step(
  loss: Callable[..., Any],
  optimizer: optax.GradientTransformation,
  batch: int,
) -> Callable[..., tuple[Any, Any, Any]]:
  @jax.jit
  def step(
    carry: tuple[Any, Any, Any],
    stays: Any,
    images: jax.Array,
    labels: jax.Array,
    key: jax.Array,
  ) -> tuple[Any, Any, Any]:
    params, state, moments = carry
    chosen_key, own_key = jax.random.split(key)
    chosen = jax.random.randint(chosen_key, (batch,), 0, len(labels))
    examples = {'image': images[chosen], 'label': labels[chosen]}
    gradients, (state, _) = jax.grad(loss, has_aux=True)(
      params, state, examples, own_key
    )
    updates, moments = optimizer.update(gradients, moments, params)
    updates = jax.tree.map(
      lambda keep, update: jnp.where(keep, update, 0.0), stays, updates
    )
    return optax.apply_updates(params, updates), state, moments

  return step


def _accuracy(
  counts: Callable[..., Mapping[str, jax.Array]],
  variables: Any,
  split: datasets.Split,
  tested: int,
) -> float:
  count = min(tested, len(split))
  state = {k: v for k, v in variables.items() if k != 'params'}
  size = min(_EVALUATED, count)
  correct = 0.0
  for start in range(0, count, size):
    # The last batch begins earlier, and what was counted weighs nothing.
    first = min(start, count - size)
    weight = np.arange(first, first + size) >= start
    rows = slice(first, first + size)
    batch = {
      'image': jnp.asarray(split.image[rows]),
      'label': jnp.asarray(split.label[rows]),
      'weight': jnp.asarray(weight, jnp.float32),
    }
    correct += float(counts(variables['params'], state, batch)['correct'])
  return correct / count
