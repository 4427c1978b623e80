r"""Choices of a kernel: its channels and its precision, chosen together.

There is one decision for each kernel: how many of its input channels stay, and
the step to multiples of which its weights are rounded. A coarse step rounds
many weights to zero, and so prunes single weights too. In a file, the n
entropy-coded weights take

.. math:: \mathrm{bits} = n H(\mathrm{codes})

and the error of the layer, for its inputs X,

.. math:: \|X W - X \hat W\|^2 / \|X W\|^2

depends on X through its moments only. `joint_space` makes decisions of choices.

Weights may be rounded one row after another, where each row compensates for the
errors of the rows before it. With :math:`G = X'X = V V'`, V upper triangular,
and :math:`E = W - \hat W`, the error is

.. math:: \|V' E\|^2 = \sum_i V_{ii}^2 \|E_i + \sum_{j<i} V_{ji}/V_{ii} E_j\|^2

Row i is the last to be rounded in term i, which it reduces to its own rounding
error. This is Babai's nearest plane algorithm, and GPTQ (Frantar et al., arXiv
2210.17323).
"""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from bandwidth.search.decisions.options import (
  Factor,
  Moments,
  Option,
  from_matrix,
)
from bandwidth.search.decisions.options import option as option_of
from bandwidth.search.linear_algebra import cholesky

_HIGHEST = jax.lax.Precision.HIGHEST
_CODES = 2**12
"""Number of codes that are distinguished on each side of zero."""
_FINEST = 14
_BISECTIONS = 24
_SAMPLE = 2**15
"""Largest number of weights that a step is found from, equally spaced."""
_BLOCK = 64
"""Rows that are rounded between two matrix products."""
_BATCH = 8
"""Choices of a kernel that are computed as a batch."""
_DAMPING = 1e-3
"""Added to the diagonal of G, times its mean, if rows are compensated."""

FLOAT_BITS = 32
"""Bits of a weight that is not rounded."""


class KernelChoice(NamedTuple):
  """A choice of channels and precision; a level of the kernel's decision.

  Attributes:
    kept: number of input channels that stay.
    step: step that weights are rounded to multiples of; 0: they are not
      rounded.
    bits: entropy of the codes of the kept rows, all outputs, in bits.
    density: fraction of the kept rows' weights that are not zero.
    error: squared error of the layer's output, relative to its energy: 1 for no
      weights at all.
    compensated: whether later rows compensate for the rounding errors of
      earlier ones. That lowers the error of fine steps; at coarse ones, where
      most weights round to zero, it costs many bits.
  """

  kept: int
  step: float
  bits: float
  density: float
  error: float
  compensated: bool = False


class Kernel(NamedTuple):
  """A kernel and its inputs' moments, from which its choices are made.

  Attributes:
    factor: the layer's `Factor`, of `options.factorize`.
    gram: X'X / N by importance, in the order of the rows of `factor`; centered
      if an intercept is fitted; float32 [n, n].
  """

  factor: Factor
  gram: jax.Array


class Rounding(NamedTuple):
  """Options of pruning and rounding a kernel.

  Attributes:
    refit: whether the remaining weights are fitted anew before rounding.
    compensate: whether choices with `compensated` rows are tried too.
  """

  refit: bool = True
  compensate: bool = True


_ROUNDING = Rounding()


def make_kernel(factor: Factor, inputs: Moments) -> Kernel:
  """Returns a kernel from which choices can be made.

  Args:
    factor: of `options.factorize`; its mean is zero if no intercept is fitted.
    inputs: moments of the layer's inputs, see `options.moments`.
  """
  gram = inputs.gram[factor.order][:, factor.order]
  return Kernel(factor, gram - factor.mean[:, None] * factor.mean[None])


def rounded(kernel: jax.Array, step: float | jax.Array) -> jax.Array:
  """Rounds weights to multiples of a step; 0 leaves them.

  >>> rounded(jnp.array([0.2, -0.9]), 0.5).tolist()
  [0.0, -1.0]
  """
  step = jnp.asarray(step, jnp.float32)
  safe = jnp.where(step > 0, step, 1.0)
  return jnp.where(step > 0, jnp.round(kernel / safe) * safe, kernel)


