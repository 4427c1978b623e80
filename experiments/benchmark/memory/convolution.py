"""Gradients of LeNet-5 by XLA's convolution and by matrix products.

Milliseconds of one loss and its gradients at several batches, interleaved,
medians; the ratio is taken within a repeat. The limit is the time of the
products at the rate of a large one, measured in the same run.

    python -m experiments.benchmark convolution --depthwise

compares, for convolutions of each channel alone, XLA's grouped convolution with
sums of shifted images. There the limit is the time that the memory takes for
inputs and results.
"""

import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp

from experiments.benchmark.harness import Benchmark
from experiments.measuring.limits import matmul_rate, stream_rate
from experiments.measuring.turns import take_turns, timed
from experiments.models.depthwise import convolve_depthwise
from experiments.models.lenet import CONVOLUTIONS, LeNet5
from experiments.runtime import options

# Multiply-adds of an image forward; backward takes twice as many, but for the
# first layer, whose input needs no gradient.
_FIRST = 24 * 24 * 25 * 20
_REST = 8 * 8 * 500 * 50 + 800 * 500 + 500 * 10


def _gradients(convolution: str, batch: int) -> Callable[[Any], Any]:
  images = jax.random.normal(jax.random.key(0), (batch, 28, 28, 1))
  labels = jnp.arange(batch) % 10
  model = LeNet5(convolution=convolution)

  def loss(params: Any) -> jax.Array:
    logits: Any = model.apply({'params': params}, images)
    chosen = jax.nn.log_softmax(logits)[jnp.arange(batch), labels]
    return -chosen.mean()

  return jax.jit(jax.value_and_grad(loss))


def _products(batch: int, repeats: int, rate: float) -> list[dict[str, Any]]:
  params = LeNet5().init(jax.random.key(1), jnp.zeros((1, 28, 28, 1)))
  runs = {name: _gradients(name, batch) for name in CONVOLUTIONS}
  turns = take_turns(
    {
      name: timed(functools.partial(run, params['params']))
      for name, run in runs.items()
    },
    repeats,
  )
  limit = 2 * batch * (2 * _FIRST + 3 * _REST) / rate
  return [
    {
      'batch': batch,
      'convolution': name,
      'ms': round(1e3 * turns.median(name), 2),
      'speedup': round(turns.ratio('xla', name), 2),
      'compute_limit_ms': round(1e3 * limit, 2),
      'by_limit': round(turns.median(name) / limit, 2),
    }
    for name in runs
  ]


# Height, channels and stride, of MobileNets for small images.
_DEPTHWISE = ((32, 16, 1), (32, 32, 2), (16, 64, 1), (8, 128, 1))


def _depthwise(
  height: int, channels: int, stride: int, batch: int, repeats: int, rate: float
) -> list[dict[str, Any]]:
  key = jax.random.key(0)
  x = jax.random.normal(key, (batch, height, height, channels))
  kernel = jax.random.normal(key, (3, 3, 1, channels))
  of = {
    'grouped': functools.partial(_grouped, stride=stride),
    'shifts': functools.partial(
      convolve_depthwise,
      window_strides=(stride, stride),
      padding='SAME',
      dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
      feature_group_count=channels,
    ),
  }
  result = x.size // stride**2
  # Forward: read and write once; backward: images and results, and what is
  # written of the one is as large as the other.
  moved = {'forward': x.size + result, 'gradients': 2 * x.size + result}
  side = -(-height // stride)
  of_result = jnp.ones((batch, side, side, channels))
  calls = {
    ('forward', name): functools.partial(jax.jit(convolve), x, kernel)
    for name, convolve in of.items()
  } | {
    ('gradients', name): functools.partial(
      jax.jit(_pullback(convolve)), x, kernel, of_result
    )
    for name, convolve in of.items()
  }
  turns = take_turns({k: timed(call) for k, call in calls.items()}, repeats)
  return [
    {
      'images': batch,
      'height': height,
      'channels': channels,
      'stride': stride,
      'part': part,
      'convolution': name,
      'ms': round(1e3 * turns.median((part, name)), 2),
      'speedup': round(turns.ratio((part, 'grouped'), (part, name)), 2),
      'memory_limit_ms': round(4e3 * moved[part] / rate, 2),
    }
    for part, name in calls
  ]


def _grouped(x: jax.Array, kernel: jax.Array, *, stride: int) -> jax.Array:
  return jax.lax.conv_general_dilated(
    x,
    kernel,
    (stride, stride),
    'SAME',
    dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
    feature_group_count=x.shape[-1],
  )


def _pullback(convolve: Callable[..., jax.Array]) -> Callable[..., Any]:
  def gradients(x: jax.Array, kernel: jax.Array, of_result: jax.Array) -> Any:
    return jax.vjp(convolve, x, kernel)[1](of_result)

  return gradients


def _rows(given: Any) -> Iterator[list[dict[str, Any]]]:
  if given.depthwise:
    rate = stream_rate()
    for shape in _DEPTHWISE:
      for batch in given.batch:
        yield _depthwise(*shape, batch, given.repeats, rate)
    return
  rate = matmul_rate()
  for batch in given.batch:
    yield _products(batch, given.repeats, rate)


main = Benchmark(
  name='convolution',
  about=__doc__,
  options={
    'batch': options.integer([32, 128, 256]),
    'depthwise': options.flag('of each channel alone'),
    'repeats': options.integer(15),
  },
  measure=_rows,
  parts=lambda given: (
    len(given.batch) * (len(_DEPTHWISE) if given.depthwise else 1)
  ),
  seed=0,
).main
