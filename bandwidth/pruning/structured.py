"""Structured pruning: channels really removed, so that shapes shrink.

A channel is a group of slices: filters that write it, biases and normalization
that shift it, kernels that read it. A `ChannelGroup` lists them; layers whose
outputs are added share one group, and so one choice. `connections` derives the
groups from a list of layers.

Names are those of the tree that is given. To shrink batch statistics with the
parameters, give the tree that holds both:
`{'params': params, 'batch_stats': batch_stats}`.
"""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bandwidth import tree as tree_lib
from bandwidth.base import Masks, Params
from bandwidth.pruning import scores, structures


@dataclasses.dataclass(frozen=True, kw_only=True)
class ChannelAxis:
  """Where a group's channels lie along one axis of one array.

  Channel c has the positions (o * period + start + c) * inner + i for all o
  and i: `period` channels, each of `inner` entries, repeated to the end.

  Attributes:
    name: name of the array, such as 'params/Conv_0/kernel'.
    axis: the axis of the channels, negative from the end.
    inner: consecutive entries of a channel: 1; the multiplier of a depthwise
      kernel; height * width where `[channels, height, width]` was flattened.
    start: channels before the group's, where several were concatenated.
    period: channels in a repetition. A dense kernel after a flattened
      `[height, width, channels]` repeats them height * width times. None: the
      group's own number.
  """

  name: str
  axis: int
  inner: int = 1
  start: int = 0
  period: int | None = None

  def __post_init__(self) -> None:
    if self.inner < 1:
      raise ValueError(f'{self.name}: inner={self.inner!r} is not positive')
    if self.start < 0:
      raise ValueError(f'{self.name}: start={self.start!r} is negative')


@dataclasses.dataclass(frozen=True, kw_only=True)
class ChannelGroup:
  """Channels that stay or go together.

  Attributes:
    name: name of the group, unique.
    channels: number of channels C.
    outputs: what makes a channel: output axes of kernels, biases, scales and
      shifts of normalization. Zeros there silence the channel.
    inputs: what reads it: input axes of the next kernels.
    statistics: what follows the shape but must not be zero: means, variances.
  """

  name: str
  channels: int
  outputs: tuple[ChannelAxis, ...]
  inputs: tuple[ChannelAxis, ...] = ()
  statistics: tuple[ChannelAxis, ...] = ()

  def __post_init__(self) -> None:
    if self.channels < 1:
      raise ValueError(
        f'{self.name}: channels={self.channels!r} is not positive'
      )
    if not self.outputs:
      raise ValueError(f'{self.name}: a group needs outputs')
    for part in (*self.outputs, *self.inputs, *self.statistics):
      period = self.channels if part.period is None else part.period
      if part.start + self.channels > period:
        raise ValueError(
          f'{self.name}: {part.name} has {self.channels} channels from '
          f'{part.start} in a period of {period}'
        )


def keep_channels(
  tree: Params,
  groups: Sequence[ChannelGroup],
  sparsity: float | Mapping[str, float],
  *,
  score: scores.Score = scores.magnitude,
  grads: Params | None = None,
  key: jax.Array | None = None,
) -> dict[str, np.ndarray]:
  r"""Chooses the channels of largest score.

  .. math:: S_c = \sum_l \sum_i s^l_{ic}

  over the arrays of two axes or more that write the group.

  Args:
    tree: tree of arrays, the network's weights.
    groups: channels that are kept or removed together, see `ChannelGroup`.
    sparsity: fraction of channels to remove, in [0, 1], one for all groups or
      by group name; groups without one stay whole.
    score: ranks the weights; `scores.magnitude` gives the L1 norm of filters.
    grads: gradients, a tree like `tree`, for scores that need them.
    key: typed key, for scores that need one.

  Returns:
    The kept channels by group name: sorted int arrays, exactly
    `structures.kept_count(channels, sparsity)` each. Ties go to the lower
    channel.

  Raises:
    ValueError: a sparsity is not in [0, 1], names no group, or leaves no
      channel; a group does not fit the tree.

  >>> group = ChannelGroup(
  ...   name='a', channels=3, outputs=(ChannelAxis(name='a', axis=-1),))
  >>> keep_channels({'a': jnp.array([[1.0, 3.0, -2.0]])}, [group], 1 / 3)
  {'a': array([1, 2])}
  """
  targets = _by_group(groups, sparsity)
  ranked = dict(tree_lib.named_leaves(score(tree, grads=grads, key=key)))
  leaves = dict(tree_lib.named_leaves(tree))
  keep = {}
  for group in groups:
    total = np.zeros(group.channels, np.float64)
    for part in group.outputs:
      positions = channel_positions(part, group, leaves)
      if ranked[part.name].ndim >= 2:
        values = np.asarray(ranked[part.name], np.float64)
        per_position = np.moveaxis(values, part.axis, 0).reshape(
          values.shape[part.axis], -1
        )
        total += per_position.sum(1)[positions].sum(1)
    if not np.isfinite(total).all():
      raise ValueError(f'{group.name}: a score is not finite')
    count = structures.kept_count(group.channels, targets[group.name])
    if not count:
      raise ValueError(
        f'{group.name}: sparsity={targets[group.name]} leaves no channel of '
        f'{group.channels}'
      )
    order = np.argsort(-total, kind='stable')
    keep[group.name] = np.sort(order[:count])
  return keep