def steps_for(kernel: np.ndarray, bits: Sequence[float]) -> np.ndarray:
  r"""Returns the steps at which the codes of a kernel have a given entropy.

  At high rates, an entropy-coded uniform quantizer of a Gaussian of standard
  deviation sigma takes :math:`\log_2(\sigma \sqrt{2 \pi e} / \Delta)` bits. At
  low rates, where most weights round to zero, there is no such formula, and the
  step is found by bisection.

  Args:
    kernel: weights, floating, any shape.
    bits: bits a weight, positive; 32: no rounding.

  Returns:
    float32 [len(bits)]; 0 for no rounding.
  """
  flat = np.asarray(kernel, np.float64).reshape(-1)
  flat = flat[:: -(-max(flat.size, 1) // _SAMPLE)]
  largest = max(float(np.abs(flat).max(initial=0.0)), 1e-12)
  steps = []
  for wanted in bits:
    # Half a step rounds to zero, so that twice the largest leaves only zeros.
    low, high = largest / 2**_FINEST, 2 * largest
    for _ in range(_BISECTIONS):
      middle = np.sqrt(low * high)
      coarse = _entropy_of(np.round(flat / middle)) < wanted
      low, high = (low, middle) if coarse else (middle, high)
    steps.append(0.0 if wanted == FLOAT_BITS else np.sqrt(low * high))
  return np.array(steps, np.float32)


def _entropy_of(codes: np.ndarray) -> float:
  _, counts = np.unique(codes, return_counts=True)
  shares = counts / counts.sum()
  return float(-(shares * np.log2(shares)).sum())


def compressed(
  factor: Factor,
  rows: jax.Array,
  step: jax.Array,
  compensated: jax.Array | bool = False,
  *,
  refit: bool = True,
) -> jax.Array:
  """Returns a kernel of fewer rows, its weights rounded.

  Args:
    factor: the layer's `Factor`, of `options.factorize`.
    rows: number of rows that stay, int32 [], traced or not.
    step: step of the weights, float32 []; 0: they are not rounded.
    compensated: whether later rows compensate for the errors of earlier ones,
      bool []; traced or not.
    refit: whether the remaining weights are fitted anew before rounding.

  Returns:
    Matrix by importance, float32 [n, outputs]; zeros in the removed rows.
  """
  shape = factor.kernel.shape
  by_importance = factor._replace(order=jnp.arange(shape[0]))
  fitted = option_of(by_importance, rows, shape, refit=refit).kernel
  pulls = jnp.where(compensated, _pulls(factor.lower, rows), 0.0)
  return _rounded_in_turn(fitted, step, pulls)


def _pulls(lower: jax.Array, rows: jax.Array) -> jax.Array:
  """V_ji / V_ii at [i, j], j < i, of the first rows; zeros elsewhere."""
  count = lower.shape[0]
  gram = jnp.matmul(lower, lower.T, precision=_HIGHEST)
  damping = _DAMPING * jnp.trace(gram) / count
  stays = jnp.arange(count) < rows
  both = stays[:, None] & stays[None]
  eye = jnp.eye(count)
  gram = jnp.where(both, gram + damping * eye, eye)
  # A Cholesky factor has L L'; of the rows in reverse it is V V'.
  upper = cholesky(gram[::-1, ::-1])[::-1, ::-1]
  return jnp.tril(upper.T / jnp.diagonal(upper)[:, None], -1)


def _rounded_in_turn(
  weights: jax.Array, step: jax.Array, pulls: jax.Array
) -> jax.Array:
  """Rounds row after row, in blocks, because matrix products are fast."""
  count, outputs = weights.shape
  missing = -count % _BLOCK
  weights = jnp.pad(weights, ((0, missing), (0, 0)))
  pulls = jnp.pad(pulls, (0, missing))

  def of_block(errors: jax.Array, begin: jax.Array) -> tuple[jax.Array, None]:
    own = lax.dynamic_slice_in_dim(pulls, begin, _BLOCK)
    inside = lax.dynamic_slice_in_dim(own, begin, _BLOCK, axis=1)
    before = lax.dynamic_slice_in_dim(weights, begin, _BLOCK)
    # Errors from here on are still zeros.
    wanted = before + jnp.matmul(own, errors, precision=_HIGHEST)

    def of_row(lost: jax.Array, i: jax.Array) -> tuple[jax.Array, None]:
      target = wanted[i] + jnp.matmul(inside[i], lost, precision=_HIGHEST)
      return lost.at[i].set(before[i] - rounded(target, step)), None

    nothing = jnp.zeros((_BLOCK, outputs))
    lost, _ = lax.scan(of_row, nothing, jnp.arange(_BLOCK))
    return lax.dynamic_update_slice_in_dim(errors, lost, begin, 0), None

  begins = jnp.arange(0, count + missing, _BLOCK)
  errors, _ = lax.scan(of_block, jnp.zeros_like(weights), begins)
  return rounded((weights - errors)[:count], step)


def choices_of(
  kernel: Kernel,
  *,
  channels: Sequence[int],
  all_channels: int,
  steps: Sequence[float] | np.ndarray,
  rounding: Rounding = _ROUNDING,
) -> list[KernelChoice]:
  """Returns the choices of a kernel for all pairs of channels and steps.

  Args:
    kernel: the layer's, of `make_kernel`.
    channels: numbers of input channels to keep.
    all_channels: number of input channels of the kernel.
    steps: steps to try at each number of channels; 0: no rounding.
    rounding: whether to refit and to compensate.
  """
  rows, outputs = kernel.factor.kernel.shape
  each = rows // all_channels
  steps = np.asarray(steps, np.float32)
  counts = np.asarray(channels, np.int32) * each
  ways = (False, True) if rounding.compensate else (False,)
  pairs = [(step, way) for step in steps for way in ways if step or not way]
  measured = _measure(
    kernel,
    counts,
    np.array([step for step, _ in pairs], np.float32),
    np.array([way for _, way in pairs]),
    refit=rounding.refit,
  )
  errors, bits, density = (np.asarray(x, np.float64) for x in measured)
  return [
    KernelChoice(
      kept=kept,
      step=float(step),
      bits=bits[i, j] * kept * each * outputs,
      density=density[i, j],
      error=max(errors[i, j], 0.0) if np.isfinite(errors[i, j]) else np.nan,
      compensated=way,
    )
    for i, kept in enumerate(channels)
    for j, (step, way) in enumerate(pairs)
  ]


# Kernels of one shape share programs.
@functools.partial(jax.jit, static_argnames='refit')
def _measure(
  kernel: Kernel,
  rows: jax.Array,
  steps: jax.Array,
  compensated: jax.Array,
  *,
  refit: bool,
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """Errors, bits a weight and densities, float32 [rows, steps] each."""
  factor, gram = kernel
  product = jnp.matmul(gram, factor.kernel, precision=_HIGHEST)
  energy = jnp.maximum(jnp.sum(factor.kernel * product), 1e-30)

  def of_step(
    rows: jax.Array, step: jax.Array, way: jax.Array
  ) -> tuple[jax.Array, ...]:
    weights = compressed(factor, rows, step, way, refit=refit)
    lost = factor.kernel - weights
    error = jnp.sum(lost * jnp.matmul(gram, lost, precision=_HIGHEST)) / energy
    return error, _entropy(weights, step, rows), _density(weights, rows)

  of_steps = jax.vmap(of_step, (None, 0, 0))
  return lax.map(lambda count: of_steps(count, steps, compensated), rows)


def table_of(
  kernel: Kernel,
  choices: Sequence[KernelChoice],
  shape: Sequence[int],
  *,
  all_channels: int,
  refit: bool = True,
) -> Option:
  """Returns a kernel at all levels, along a first axis.

  If an intercept is fitted, the shift preserves the mean of the outputs.

  Args:
    kernel: the layer's, of `make_kernel`.
    choices: the choice at each level.
    shape: shape of the kernel, [..., inputs, outputs].
    all_channels: number of input channels of the kernel.
    refit: as in the `Rounding` that the choices were made with.
  """
  each = kernel.factor.order.shape[0] // all_channels
  rows = np.array([choice.kept for choice in choices], np.int32) * each
  kernels, shifts = _realize(
    kernel.factor,
    rows,
    np.array([choice.step for choice in choices], np.float32),
    np.array([choice.compensated for choice in choices]),
    shape=tuple(shape),
    refit=refit,
  )
  errors = [choice.error for choice in choices]
  return Option(kernels, shifts, jnp.asarray(errors, jnp.float32))


@functools.partial(jax.jit, static_argnames=('shape', 'refit'))
def _realize(
  factor: Factor,
  rows: jax.Array,
  steps: jax.Array,
  compensated: jax.Array,
  *,
  shape: tuple[int, ...],
  refit: bool,
) -> tuple[jax.Array, jax.Array]:
  def one(given: tuple[jax.Array, ...]) -> tuple[jax.Array, jax.Array]:
    weights = compressed(factor, *given, refit=refit)
    lost = factor.kernel - weights
    shift = jnp.matmul(factor.mean, lost, precision=_HIGHEST)
    matrix = jnp.zeros_like(weights).at[factor.order].set(weights)
    return from_matrix(matrix, shape), shift

  return lax.map(one, (rows, steps, compensated), batch_size=_BATCH)


def _entropy(weights: jax.Array, step: jax.Array, rows: jax.Array) -> jax.Array:
  """Bits a weight of the first rows: the empirical entropy of their codes."""
  codes = jnp.round(weights / jnp.where(step > 0, step, 1.0))
  codes = jnp.clip(codes, -_CODES, _CODES).astype(jnp.int32) + _CODES
  stays = (jnp.arange(weights.shape[0]) < rows)[:, None]
  stays = jnp.broadcast_to(stays, weights.shape)
  counts = jnp.zeros(2 * _CODES + 1).at[codes].add(stays.astype(jnp.float32))
  shares = counts / jnp.maximum(counts.sum(), 1.0)
  bits = -jnp.sum(jnp.where(shares > 0, shares * jnp.log2(shares + 1e-30), 0.0))
  return jnp.where(step > 0, jnp.maximum(bits, 0.0), float(FLOAT_BITS))


def _density(weights: jax.Array, rows: jax.Array) -> jax.Array:
  return jnp.sum(weights != 0) / jnp.maximum(rows * weights.shape[1], 1)


def pareto(
  choices: Sequence[KernelChoice], sizes: Sequence[float] | np.ndarray
) -> list[int]:
  """Returns the indices of the Pareto-optimal choices in size and error.

  They are in order of size.

  Args:
    choices: candidates for the frontier, in any order.
    sizes: size of each choice, in any unit.

  >>> a, b, c = (KernelChoice(1, 0, 0, 1, e) for e in (0.5, 0.6, 0.1))
  >>> pareto([a, b, c], [10, 20, 30])
  [0, 2]
  """
  order = sorted(
    range(len(choices)), key=lambda i: (sizes[i], choices[i].error)
  )
  best, kept = np.inf, []
  for i in order:
    if choices[i].error < best:
      best = choices[i].error
      kept.append(i)
  return kept


def thin(
  indices: Sequence[int], sizes: Sequence[float] | np.ndarray, most: int
) -> list[int]:
  """Picks at most `most` of a frontier, evenly spaced in the logarithm of size.

  The smallest and the largest are always picked.
  """
  if len(indices) <= most:
    return list(indices)
  logs = np.log([max(sizes[i], 1e-9) for i in indices])
  wanted = np.linspace(logs[0], logs[-1], most)
  places = sorted({int(np.argmin(np.abs(logs - x))) for x in wanted})
  places = sorted({0, *places, len(indices) - 1})
  return [indices[i] for i in places]
