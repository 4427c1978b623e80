"""What compression adds to a training step, without the exchange.

    python -m experiments.benchmark step [--network resnet50] [--batch 128]

One worker: loss, gradients, reducer, parameters; once with the momentum update
of SGD, once with Deep Gradient Compression, which accumulates, selects, codes
and decodes its own message. Images are random. Steps are interleaved, ratios
taken within a round, medians shown; `added_percent` is what a row takes beyond
the first one. The limit is the time of the operations of a step at the rate of
a large matrix product, measured in the same run.
"""

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from bandwidth import tree
from bandwidth.collectives import (
  deep_gradient_compression,
  dense_all_reduce,
)
from experiments.benchmark.measuring.limits import matmul_rate
from experiments.models import make_model
from experiments.runtime import table

NAME = 'step'
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


def _rows(given: argparse.Namespace) -> list[dict[str, Any]]:
  ways = _ways(given.density)
  *shape, classes = _INPUTS[given.network]
  config = {'name': given.network}
  if given.dtype != 'float32':
    config['dtype'] = given.dtype
  model = make_model(config, num_classes=classes)
  images = jax.random.normal(jax.random.key(0), (given.batch, *shape))
  labels = jnp.arange(given.batch) % classes
  variables = jax.jit(model.init)(jax.random.key(1), images[:1])
  params = variables.pop('params')
  calls, states, operations = {}, {}, 0.0
  for name, (reducer, optimizer) in ways.items():
    state = (params, variables, reducer.init(params), optimizer.init(params))
    states[name] = jax.tree.map(jnp.copy, state)
    step = jax.jit(_step(model, reducer, optimizer), donate_argnums=0)
    call = step.lower(states[name], images, labels).compile()
    costs: Any = call.cost_analysis()
    operations = operations or float(costs['flops'])
    calls[name] = call
  seconds: dict[str, list[float]] = {name: [] for name in calls}
  for repeat in range(given.repeats + 2):
    for name, call in calls.items():
      start = time.perf_counter()
      states[name] = jax.block_until_ready(call(states[name], images, labels))
      if repeat > 1:
        seconds[name].append(time.perf_counter() - start)
  plain = np.array(seconds['momentum'])
  limit = operations / matmul_rate()
  return [
    {
      'network': given.network,
      'parameters': tree.size(params),
      'batch': given.batch,
      'dtype': given.dtype,
      'way': name,
      'ms': round(1e3 * float(np.median(times)), 2),
      'added_percent': round(
        100 * (float(np.median(np.array(times) / plain)) - 1), 2
      ),
      'limit_ms': round(1e3 * limit, 2),
      'by_limit': round(float(np.median(times)) / limit, 2),
    }
    for name, times in seconds.items()
  ]


def main(argv: Sequence[str]) -> int:
  """Measures; returns the exit status."""
  parser = argparse.ArgumentParser(prog=f'benchmark {NAME}')
  add = parser.add_argument
  add('--network', choices=sorted(_INPUTS), default='resnet50')
  add('--batch', type=int, default=128)
  add('--dtype', choices=['float32', 'bfloat16'], default='float32')
  add('--density', type=float, default=1e-3)
  add('--repeats', type=int, default=10)
  add('--output', help='JSON file')
  given = parser.parse_args(argv)
  try:
    for name in ('batch', 'repeats'):
      if getattr(given, name) < 1:
        raise ValueError(f'{name}={getattr(given, name)} is not positive')
    rows = _rows(given)
    table.show(rows)
    if given.output:
      table.write(given.output, NAME, rows)
  except ValueError as error:
    print(f'benchmark {NAME}: error: {error}', file=sys.stderr)
    return 2
  return 0