def remove_channels(
  tree: Params, groups: Sequence[ChannelGroup], keep: Mapping[str, Any]
) -> Params:
  """Cuts channels out of every array that they run through.

  The smaller network computes what the network masked by `channel_masks` does,
  up to the order of summation.

  Args:
    tree: arrays, `{'params': …, 'batch_stats': …}` where there are statistics.
    groups: channels that are kept or removed together, see `ChannelGroup`.
    keep: kept channels by group name; groups that it lacks stay whole.

  Returns:
    A tree of the same structure and dtypes, with shorter axes.

  Raises:
    ValueError: a group does not fit the tree; kept channels are empty, repeated
      or out of range, or name no group.

  >>> group = ChannelGroup(
  ...   name='a', channels=3, outputs=(ChannelAxis(name='a', axis=-1),),
  ...   inputs=(ChannelAxis(name='b', axis=0),))
  >>> net = {'a': jnp.ones((2, 3)), 'b': jnp.array([[1.0], [2.0], [3.0]])}
  >>> small = remove_channels(net, [group], {'a': [0, 2]})
  >>> small['a'].shape, small['b'].tolist()
  ((2, 2), [[1.0], [3.0]])
  """
  kept = _kept_positions(tree, groups, keep, of=_everything)

  def cut(name: str, leaf: Any) -> Any:
    for axis, flags in kept.get(name, {}).items():
      leaf = jnp.take(jnp.asarray(leaf), np.flatnonzero(flags), axis=axis)
    return leaf

  return tree_lib.map_named(cut, tree)


def channel_masks(
  tree: Params, groups: Sequence[ChannelGroup], keep: Mapping[str, Any]
) -> Masks:
  """Returns the masks that silence what `remove_channels` would remove.

  Filters, biases, scales and shifts are masked together, so that a channel is
  zero after batch normalization too; so are the inputs of the next layers, so
  that activations with f(0) other than 0 agree as well.

  Args:
    tree: tree of arrays, the network's weights and statistics.
    groups: channels that are kept or removed together, see `ChannelGroup`.
    keep: kept channels by group name; groups that it lacks stay whole.

  Returns:
    A tree of masks: bool of the array's shape, or scalar True where no group
    passes, and for statistics.

  Raises:
    ValueError: as `remove_channels` does.

  >>> group = ChannelGroup(
  ...   name='a', channels=2, outputs=(ChannelAxis(name='a', axis=-1),))
  >>> channel_masks({'a': jnp.ones((1, 2))}, [group], {'a': [1]})['a'].tolist()
  [[False, True]]
  """
  kept = _kept_positions(tree, groups, keep, of=_zeroed)

  def mask(name: str, leaf: Any) -> jax.Array:
    if name not in kept:
      return jnp.ones((), bool)
    full = np.ones(leaf.shape, bool)
    for axis, flags in kept[name].items():
      shape = [1] * leaf.ndim
      shape[axis] = -1
      full &= flags.reshape(shape)
    return jnp.asarray(full)

  return tree_lib.map_named(mask, tree)


