"""Uniform quantization: integers times a step.

Jacob et al., Quantization and Training of Neural Networks for Efficient
Integer-Arithmetic-Only Inference, CVPR 2018, arXiv 1712.05877. Gradients pass
straight through the rounding (Bengio et al. 2013, arXiv 1308.3432), and stop
outside the range. Whatever is simulated here is exported as real integers.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bandwidth import tree
from bandwidth.base import Params
from bandwidth.quantization.codebook import check_axis
from bandwidth.quantization.parameterization import Parameterization


@dataclasses.dataclass(frozen=True, kw_only=True)
class Grid:
  """The integers that a tensor is rounded to.

  Signed: −2^(b−1) to 2^(b−1) − 1. Unsigned: 0 to 2^b − 1, for activations after
  a relu, and with a zero point for anything.

  Attributes:
    bits: b, 1 to 16; at least 2 where signed.
    signed: whether integers may be negative; False starts them at 0.
    axis: each index of this axis has its own step; None: one for the tensor.
  """

  bits: int
  signed: bool = True
  axis: int | None = None

  def __post_init__(self):
    least = 1 + self.signed
    if not least <= self.bits <= 16:
      raise ValueError(f'bits={self.bits} must be between {least} and 16')

  @property
  def low(self) -> int:
    """The least integer, −Q_n."""
    return -(2 ** (self.bits - 1)) if self.signed else 0

  @property
  def high(self) -> int:
    """The greatest integer, Q_p."""
    return 2 ** (self.bits - self.signed) - 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class UniformLevels:
  """A tensor on a uniform grid, on the host: value = step * level.

  Invariants, checked on construction: `step` is finite and positive, and its
  shape is [] where `axis` is None, else [levels.shape[axis]].

  Attributes:
    levels: int8, int16 or int32, in the shape of the tensor.
    step: float32 [] or [channels], positive.
    axis: the axis that the steps belong to.
  """

  levels: np.ndarray
  step: np.ndarray
  axis: int | None = None

  def __post_init__(self):
    if self.levels.dtype not in (np.int8, np.int16, np.int32):
      raise ValueError(f'levels.dtype={self.levels.dtype} must be int8, 16, 32')
    check_axis(self.axis, self.levels.shape)
    shape = () if self.axis is None else (self.levels.shape[self.axis],)
    if self.step.dtype != np.float32 or self.step.shape != shape:
      raise ValueError(
        f'step is {self.step.dtype} {self.step.shape}, not float32 {shape}'
      )
    if not (np.isfinite(self.step).all() and (self.step > 0).all()):
      raise ValueError('step must be finite and positive')

  def decode(self) -> np.ndarray:
    """Returns the values, float32.

    >>> levels = np.array([-1, 0, 3], np.int8)
    >>> UniformLevels(levels=levels, step=np.array(0.5, np.float32)).decode()
    array([-0.5,  0. ,  1.5], dtype=float32)
    """
    step = along(self.step, self.levels.ndim, self.axis)
    return self.levels.astype(np.float32) * step


class Calibration(NamedTuple):
  """Where a grid lies: value = step * (integer − zero_point).

  Attributes:
    step: float32 [] or [channels], positive.
    zero_point: float32 [] or [channels], a whole number; 0 where symmetric.
  """

  step: jax.Array
  zero_point: jax.Array


Calibrator = Callable[[jax.Array, Grid], Calibration]
"""`(values, grid) -> Calibration`. Pure JAX."""

GridRules = Sequence[tuple[str, Grid | int | None]]
"""Pairs (regular expression over names, grid). An integer b stands for
`Grid(bits=b)`; None leaves the parameter alone."""


def along(array: Any, ndim: int, axis: int | None) -> Any:
  """Shapes [channels] so that it lies along `axis` of `ndim` axes."""
  if axis is None:
    return array.reshape((1,) * ndim)
  shape = [1] * ndim
  shape[axis] = array.shape[0]
  return array.reshape(shape)


def _reduced(ndim: int, axis: int | None) -> tuple[int, ...]:
  kept = () if axis is None else (axis % ndim,)
  return tuple(i for i in range(ndim) if i not in kept)


def _positive(step: jax.Array) -> jax.Array:
  """Steps of 1 for tensors or channels that are all zero."""
  return jnp.where(step > 0, step, 1.0)


def symmetric(values: jax.Array, grid: Grid) -> Calibration:
  """Fits the grid to the greatest magnitude: s = max|x| / Q_p.

  >>> print(symmetric(jnp.array([0.5, -1.27]), Grid(bits=8)).step.round(4))
  0.01
  """
  check_axis(grid.axis, values.shape)
  magnitude = jnp.abs(values.astype(jnp.float32))
  top = jnp.max(magnitude, _reduced(values.ndim, grid.axis), initial=0)
  step = _positive(top / grid.high)
  return Calibration(step, jnp.zeros_like(step))


def affine(values: jax.Array, grid: Grid) -> Calibration:
  """Fits the grid to the least and the greatest value, and to 0 exactly.

  s = (max − min) / (2^b − 1), z = low − round(min / s), with min ≤ 0 ≤ max.

  >>> fitted = affine(jnp.array([-1.0, 2.0]), Grid(bits=2, signed=False))
  >>> fitted.step.item(), fitted.zero_point.item()
  (1.0, 1.0)
  """
  check_axis(grid.axis, values.shape)
  values = values.astype(jnp.float32)
  axes = _reduced(values.ndim, grid.axis)
  low = jnp.min(values, axes, initial=0)
  step = jnp.max(values, axes, initial=0) - low
  step = _positive(step / (grid.high - grid.low))
  return Calibration(step, grid.low - jnp.round(low / step))


def least_squares(
  *, base: Calibrator = symmetric, candidates: int = 100
) -> Calibrator:
  """Returns the calibrator that searches the step of least squared error.

  It tries the fractions i / candidates of the step that fits the range; for few
  bits, cutting off the tails buys a finer grid.

  Args:
    base: calibrator whose step fits the range of the values.
    candidates: number of steps to try, positive.

  Raises:
    ValueError: `candidates` is not positive.

  >>> values = jnp.array([1.0] * 20 + [5.0])
  >>> f'{least_squares()(values, Grid(bits=2)).step:.2f}'
  '1.20'
  """
  if candidates < 1:
    raise ValueError(f'candidates={candidates} must be positive')

  def calibrate(values: jax.Array, grid: Grid) -> Calibration:
    widest = base(values, grid)
    exact = values.astype(jnp.float32)
    axes = _reduced(values.ndim, grid.axis)

    def shrink(fraction: jax.Array) -> Calibration:
      step = widest.step * fraction
      return Calibration(step, widest.zero_point)

    def error(fraction: jax.Array) -> jax.Array:
      rounded = dequantize(
        quantize(exact, shrink(fraction), grid), shrink(fraction), grid
      )
      return jnp.sum(jnp.square(rounded - exact), axes)

    fractions = jnp.arange(candidates, 0, -1, dtype=jnp.float32) / candidates
    errors = jax.lax.map(error, fractions)
    return shrink(fractions[jnp.argmin(errors, axis=0)])

  return calibrate


def quantize(
  values: jax.Array, calibration: Calibration, grid: Grid
) -> jax.Array:
  """Returns round(x / s) + z, clipped to the grid: whole numbers, float32."""
  return jnp.clip(_round(values, calibration, grid), grid.low, grid.high)


def _round(
  values: jax.Array, calibration: Calibration, grid: Grid
) -> jax.Array:
  step = along(calibration.step, values.ndim, grid.axis)
  zero_point = along(calibration.zero_point, values.ndim, grid.axis)
  return jnp.round(values.astype(jnp.float32) / step) + zero_point


def dequantize(
  whole: jax.Array, calibration: Calibration, grid: Grid
) -> jax.Array:
  """Returns s · (q − z), float32."""
  step = along(calibration.step, whole.ndim, grid.axis)
  return step * (whole - along(calibration.zero_point, whole.ndim, grid.axis))


def fake_quantize(
  values: jax.Array, calibration: Calibration, *, grid: Grid
) -> jax.Array:
  """Rounds to the grid; the gradient passes straight through, within range.

  ∂y/∂x = 1 where low ≤ round(x / s) + z ≤ high, else 0. The calibration gets
  none. The range is judged after rounding, so that the greatest weight, which
  lies on its edge up to floating point, keeps its gradient.

  Args:
    values: float array of any shape and float dtype: weights or activations.
    calibration: step and zero point of the grid, from a calibrator.
    grid: gives the bits, the signedness and the axis.

  Returns:
    In the shape and dtype of `values`, exactly what the export decodes to.

  >>> calibration = Calibration(jnp.float32(0.5), jnp.float32(0))
  >>> fake_quantize(jnp.array([0.6, 9.0]), calibration, grid=Grid(bits=3))
  Array([0.5, 1.5], dtype=float32)
  """
  check_axis(grid.axis, values.shape)
  calibration = jax.tree.map(jax.lax.stop_gradient, calibration)
  whole = _round(jax.lax.stop_gradient(values), calibration, grid)
  inside = (whole >= grid.low) & (whole <= grid.high)
  clipped = jnp.clip(whole, grid.low, grid.high)
  rounded = dequantize(clipped, calibration, grid).astype(values.dtype)
  # The difference is 0, and so leaves the rounded values exact.
  through = values - jax.lax.stop_gradient(values)
  return rounded + jnp.where(inside, through, jnp.zeros_like(through))


def export_levels(
  values: jax.Array, calibration: Calibration, grid: Grid
) -> UniformLevels:
  """Returns the integers and steps of concrete values, on the host.

  The zero point is subtracted from the integers, so that value = step * level
  holds for affine grids too, and a value of 0 is level 0.

  Raises:
    ValueError: a value is not finite.

  >>> levels = export_levels(
  ...   jnp.array([-1.0, 0.0, 2.0]),
  ...   affine(jnp.array([-1.0, 2.0]), Grid(bits=2, signed=False)),
  ...   Grid(bits=2, signed=False),
  ... )
  >>> levels.levels
  array([-1,  0,  2], dtype=int8)
  """
  if not bool(jnp.isfinite(values).all()):
    raise ValueError('values must be finite')
  whole = quantize(values, calibration, grid)
  whole = whole - along(calibration.zero_point, values.ndim, grid.axis)
  return UniformLevels(
    levels=narrow(np.asarray(whole)),
    step=np.asarray(calibration.step, np.float32),
    axis=grid.axis,
  )


def narrow(levels: np.ndarray) -> np.ndarray:
  """Returns whole numbers in the least of int8, int16, int32 that holds them.

  Raises:
    ValueError: none does.
  """
  low, high = (levels.min(), levels.max()) if levels.size else (0, 0)
  for dtype in (np.int8, np.int16, np.int32):
    if np.iinfo(dtype).min <= low and high <= np.iinfo(dtype).max:
      return levels.astype(dtype)
  raise ValueError(f'levels from {low} to {high} exceed 32 bits')


def match_grids(rules: GridRules, params: Params) -> dict[str, Grid | None]:
  """Returns the grid of each parameter, by name."""
  check_grids(rules)
  return {
    name: Grid(bits=grid) if isinstance(grid, int) else grid
    for name, grid in tree.match_rules(rules, params).items()
  }


def check_grids(rules: GridRules) -> None:
  """Raises ValueError where a rule's value is no grid, bits or None."""
  for pattern, grid in rules:
    if isinstance(grid, bool) or not isinstance(grid, Grid | int | None):
      raise ValueError(
        f'rules: {pattern!r} has {grid!r}, neither bits, Grid nor None'
      )
    if isinstance(grid, int):
      Grid(bits=grid)


