"""What compression adds to a training step, without the exchange.

    python -m experiments.benchmark step [--network resnet50] [--batch 128]

One worker: loss, gradients, reducer, parameters; once with the momentum update
of SGD, once with Deep Gradient Compression, which accumulates, selects, codes
and decodes its own message. Images are random. Steps are interleaved, ratios
taken within a round, medians shown; `added_percent` is what a row takes beyond
the first one. The limit is the time of the operations of a step at the rate of
a large matrix product, measured in the same run.
"""

from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import optax

from bandwidth import tree
from bandwidth.collectives import deep_gradient_compression, dense_all_reduce
from experiments.benchmark.harness import Benchmark
from experiments.measuring.limits import matmul_rate
from experiments.measuring.turns import in_place, take_turns
from experiments.models import make_model
from experiments.runtime import options

_INPUTS = {
  'lenet300': (28, 28, 1, 10),
  'lenet5': (28, 28, 1, 10),
  'resnet20': (32, 32, 3, 10),
  'resnet50': (224, 224, 3, 1000),
}
_MOMENTUM = 0.9


def _step(
  model: Any, reducer: Any, optimizer: optax.GradientTransformation
) -> Callable[[Any, jax.Array, jax.Array], Any]:
  def loss(
    params: Any, statistics: Any, images: jax.Array, labels: jax.Array
  ) -> tuple[jax.Array, Any]:
    logits, changed = model.apply(
      {'params': params, **statistics},
      images,
      train=True,
      mutable=list(statistics),
    )
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    return losses.mean(), changed

  def step(state: Any, images: jax.Array, labels: jax.Array) -> Any:
    params, statistics, reduced, slots = state
    (_, statistics), grads = jax.value_and_grad(loss, has_aux=True)(
      params, statistics, images, labels
    )
    mean, reduced = reducer.reduce(grads, reduced, params)
    updates, slots = optimizer.update(mean, slots, params)
    return optax.apply_updates(params, updates), statistics, reduced, slots

  return step


def _ways(density: float) -> dict[str, Any]:
  """Reducers, and the optimizers behind them, by name."""
  compressed = optax.sgd(0.01)
  make = deep_gradient_compression
  return {
    'momentum': (dense_all_reduce(None), optax.sgd(0.01, momentum=_MOMENTUM)),
    'dgc float8': (make(None, density=density), compressed),
    'dgc float16': (make(None, density=density, values='float16'), compressed),
  }


def _timers(
  given: Any, model: Any, images: jax.Array, variables: dict[str, Any]
) -> tuple[dict[str, Callable[[], float]], float]:
  """Timers of steps by name, and the operations of the first."""
  labels = jnp.arange(given.batch) % _INPUTS[given.network][-1]
  params = variables.pop('params')
  operations = []

  def timer(
    reducer: Any, optimizer: optax.GradientTransformation
  ) -> Callable[[], float]:
    state = (params, variables, reducer.init(params), optimizer.init(params))
    state = jax.tree.map(jnp.copy, state)
    step = jax.jit(_step(model, reducer, optimizer), donate_argnums=0)
    call = step.lower(state, images, labels).compile()
    costs: Any = call.cost_analysis()
    operations.append(float(costs['flops']))
    return in_place(lambda state: call(state, images, labels), state)

  timers = {name: timer(*way) for name, way in _ways(given.density).items()}
  return timers, operations[0]


def _rows(given: Any) -> Iterator[list[dict[str, Any]]]:
  *shape, classes = _INPUTS[given.network]
  config = {'name': given.network}
  if given.dtype != 'float32':
    config['dtype'] = given.dtype
  model = make_model(config, num_classes=classes)
  images = jax.random.normal(jax.random.key(0), (given.batch, *shape))
  variables = jax.jit(model.init)(jax.random.key(1), images[:1])
  parameters = tree.size(variables['params'])
  timers, operations = _timers(given, model, images, variables)
  turns = take_turns(timers, given.repeats, warm_up=2)
  limit = operations / matmul_rate()
  yield [
    {
      'network': given.network,
      'parameters': parameters,
      'batch': given.batch,
      'dtype': given.dtype,
      'way': name,
      'ms': round(1e3 * turns.median(name), 2),
      'added_percent': round(100 * (turns.ratio(name, 'momentum') - 1), 2),
      'limit_ms': round(1e3 * limit, 2),
      'by_limit': round(turns.median(name) / limit, 2),
    }
    for name in timers
  ]


main = Benchmark(
  name='step',
  about=__doc__,
  options={
    'network': options.choice(_INPUTS, 'resnet50'),
    'batch': options.integer(128),
    'dtype': options.choice(['float32', 'bfloat16'], 'float32'),
    'density': options.fraction(1e-3),
    'repeats': options.integer(10),
  },
  measure=_rows,
  seed=0,
).main
