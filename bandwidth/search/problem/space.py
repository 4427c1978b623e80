"""The search space: how many channels each group of layers keeps.

A decision is on a `ChannelGroup` (bandwidth.pruning): channels that some layers
write and others read. Its levels are the numbers of channels that it may keep,
ascending; the last level keeps all. A candidate is a vector of level indices,
int32 [decisions].
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bandwidth.pruning import ChannelAxis, ChannelGroup

FIXED = -1
"""Stands for channels that cannot be removed, such as the network's inputs."""

KINDS = ('conv', 'depthwise', 'dense')


class LayerShape(NamedTuple):
  """A layer that counts towards the cost: a convolution or a dense layer.

  Attributes:
    name: path of its module, 'Conv_0'.
    kind: 'conv', 'depthwise' or 'dense'.
    inputs: number of channels that it reads.
    outputs: number of channels that it writes.
    taps: weights for each pair of channels: height * width of a kernel; for a
      dense layer the pixels flattened before it.
    positions: elements written per output channel: height * width of the
      result, 1 for a dense layer.
    pixels: elements read per input channel.
    stride: stride of the convolution; 1 for a dense layer.
    bias: whether it has a bias.
  """

  name: str
  kind: str
  inputs: int
  outputs: int
  taps: int = 1
  positions: int = 1
  pixels: int = 1
  stride: int = 1
  bias: bool = False

  @property
  def weights(self) -> int:
    """Number of entries of the kernel."""
    pairs = self.outputs * (1 if self.kind == 'depthwise' else self.inputs)
    return self.taps * pairs


class Space(NamedTuple):
  """The decisions of a network, and the layers that they change.

  Attributes:
    layers: in the order of computation.
    groups: channels of each decision, in the order of their first readers.
    reads: decision whose channels each layer reads, or `FIXED`.
    writes: decision whose channels each layer writes, or `FIXED`.
    levels: channels kept at each level of each decision, ascending; the last
      level keeps all.
  """

  layers: tuple[LayerShape, ...]
  groups: tuple[ChannelGroup, ...]
  reads: tuple[int, ...]
  writes: tuple[int, ...]
  levels: tuple[tuple[int, ...], ...]

  @property
  def decisions(self) -> int:
    """G, the number of decisions."""
    return len(self.groups)

  @property
  def most_levels(self) -> int:
    """M, the largest number of levels of a decision; 1 without decisions."""
    return max(map(len, self.levels), default=1)

  def counts(self) -> np.ndarray:
    """Returns the number of levels of each decision: int32 [G]."""
    return np.array([len(levels) for levels in self.levels], np.int32)

  def widths(self) -> np.ndarray:
    """Returns the channels kept by decision and level: int32 [G, M].

    Beyond the last level of a decision, its channels are repeated.
    """
    most = self.most_levels
    rows = [[*x, *[x[-1]] * (most - len(x))] for x in self.levels]
    return np.array(rows, np.int32).reshape(self.decisions, most)

  def full(self) -> np.ndarray:
    """Returns the candidate that removes nothing: int32 [G]."""
    return self.counts() - 1

  def kept(self, candidate: Sequence[int] | np.ndarray) -> dict[str, int]:
    """Returns the number of channels that a candidate keeps, by group name.

    Raises:
      ValueError: the candidate has the wrong length, or a level out of range.
    """
    candidate = np.asarray(candidate)
    if candidate.shape != (self.decisions,):
      raise ValueError(
        f'candidate: shape {candidate.shape} is not ({self.decisions},)'
      )
    kept = {}
    pairs = zip(self.groups, self.levels, candidate.tolist(), strict=True)
    for group, levels, level in pairs:
      if not 0 <= level < len(levels):
        raise ValueError(
          f'{group.name}: level {level} is none of {len(levels)}'
        )
      kept[group.name] = levels[level]
    return kept


