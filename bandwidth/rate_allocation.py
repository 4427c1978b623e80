r"""Spends a file's bits where they pay: one Lagrangian for all arrays.

All arrays lie on uniform grids, whose levels are entropy-coded, and share the
price λ of a bit:

.. math:: \min_q \sum_i D_i(q_i) + \lambda \, \mathrm{bits}(q_i)

No bit then buys more in another array than where it is (Shoham, Gersho,
Efficient bit allocation for an arbitrary set of quantizers, IEEE Transactions
on Acoustics, Speech, and Signal Processing 36(9), 1988). λ is what gives the
file its size.
"""

import math
from collections.abc import Callable, Mapping

import jax.numpy as jnp
import numpy as np

from bandwidth import coding, quantization
from bandwidth.base import check_known
from bandwidth.quantization import Sensitivity

Tensors = dict[str, coding.Tensor]
"""Of a file, by name: what `coding.write` takes."""

PRICE = 0.1
"""λ in units of a squared step. On a fine grid with an entropy coder D falls
by 2 ln 2 · step² / 12 = 0.116 step² a bit; on coarse ones less is better."""

_SAMPLE = 2**15
_SAMPLED_ROWS = 64
_SMALLEST = 1024
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
  smallest: int = _SMALLEST,
  coder: str = 'auto',
) -> Tensors:
  r"""Compresses the large arrays so that the file has so many bits a weight.

  The distortion is the squared relative error of each array:

  .. math:: \min_q \sum_i \frac{|w_i - q_i|^2}{|w_i|^2}
    + \lambda \, \mathrm{bits}(q_i)

  since layers pass errors on in proportion, whatever their scale and size. A
  small array, whose bits are few, gets more of them a weight. Steps are in
  proportion to the norms :math:`|w_i|`, and levels are chosen with their bits
  in mind (`quantization.optimize_levels`).

  Args:
    arrays: of a network, by name, of any shapes and dtypes that a file has.
    rate: bits of the file, everything counted, for each element of floating
      arrays.
    smallest: elements; smaller arrays, those of fewer than two axes and those
      of integers keep their bits.
    coder: entropy coder of the file, see `coding.write`.

  Returns:
    Tensors for `coding.write` with the same coder.

  Raises:
    ValueError: an element is not finite; no array is large enough; the rate is
      not positive and finite, less than the other arrays take, or less than is
      reached with the coarsest grids; the coder is unknown.

  >>> rng = np.random.default_rng(0)
  >>> arrays = {
  ...   'scarce': rng.normal(size=(32, 64)).astype(np.float32),
  ...   'ample': 1000 * rng.normal(size=(256, 64)).astype(np.float32),
  ... }
  >>> tensors = compress_to_rate(arrays, rate=4.0)  # 2,048 + 16,384 weights
  >>> 8 * len(coding.encode(tensors)) <= 4.0 * (2048 + 16384)
  True
  >>> for name, tensor in tensors.items():
  ...   print(name, f'{entropy(tensor.levels):.1f} bits a weight')
  scarce 5.3 bits a weight
  ample 3.8 bits a weight
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


def compress_calibrated(
  arrays: Mapping[str, np.ndarray],
  sensitivities: Mapping[str, Sensitivity],
  *,
  rate: float,
) -> Tensors:
  r"""Compresses to a rate by what errors cost on calibration data.

  .. math:: \min_q \sum_i \sum_j r_{ij} E_{ij} H_i E_{ij}'
    + \lambda \, \mathrm{bits}(q_i), \quad E_i = w_i - q_i

  with row j of error counted by :math:`r_{ij}`, see
  `quantization.quantize_with_feedback`.

  Args:
    arrays: of a network, by name. Large ones that calibration says nothing of,
      since the output does not depend on them, share two bits' worth of levels;
      small ones and those of integers keep their bits.
    sensitivities: of matrices [rows, columns], by name.
    rate: bits of the file, everything counted, for each element of floating
      arrays.

  Returns:
    Tensors for `coding.write`.

  Raises:
    ValueError: a sensitivity is of no array, or not of its shape; the rate is
      not positive and finite, or less than can be reached.
  """
  for name in sensitivities:
    check_known('sensitivities', name, arrays)
    wanted = (len(sensitivities[name].rows), len(sensitivities[name].hessian))
    if arrays[name].shape != wanted:
      raise ValueError(
        f'arrays[{name!r}].shape={arrays[name].shape}: its sensitivity is of '
        f'{wanted}'
      )
  plans = {
    name: quantization.make_rounding_plan(s)
    for name, s in sensitivities.items()
  }
  picked = {
    name: np.linspace(0, len(arrays[name]) - 1, _SAMPLED_ROWS).astype(int)
    for name in plans
  }

  def quantize(scale: float) -> Tensors:
    return {
      name: coding.as_tensor(
        quantization.quantize_with_feedback(
          array, plans[name], scale=scale, price=PRICE
        )
      )
      if name in plans
      else _unused(array)
      for name, array in arrays.items()
    }

  def estimate(scale: float) -> float:
    bits = 0.0
    for name, rows in picked.items():
      found = quantization.quantize_with_feedback(
        arrays[name][rows], plans[name].of_rows(rows), scale=scale, price=PRICE
      )
      bits += entropy(found.levels) * arrays[name].size
    return bits

  return meet_rate(quantize, estimate, arrays, rate=rate)


def meet_rate(
  quantize: Callable[[float], Tensors],
  estimate: Callable[[float], float],
  arrays: Mapping[str, np.ndarray],
  *,
  rate: float,
  coder: str = 'auto',
) -> Tensors:
  """Returns a file's tensors at the scale of steps that gives it a rate.

  A search over the scale by estimated bits comes first. Up to four files are
  then made, and the rate aimed at is corrected by what they miss, until one is
  at most a fiftieth smaller than it may be.

  Args:
    quantize: scale -> tensors by name, all of a file.
    estimate: scale -> bits of the levels, decreasing.
    arrays: the originals, by name.
    rate: bits of the file for each element of floating arrays.
    coder: entropy coder of the file, see `coding.write`.

  Raises:
    ValueError: the rate is not positive and finite, or no scale gives so few
      bits; no array is of floats.
  """
  if not 0 < rate < math.inf:
    raise ValueError(f'rate={rate} is not positive and finite')
  weights = sum(
    array.size
    for array in arrays.values()
    if jnp.issubdtype(array.dtype, jnp.floating)
  )
  if not weights:
    raise ValueError('arrays: none of them has elements that are floats')
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


def _unused(array: np.ndarray) -> coding.Tensor:
  if not is_large(array, _SMALLEST):
    return coding.RawTensor(array)
  step = np.asarray(array.std() or 1, np.float32)
  return coding.UniformTensor(np.rint(array / step).astype(np.int32), step)
