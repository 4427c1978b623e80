"""Channel groups from a list of layers: who reads whose channels.

Layers are listed in the order of computation. A layer's name is the path of its
module, and its arrays are found in the tree by it, under a leading 'params' or
'batch_stats' where the tree has one. Activations, pooling, dropout and flatten
keep channels in place, so they are left out: a layer names the last one listed
before it.

    layers = [
      Conv('Conv_0', 'input'),
      Norm('BatchNorm_0', 'Conv_0'),
      Conv('Conv_1', 'BatchNorm_0'),
      Add('sum', ('Conv_1', 'BatchNorm_0')),
      Dense('Dense_0', 'sum'),
    ]
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from bandwidth import tree as tree_lib
from bandwidth.base import Params
from bandwidth.pruning.structured import ChannelAxis, ChannelGroup

INPUT = 'input'
"""Name of the network's input, whose channels nobody may remove."""


@dataclasses.dataclass(frozen=True)
class _Module:
  """A module that reads one layer; the attributes are its subclasses'."""

  name: str
  input: str


@dataclasses.dataclass(frozen=True)
class _Junction:
  """A result of several layers; the attributes are its subclasses'."""

  name: str
  inputs: tuple[str, ...]


class Conv(_Module):
  """A convolution, kernel `[..., in, out]`, perhaps a bias `[out]`.

  Attributes:
    name: path of the module.
    input: name of the layer it reads.
  """


@dataclasses.dataclass(frozen=True)
class Dense(_Module):
  """A dense layer, kernel `[in, out]`, perhaps a bias `[out]`.

  Where `[height, width, channels]` was flattened before it, its rows are a
  multiple of the channels, and the channels the fastest index.

  Attributes:
    name: path of the module.
    input: name of the layer it reads.
    inner: rows that follow one another for each channel: 1, or height * width
      where `[channels, height, width]` was flattened.
  """

  inner: int = 1


class Depthwise(_Module):
  """A depthwise convolution, kernel `[..., 1, channels * multiplier]`.

  It makes no channels of its own: each goes with the one that it reads.

  Attributes:
    name: path of the module.
    input: name of the layer it reads.
  """


class Norm(_Module):
  """Normalization per channel, with scale and bias, perhaps mean and var.

  Batch normalization. Layer and group normalization mix channels, and so
  their channels cannot be removed with an equal output.

  Attributes:
    name: path of the module.
    input: name of the layer it reads.
  """


class Add(_Junction):
  """A sum or product of layers: they share one choice of channels.

  Attributes:
    name: name of the result, free to choose.
    inputs: names of the layers.
  """


class Concat(_Junction):
  """Layers one after another along the channels.

  Attributes:
    name: name of the result, free to choose.
    inputs: names of the layers, in order.
  """


Layer = Conv | Dense | Depthwise | Norm | Add | Concat


class _Segment(NamedTuple):
  """Channels of one source: `inner` entries for each of `channels`."""

  source: str
  channels: int
  inner: int


@dataclasses.dataclass
class _Uses:
  """What one source's channels run through."""

  channels: int
  outputs: list[ChannelAxis] = dataclasses.field(default_factory=list)
  inputs: list[ChannelAxis] = dataclasses.field(default_factory=list)
  statistics: list[ChannelAxis] = dataclasses.field(default_factory=list)


def channel_groups(
  tree: Params, layers: Sequence[Layer]
) -> tuple[ChannelGroup, ...]:
  """Derives the groups of channels that may be removed.

  Args:
    tree: arrays or abstract shapes, parameters or
      `{'params': …, 'batch_stats': …}`.
    layers: the layers in the order of computation.

  Returns:
    Groups in that order, each named after the first layer that makes it.
    Channels of the network's input and of its outputs, which no layer reads,
    are in no group, nor are those that are added to them.

  Raises:
    ValueError: a layer has no arrays in the tree, reads what is not listed
      before it, or its shape does not fit what it reads.

  >>> net = {'Conv_0': {'kernel': np.ones((3, 3, 1, 8)), 'bias': np.ones(8)},
  ...        'Dense_0': {'kernel': np.ones((128, 10))}}
  >>> layers = [Conv('Conv_0', 'input'), Dense('Dense_0', 'Conv_0')]
  >>> for group in channel_groups(net, layers):
  ...   print(group.name, group.channels, [x.name for x in group.outputs],
  ...         [x.name for x in group.inputs])
  Conv_0 8 ['Conv_0/kernel', 'Conv_0/bias'] ['Dense_0/kernel']
  """
  trace = _Trace(tree)
  for layer in layers:
    trace.add(layer)
  return trace.groups()