def make_space(
  layers: Iterable[LayerShape],
  groups: Iterable[ChannelGroup],
  *,
  divisor: int = 8,
  smallest: float = 0.2,
  most_levels: int = 128,
) -> Space:
  """Makes the search space of a network from its layers and channel groups.

  Args:
    layers: in the order of computation. A dense layer that reads flattened
      images may have all its rows as `inputs`; its `taps` are then derived.
    groups: of the same network, see `bandwidth.pruning.channel_groups`.
    divisor: kept channels are a multiple of it, or all.
    smallest: smallest fraction of its channels that a group keeps, in (0, 1].
    most_levels: largest number of levels of a group; where it would have more,
      its channels are multiples of a multiple of the divisor.

  Raises:
    ValueError: an argument is out of range; a group has fewer channels than the
      divisor; a layer reads or writes channels of several groups, or channels
      beside those of one group.
  """
  if divisor < 1:
    raise ValueError(f'divisor={divisor} is not positive')
  if not 0 < smallest <= 1:
    raise ValueError(f'smallest={smallest} is not in (0, 1]')
  if most_levels < 2:
    raise ValueError(f'most_levels={most_levels} is less than 2')
  layers = tuple(layers)
  owners = _owners(layers, groups)
  first = {}
  for layer in layers:
    group = owners.get((layer.name, 'inputs'))
    if group is not None and layer.kind != 'depthwise':
      first.setdefault(group.name, group)
  ordered = tuple(first.values())
  index = {group.name: i for i, group in enumerate(ordered)}

  def decision(layer: LayerShape, side: str) -> int:
    group = owners.get((layer.name, side))
    return FIXED if group is None else index.get(group.name, FIXED)

  return Space(
    layers=tuple(_with_taps(x, owners.get((x.name, 'inputs'))) for x in layers),
    groups=ordered,
    reads=tuple(decision(layer, 'inputs') for layer in layers),
    writes=tuple(decision(layer, 'outputs') for layer in layers),
    levels=tuple(
      _levels(group, divisor, smallest, most_levels) for group in ordered
    ),
  )


def extended(candidate: jax.Array) -> jax.Array:
  """Appends the level of `FIXED` sides, 0, so that index -1 finds it.

  >>> extended(jnp.array([3, 1])).tolist()
  [3, 1, 0]
  """
  return jnp.append(candidate, jnp.zeros((), candidate.dtype))


def _levels(
  group: ChannelGroup, divisor: int, smallest: float, most: int
) -> tuple[int, ...]:
  channels = group.channels
  if divisor > channels:
    raise ValueError(
      f'divisor={divisor} is larger than the {channels} channels of '
      f'{group.name}'
    )
  least = max(math.ceil(smallest * channels - 1e-9), 1)
  step = divisor
  while len(range(-(-least // step) * step, channels, step)) >= most:
    step += divisor
  return (*range(-(-least // step) * step, channels, step), channels)


def _owners(
  layers: Sequence[LayerShape], groups: Iterable[ChannelGroup]
) -> dict[tuple[str, str], ChannelGroup]:
  """The group of each side of each layer: {(layer, 'inputs'): group}."""
  kernels = list(_kernels(layers, groups))
  owners: dict[tuple[str, str], ChannelGroup] = {}
  for layer, side, group, _ in kernels:
    if owners.setdefault((layer.name, side), group) != group:
      raise ValueError(
        f'{layer.name}: its {side} are channels of several groups, '
        f'{owners[layer.name, side].name} and {group.name}'
      )
  for layer, side, group, part in kernels:
    if not _is_alone(layer, side, group, part):
      raise ValueError(
        f'{layer.name}: its {side} are not the {group.channels} channels of '
        f'{group.name} alone'
      )
  return owners


def _kernels(
  layers: Sequence[LayerShape], groups: Iterable[ChannelGroup]
) -> Iterator[tuple[LayerShape, str, ChannelGroup, ChannelAxis]]:
  """Sides of layers, 'inputs' or 'outputs', with their groups."""
  names = {layer.name: layer for layer in layers}
  for group in groups:
    for side, parts in (('inputs', group.inputs), ('outputs', group.outputs)):
      for part in parts:
        layer = names.get(_module(part))
        if layer is None or not part.name.endswith('kernel'):
          continue
        both = layer.kind == 'depthwise'
        for each in ('inputs', 'outputs') if both else (side,):
          yield layer, each, group, part


def _is_alone(
  layer: LayerShape, side: str, group: ChannelGroup, part: ChannelAxis
) -> bool:
  channels = layer.inputs if side == 'inputs' else layer.outputs
  if part.period not in (None, group.channels):
    return False
  if (layer.kind, side) in (('dense', 'inputs'), ('depthwise', 'outputs')):
    return channels % group.channels == 0
  return channels == group.channels


def _module(part: ChannelAxis) -> str:
  path = part.name.split('/')
  return '/'.join(path[path[0] == 'params' : -1])


def _with_taps(layer: LayerShape, group: ChannelGroup | None) -> LayerShape:
  if layer.kind != 'dense' or group is None or layer.inputs == group.channels:
    return layer
  rows = layer.inputs // group.channels
  return layer._replace(
    inputs=group.channels, taps=layer.taps * rows, pixels=layer.pixels * rows
  )
