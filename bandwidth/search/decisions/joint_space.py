"""Decisions on channels and precision together, one for each kernel.

A decision is on a `JointGroup`, a dense layer or a convolution that is not
depthwise. Its levels are choices of `joint`: how many of its input channels
stay, and to multiples of which step its weights are rounded. Levels ascend in
an estimate of their cost, so that every searcher can treat them as numbers of
channels. The actual cost of a candidate comes from tables over the choice of a
layer and the choice of the kernel that reads its outputs.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, cast

import numpy as np

from bandwidth.base import make_named
from bandwidth.search.decisions import joint
from bandwidth.search.decisions.joint import KernelChoice
from bandwidth.search.problem import cost
from bandwidth.search.problem.counts import CostModel
from bandwidth.search.problem.space import FIXED, LayerShape, Space

LARGEST = 2**12
"""Size of the last level of a decision; the sizes of other levels are relative
to it. Larger sizes would not survive a round trip through float32 fractions."""

_FLOAT_BYTES = 4


class JointGroup(NamedTuple):
  """A kernel whose input channels and precision are chosen.

  Attributes:
    name: name of the layer, 'Conv_1'.
    layer: place of the layer in the order of computation, from 0.
    source: name of the `ChannelGroup` that it reads; None: channels that cannot
      be removed.
    floats: float32 numbers outside of kernels that each input channel takes
      with it: biases, normalization, weights of depthwise kernels.
    fixed: float32 numbers that always stay; those of the whole network are
      counted with its first decision.
  """

  name: str
  layer: int
  source: str | None
  floats: int
  fixed: int


class Sides(NamedTuple):
  """The choices for a layer, as arrays that broadcast against each other.

  Attributes:
    inputs: number of input channels that stay.
    outputs: number of output channels that stay.
    bits: entropy of the kernel's kept rows with all outputs, in bits.
    floats: number of float32 values counted with the layer.
  """

  inputs: np.ndarray
  outputs: np.ndarray
  bits: np.ndarray
  floats: np.ndarray


JointModel = Callable[[LayerShape, Sides], np.ndarray]
"""(layer, sides) -> cost, float64."""


def file_bytes(layer: LayerShape, sides: Sides) -> np.ndarray:
  """Cost model: bytes of entropy-coded weights, and of all float32 numbers.

  Outputs that stay are assumed to need as many bits as those that are removed.
  Names, tables and checksums of a file are left out.

  >>> layer = LayerShape('a', 'dense', 100, 10)
  >>> sides = Sides(*map(np.array, (50, 5, 1600.0, 10)))
  >>> float(file_bytes(layer, sides))
  140.0
  """
  coded = sides.bits / 8 * (sides.outputs / layer.outputs)
  return coded + _FLOAT_BYTES * sides.floats


def kernel_layers(channels: Space) -> tuple[int, ...]:
  """Returns the layers that become decisions, in order.

  Args:
    channels: decisions on channels alone, of `make_space`.

  Raises:
    ValueError: several kernels read the same channels, which therefore cannot
      be chosen with one of them; the message names the kernels.
  """
  places = [i for i, x in enumerate(channels.layers) if x.kind != 'depthwise']
  for decision, group in enumerate(channels.groups):
    names = [
      channels.layers[i].name for i in places if channels.reads[i] == decision
    ]
    if len(names) > 1:
      raise ValueError(
        f'{group.name}: its channels are read by {", ".join(names)}; they can '
        'be chosen with a kernel only where no other reads them'
      )
  return tuple(places)


def producer_weights(channels: Space, layer: int) -> int:
  """Returns the number of weights of the kernels whose outputs a layer reads.

  0 if its input channels cannot be removed.
  """
  group = channels.reads[layer]
  if group == FIXED:
    return 0
  return sum(
    other.weights
    for other, writes in zip(channels.layers, channels.writes, strict=True)
    if writes == group and other.kind != 'depthwise'
  )


def sizes_of(
  channels: Space,
  layer: int,
  choices: Sequence[KernelChoice],
  *,
  floats: int = 0,
  rate: float,
) -> np.ndarray:
  """Estimates the cost of choices in bits: float64 [len(choices)].

  It is the bits of the choice, and for each channel that stays the bits of the
  weights that produce it.

  Args:
    channels: decisions on channels alone, of `make_space`.
    layer: place of the layer in the order of computation.
    choices: choices of the layer's kernel, in any order.
    floats: float32 numbers that each input channel takes with it.
    rate: bits a weight of the kernel that makes the channels.
  """
  count = channels.layers[layer].inputs
  made = rate * producer_weights(channels, layer) / count
  each = made + joint.FLOAT_BITS * floats
  return np.array([x.bits + x.kept * each for x in choices], np.float64)


def order_choices(
  channels: Space,
  layer: int,
  choices: Sequence[KernelChoice],
  *,
  floats: int = 0,
  rates: Sequence[float],
  most_levels: int = 48,
) -> tuple[KernelChoice, ...]:
  """Picks the levels of a decision, and puts them in order.

  The first level has the fewest channels and the coarsest step; choices that
  take even fewer bits are left out, so that no candidate costs less than the
  one of all first levels. The last level has the smallest error. The others are
  Pareto-optimal in error and in one of the estimates of the size, see `rates`.

  Args:
    channels: decisions on channels alone, of `make_space`.
    layer: place of the layer in the order of computation.
    choices: all choices of the layer's kernel, of `joint.choices_of`.
    floats: float32 numbers that each input channel takes with it.
    rates: bits a weight of the kernel that makes the channels; each gives an
      estimate of the sizes, and the middle one orders the levels.
    most_levels: largest number of levels to pick, at least 2.

  Raises:
    ValueError: `rates` is empty, or `most_levels` is less than 2.
  """
  if not rates:
    raise ValueError(f'rates={list(rates)} are none')
  if most_levels < 2:
    raise ValueError(f'most_levels={most_levels} is less than 2')
  first = min(choices, key=lambda x: (x.kept, -x.step))
  choices = [x for x in choices if x.bits > first.bits or x == first]
  last = min(range(len(choices)), key=lambda i: choices[i].error)
  found = {choices.index(first), last}
  estimates = [
    sizes_of(channels, layer, choices, floats=floats, rate=rate)
    for rate in rates
  ]
  most = max((most_levels - 2) // len(rates), 2)
  for sizes in estimates:
    found |= set(joint.thin(joint.pareto(choices, sizes), sizes, most))
  sizes = estimates[len(rates) // 2]
  order = sorted(found, key=lambda i: (sizes[i], -choices[i].error))
  picked = joint.thin(order[: order.index(last) + 1], sizes, most_levels)
  return tuple(choices[i] for i in picked)


def make_joint_space(
  channels: Space,
  choices: Sequence[Sequence[KernelChoice]],
  *,
  floats: Mapping[str, int] | None = None,
  fixed: int = 0,
  rate: float = 4.0,
) -> Space:
  """Makes the decisions of a network: one for each kernel.

  Args:
    channels: decisions on channels alone, of `make_space`.
    choices: choices of each decision by level, see `order_choices`.
    floats: float32 numbers that each channel takes with it, by name of its
      `ChannelGroup`; None: none.
    fixed: float32 numbers of the network that always stay.
    rate: bits a weight of producers, from which levels are sized; see
      `sizes_of`.

  Returns:
    A space whose `reads` are the layers' own decisions, and `writes` those of
    the kernels that read their outputs. Its groups are of type `JointGroup`;
    its levels are sizes, the last of each decision `LARGEST`.

  Raises:
    ValueError: several kernels read the same channels; the choices do not match
      the layers, or a choice costs less than the first of its decision.
  """
  places, floats = kernel_layers(channels), dict(floats or {})
  if len(choices) != len(places):
    raise ValueError(
      f'choices: those of {len(choices)} kernels, there are {len(places)}'
    )
  groups, levels = [], []
  readers: dict[int, int] = {}
  for place, own in zip(places, choices, strict=True):
    layer, source = channels.layers[place], channels.reads[place]
    _check_choices(layer, own, shrinks=source != FIXED)
    name = None if source == FIXED else channels.groups[source].name
    if source != FIXED:
      readers[source] = len(groups)
    each = floats.get(name, 0) if name else 0
    sizes = sizes_of(channels, place, own, floats=each, rate=rate)
    levels.append(_whole_sizes(layer, sizes))
    rest = 0 if groups else fixed
    groups.append(JointGroup(layer.name, place, name, each, rest))
  return Space(
    layers=channels.layers,
    groups=cast(Any, tuple(groups)),
    reads=tuple(
      places.index(i) if i in places else readers.get(source, FIXED)
      for i, source in enumerate(channels.reads)
    ),
    writes=tuple(readers.get(group, FIXED) for group in channels.writes),
    levels=tuple(levels),
  )


def _check_choices(
  layer: LayerShape, choices: Sequence[KernelChoice], *, shrinks: bool
) -> None:
  if not choices:
    raise ValueError(f'{layer.name}: it has no choices')
  kept = [x.kept for x in choices]
  if not 1 <= min(kept) <= max(kept) <= layer.inputs:
    raise ValueError(
      f'{layer.name}: kept channels from {min(kept)} to {max(kept)} are not in '
      f'[1, {layer.inputs}]'
    )
  if not shrinks and min(kept) < layer.inputs:
    raise ValueError(
      f'{layer.name}: a choice keeps {min(kept)} of {layer.inputs} channels '
      'that nobody may remove'
    )
  first = choices[0]
  if first.kept > min(kept) or first.bits > min(x.bits for x in choices):
    raise ValueError(
      f'{layer.name}: its first choice, of {first.kept} channels and '
      f'{first.bits:g} bits, is not the cheapest'
    )
  if min(x.error for x in choices) < choices[-1].error:
    raise ValueError(f'{layer.name}: its last choice has not the least error')


def _whole_sizes(layer: LayerShape, sizes: np.ndarray) -> tuple[int, ...]:
  """Sizes as integers that ascend, the last one `LARGEST`."""
  count = len(sizes)
  if count > LARGEST or (np.diff(sizes) < 0).any():
    raise ValueError(f'{layer.name}: {count} choices do not ascend in size')
  whole = np.round(sizes / max(sizes[-1], 1e-9) * LARGEST).astype(int)
  steps = np.arange(count)
  ascending = np.maximum.accumulate(whole - steps) + steps
  below = LARGEST - steps[::-1]
  return tuple(np.clip(ascending, steps + 1, below).tolist())


def joint_cost_model(name: str, **arguments: Any) -> JointModel:
  """Returns a cost model over choices by name.

  Args:
    name: 'file_bytes', or a key of `cost.COSTS`: those see channels only.
    **arguments: passed to its factory.

  Raises:
    ValueError: the name or an argument is unknown.
  """
  return make_named('cost', name, JOINT_COSTS, arguments)


def of_channels(model: CostModel) -> JointModel:
  """Returns a cost model over choices that depends on their channels only."""

  def of_sides(layer: LayerShape, sides: Sides) -> np.ndarray:
    return model(layer, sides.inputs, sides.outputs)

  return of_sides


def _of_channels(maker: Callable[..., CostModel]) -> Callable[..., JointModel]:
  @functools.wraps(maker)
  def make(**arguments: Any) -> JointModel:
    return of_channels(maker(**arguments))

  return make


JOINT_COSTS: Mapping[str, Callable[..., JointModel]] = {
  'file_bytes': lambda: file_bytes,
  **{name: _of_channels(maker) for name, maker in cost.COSTS.items()},
}
"""Factories of cost models over choices, by name."""


def tabulate_joint(
  space: Space, choices: Sequence[Sequence[KernelChoice]], model: JointModel
) -> cost.Costs:
  """Evaluates a cost model at all levels of all layers.

  Args:
    space: decisions on kernels, of `make_joint_space`.
    choices: the choices that the space was made of.
    model: cost of a layer by its choice, such as `file_bytes`.

  Raises:
    ValueError: the choices are not those of the space; a cost is negative or
      not finite.
  """
  return cost.tabulate(*_as_levels(space, choices, model))


def exact_joint_cost(
  space: Space,
  choices: Sequence[Sequence[KernelChoice]],
  model: JointModel,
  candidate: np.ndarray,
) -> float:
  """Returns the cost of a candidate in the unit of the model, on the host."""
  return cost.exact_cost(*_as_levels(space, choices, model), candidate)


def _as_levels(
  space: Space, choices: Sequence[Sequence[KernelChoice]], model: JointModel
) -> tuple[Space, CostModel]:
  """Indices of levels in the place of numbers of channels, for `cost`."""
  if [len(x) for x in choices] != [len(x) for x in space.levels]:
    raise ValueError(
      f'choices: {[len(x) for x in choices]} by decision are not the levels of '
      f'the space, {[len(x) for x in space.levels]}'
    )
  kept = [np.array([x.kept for x in own]) for own in choices]
  bits = [np.array([x.bits for x in own], np.float64) for own in choices]
  groups = cast(Any, space.groups)
  places = {layer.name: i for i, layer in enumerate(space.layers)}

  def of_levels(
    stand_in: LayerShape, own: np.ndarray, reader: np.ndarray
  ) -> np.ndarray:
    place = places[stand_in.name]
    layer, reads = space.layers[place], space.reads[place]
    writes = space.writes[place]
    if layer.kind == 'depthwise':
      inputs = np.array(layer.inputs) if reads == FIXED else kept[reads][own]
      outputs = inputs * (layer.outputs // layer.inputs)
      none = np.zeros(np.shape(inputs))
      return model(layer, Sides(inputs, outputs, none, none))
    outputs = np.array(layer.outputs)
    if writes != FIXED:
      outputs = kept[writes][reader]
    inputs, group = kept[reads][own], groups[reads]
    floats = group.floats * np.asarray(inputs, np.float64) + group.fixed
    return model(layer, Sides(inputs, outputs, bits[reads][own], floats))

  stand_ins = tuple(
    layer._replace(kind='dense', inputs=0, outputs=0) for layer in space.layers
  )
  indices = tuple(tuple(range(len(levels))) for levels in space.levels)
  return space._replace(layers=stand_ins, levels=indices), of_levels
