"""Spends a file's bits where they pay: one Lagrangian for all arrays.

Minimizes the sum over arrays of D + λ · bits, where all levels are on uniform
grids and entropy-coded. Without data, D is an array's squared relative error
`|w - q|² / |w|²`: layers pass errors on in proportion, whatever their scale and
size, so that a small array, whose bits are few, gets more of them a weight.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from bandwidth import coding, quantization

Tensors = dict[str, Any]

PRICE = 0.1
"""λ in units of a squared step. On a fine grid with an entropy coder D falls
by 2 ln 2 · step² / 12 = 0.116 step² a bit; on coarse ones less is better."""

_SAMPLE = 2**15
_TRIES = 4
_CLOSE = 0.98
_ESTIMATES = 12


def is_large(array: np.ndarray, smallest: int) -> bool:
  """Whether an array is compressed: floats, two axes or more, large enough."""
  floating = jnp.issubdtype(array.dtype, jnp.floating)
  return bool(array.ndim >= 2 and array.size >= smallest and floating)


def compress_to_rate(
  arrays: Mapping[str, np.ndarray],
  *,
  rate: float,
  smallest: int = 1024,
  coder: str = 'auto',
) -> Tensors:
  """Compresses the large arrays so that the file has so many bits a weight.

  Args:
    arrays: of a network, by name.
    rate: bits of the file, everything counted, for each element of floating
      arrays.
    smallest: elements; smaller arrays, those of fewer than two axes and those
      of integers keep their bits.
    coder: entropy coder of the file, see `coding.write`.

  Returns:
    Tensors for `coding.write` with the same coder.

  Raises:
    ValueError: an element is not finite; no array is large enough; the rate is
      less than the other arrays take.
  """
  large = {n: a for n, a in arrays.items() if is_large(a, smallest)}
  if not large:
    raise ValueError(
      f'smallest={smallest}: no array of the input has two axes and so many '
      'elements'
    )
  norms = {}
  for name, array in large.items():
    norms[name] = float(np.linalg.norm(array.astype(np.float64)))
    if not math.isfinite(norms[name]):
      raise ValueError(f'input: {name} has elements that are not finite')

  def quantize(scale: float) -> Tensors:
    return {
      name: _uniform(array, scale * norms[name])
      if name in large
      else coding.RawTensor(array)
      for name, array in arrays.items()
    }

  samples = {name: _sample(array) for name, array in large.items()}

  def estimate(scale: float) -> float:
    return sum(
      entropy(_levels(samples[name], scale * norms[name])) * array.size
      for name, array in large.items()
    )

  return meet_rate(quantize, estimate, arrays, rate=rate, coder=coder)


def meet_rate(
  quantize: Callable[[float], Tensors],
  estimate: Callable[[float], float],
  arrays: Mapping[str, np.ndarray],
  *,
  rate: float,
  coder: str = 'auto',
) -> Tensors:
  """Finds the scale of all steps whose file has so many bits a weight, or less.

  A search over the scale by estimated bits comes first. Then files are made,
  and the rate aimed at is corrected by what they miss.

  Args:
    quantize: scale -> tensors by name, all of a file.
    estimate: scale -> bits of the codes, decreasing.
    arrays: the originals, by name.
    rate: bits of the file for each element of floating arrays.
    coder: entropy coder of the file, see `coding.write`.

  Raises:
    ValueError: no scale gives so few bits.
  """
  weights = sum(
    array.size
    for array in arrays.values()
    if jnp.issubdtype(array.dtype, jnp.floating)
  )
  kept = sum(8 * a.nbytes for a in arrays.values() if a.ndim < 2)
  if rate * weights <= kept:
    raise ValueError(
      f'rate={rate}: what is kept to the bit takes {kept / weights:.3g} bits a '
      'weight'
    )
  aim, best, at = 0.99 * rate - kept / weights, None, -8.0
  found = math.inf
  for _ in range(_TRIES):
    bits = max(aim, 1e-3) * weights
    at = _search(estimate, bits, start=at, size=weights)
    tensors = quantize(2.0**at)
    found = 8 * len(coding.encode(tensors, coder=coder)) / weights
    if found <= rate:
      best = tensors
    if _CLOSE * rate <= found <= rate:
      break
    aim += (1 + _CLOSE) / 2 * rate - found
  if best is None:
    raise ValueError(
      f'rate={rate}: {found:.3g} bits a weight is the least that was reached'
    )
  return best


def _search(
  estimate: Callable[[float], float], bits: float, *, start: float, size: int
) -> float:
  """Returns log2 of the scale with so many bits, from a first guess.

  Twice the step saves a bit a weight where steps are fine, less where they are
  coarse; so the search, which trusts in a bit, nears from one side there.
  """
  at = start
  for _ in range(_ESTIMATES):
    excess = (estimate(2.0**at) - bits) / size
    at += excess
    if abs(excess) * size <= 0.002 * abs(bits):
      break
  return at


def _sample(array: np.ndarray) -> np.ndarray:
  flat = np.asarray(array, np.float32).reshape(-1)
  picked = np.random.default_rng(0).integers(flat.size, size=_SAMPLE)
  return flat if flat.size <= _SAMPLE else flat[picked]


def _levels(values: np.ndarray, step: float) -> np.ndarray:
  if not step:
    return np.zeros(values.shape, np.int64)
  # Finer than this is as good as exact, and fits 32 bits.
  step = max(step, float(np.abs(values).max(initial=0)) / 2**20)
  return np.rint(values / step).astype(np.int64)


def entropy(levels: np.ndarray) -> float:
  """Returns bits a level, corrected for the bias of few levels (Miller 1955).

  >>> round(entropy(np.array([0, 0, 1, 1])), 3)
  1.18
  """
  _, counts = np.unique(levels, return_counts=True)
  bits = -(counts * np.log2(counts / levels.size)).sum() / levels.size
  return float(bits + (counts.size - 1) / (2 * math.log(2) * levels.size))


def _uniform(array: np.ndarray, step: float) -> coding.UniformTensor:
  """Levels of one array by λ = `PRICE` · step²."""
  dtype = array.dtype.name
  values = np.asarray(array, np.float32)
  if not step:
    return coding.UniformTensor(
      np.zeros(array.shape, np.int32), np.ones((), np.float32), dtype=dtype
    )
  step = max(step, float(np.abs(values).max(initial=0)) / 2**20)
  found = quantization.optimize_levels(
    values, step=step, lagrangian=PRICE * step**2, iterations=6
  )
  return coding.UniformTensor(
    found.tensor.levels, found.tensor.step, dtype=dtype
  )
