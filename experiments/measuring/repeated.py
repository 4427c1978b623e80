"""Functions repeated inside of a program, so that calling it hardly counts."""

import functools
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from experiments.measuring.turns import spent_by, take_turns

# Seconds that a program should run.
_SPAN = 5e-3
_MOST_REPETITIONS = 1000


class Program(NamedTuple):
  """A compiled function, repeated.

  Attributes:
    run: `(variables, x, repetitions int32 []) -> y`, the last output.
    variables: arrays; or shapes, where any numbers will do.
    x: its input, a shape.
  """

  run: Callable[..., Any]
  variables: Any
  x: jax.ShapeDtypeStruct


def compile_repeated(
  apply: Callable[..., Any], variables: Any, x: jax.ShapeDtypeStruct
) -> Program:
  """Compiles repetitions of a function that wait for each other.

  The first number of an input is that of the output before, clipped to [-1, 1],
  or 0 the first time, so that nothing can be computed once for all.

  Args:
    apply: `(variables, x) -> y`.
    variables: arrays or shapes.
    x: shape of the input.
  """

  def run(variables: Any, x: jax.Array, repetitions: jax.Array) -> jax.Array:
    def again(_: jax.Array, carry: tuple[jax.Array, jax.Array]) -> tuple:
      x, y = carry
      first = jnp.clip(y[(0,) * y.ndim], -1.0, 1.0)
      # In place, where `x.at[0].set` would check bounds and copy all of x.
      place = (0,) * x.ndim
      x = lax.dynamic_update_slice(x, first.reshape((1,) * x.ndim), place)
      return x, apply(variables, x)

    y = jax.eval_shape(apply, variables, x)
    start = x, jnp.zeros(y.shape, y.dtype)
    return lax.fori_loop(0, repetitions, again, start)[1]

  count = jax.ShapeDtypeStruct((), jnp.int32)
  compiled = jax.jit(run).lower(variables, x, count).compile()
  return Program(compiled, variables, x)


def median_seconds(
  programs: Mapping[Any, Program], repeats: int
) -> dict[Any, float]:
  """Runs programs in turn; medians of the seconds of a repetition."""
  counts = {key: _repetitions(x) for key, x in programs.items()}

  def timer(key: Any) -> Callable[[], float]:
    count = counts[key]
    return lambda: _seconds(programs[key], count) / count

  turns = take_turns({key: timer(key) for key in programs}, repeats, warm_up=0)
  return {key: turns.median(key) for key in programs}


def _repetitions(program: Program) -> int:
  """Warms a program up; returns how often it repeats in `_SPAN` seconds."""
  count = 1
  _seconds(program, count)
  while count < _MOST_REPETITIONS:
    spent = _seconds(program, count)
    if spent > _SPAN / 2:
      break
    count = min(math.ceil(count * _SPAN / spent), _MOST_REPETITIONS)
  return count


def _seconds(program: Program, repetitions: int) -> float:
  """Seconds of a call, its arguments on the device already."""
  variables, x = jax.tree.map(_filled, (program.variables, program.x))
  count = jnp.int32(repetitions)
  jax.block_until_ready((variables, x, count))
  return spent_by(lambda: program.run(variables, x, count))


def _filled(leaf: jax.Array | jax.ShapeDtypeStruct) -> jax.Array:
  """An array of random numbers of a shape, unless it is an array already.

  All arrays of a run together may not fit, so they are made for each call.
  """
  if isinstance(leaf, jax.Array):
    return leaf
  size = math.prod(leaf.shape)
  numbers = _numbers(2 ** size.bit_length())[:size]
  return jnp.asarray(numbers.reshape(leaf.shape), leaf.dtype)


@functools.lru_cache(maxsize=4)
def _numbers(count: int) -> np.ndarray:
  return np.random.default_rng(0).standard_normal(count, np.float32)
