"""Energy by hand: LeNet-5 on the table of 45 nm."""

import numpy as np
import pytest

from bandwidth.search.problem.energy import energy
from bandwidth.search.problem.space import LayerShape

# Multiply-adds, weights and biases, activations read and made.
LENET5 = {
  LayerShape('c0', 'conv', 1, 20, 25, 576, 784, bias=True): (
    *(288_000, 520, 784 + 11_520),
  ),
  LayerShape('c1', 'conv', 20, 50, 25, 64, 144, bias=True): (
    *(1_600_000, 25_050, 2_880 + 3_200),
  ),
  LayerShape('f0', 'dense', 50, 500, 16, 1, 16, bias=True): (
    *(400_000, 400_500, 800 + 500),
  ),
  LayerShape('f1', 'dense', 500, 10, bias=True): (5_000, 5_010, 500 + 10),
}


def total(model):
  return sum(
    float(model(layer, np.array(layer.inputs), np.array(layer.outputs)))
    for layer in LENET5
  )


@pytest.mark.parametrize(
  ('options', 'multiply_add', 'weight', 'activation'),
  [
    # Picojoules: 3.7 + 0.9; 640 from DRAM; 5 from SRAM.
    ({}, 4.6, 640, 5),
    ({'weights_in': 'sram'}, 4.6, 5, 5),
    ({'arithmetic': 'int32'}, 3.2, 640, 5),
    ({'weight_bits': 5, 'activation_bits': 16}, 4.6, 100, 2.5),
    (
      {
        'weights_in': 'sram',
        'arithmetic': 'int8',
        'weight_bits': 8,
        'activation_bits': 8,
      },
      *(0.23, 1.25, 1.25),
    ),
    (
      {'arithmetic': 'float16', 'weight_bits': 0, 'activation_bits': 0},
      *(1.5, 0, 0),
    ),
  ],
)
def test_energy_by_hand(options, multiply_add, weight, activation):
  expected = sum(
    1e-12 * (multiply_add * a + weight * b + activation * c)
    for a, b, c in LENET5.values()
  )
  assert total(energy(**options)) == pytest.approx(expected, rel=1e-12)


def test_lenet5():
  # 2,293,000 multiply-adds, 431,080 weights, 20,194 activations.
  dram = 2_293_000 * 4.6 + 431_080 * 640 + 20_194 * 5
  assert dram == pytest.approx(286.54e6, rel=1e-4)
  assert total(energy()) == pytest.approx(1e-12 * dram, rel=1e-12)
  # What compression is for: memory is nearly all of it, unless weights fit.
  assert 2_293_000 * 4.6 / dram < 0.04
  assert total(energy()) > 20 * total(energy(weights_in='sram'))


def test_depthwise_weights_are_few():
  layer = LayerShape('d', 'depthwise', 8, 8, 9, 16, 16)
  found = energy()(layer, np.array([[8], [4]]), np.array([[8, 4]]))
  expected = [
    1e-12 * (9 * n * 16 * 4.6 + 9 * n * 640 + 2 * 16 * n * 5) for n in (8, 4)
  ]
  np.testing.assert_allclose(np.diagonal(found), expected, rtol=1e-12)


@pytest.mark.parametrize(
  ('options', 'message'),
  [
    ({'weights_in': 'disk'}, "weights_in='disk' is unknown; known: dram, sram"),
    ({'arithmetic': 'int4'}, "arithmetic='int4' is unknown; known: float16"),
    ({'weight_bits': -1}, 'weight_bits=-1 is negative or not finite'),
    ({'activation_bits': float('nan')}, 'activation_bits=nan is negative or'),
  ],
)
def test_bad_arguments(options, message):
  with pytest.raises(ValueError, match=message):
    energy(**options)
