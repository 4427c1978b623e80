"""Compression and decompression of a gradient, beside the momentum update.

    python -m experiments.benchmark gradient [--elements N] [--output F.json]

All that a reducer computes in a step, without the exchange: accumulate, select,
code, decode the message and put the mean together; one worker, on one CPU core
where there is no accelerator. The measure is the plain momentum update of the
same vector, `u = m u + g; update = -lr u`: two reads, two writes. Runs are
interleaved, ratios taken within a round, medians shown. States are donated, as
in training, or not; then every result is written to fresh memory.
"""

import functools
import os
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from bandwidth.base import GradientReducer
from bandwidth.collectives import deep_gradient_compression, shared_mask
from experiments.benchmark.harness import Benchmark
from experiments.measuring.limits import stream_rate
from experiments.measuring.turns import Turns, in_place, take_turns
from experiments.runtime import options

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
) -> Turns:
  def timer(step: Callable[..., Any], state: Any) -> Callable[[], float]:
    run = jax.jit(step, donate_argnums=0 if donated else ())
    state = jax.tree.map(jnp.copy, state)
    return in_place(lambda state: run(state, grads), state, lambda out: out[1])

  timers = {name: timer(*way) for name, way in ways.items()}
  return take_turns(timers, repeats, warm_up=2)


def _rows(given: Any) -> Iterator[list[dict[str, Any]]]:
  if not given.all_cores:
    # Threads that XLA starts later stay there too.
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
  grads = jax.random.normal(jax.random.key(0), (given.elements,))
  rate = stream_rate()
  for donated in (True, False):
    ways = _ways(given.elements, given.density)
    turns = _measure(ways, grads, repeats=given.repeats, donated=donated)
    rows = []
    for name in ways:
      passes = _PASSES.get(name, _PASSES['others'])
      limit = 4 * passes * given.elements / rate
      median = turns.median(name)
      rows.append(
        {
          'way': name,
          'elements': given.elements,
          'density': given.density,
          'donated': str(donated).lower(),
          'ms': round(1e3 * median, 2),
          'by_momentum': round(turns.ratio(name, 'momentum'), 2),
          'limit_ms': round(1e3 * limit, 2),
          'by_limit': round(median / limit, 2),
        }
      )
    yield rows


main = Benchmark(
  name='gradient',
  about=__doc__,
  options={
    'elements': options.integer(25_600_000),
    'density': options.fraction(1e-3),
    'repeats': options.integer(9),
    'all_cores': options.flag('not just one'),
  },
  measure=_rows,
  parts=lambda given: 2,
  seed=0,
).main