def uniform_params(
  rules: GridRules, *, calibrator: Calibrator = symmetric
) -> Parameterization:
  """Returns the parameterization of a network with uniform weights.

  The variables are the full-precision parameters themselves; steps follow from
  them anew at each decoding.

  Args:
    rules: bits or `Grid` for each parameter; None leaves it alone. The first
      match wins.
    calibrator: `symmetric`, `affine` or `least_squares()`.

  Returns:
    `init`, `decode`, and `export` to `UniformLevels`.

  Raises:
    ValueError: a bad rule.

  >>> uniform = uniform_params([('.*', 2)])
  >>> uniform.decode({'w': jnp.array([0.2, 0.9, -1.0])})['w'].tolist()
  [0.0, 1.0, -1.0]
  """
  check_grids(rules)

  def init(params: Params) -> Params:
    match_grids(rules, params)
    return params

  def decode(variables: Params) -> Params:
    grids = match_grids(rules, variables)

    def leaf(name: str, values: jax.Array) -> jax.Array:
      grid = grids[name]
      if grid is None:
        return values
      return fake_quantize(values, calibrator(values, grid), grid=grid)

    return tree.map_named(leaf, variables)

  def export(variables: Params) -> dict[str, UniformLevels]:
    return quantize_params(variables, rules, calibrator=calibrator)

  return Parameterization(init, decode, export)


def quantize_params(
  params: Params, rules: GridRules, *, calibrator: Calibrator | None = None
) -> dict[str, UniformLevels]:
  """Quantizes trained parameters to integers, without training.

  Args:
    params: tree of concrete arrays (not under jit).
    rules: pairs (expression, bits, `Grid` or None); None leaves the parameter
      alone. The first match wins.
    calibrator: chooses the steps. None: `least_squares()`.

  Returns:
    Integers and steps of each quantized parameter, by name.

  Raises:
    ValueError: a bad rule; a value is not finite, naming the parameter.

  >>> quantize_params({'w': jnp.array([0.0, 1.0])}, [('w', 8)])['w'].levels
  array([  0, 127], dtype=int8)
  """
  calibrator = calibrator or least_squares()
  grids = match_grids(rules, params)
  levels = {}
  for name, leaf in tree.named_leaves(params):
    grid = grids[name]
    if grid is not None:
      if not bool(jnp.isfinite(leaf).all()):
        raise ValueError(f'{name}: values must be finite')
      levels[name] = export_levels(leaf, calibrator(leaf, grid), grid)
  return levels
