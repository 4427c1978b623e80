r"""Channels and precision chosen together, in bytes.

A decision is made for each kernel: how many of its input channels stay, and the
step by which its weights are rounded. Weights that round to zero are zeros, so
a coarse step prunes single weights too. A file of entropy-coded weights takes

.. math:: \mathrm{bits} = n H(\mathrm{codes})

and the error of the layer, for its inputs X,

.. math:: \|X W - X \hat W\|^2 / \|X W\|^2

needs no more than the moments of X. Of all pairs of channels and steps those
stay that no other beats in both: the levels of a decision lie on that frontier,
ascending in bytes, and every searcher works on them as on numbers of channels.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bandwidth.search.options import Factor, option

_HIGHEST = jax.lax.Precision.HIGHEST
_CODES = 2**12
"""Codes that are told apart on each side of zero."""


class Choice(NamedTuple):
  """A level of a decision.

  Attributes:
    kept: input channels.
    step: that weights are rounded by; 0: they are not.
    bits: entropy of the codes of the kept rows, all outputs, in bits.
    density: fraction of the kept rows' weights that are not zero.
    error: of the layer, by the error of no weights at all.
  """

  kept: int
  step: float
  bits: float
  density: float
  error: float


def rounded(kernel: jax.Array, step: float | jax.Array) -> jax.Array:
  """Rounds weights to multiples of a step; 0 leaves them.

  >>> rounded(jnp.array([0.2, -0.9]), 0.5).tolist()
  [0.0, -1.0]
  """
  step = jnp.asarray(step, jnp.float32)
  safe = jnp.where(step > 0, step, 1.0)
  return jnp.where(step > 0, jnp.round(kernel / safe) * safe, kernel)


def steps_for(kernel: np.ndarray, bits: Sequence[float]) -> np.ndarray:
  r"""Returns steps that give about so many bits a weight.

  At high rates an entropy-coded uniform quantizer of a Gaussian of deviation
  sigma takes :math:`\log_2(\sigma \sqrt{2 \pi e} / \Delta)` bits.

  Args:
    kernel: of any shape.
    bits: wanted, ascending or not.

  Returns:
    float64 [len(bits)].
  """
  sigma = max(float(np.std(kernel)), 1e-12)
  return sigma * np.sqrt(2 * np.pi * np.e) / 2 ** np.asarray(bits, np.float64)


def choices_of(
  factor: Factor,
  gram: jax.Array,
  *,
  channels: Sequence[int],
  all_channels: int,
  steps: Sequence[float],
) -> list[Choice]:
  """Returns all pairs of channels and steps of a kernel.

  Args:
    factor: of the reader.
    gram: X'X / N by importance, as `factor` has its rows, less the means where
      a constant is fitted: float32 [n, n].
    channels: kept at each level.
    all_channels: of the decision.
    steps: tried at each.
  """
  each = factor.order.shape[0] // all_channels
  shape = factor.kernel.shape
  by_importance = factor._replace(order=jnp.arange(shape[0]))
  product = jnp.matmul(gram, factor.kernel, precision=_HIGHEST)
  energy = jnp.maximum(jnp.sum(factor.kernel * product), 1e-30)

  @jax.jit
  def measure(rows: jax.Array, step: jax.Array) -> tuple[jax.Array, ...]:
    fitted = option(by_importance, rows, shape).kernel
    weights = rounded(fitted, step)
    lost = factor.kernel - weights
    error = jnp.sum(lost * jnp.matmul(gram, lost, precision=_HIGHEST)) / energy
    return error, _entropy(weights, step, rows), _density(weights, rows)

  found = []
  for kept in channels:
    for step in steps:
      rows = kept * each
      error, bits, density = measure(jnp.int32(rows), jnp.float32(step))
      count = rows * shape[1]
      found.append(
        Choice(
          kept,
          float(step),
          float(bits) * count,
          float(density),
          max(float(error), 0.0),
        )
      )
  return found


def _entropy(weights: jax.Array, step: jax.Array, rows: jax.Array) -> jax.Array:
  """Bits a weight of the first rows: those of their codes, as they come."""
  codes = jnp.round(weights / jnp.where(step > 0, step, 1.0))
  codes = jnp.clip(codes, -_CODES, _CODES).astype(jnp.int32) + _CODES
  stays = (jnp.arange(weights.shape[0]) < rows)[:, None]
  stays = jnp.broadcast_to(stays, weights.shape)
  counts = jnp.zeros(2 * _CODES + 1).at[codes].add(stays.astype(jnp.float32))
  shares = counts / jnp.maximum(counts.sum(), 1.0)
  bits = -jnp.sum(jnp.where(shares > 0, shares * jnp.log2(shares + 1e-30), 0.0))
  return jnp.where(step > 0, bits, 32.0)


def _density(weights: jax.Array, rows: jax.Array) -> jax.Array:
  return jnp.sum(weights != 0) / jnp.maximum(rows * weights.shape[1], 1)


def pareto(choices: Sequence[Choice], sizes: Sequence[float]) -> list[int]:
  """Returns the choices that no other beats in size and error, by size.

  Args:
    choices: all.
    sizes: what counts as the size of each.

  >>> a, b, c = (Choice(1, 0, 0, 1, e) for e in (0.5, 0.6, 0.1))
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
  indices: Sequence[int], sizes: Sequence[float], most: int
) -> list[int]:
  """Picks at most so many of a frontier, evenly by the logarithm of size.

  The smallest and the largest stay.
  """
  if len(indices) <= most:
    return list(indices)
  logs = np.log([max(sizes[i], 1e-9) for i in indices])
  wanted = np.linspace(logs[0], logs[-1], most)
  places = sorted({int(np.argmin(np.abs(logs - x))) for x in wanted})
  places = sorted({0, *places, len(indices) - 1})
  return [indices[i] for i in places]
