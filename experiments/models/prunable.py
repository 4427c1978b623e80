"""What a network tells a search that is to shrink it."""

from collections.abc import Mapping
from typing import Protocol, Self, runtime_checkable

from bandwidth import pruning
from bandwidth.base import check_known


@runtime_checkable
class Prunable(Protocol):
  """A network whose channels may be removed.

  Groups of channels are those that `bandwidth.pruning.channel_groups` derives
  from `layers()`, by their names.
  """

  def layers(self) -> tuple[pruning.Layer, ...]:
    """Returns who reads whose channels, in the order of computation."""
    ...

  def with_channels(self, kept: Mapping[str, int]) -> Self:
    """Returns the network whose groups keep so many channels.

    Its parameters have the shapes that `bandwidth.pruning.remove_channels`
    makes.

    Args:
      kept: channels by name of the group; other groups stay whole.

    Raises:
      ValueError: there is no such group, or it has not so many channels.
    """
    ...


def normed(layer: pruning.Layer) -> list[pruning.Layer]:
  """Returns a layer and the normalization that follows, by their names."""
  return [layer, pruning.Norm(f'{layer.name}_norm', layer.name)]


def kept_widths(
  widths: Mapping[str, int], kept: Mapping[str, int]
) -> dict[str, int]:
  """Returns the widths of all groups after some were shrunk.

  Args:
    widths: channels of each group, by its name.
    kept: channels that some of them keep.

  Raises:
    ValueError: there is no such group, or it has not so many channels.

  >>> kept_widths({'Conv_0': 20, 'Conv_1': 50}, {'Conv_1': 8})
  {'Conv_0': 20, 'Conv_1': 8}
  """
  for name, channels in kept.items():
    check_known('kept', name, widths)
    if not 1 <= channels <= widths[name]:
      raise ValueError(f'kept: {name}={channels} is not in [1, {widths[name]}]')
  return {**widths, **kept}
