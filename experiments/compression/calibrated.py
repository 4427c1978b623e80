"""Compression to a rate by what errors cost on calibration data."""

from collections.abc import Mapping

import jax.numpy as jnp
import numpy as np

from bandwidth import coding
from bandwidth.quantization import (
  Sensitivity,
  make_rounding_plan,
  quantize_with_feedback,
)
from experiments.compression.rate import PRICE, Tensors, entropy, meet_rate

Arrays = Mapping[str, np.ndarray]

_SAMPLED_ROWS = 64


def compress_calibrated(
  arrays: Arrays, sensitivities: Mapping[str, Sensitivity], *, rate: float
) -> Tensors:
  """Compresses to a rate by what errors cost; see `quantization.feedback`.

  Args:
    arrays: by name. Large ones that calibration says nothing of, since the
      output does not depend on them, share two bits' worth of levels.
    sensitivities: of matrices, by name.
    rate: bits of the file for each element of floating arrays.
  """
  plans = {name: make_rounding_plan(s) for name, s in sensitivities.items()}
  picked = {
    name: np.linspace(0, len(arrays[name]) - 1, _SAMPLED_ROWS).astype(int)
    for name in plans
  }

  def quantize(scale: float) -> Tensors:
    return {
      name: coding.as_tensor(
        quantize_with_feedback(array, plans[name], scale=scale, price=PRICE)
      )
      if name in plans
      else _unused(array)
      for name, array in arrays.items()
    }

  def estimate(scale: float) -> float:
    bits = 0.0
    for name, rows in picked.items():
      found = quantize_with_feedback(
        arrays[name][rows], plans[name].of_rows(rows), scale=scale, price=PRICE
      )
      bits += entropy(found.levels) * arrays[name].size
    return bits

  return meet_rate(quantize, estimate, arrays, rate=rate)


def _unused(array: np.ndarray) -> coding.Tensor:
  floating = jnp.issubdtype(array.dtype, jnp.floating)
  if array.ndim < 2 or array.size < 1024 or not floating:
    return coding.RawTensor(array)
  step = np.asarray(array.std() or 1, np.float32)
  return coding.UniformTensor(np.rint(array / step).astype(np.int32), step)
