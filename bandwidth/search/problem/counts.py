"""Counts of a layer for one example: multiply-adds, weights, activations."""

import math
from collections.abc import Callable

import numpy as np

from bandwidth.search.problem.space import LayerShape

CostModel = Callable[[LayerShape, np.ndarray, np.ndarray], np.ndarray]
"""(layer, inputs, outputs) -> cost. `inputs` and `outputs` are numbers of
channels kept, broadcast against each other; the cost is float64."""


def check_finite(**numbers: float) -> None:
  """Raises ValueError if a number is negative or not finite."""
  for name, number in numbers.items():
    if not 0 <= number < math.inf:
      raise ValueError(f'{name}={number} is negative or not finite')


def check_positive(**numbers: float) -> None:
  """Raises ValueError if a number is not positive."""
  for name, number in numbers.items():
    if not number > 0:
      raise ValueError(f'{name}={number} is not positive')


def macs(
  layer: LayerShape, inputs: np.ndarray, outputs: np.ndarray
) -> np.ndarray:
  """Cost model: multiply-adds of an example, without biases.

  >>> layer = LayerShape('a', 'conv', 3, 8, taps=9, positions=100)
  >>> float(macs(layer, np.array(3), np.array(8)))
  21600.0
  """
  weights = parameters(layer._replace(bias=False), inputs, outputs)
  return layer.positions * weights


def parameters(
  layer: LayerShape, inputs: np.ndarray, outputs: np.ndarray
) -> np.ndarray:
  """Cost model: number of weights and biases."""
  inputs, outputs = _floats(inputs), _floats(outputs)
  if layer.kind == 'depthwise':
    inputs = np.ones_like(inputs)
  return layer.taps * inputs * outputs + layer.bias * outputs


def activations(
  layer: LayerShape, inputs: np.ndarray, outputs: np.ndarray
) -> np.ndarray:
  """Cost model: elements read and written for an example, without fusion."""
  return layer.pixels * _floats(inputs) + layer.positions * _floats(outputs)


def _floats(channels: np.ndarray) -> np.ndarray:
  # Counts often exceed 2^31, and channels come as int32.
  return np.asarray(channels, np.float64)