def _zeroed(group: ChannelGroup) -> tuple[ChannelAxis, ...]:
  return (*group.outputs, *group.inputs)


def _everything(group: ChannelGroup) -> tuple[ChannelAxis, ...]:
  return (*group.outputs, *group.inputs, *group.statistics)


def _kept_positions(
  tree: Params,
  groups: Sequence[ChannelGroup],
  keep: Mapping[str, Any],
  *,
  of: Any,
) -> dict[str, dict[int, np.ndarray]]:
  """Returns, by array and axis, flags of the positions that stay."""
  leaves = dict(tree_lib.named_leaves(tree))
  kept: dict[str, dict[int, np.ndarray]] = {}
  for group, channels in _choices(groups, keep):
    for part in of(group):
      positions = channel_positions(part, group, leaves)
      leaf = leaves[part.name]
      axis = part.axis % leaf.ndim
      axes = kept.setdefault(part.name, {})
      flags = axes.setdefault(axis, np.ones(leaf.shape[axis], bool))
      removed = np.setdiff1d(np.arange(group.channels), channels)
      flags[positions[removed].reshape(-1)] = False
  return kept


def _choices(
  groups: Sequence[ChannelGroup], keep: Mapping[str, Any]
) -> Iterator[tuple[ChannelGroup, np.ndarray]]:
  """Yields the groups that are cut, with their kept channels, checked."""
  known = _named(groups)
  for name, channels in keep.items():
    if name not in known:
      raise ValueError(f'keep: {name!r} is no group; they are {sorted(known)}')
    channels = np.asarray(channels)
    limit = known[name].channels
    if not np.issubdtype(channels.dtype, np.integer) or channels.ndim != 1:
      raise ValueError(f'{name}: kept channels must be a list of integers')
    if not channels.size or len(set(channels.tolist())) != channels.size:
      raise ValueError(f'{name}: kept channels are empty or repeated')
    if channels.min() < 0 or channels.max() >= limit:
      raise ValueError(f'{name}: kept channels are not all in [0, {limit})')
    yield known[name], channels


def channel_positions(
  part: ChannelAxis, group: ChannelGroup, leaves: Mapping[str, Any]
) -> np.ndarray:
  """Returns where the channels of a group lie along an axis of an array.

  Args:
    part: the axis of an array along which they lie.
    group: the group that the channels belong to.
    leaves: arrays, or their shapes, by name.

  Returns:
    int [channels, entries of each].

  Raises:
    ValueError: the axis does not fit the array.
  """
  if part.name not in leaves:
    raise ValueError(f'{group.name}: {part.name!r} is no array of the tree')
  shape = np.shape(leaves[part.name])
  if not -len(shape) <= part.axis < len(shape):
    raise ValueError(f'{part.name}: axis {part.axis} is none of shape {shape}')
  period = group.channels if part.period is None else part.period
  length = shape[part.axis]
  if not length or length % (period * part.inner):
    raise ValueError(
      f'{part.name}: axis {part.axis} has {length} entries, no multiple of '
      f'{period} channels of {part.inner}'
    )
  index = np.arange(length).reshape(-1, period, part.inner)
  index = index[:, part.start : part.start + group.channels]
  return np.moveaxis(index, 1, 0).reshape(group.channels, -1)


def _named(groups: Sequence[ChannelGroup]) -> dict[str, ChannelGroup]:
  known = {group.name: group for group in groups}
  if len(known) != len(groups):
    raise ValueError('groups: two have the same name')
  return known


def _by_group(
  groups: Sequence[ChannelGroup], sparsity: float | Mapping[str, float]
) -> dict[str, float]:
  known = _named(groups)
  if not isinstance(sparsity, Mapping):
    return dict.fromkeys(known, float(structures.check_sparsity(sparsity)))
  for name, value in sparsity.items():
    if name not in known:
      raise ValueError(
        f'sparsity: {name!r} is no group; they are {sorted(known)}'
      )
    structures.check_sparsity(value, argument=f'sparsity: {name!r}')
  return {name: float(sparsity.get(name, 0.0)) for name in known}
