"""Energy of an inference: arithmetic, SRAM and DRAM."""

from collections.abc import Mapping

import numpy as np

from bandwidth.base import unknown_name
from bandwidth.search.problem.counts import (
  CostModel,
  activations,
  check_finite,
  macs,
  parameters,
)
from bandwidth.search.problem.space import LayerShape

MULTIPLY_ADD: Mapping[str, float] = {
  'float32': 3.7 + 0.9,
  'float16': 1.1 + 0.4,
  'int32': 3.1 + 0.1,
  'int8': 0.2 + 0.03,
}
"""Picojoules of a multiplication and an addition, by dtype."""

ACCESS: Mapping[str, float] = {'dram': 640.0, 'sram': 5.0}
"""Picojoules of reading 32 bits, from DRAM or from an SRAM of 32 KB."""

_PICO = 1e-12


def energy(
  *,
  weights_in: str = 'dram',
  arithmetic: str = 'float32',
  weight_bits: float = 32,
  activation_bits: float = 32,
) -> CostModel:
  r"""Cost model: joules of an inference of one example.

  .. math::
    E = \mathrm{MACs}\,(e_\times + e_+)
      + W \tfrac{b_W}{32} e_\mathrm{memory}
      + A \tfrac{b_A}{32} e_\mathrm{SRAM}

  for W weights and biases, fetched once, and A activations of each layer, read
  from SRAM and written to it. The energy of an access is proportional to its
  bits, and the same for reads and writes. Repeated fetches, the addition of
  biases and all control are left out: this is a lower bound, for comparing
  networks.

  The constants are those of a 45 nm process at 0.9 V.

  Args:
    weights_in: 'dram', or 'sram' if all weights of the network fit there.
    arithmetic: dtype of the multiply-adds, a key of `MULTIPLY_ADD`.
    weight_bits: number of bits of a weight.
    activation_bits: number of bits of an activation.

  Raises:
    ValueError: a name is unknown; bits are negative or not finite.

  References:
    Horowitz, Computing's energy problem (and what we can do about it), ISSCC
    2014, figure 1.1.9; for accesses of 32 bits, Han et al., EIE, 2016, table I,
    https://arxiv.org/abs/1602.01528

  >>> layer = LayerShape('fc', 'dense', 4096, 1000)
  >>> f'{energy()(layer, np.array(4096), np.array(1000)):.3g} J'
  '0.00264 J'
  """
  if weights_in not in ACCESS:
    raise ValueError(unknown_name('weights_in', weights_in, ACCESS))
  if arithmetic not in MULTIPLY_ADD:
    raise ValueError(unknown_name('arithmetic', arithmetic, MULTIPLY_ADD))
  check_finite(weight_bits=weight_bits, activation_bits=activation_bits)
  of_mac = _PICO * MULTIPLY_ADD[arithmetic]
  of_weight = _PICO * ACCESS[weights_in] * weight_bits / 32
  of_activation = _PICO * ACCESS['sram'] * activation_bits / 32

  def model(
    layer: LayerShape, inputs: np.ndarray, outputs: np.ndarray
  ) -> np.ndarray:
    return (
      of_mac * macs(layer, inputs, outputs)
      + of_weight * parameters(layer, inputs, outputs)
      + of_activation * activations(layer, inputs, outputs)
    )

  return model
