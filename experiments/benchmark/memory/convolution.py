"""Gradients of LeNet-5 by XLA's convolution and by matrix products.

Milliseconds of one loss and its gradients at several batches, interleaved,
medians; the ratio is taken within a repeat. The limit is the time of the
products at the rate of a large one, measured in the same run.

    python -m experiments.benchmark convolution --depthwise

compares, for convolutions of each channel alone, XLA's grouped convolution with
sums of shifted images. There the limit is the time that the memory takes for
inputs and results.
"""

import argparse
import functools
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.benchmark.measuring.limits import matmul_rate, stream_rate
from experiments.models.depthwise import convolve_depthwise
from experiments.models.lenet import CONVOLUTIONS, LeNet5
from experiments.runtime import table

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


def _rows(batch: int, repeats: int, rate: float) -> list[dict[str, Any]]:
  params = LeNet5().init(jax.random.key(1), jnp.zeros((1, 28, 28, 1)))
  runs = {name: _gradients(name, batch) for name in CONVOLUTIONS}
  times: dict[str, list[float]] = {name: [] for name in runs}
  for repeat in range(repeats + 1):
    for name, run in runs.items():
      start = time.perf_counter()
      jax.block_until_ready(run(params['params']))
      if repeat:
        times[name].append(time.perf_counter() - start)
  limit = 2 * batch * (2 * _FIRST + 3 * _REST) / rate
  ordinary = np.array(times['xla'])
  return [
    {
      'batch': batch,
      'convolution': name,
      'ms': round(1e3 * float(np.median(seconds)), 2),
      'speedup': round(float(np.median(ordinary / np.array(seconds))), 2),
      'compute_limit_ms': round(1e3 * limit, 2),
      'by_limit': round(float(np.median(seconds)) / limit, 2),
    }
    for name, seconds in times.items()
  ]


# Height, channels and stride, of MobileNets for small images.
_DEPTHWISE = ((32, 16, 1), (32, 32, 2), (16, 64, 1), (8, 128, 1))


def _depthwise_rows(
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
  programs = {
    ('forward', name): jax.jit(convolve) for name, convolve in of.items()
  } | {
    ('gradients', name): jax.jit(_pullback(convolve))
    for name, convolve in of.items()
  }
  seconds: dict[tuple[str, str], list[float]] = {each: [] for each in programs}
  side = -(-height // stride)
  of_result = jnp.ones((batch, side, side, channels))
  given = {'forward': (x, kernel), 'gradients': (x, kernel, of_result)}
  for repeat in range(repeats + 1):
    for (part, name), program in programs.items():
      start = time.perf_counter()
      jax.block_until_ready(program(*given[part]))
      if repeat:
        seconds[part, name].append(time.perf_counter() - start)
  return [
    {
      'images': batch,
      'height': height,
      'channels': channels,
      'stride': stride,
      'part': part,
      'convolution': name,
      'ms': round(1e3 * float(np.median(own)), 2),
      'speedup': round(
        float(np.median(np.array(seconds[part, 'grouped']) / np.array(own))), 2
      ),
      'memory_limit_ms': round(4e3 * moved[part] / rate, 2),
    }
    for (part, name), own in seconds.items()
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


def _all_rows(options: argparse.Namespace) -> list[dict[str, Any]]:
  if options.depthwise:
    rate = stream_rate()
    return [
      row
      for shape in _DEPTHWISE
      for b in options.batch
      for row in _depthwise_rows(*shape, b, options.repeats, rate)
    ]
  rate = matmul_rate()
  return [row for b in options.batch for row in _rows(b, options.repeats, rate)]


def main(argv: Sequence[str]) -> int:
  """Runs the benchmark; returns the exit status."""
  parser = argparse.ArgumentParser(
    prog='benchmark convolution', description=__doc__
  )
  parser.add_argument('--batch', type=int, nargs='+', default=[32, 128, 256])
  parser.add_argument(
    '--depthwise', action='store_true', help='of each channel alone'
  )
  parser.add_argument('--repeats', type=int, default=15)
  parser.add_argument('--output', help='JSON file of the rows')
  options = parser.parse_args(argv)
  try:
    if min(*options.batch, options.repeats, 1) < 1:
      raise ValueError(
        f'batch={options.batch}, repeats={options.repeats} must be positive'
      )
    rows = _all_rows(options)
    table.show(rows)
    if options.output:
      table.write(options.output, 'convolution', rows)
  except ValueError as error:
    print(f'benchmark convolution: error: {error}', file=sys.stderr)
    return 2
  return 0
