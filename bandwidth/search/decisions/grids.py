"""Uniform grids whose number of bits is chosen inside a compiled program.

The parameters of a grid are arrays, so that one program rounds to any number of
bits; `quantization.Grid` gives the range of a grid.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from bandwidth import quantization
from bandwidth.search.decisions.bit_options import UNQUANTIZED


class Grids(NamedTuple):
  """Uniform grids: value = step * (integer + offset), low <= integer <= high.

  Attributes:
    step: distance of two values, float32; 0 leaves values as they are.
    low: smallest integer on the grid, float32.
    high: largest integer on the grid, float32.
    offset: added to the integer, float32; 1/2 for one signed bit, else 0.
  """

  step: jax.Array
  low: jax.Array
  high: jax.Array
  offset: jax.Array


def on_grid(values: jax.Array, grid: Grids) -> jax.Array:
  """Rounds values to a grid, halves to even, and clips them to it.

  Args:
    values: any floating dtype, any shape.
    grid: one grid, leaves []; traced or not.

  Returns:
    In the shape and dtype of `values`.

  >>> grid = Grids(*map(jnp.float32, (0.5, -2, 1, 0)))
  >>> on_grid(jnp.array([-3.0, -0.6, 0.2, 0.3]), grid).tolist()
  [-1.0, -0.5, 0.0, 0.5]
  """
  whole = grid_integers(values, grid)
  rounded = (grid.step * (whole + grid.offset)).astype(values.dtype)
  return jnp.where(grid.step > 0, rounded, values)


def grid_integers(values: jax.Array, grid: Grids) -> jax.Array:
  """Returns the integers that values round to, float32; see `on_grid`."""
  step = jnp.where(grid.step > 0, grid.step, 1.0)
  whole = jnp.round(values.astype(jnp.float32) / step - grid.offset)
  return jnp.clip(whole, grid.low, grid.high)


class Sample(NamedTuple):
  """A sample of a tensor, and its range.

  Attributes:
    values: some elements of the tensor, float32 [n].
    least: smallest of all its elements, float32 [].
    greatest: largest of all its elements, float32 [].
  """

  values: jax.Array
  least: jax.Array
  greatest: jax.Array


def sample(values: jax.Array, count: int) -> Sample:
  """Takes `count` elements at random; of fewer elements, repeats all."""
  flat = values.reshape(-1).astype(jnp.float32)
  # A fixed seed; equally spaced elements might all be of one channel.
  chosen = np.random.default_rng(0).integers(flat.size, size=count)
  if flat.size <= count:
    chosen = np.arange(count) % flat.size
  return Sample(flat[jnp.asarray(chosen)], flat.min(), flat.max())


def fit_grids(
  samples: Sample,
  bits: np.ndarray,
  *,
  signed: np.ndarray,
  fractions: np.ndarray,
) -> tuple[Grids, jax.Array]:
  """Fits grids to tensors, for several numbers of bits.

  Args:
    samples: one sample a tensor, leaves [layers, …].
    bits: numbers of bits to fit a grid for, int [layers, M].
    signed: whether a tensor has negative values, bool [layers].
    fractions: fractions of the range to try, the widest first, float [F]. Of
      equal errors the first is taken.

  Returns:
    Grids, leaves [layers, M], and the mean squared rounding errors, relative to
    the mean squares of the values, float32 [layers, M].
  """
  low, high, offset = np.vectorize(_span)(bits, signed[:, None])
  tops = jnp.maximum(jnp.abs(samples.least), jnp.abs(samples.greatest))
  shares = jnp.asarray(fractions, jnp.float32)

  def of_level(
    values: jax.Array, top: jax.Array, low: Any, high: Any, offset: Any
  ) -> tuple[Grids, jax.Array]:
    reach = high + offset
    widest = jnp.where(top > 0, top, 1.0) / jnp.where(reach > 0, reach, 1.0)
    widest = jnp.where(reach > 0, widest, 0.0)

    def error(share: jax.Array) -> jax.Array:
      grid = Grids(widest * share, low, high, offset)
      return jnp.mean(jnp.square(on_grid(values, grid) - values))

    errors = lax.map(error, shares)
    best = jnp.argmin(errors)
    square = jnp.maximum(jnp.mean(jnp.square(values)), 1e-30)
    grid = Grids(widest * shares[best], low, high, offset)
    return grid, errors[best] / square

  @jax.jit
  def of_all(*rows: Any) -> tuple[Grids, jax.Array]:
    levels = jax.vmap(of_level, (None, None, 0, 0, 0))
    return lax.map(lambda row: levels(*row), rows)

  spans = (jnp.asarray(x, jnp.float32) for x in (low, high, offset))
  return of_all(samples.values, tops, *spans)


def _span(bits: int, signed: bool) -> tuple[int, int, float]:
  """The range of a grid's integers, and its offset; 0 if nothing is rounded."""
  if bits == UNQUANTIZED:
    return 0, 0, 0.0
  if bits == 1 and signed:
    return -1, 0, 0.5
  grid = quantization.Grid(bits=int(bits), signed=bool(signed))
  return grid.low, grid.high, 0.0
