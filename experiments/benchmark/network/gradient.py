"""Compression and decompression of a gradient, beside the momentum update.

    python -m experiments.benchmark gradient [--elements N] [--output F.json]

All that a reducer computes in a step, without the exchange: accumulate, select,
code, decode the message and put the mean together; one worker, on one CPU core
where there is no accelerator. The measure is the plain momentum update of the
same vector, `u = m u + g; update = -lr u`: two reads, two writes. Runs are
interleaved, ratios taken within a round, medians shown. States are donated, as
in training, or not; then every result is written to fresh memory.
"""

import argparse
import functools
import os
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from bandwidth.base import GradientReducer
from bandwidth.collectives import deep_gradient_compression, shared_mask
from experiments.benchmark.measuring.limits import stream_rate
from experiments.runtime import table

NAME = 'gradient'
_MOMENTUM = 0.9
# Passes over the vector that the algorithm can't do without: reads of g, u, v
# and writes of u, v and the mean, and one read for the selection.
_PASSES = {'momentum': 4, 'others': 7}


def _momentum(elements: int) -> tuple[Callable[..., Any], Any]:
  def step(state: jax.Array, grads: jax.Array) -> tuple[jax.Array, jax.Array]:
    u = _MOMENTUM * state + grads
    return -0.1 * u, u

  return step, jnp.zeros(elements)


def _of_reducer(
  reducer: GradientReducer, elements: int
) -> tuple[Callable[..., Any], Any]:
  def step(state: Any, grads: jax.Array) -> tuple[jax.Array, Any]:
    return reducer.reduce(grads, state)

  return step, reducer.init(jnp.zeros(elements))


def _naive(elements: int, density: float) -> tuple[Callable[..., Any], Any]:
  """The algorithm by `lax.top_k`, as one would write it first."""
  k = max(int(elements * density), 1)

  def step(state: Any, grads: jax.Array) -> tuple[jax.Array, Any]:
    u, v = state
    u = _MOMENTUM * u + grads
    v = v + u
    _, places = lax.top_k(jnp.abs(v), k)
    mean = jnp.zeros(elements).at[places].set(v[places])
    keep = jnp.ones(elements).at[places].set(0.0)
    return mean, (u * keep, v * keep)

  return step, (jnp.zeros(elements), jnp.zeros(elements))


def _ways(elements: int, density: float) -> dict[str, Any]:
  make = functools.partial(deep_gradient_compression, None, density=density)
  return {
    'momentum': _momentum(elements),
    'dgc float8': _of_reducer(make(values='float8'), elements),
    'dgc float16': _of_reducer(make(values='float16'), elements),
    'dgc sign': _of_reducer(make(values='sign'), elements),
    'dgc owners': _of_reducer(
      make(exchange='owner_sharded', workers=1), elements
    ),
    'shared mask': _of_reducer(shared_mask(None, density=density), elements),
    'dgc by lax.top_k': _naive(elements, density),
  }


def _measure(
  ways: dict[str, Any], grads: jax.Array, *, repeats: int, donated: bool
) -> dict[str, list[float]]:
  seconds: dict[str, list[float]] = {name: [] for name in ways}
  runs = {
    name: jax.jit(step, donate_argnums=0 if donated else ())
    for name, (step, _) in ways.items()
  }
  states = {
    name: jax.tree.map(jnp.copy, state) for name, (_, state) in ways.items()
  }
  for repeat in range(repeats + 2):
    for name, run in runs.items():
      start = time.perf_counter()
      out, states[name] = jax.block_until_ready(run(states[name], grads))
      if repeat > 1:
        seconds[name].append(time.perf_counter() - start)
      del out
  return seconds


def _rows(arguments: argparse.Namespace) -> list[dict[str, Any]]:
  grads = jax.random.normal(jax.random.key(0), (arguments.elements,))
  rate = stream_rate()
  rows = []
  for donated in (True, False):
    ways = _ways(arguments.elements, arguments.density)
    found = _measure(ways, grads, repeats=arguments.repeats, donated=donated)
    plain = np.array(found['momentum'])
    for name, times in found.items():
      passes = _PASSES.get(name, _PASSES['others'])
      limit = 4 * passes * arguments.elements / rate
      median = float(np.median(times))
      rows.append(
        {
          'way': name,
          'elements': arguments.elements,
          'density': arguments.density,
          'donated': str(donated).lower(),
          'ms': round(1e3 * median, 2),
          'by_momentum': round(float(np.median(np.array(times) / plain)), 2),
          'limit_ms': round(1e3 * limit, 2),
          'by_limit': round(median / limit, 2),
        }
      )
  return rows


def main(argv: Sequence[str]) -> int:
  """Measures; returns the exit status."""
  parser = argparse.ArgumentParser(prog='benchmark gradient')
  parser.add_argument('--elements', type=int, default=25_600_000)
  parser.add_argument('--density', type=float, default=1e-3)
  parser.add_argument('--repeats', type=int, default=9)
  parser.add_argument('--all_cores', action='store_true', help='not just one')
  parser.add_argument('--output', help='JSON file')
  arguments = parser.parse_args(argv)
  for name in ('elements', 'repeats'):
    if getattr(arguments, name) < 1:
      value = getattr(arguments, name)
      parser.error(f'argument --{name}: {value} is not positive')
  if not 0 < arguments.density <= 1:
    parser.error(f'argument --density: {arguments.density} is not in (0, 1]')
  if not arguments.all_cores:
    # Threads that XLA starts later stay there too.
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
  rows = _rows(arguments)
  table.show(rows)
  if arguments.output:
    try:
      table.write(arguments.output, NAME, rows)
    except ValueError as error:
      print(f'benchmark {NAME}: error: {error}', file=sys.stderr)
      return 2
  return 0
