"""Learned step size quantization (LSQ).

Esser, McKinstry, Bablani, Appuswamy, Modha, Learned Step Size Quantization,
ICLR 2020, arXiv 1902.08153. For weights and for activations.
"""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from bandwidth import tree
from bandwidth.base import Params
from bandwidth.quantization.codebook import check_axis
from bandwidth.quantization.parameterization import Parameterization
from bandwidth.quantization.uniform import (
  Calibration,
  Grid,
  GridRules,
  UniformLevels,
  along,
  check_grids,
  export_levels,
  match_grids,
)


class LearnedStepVariables(NamedTuple):
  """What `learned_step_params` trains.

  Attributes:
    latents: the full-precision weights, in the tree of the parameters.
    steps: float32 [] or [channels] for each quantized parameter, by name.
  """

  latents: Params
  steps: dict[str, jax.Array]


def initial_step(values: jax.Array, grid: Grid) -> jax.Array:
  """Returns s = 2 · mean|v| / √Q_p (section 2.1), over each channel.

  For activations, give a first batch of them. Where all are zero the step is 1.

  >>> print(initial_step(jnp.array([1.0, -2.0, 3.0]), Grid(bits=3)).round(3))
  2.309
  """
  check_axis(grid.axis, values.shape)
  kept = None if grid.axis is None else grid.axis % values.ndim
  axes = tuple(i for i in range(values.ndim) if i != kept)
  total = jnp.sum(jnp.abs(values.astype(jnp.float32)), axes)
  step = 2 * total / _count(values, grid) / math.sqrt(grid.high)
  return jnp.where(step > 0, step, 1.0)


def quantize_learned(
  values: jax.Array,
  step: jax.Array,
  *,
  grid: Grid,
  elements: int | None = None,
) -> jax.Array:
  """Quantizes with a trained step: v̂ = s · round(clip(v / s, −Q_n, Q_p)).

      ∂v̂/∂v = 1 where −Q_n < v / s < Q_p, else 0                 (equation 5)

      ∂v̂/∂s = −v / s + round(v / s)   where −Q_n < v / s < Q_p   (equation 3)
              −Q_n                    where v / s ≤ −Q_n
              Q_p                     where v / s ≥ Q_p

  The gradient of the step is scaled by 1 / √(N · Q_p) (section 2.2).

  Args:
    values: float array of any shape and float dtype: weights or activations.
    step: float32 [] or [channels], positive. An optimizer that drives it to 0
      or below, which a learning rate far too large can do, makes NaN.
    grid: bits, sign and axis. Unsigned for activations after a relu.
    elements: N: the number of weights of a step, which is the default, or for
      activations the number of features of the layer, without the batch.

  Returns:
    In the shape and dtype of `values`.

  Raises:
    ValueError: `elements` is not positive; the axis is none of the values'.

  >>> grid = Grid(bits=2)
  >>> quantize_learned(jnp.array([0.6, -3.0, 0.2]), jnp.float32(0.5), grid=grid)
  Array([ 0.5, -1. ,  0. ], dtype=float32)
  """
  check_axis(grid.axis, values.shape)
  if elements is not None and elements < 1:
    raise ValueError(f'elements={elements} must be positive')
  count = _count(values, grid) if elements is None else elements
  return _quantize(values, step, grid, 1 / math.sqrt(count * grid.high))


def learned_step_params(rules: GridRules) -> Parameterization:
  """Returns the parameterization of a network with learned steps.

  The paper keeps the first and the last layer at 8 bits, starts from a trained
  network, and lowers weight decay with the bits (section 2.3). The steps are
  among the variables: give them no weight decay.

  Args:
    rules: bits or `Grid` for each parameter; None leaves it alone. The first
      match wins.

  Returns:
    `init: params -> LearnedStepVariables`, `decode`, and `export` to
    `UniformLevels`.

  Raises:
    ValueError: a bad rule.

  >>> lsq = learned_step_params([('.*', 2)])
  >>> variables = lsq.init({'w': jnp.array([0.5, 0.1, -0.6])})
  >>> [f'{w:.3f}' for w in lsq.decode(variables)['w']]
  ['0.800', '0.000', '-0.800']
  """
  check_grids(rules)

  def init(params: Params) -> LearnedStepVariables:
    grids = match_grids(rules, params)
    steps = {
      name: initial_step(leaf, grid)
      for name, leaf in tree.named_leaves(params)
      if (grid := grids[name]) is not None
    }
    return LearnedStepVariables(latents=params, steps=steps)

  def decode(variables: LearnedStepVariables) -> Params:
    grids = match_grids(rules, variables.latents)

    def leaf(name: str, latent: jax.Array) -> jax.Array:
      grid = grids[name]
      if grid is None:
        return latent
      return quantize_learned(latent, variables.steps[name], grid=grid)

    return tree.map_named(leaf, variables.latents)

  def export(variables: LearnedStepVariables) -> dict[str, UniformLevels]:
    grids = match_grids(rules, variables.latents)
    levels = {}
    for name, latent in tree.named_leaves(variables.latents):
      grid = grids[name]
      if grid is not None:
        step = variables.steps[name]
        calibration = Calibration(step, jnp.zeros_like(step))
        levels[name] = export_levels(latent, calibration, grid)
    return levels

  return Parameterization(init, decode, export)


def _count(values: jax.Array, grid: Grid) -> int:
  channels = 1 if grid.axis is None else values.shape[grid.axis]
  return max(values.size // max(channels, 1), 1)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _quantize(
  values: jax.Array, step: jax.Array, grid: Grid, scale: float
) -> jax.Array:
  return _forward(values, step, grid, scale)[0]


def _forward(
  values: jax.Array, step: jax.Array, grid: Grid, scale: float
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
  del scale
  wide = along(step, values.ndim, grid.axis)
  whole = jnp.round(values.astype(jnp.float32) / wide)
  whole = jnp.clip(whole, grid.low, grid.high)
  return (whole * wide).astype(values.dtype), (values, step)


def _backward(
  grid: Grid,
  scale: float,
  saved: tuple[jax.Array, jax.Array],
  gradient: jax.Array,
) -> tuple[jax.Array, jax.Array]:
  values, step = saved
  ratio = values.astype(jnp.float32) / along(step, values.ndim, grid.axis)
  inside = (ratio > grid.low) & (ratio < grid.high)
  edge = jnp.clip(ratio, grid.low, grid.high)
  slope = jnp.where(inside, jnp.round(ratio) - ratio, edge)
  kept = None if grid.axis is None else grid.axis % values.ndim
  axes = tuple(i for i in range(values.ndim) if i != kept)
  to_step = scale * jnp.sum(gradient.astype(jnp.float32) * slope, axes)
  to_values = jnp.where(inside, gradient, jnp.zeros_like(gradient))
  return to_values.astype(values.dtype), to_step.astype(step.dtype)


_quantize.defvjp(_forward, _backward)
