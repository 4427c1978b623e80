"""Rate–distortion-optimized quantization, after training.

Rounding to the nearest level minimizes the error; here a level costs its bits
as well, and small errors are bought where they save many. As in DeepCABAC
(Wiedemann et al. 2019, arXiv 1907.11900), with a rate that is estimated anew
from the levels chosen.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from bandwidth.quantization import kmeans
from bandwidth.quantization.uniform import UniformLevels, along, narrow


class RateTable(NamedTuple):
  """Bits of each level: `bits[level - low]`.

  Attributes:
    low: the least level, whose bits come first.
    bits: float64 [levels], bits of each level from `low` on.
  """

  low: int
  bits: np.ndarray


RateEstimate = Callable[[np.ndarray], RateTable]
"""`levels int [n] -> RateTable` that covers at least their range and 0."""


class RateDistortion(NamedTuple):
  """What `optimize_levels` found.

  Attributes:
    tensor: the chosen integers, with their step.
    bits: code length of all integers, by an adaptive coder; see
      `adaptive_bits`.
    distortion: Σ importance * (weight − value)².
  """

  tensor: UniformLevels
  bits: float
  distortion: float


def level_counts(levels: np.ndarray) -> tuple[int, np.ndarray]:
  """Returns the least level, at most 0, and int64 counts from there to the top.

  Raises:
    ValueError: the range is 2^24 levels or more.

  >>> level_counts(np.array([2, 1, 2]))
  (0, array([0, 1, 2]))
  """
  low, high = int(levels.min(initial=0)), int(levels.max(initial=0))
  if high - low >= 2**24:
    raise ValueError(f'levels from {low} to {high}: the step is too small')
  return low, np.bincount(
    levels.ravel().astype(np.int64) - low, minlength=-low + 1
  )


def adaptive_rates(*, pseudo_count: float = 0.5) -> RateEstimate:
  """Returns the estimate −log2 of the frequency, with pseudo counts.

  Args:
    pseudo_count: added to each count between the least and the greatest level,
      so that levels that have become rare can come back. 0.5 is Krichevsky and
      Trofimov's.

  Raises:
    ValueError: `pseudo_count` is not positive.
  """
  if not pseudo_count > 0:
    raise ValueError(f'pseudo_count={pseudo_count} must be positive')

  def estimate(levels: np.ndarray) -> RateTable:
    low, counts = level_counts(levels)
    smooth = counts + pseudo_count
    return RateTable(low, -np.log2(smooth / smooth.sum()))

  return estimate


def geometric_rates(levels: np.ndarray) -> RateTable:
  """Returns the bits of the zero-inflated two-sided geometric fit.

      p(0) = p_0        p(±k) = (1 − p_0) (1 − r) r^(k−1) / 2

  Both are fitted by maximum likelihood. Counts of a fine grid are ragged, and
  choices that follow them stay so; this is smooth.

  >>> geometric_rates(np.array([0, 0, 1, -1])).bits.round(3)
  array([2., 1., 2.])
  """
  low, counts = level_counts(levels)
  size = np.abs(np.arange(counts.size) + low)
  nonzero = max(int(counts.sum() - counts[-low]), 0)
  mean = max((counts * size).sum() / max(nonzero, 1), 1.0)
  stop = 1 / mean
  decay = np.log2(max(1 - stop, 1e-12))
  inflated = (counts[-low] + 0.5) / (counts.sum() + 1)
  bits = -np.log2((1 - inflated) / 2 * stop) - (size - 1) * decay
  bits[-low] = -np.log2(inflated)
  return RateTable(low, bits)


def static_bits(levels: np.ndarray) -> float:
  """Returns n · H: the empirical entropy of all levels, in bits, no table.

  >>> static_bits(np.array([0, 0, 1, 1]))
  4.0
  """
  counts = level_counts(levels)[1]
  counts = counts[counts > 0]
  return float(-(counts * np.log2(counts / max(levels.size, 1))).sum() + 0.0)


def adaptive_bits(levels: np.ndarray, *, pseudo_count: float = 0.5) -> float:
  """Returns the exact code length of an adaptive order-0 coder, in bits.

  The coder starts from pseudo counts α for each of the K levels in the range,
  and counts as it goes. Whatever the order of the levels, that takes

      log2 Γ(n + Kα) / Γ(Kα) − Σ_k log2 Γ(n_k + α) / Γ(α)

  which includes what a table would cost. Source: Krichevsky, Trofimov, The
  performance of universal encoding, IEEE Transactions on Information Theory
  27(2), 1981.

  >>> round(adaptive_bits(np.array([0, 1])), 9)
  3.0
  """
  counts = level_counts(levels)[1]
  total = len(counts) * pseudo_count
  nats = math.lgamma(levels.size + total) - math.lgamma(total)
  start = math.lgamma(pseudo_count)
  nats -= sum(math.lgamma(n + pseudo_count) - start for n in counts[counts > 0])
  return max(nats / math.log(2), 0.0)


def optimize_levels(
  weights: Any,
  *,
  step: Any,
  lagrangian: float,
  importance: Any = None,
  axis: int | None = None,
  rates: RateEstimate | None = None,
  iterations: int = 30,
) -> RateDistortion:
  """Chooses levels that minimize Σ h (w − Δq)² + λ · bits(q).

  Bits are estimated from the levels chosen, and both are repeated until at most
  one level in 10,000 changes. Without importance each choice is the best there
  is; with it, the best of the two levels around the weight, the two next ones
  toward zero, and zero. The result is never worse than rounding to the nearest,
  or than all zeros.

  Args:
    weights: float array of any shape and float dtype.
    step: Δ, positive: a number, or [channels] where an axis is given.
    lagrangian: λ, weighted squared error per bit. 0 rounds to the nearest.
    importance: h, not negative, in the shape of `weights` or a scalar: a
      diagonal of the Fisher or Hessian matrix makes the sum an estimate of the
      loss. None: all 1.
    axis: the axis of the steps. The levels of all channels share their rates.
    rates: how bits are estimated; None: three times by `geometric_rates`, then
      by `adaptive_rates()`.
    iterations: largest number of iterations.

  Returns:
    The integers with their step, bits and distortion.

  Raises:
    ValueError: a value is not finite; a step is not positive, an importance or
      `lagrangian` negative; shapes disagree.

  >>> weights = np.float32([0.6] + [0.0] * 15)
  >>> rounded = optimize_levels(weights, step=1.0, lagrangian=0.0)
  >>> cheaper = optimize_levels(weights, step=1.0, lagrangian=0.1)
  >>> rounded.tensor.levels.sum(), cheaper.tensor.levels.sum()
  (np.int64(1), np.int64(0))
  """
  if not lagrangian >= 0:
    raise ValueError(f'lagrangian={lagrangian} must not be negative')
  values = np.asarray(weights).astype(np.float32)
  tensor = UniformLevels(
    levels=np.zeros(values.shape, np.int8),
    step=np.asarray(step, np.float32),
    axis=axis,
  )
  if not np.isfinite(values).all():
    raise ValueError('weights must be finite')
  steps = along(tensor.step, values.ndim, axis).astype(np.float64)
  curvature = _curvature(importance, values.shape) * steps**2
  ratio = values / steps
  if np.abs(ratio).max(initial=0) >= 2**31:
    raise ValueError(f'step={step}: levels exceed 32 bits, it is too small')
  estimates = [rates] * iterations if rates else _smooth_first(iterations)
  choose = _choose_by_interval if importance is None else _choose
  nearest = levels = np.rint(ratio).astype(np.int64)
  for turn, estimate in enumerate(estimates if lagrangian > 0 else []):
    chosen = choose(ratio, curvature, estimate(levels), lagrangian)
    changed = np.count_nonzero(chosen != levels)
    levels = chosen
    if turn >= 3 and changed <= levels.size / 10**4:
      break
  starts = (nearest, np.zeros_like(levels)) if lagrangian > 0 else ()
  fits = []
  for found in (levels, *starts):
    error = float((curvature * np.square(ratio - found)).sum())
    bits = adaptive_bits(found)
    fits.append((error + lagrangian * bits, found, bits, error))
  _, levels, bits, error = min(fits, key=lambda fit: fit[0])
  tensor = UniformLevels(levels=narrow(levels), step=tensor.step, axis=axis)
  return RateDistortion(tensor, bits, error)


def search_step(
  weights: Any,
  *,
  steps: Sequence[Any],
  lagrangian: float,
  importance: Any = None,
  axis: int | None = None,
) -> RateDistortion:
  """Returns the best of `optimize_levels` over several steps, by D + λ · R.

  For one λ a coarse step with few zeros and a fine one with many compete.

  Args:
    weights: float array of any shape, finite.
    steps: the steps to try, each as for `optimize_levels`.
    lagrangian: λ, the same for all tensors of a network.
    importance: nonnegative weights of the squared errors, as for
      `optimize_levels`.
    axis: axis of the steps, as for `optimize_levels`. None: one step for all.

  Raises:
    ValueError: `steps` is empty; as `optimize_levels`.
  """
  if not len(steps):
    raise ValueError('steps is empty')
  found = [
    optimize_levels(
      weights,
      step=step,
      lagrangian=lagrangian,
      importance=importance,
      axis=axis,
    )
    for step in steps
  ]
  return min(found, key=lambda fit: fit.distortion + lagrangian * fit.bits)


def _smooth_first(iterations: int) -> list[RateEstimate]:
  smooth = min(iterations, 3)
  return [geometric_rates] * smooth + [adaptive_rates()] * (iterations - smooth)


def _curvature(importance: Any, shape: tuple[int, ...]) -> np.ndarray:
  if importance is None:
    return np.ones((1,) * len(shape))
  array = np.asarray(importance, np.float64)
  if array.shape not in (shape, ()):
    raise ValueError(f'importance.shape={array.shape} must be {shape} or ()')
  if not (np.isfinite(array).all() and (array >= 0).all()):
    raise ValueError('importance must be finite and not negative')
  return array.reshape(shape if array.shape else (1,) * len(shape))


def _choose(
  ratio: np.ndarray,
  curvature: np.ndarray,
  table: RateTable,
  lagrangian: float,
) -> np.ndarray:
  """Returns the cheapest candidate of each weight, int64."""
  top = table.low + table.bits.size - 1
  inner = np.trunc(ratio)
  outer = inner + np.sign(ratio)
  closer = inner - np.sign(inner)
  closest = closer - np.sign(closer)
  best = np.zeros(ratio.shape, np.int64)
  least = curvature * ratio**2 + lagrangian * table.bits[-table.low]
  for candidate in (closest, closer, inner, outer):
    levels = np.clip(candidate, table.low, top).astype(np.int64)
    cost = curvature * np.square(ratio - levels)
    cost += lagrangian * table.bits[levels - table.low]
    cheaper = cost < least
    best[cheaper] = levels[cheaper]
    least = np.minimum(least, cost)
  return best


def _choose_by_interval(
  ratio: np.ndarray,
  curvature: np.ndarray,
  table: RateTable,
  lagrangian: float,
) -> np.ndarray:
  """Returns the cheapest level of each weight; one curvature for each channel.

  The weights that choose a level are an interval, so one search among the ends
  of intervals decides.
  """
  levels = table.low + np.arange(table.bits.size)
  axis = int(np.argmax(curvature.shape)) if curvature.size > 1 else None
  groups = [...] if axis is None else range(curvature.shape[axis])
  chosen = np.empty(ratio.shape, np.int64)
  for group, scale in zip(groups, curvature.ravel(), strict=True):
    place = group if axis is None else (slice(None),) * axis + (group,)
    penalties = lagrangian / scale * table.bits
    active, thresholds = kmeans.lower_envelope(levels * 1.0, penalties)
    found = np.searchsorted(thresholds, ratio[place])
    chosen[place] = levels[active][found]
  return chosen
