"""Decisions on bits: the precision of each layer's weights and activations.

A decision is on a `BitGroup`, and its levels are numbers of bits, ascending.
The decisions of a layer follow each other, weights first, so that all decisions
are a chain. Costs are tables over the two decisions of each layer: bits of its
weights and bits of its activations take the place of its input and output
channels.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple, cast

import numpy as np

from bandwidth.base import make_named, unknown_name
from bandwidth.search.problem.cost import Costs, exact_cost, tabulate
from bandwidth.search.problem.counts import CostModel, check_positive, macs
from bandwidth.search.problem.space import FIXED, LayerShape, Space

UNQUANTIZED = 32
"""Bits of values that stay float32."""

MOST_BITS = 16
"""Largest number of bits of quantized values."""

MODES = ('linear', 'kmeans')
"""'linear': weights and activations are integers times a step; 'kmeans':
weights have codebooks, and activations stay float32."""

BitModel = Callable[[LayerShape, np.ndarray, np.ndarray], np.ndarray]
"""(layer, weight_bits, activation_bits) -> cost. The bits are integer arrays,
broadcast against each other; the cost is float64."""

_FLOAT_BYTES = 4


class BitGroup(NamedTuple):
  """Values that are stored in the same number of bits.

  Attributes:
    name: layer and side, 'Conv_0/weights'.
    layer: place of the layer in the order of computation, from 0.
    side: 'weights', or 'activations', which the layer reads.
  """

  name: str
  layer: int
  side: str


def make_bit_space(
  layers: Iterable[LayerShape],
  *,
  mode: str = 'linear',
  bits: Iterable[int] = range(2, 9),
  pins: Mapping[str, int] | None = None,
) -> Space:
  """Makes the decisions of a network: on its weights, and on its activations.

  Args:
    layers: in the order of computation.
    mode: 'linear': decisions on weights and on activations; or 'kmeans': on
      weights alone, activations stay float32.
    bits: numbers of bits to choose among, ascending.
    pins: bits that are given, by name of the decision, such as `authors_pins`;
      such a decision has one level.

  Returns:
    A space whose `reads` are the decisions on weights, and `writes` those on
    activations; its groups are of type `BitGroup`.

  Raises:
    ValueError: a name is unknown; bits are out of range or do not ascend.

  >>> layers = [LayerShape('a', 'dense', 4, 2), LayerShape('b', 'dense', 2, 2)]
  >>> space = make_bit_space(layers, bits=(2, 4), pins={'a/weights': 8})
  >>> [group.name for group in space.groups]
  ['a/weights', 'a/activations', 'b/weights', 'b/activations']
  >>> space.levels
  ((8,), (2, 4), (2, 4), (2, 4))
  """
  check_mode(mode)
  layers, bits = tuple(layers), tuple(bits)
  check_bits('bits', bits)
  sides = ('weights', 'activations')[: 2 if mode == 'linear' else 1]
  groups = tuple(
    BitGroup(f'{layer.name}/{side}', i, side)
    for i, layer in enumerate(layers)
    for side in sides
  )
  pins = dict(pins or {})
  for name, pinned in pins.items():
    known = [group.name for group in groups]
    if name not in known:
      raise ValueError(unknown_name('pins', name, known))
    check_bits(f'pins[{name!r}]', (pinned,))
  count = len(layers)
  linear = mode == 'linear'
  return Space(
    layers=layers,
    groups=cast(Any, groups),
    reads=tuple(i * len(sides) for i in range(count)),
    writes=tuple(2 * i + 1 if linear else FIXED for i in range(count)),
    levels=tuple(
      (pins[group.name],) if group.name in pins else bits for group in groups
    ),
  )


def authors_pins(layers: Sequence[LayerShape]) -> dict[str, int]:
  """Returns the bits that HAQ does not choose in linear mode, as `pins`.

  The first layer has 8 bits a weight and reads the images unquantized; the last
  layer has 8 bits for both.
  """
  first, last = layers[0].name, layers[-1].name
  return {
    f'{first}/weights': 8,
    f'{first}/activations': UNQUANTIZED,
    f'{last}/weights': 8,
    f'{last}/activations': 8,
  }


def check_mode(mode: str) -> None:
  """Raises ValueError if a mode is unknown."""
  if mode not in MODES:
    raise ValueError(unknown_name('mode', mode, MODES))


def check_bits(name: str, bits: Sequence[int]) -> None:
  """Checks numbers of bits.

  Raises:
    ValueError: there are none; one is neither from 1 to `MOST_BITS` nor
      `UNQUANTIZED`; they do not ascend.
  """
  known = (*range(1, MOST_BITS + 1), UNQUANTIZED)
  if not bits or any(x not in known for x in bits):
    raise ValueError(
      f'{name}={list(bits)} are not all from 1 to {MOST_BITS}, or {UNQUANTIZED}'
    )
  if sorted(set(bits)) != list(bits):
    raise ValueError(f'{name}={list(bits)} do not ascend')


def weight_bytes(*, mode: str = 'linear') -> BitModel:
  """Cost model: bytes of the weights, before any entropy coding.

  Includes what decodes them: a float32 codebook, of at most as many entries as
  there are weights, or one step. Biases are left out.

  Args:
    mode: 'linear', integers times a step, or 'kmeans', codebooks.

  Raises:
    ValueError: the mode is unknown.

  >>> layer = LayerShape('a', 'dense', 100, 10)
  >>> bits = np.array([4, 32]), np.array(8)
  >>> weight_bytes()(layer, *bits).tolist()
  [504.0, 4000.0]
  >>> weight_bytes(mode='kmeans')(layer, *bits).tolist()
  [564.0, 4000.0]
  """
  check_mode(mode)

  def model(
    layer: LayerShape, weight_bits: np.ndarray, activation_bits: np.ndarray
  ) -> np.ndarray:
    entries = np.ones(np.shape(weight_bits))
    if mode == 'kmeans':
      entries = np.minimum(2.0 ** _floats(weight_bits), layer.weights)
    decoding = np.where(weight_bits == UNQUANTIZED, 0, _FLOAT_BYTES * entries)
    stored = layer.weights / 8 * _floats(weight_bits) + decoding
    return stored + np.zeros(np.shape(activation_bits))

  return model


def activation_bytes(
  layer: LayerShape, weight_bits: np.ndarray, activation_bits: np.ndarray
) -> np.ndarray:
  """Cost model: bytes of the activations that a layer reads for an example.

  Its outputs are counted by the layer that reads them.
  """
  read = layer.pixels * layer.inputs / 8 * _floats(activation_bits)
  return read + np.zeros(np.shape(weight_bits))


def all_bytes(*, mode: str = 'linear') -> BitModel:
  """Cost model: bytes of weights, and of the activations of an example.

  Args:
    mode: 'linear', integers times a step, or 'kmeans', codebooks.
  """
  weights = weight_bytes(mode=mode)

  def model(
    layer: LayerShape, weight_bits: np.ndarray, activation_bits: np.ndarray
  ) -> np.ndarray:
    bits = weight_bits, activation_bits
    return weights(layer, *bits) + activation_bytes(layer, *bits)

  return model


def bit_operations(
  layer: LayerShape, weight_bits: np.ndarray, activation_bits: np.ndarray
) -> np.ndarray:
  """Cost model: multiply-adds of an example times the bits of both factors.

  >>> layer = LayerShape('a', 'dense', 100, 10)
  >>> float(bit_operations(layer, np.array(4), np.array(8)))
  32000.0
  """
  count = macs(layer, np.array(layer.inputs), np.array(layer.outputs))
  return count * _floats(weight_bits) * _floats(activation_bits)


def bit_roofline(
  *,
  operations_per_second: float,
  bytes_per_second: float,
  overhead: float = 0.0,
  mode: str = 'linear',
) -> BitModel:
  r"""Cost model: seconds on a device that computes bit by bit while it loads.

  A layer with w bits a weight and a bits an activation takes

  .. math:: t = \max(\mathrm{MACs}\, w\, a / p, \mathrm{bytes} / b) + o

  Args:
    operations_per_second: p, bit operations a second.
    bytes_per_second: b, bandwidth of the memory.
    overhead: o, seconds that each layer takes in addition.
    mode: 'linear', integers times a step, or 'kmeans', codebooks.

  Raises:
    ValueError: a rate is not positive.

  References:
    Williams et al., Roofline, CACM 2009. Sharma et al., Bit Fusion, ISCA 2018,
    describe such a device.
  """
  check_positive(
    operations_per_second=operations_per_second,
    bytes_per_second=bytes_per_second,
  )
  moved = all_bytes(mode=mode)

  def model(
    layer: LayerShape, weight_bits: np.ndarray, activation_bits: np.ndarray
  ) -> np.ndarray:
    bits = weight_bits, activation_bits
    computing = bit_operations(layer, *bits) / operations_per_second
    loading = moved(layer, *bits) / bytes_per_second
    return np.maximum(computing, loading) + overhead

  return model


def lookup(table: np.ndarray, layers: Sequence[LayerShape]) -> BitModel:
  """Cost model: costs measured on a device, in HAQ's format.

  Unquantized values cost as much as the most bits of the table: images have 8
  bits before they are scaled.

  Args:
    table: costs, [layers, W, A]; entry [l, w - 1, a - 1] is the cost of layer l
      with w bits a weight and a bits an activation.
    layers: in the order of the table.

  Raises:
    ValueError: the table has the wrong shape. The model raises it for more bits
      than the table has.

  >>> layers = [LayerShape('a', 'dense', 4, 2)]
  >>> model = lookup(np.arange(6).reshape(1, 2, 3), layers)
  >>> model(layers[0], np.array(2), np.array([1, 3, 32])).tolist()
  [3.0, 5.0, 5.0]
  """
  table = np.asarray(table, np.float64)
  if table.ndim != 3 or len(table) != len(layers) or not table.size:
    raise ValueError(
      f'table: shape {table.shape} is not ({len(layers)}, W, A), of weights '
      'and activations'
    )
  places = {layer.name: i for i, layer in enumerate(layers)}

  def index(bits: np.ndarray, most: int) -> np.ndarray:
    bits = np.where(bits == UNQUANTIZED, most, bits)
    if (bits > most).any():
      raise ValueError(f'table: {bits.max()} bits are more than its {most}')
    return bits - 1

  def model(
    layer: LayerShape, weight_bits: np.ndarray, activation_bits: np.ndarray
  ) -> np.ndarray:
    own = table[places[layer.name]]
    rows = index(weight_bits, own.shape[0])
    columns = index(activation_bits, own.shape[1])
    return own[rows, columns]

  return model


BIT_COSTS: Mapping[str, Callable[..., BitModel]] = {
  'weight_bytes': weight_bytes,
  'activation_bytes': lambda: activation_bytes,
  'bytes': all_bytes,
  'bit_operations': lambda: bit_operations,
  'roofline': bit_roofline,
}
"""Factories of cost models over bits, by name."""


def bit_cost_model(name: str, **arguments: Any) -> BitModel:
  """Returns a cost model over bits, as `cost.cost_model`, of `BIT_COSTS`."""
  return make_named('cost', name, BIT_COSTS, arguments)


def tabulate_bits(space: Space, model: BitModel) -> Costs:
  """Evaluates a cost model at all levels of all layers.

  Args:
    space: decisions on bits, of `make_bit_space`.
    model: cost of a layer by its bits, such as `weight_bytes()`.

  Returns:
    Tables over the bits of weights and the bits of activations.

  Raises:
    ValueError: a cost is negative or not finite.
  """
  return tabulate(*_as_channels(space, model))


def exact_bit_cost(
  space: Space, model: BitModel, candidate: np.ndarray
) -> float:
  """Returns the cost of a candidate in the unit of the model, on the host."""
  return exact_cost(*_as_channels(space, model), candidate)


def equal_bit_cost(
  space: Space,
  model: BitModel,
  *,
  weight_bits: int = 8,
  activation_bits: int = 8,
) -> float:
  """Returns the cost of a network with the same bits everywhere.

  HAQ's budgets are fractions of this cost: with 8 bits for both in linear mode,
  and with 32 in k-means mode. Pins are ignored.
  """
  bits = np.array(weight_bits), np.array(activation_bits)
  return math.fsum(float(model(layer, *bits)) for layer in space.layers)


def _floats(bits: np.ndarray) -> np.ndarray:
  # Bits come as int32, and the bits of a network exceed its range.
  return np.asarray(bits, np.float64)


def _as_channels(space: Space, model: BitModel) -> tuple[Space, CostModel]:
  """Numbers of bits in the place of numbers of channels, for `cost`.

  Activations that are not quantized have the bits of float32.
  """
  layers = {layer.name: layer for layer in space.layers}
  stand_ins = tuple(
    layer._replace(kind='dense', outputs=UNQUANTIZED) for layer in space.layers
  )

  def of_bits(
    layer: LayerShape, weight_bits: np.ndarray, activation_bits: np.ndarray
  ) -> np.ndarray:
    return model(layers[layer.name], weight_bits, activation_bits)

  return space._replace(layers=stand_ins), of_bits