class _Trace:
  """Follows channels from layer to layer."""

  def __init__(self, tree: Params):
    self._arrays: dict[tuple[str, str], tuple[str, tuple[int, ...]]] = {}
    for name, leaf in tree_lib.named_leaves(tree):
      path = name.split('/')
      if path[0] in ('params', 'batch_stats'):
        path = path[1:]
      key = ('/'.join(path[:-1]), path[-1])
      self._arrays[key] = (name, np.shape(leaf))
    # None stands for the input, whose channels are nobody's.
    self._spaces: dict[str, tuple[_Segment, ...] | None] = {INPUT: None}
    self._uses: dict[str, _Uses] = {}
    self._parent: dict[str, str] = {}
    self._fixed: set[str] = set()
    self._read: set[str] = set()

  def add(self, layer: Layer) -> None:
    """Adds one layer."""
    if layer.name in self._spaces:
      raise ValueError(f'layers: {layer.name!r} is listed twice')
    names = layer.inputs if isinstance(layer, Add | Concat) else (layer.input,)
    for name in names:
      if name not in self._spaces:
        raise ValueError(f'{layer.name}: {name!r} is not listed before it')
    self._read.update(names)
    spaces = [self._spaces[name] for name in names]
    if isinstance(layer, Add):
      self._spaces[layer.name] = self._tie(layer, spaces)
    elif isinstance(layer, Concat):
      self._spaces[layer.name] = self._join(layer, spaces)
    elif isinstance(layer, Norm):
      self._through(layer, spaces[0])
      self._spaces[layer.name] = spaces[0]
    elif isinstance(layer, Depthwise):
      self._spaces[layer.name] = self._depthwise(layer, spaces[0])
    else:
      self._spaces[layer.name] = self._kernel(layer, spaces[0])

  def groups(self) -> tuple[ChannelGroup, ...]:
    """Returns the groups, sources that were added together merged."""
    for name, space in self._spaces.items():
      if name not in self._read:
        self._fix(space)
    fixed = {self._root(source) for source in self._fixed}
    merged: dict[str, _Uses] = {}
    for source, uses in self._uses.items():
      root = self._root(source)
      if root in fixed:
        continue
      into = merged.setdefault(root, _Uses(uses.channels))
      into.outputs += uses.outputs
      into.inputs += uses.inputs
      into.statistics += uses.statistics
    return tuple(
      ChannelGroup(
        name=name,
        channels=uses.channels,
        outputs=tuple(uses.outputs),
        inputs=tuple(uses.inputs),
        statistics=tuple(uses.statistics),
      )
      for name, uses in merged.items()
    )

  def _array(self, layer: Layer, leaf: str) -> tuple[str, tuple[int, ...]]:
    if (layer.name, leaf) not in self._arrays:
      raise ValueError(f'{layer.name}: the tree has no {leaf!r} of that layer')
    return self._arrays[layer.name, leaf]

  def _kernel(
    self, layer: Conv | Dense, space: tuple[_Segment, ...] | None
  ) -> tuple[_Segment, ...]:
    name, shape = self._array(layer, 'kernel')
    if len(shape) < 2:
      raise ValueError(f'{name}: a kernel of shape {shape} reads no channels')
    inner = layer.inner if isinstance(layer, Dense) else 1
    self._slots('inputs', name, shape, -2, space, inner=inner)
    if isinstance(layer, Conv) and space is not None:
      width = sum(x.channels * x.inner for x in space)
      if shape[-2] != width:
        raise ValueError(
          f'{name}: {shape[-2]} inputs, {width} channels come in'
        )
    uses = self._uses[layer.name] = _Uses(shape[-1])
    self._parent[layer.name] = layer.name
    uses.outputs.append(ChannelAxis(name=name, axis=-1))
    if (layer.name, 'bias') in self._arrays:
      bias, _ = self._array(layer, 'bias')
      uses.outputs.append(ChannelAxis(name=bias, axis=-1))
    return (_Segment(layer.name, shape[-1], 1),)

  def _through(
    self, layer: Norm | Depthwise, space: tuple[_Segment, ...] | None
  ) -> None:
    found = False
    for leaf in ('kernel', 'scale', 'bias', 'mean', 'var'):
      if (layer.name, leaf) in self._arrays:
        name, shape = self._array(layer, leaf)
        kind = 'statistics' if leaf in ('mean', 'var') else 'outputs'
        self._slots(kind, name, shape, -1, space)
        found = True
    if not found:
      raise ValueError(f'{layer.name}: the tree has no arrays of that layer')

  def _depthwise(
    self, layer: Depthwise, space: tuple[_Segment, ...] | None
  ) -> tuple[_Segment, ...] | None:
    name, shape = self._array(layer, 'kernel')
    if len(shape) < 2 or shape[-2] != 1:
      raise ValueError(f'{name}: shape {shape} is not of a depthwise kernel')
    if space is None:
      return None
    width = sum(x.channels * x.inner for x in space)
    if shape[-1] % width:
      raise ValueError(f'{name}: {shape[-1]} outputs, {width} channels come in')
    space = tuple(x._replace(inner=x.inner * shape[-1] // width) for x in space)
    self._through(layer, space)
    return space

  def _slots(
    self,
    kind: str,
    name: str,
    shape: tuple[int, ...],
    axis: int,
    space: tuple[_Segment, ...] | None,
    *,
    inner: int = 1,
  ) -> None:
    """Notes that the channels of a space lie along an axis."""
    if space is None:
      return
    width = sum(x.channels * x.inner for x in space) * inner
    flattened = kind == 'inputs'
    if shape[axis] % width or (not flattened and shape[axis] != width):
      raise ValueError(
        f'{name}: {shape[axis]} entries along axis {axis}, '
        f'{width} channels come in'
      )
    start = 0
    for segment in space:
      # Positions count in entries of this segment's size.
      size = segment.inner * inner
      if start % size or width % size:
        self._fixed.add(segment.source)
      else:
        slot = ChannelAxis(
          name=name,
          axis=axis,
          inner=size,
          start=start // size,
          period=width // size,
        )
        getattr(self._uses[segment.source], kind).append(slot)
      start += segment.channels * size

  def _tie(
    self, layer: Add, spaces: Sequence[tuple[_Segment, ...] | None]
  ) -> tuple[_Segment, ...] | None:
    known = [space for space in spaces if space is not None]
    if len(known) < len(spaces) or len({_sizes(x) for x in known}) > 1:
      # The input, or channels cut differently: nothing may be removed.
      widths = {sum(a * b for a, b in _sizes(x)) for x in known}
      if len(widths) > 1:
        raise ValueError(f'{layer.name}: widths {sorted(widths)} do not add')
      for space in known:
        self._fix(space)
      return known[0] if len(known) == len(spaces) else None
    for space in known[1:]:
      for one, other in zip(known[0], space, strict=True):
        first, second = self._root(one.source), self._root(other.source)
        order = list(self._uses)
        first, second = sorted((first, second), key=order.index)
        self._parent[second] = first
    return known[0]

  def _join(
    self, layer: Concat, spaces: Sequence[tuple[_Segment, ...] | None]
  ) -> tuple[_Segment, ...]:
    if None in spaces:
      raise ValueError(f'{layer.name}: the input cannot be concatenated')
    return tuple(x for space in spaces if space is not None for x in space)

  def _fix(self, space: Any) -> None:
    self._fixed.update(segment.source for segment in space or ())

  def _root(self, source: str) -> str:
    while self._parent[source] != source:
      source = self._parent[source]
    return source


def _sizes(space: tuple[_Segment, ...]) -> tuple[tuple[int, int], ...]:
  return tuple((segment.channels, segment.inner) for segment in space)
