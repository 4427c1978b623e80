"""Inverted residual blocks: narrow between blocks, wide inside.

Sandler et al., MobileNetV2, arXiv 1801.04381, table 1. Networks of them have a
convolution `stem_conv`, blocks `blocks_0`, `blocks_1`, …, in stages of equal
width, a last convolution `head_conv` and a linear `classifier`.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax

from bandwidth import pruning
from bandwidth.base import unknown_name
from bandwidth.pruning.connections import INPUT
from experiments.models.depthwise import convolve_depthwise
from experiments.models.prunable import kept_widths
from experiments.models.resnet import he_normal

RESIDUALS = ('fixed', 'group')
_EXPANSION = 6


class Stage(NamedTuple):
  """Blocks one after another whose outputs have one width.

  Attributes:
    blocks: how many.
    size: of their kernels.
    stride: of the first.
  """

  blocks: int
  size: int
  stride: int


class BlockShape(NamedTuple):
  """What makes a block.

  Attributes:
    inner: channels of the depthwise convolution.
    channels: that come out.
    size: of its kernel.
    stride: of it.
    expands: whether a 1x1 convolution makes the inner channels.
    adds: whether what comes in is added to what comes out. The first block of a
      stage does not, even if a search gives both the same width.
  """

  inner: int
  channels: int
  size: int
  stride: int
  expands: bool
  adds: bool


class InvertedResidual(nn.Module):
  """Expands channels, convolves each alone, and projects them back.

  Attributes:
    shape: channels, kernel and stride.
    norm_momentum: of the running statistics of batch norm.
  """

  shape: BlockShape
  norm_momentum: float

  @nn.compact
  def __call__(self, images: jax.Array, *, train: bool) -> jax.Array:
    """Returns [N, H / stride, W / stride, channels]."""
    inner, channels, size, stride, expands, adds = self.shape
    batch_norm = partial(norm, train=train, momentum=self.norm_momentum)
    x = images
    if expands:
      x = nn.relu6(batch_norm('expand_norm')(conv(inner, 1, name='expand')(x)))
    depthwise = conv(inner, size, stride=stride, groups=inner, name='depthwise')
    x = nn.relu6(batch_norm('depthwise_norm')(depthwise(x)))
    x = batch_norm('project_norm')(conv(channels, 1, name='project')(x))
    return x + images if adds else x


def conv(
  channels: int,
  size: int,
  *,
  stride: int = 1,
  groups: int = 1,
  name: str | None = None,
) -> nn.Conv:
  """Returns a convolution without bias; `groups` of them beside each other."""
  alone = groups > 1 and groups == channels
  return nn.Conv(
    channels,
    (size, size),
    strides=(stride, stride),
    feature_group_count=groups,
    conv_general_dilated=convolve_depthwise if alone else None,
    use_bias=False,
    kernel_init=he_normal,
    name=name,
  )


def norm(name: str, *, train: bool, momentum: float) -> nn.BatchNorm:
  """Returns batch norm; in training, of the batch's own statistics."""
  return nn.BatchNorm(
    use_running_average=not train, momentum=momentum, epsilon=1e-3, name=name
  )


def check_channels(
  stages: Sequence[Stage],
  *,
  stem: int,
  channels: Sequence[int],
  inner_channels: Sequence[int] | None,
) -> None:
  """Checks what a network of such blocks is built of, see `block_shapes`.

  Raises:
    ValueError: a sequence has not as many entries as there are stages or
      blocks, or the first block has not the channels of the stem.
  """
  if len(channels) != len(stages):
    raise ValueError(f'channels={channels} has not {len(stages)} entries')
  blocks = sum(stage.blocks for stage in stages)
  inner = inner_channels
  if inner and (len(inner) != blocks or inner[0] != stem):
    raise ValueError(
      f'inner_channels={inner} has not {blocks} entries, the first stem={stem}'
    )


def block_shapes(
  stages: Sequence[Stage],
  *,
  stem: int,
  channels: Sequence[int],
  inner_channels: Sequence[int] | None,
) -> list[BlockShape]:
  """Returns the shapes of all blocks, in order.

  Args:
    stages: of the network. Blocks of the first do not expand.
    stem: channels that come in.
    channels: that come out of the blocks of each stage.
    inner_channels: of each block; None: six times what comes in.
  """
  shapes = []
  before = stem
  for index, (stage, width) in enumerate(zip(stages, channels, strict=True)):
    for i in range(stage.blocks):
      inner = before * (_EXPANSION if index else 1)
      if inner_channels:
        inner = inner_channels[len(shapes)]
      stride = 1 if i else stage.stride
      shapes.append(
        BlockShape(inner, width, stage.size, stride, index > 0, i > 0)
      )
      before = width
  return shapes


def layers(
  shapes: Sequence[BlockShape], *, residual: str = 'fixed'
) -> tuple[pruning.Layer, ...]:
  """Describes a network of such blocks to `bandwidth.pruning.channel_groups`.

  Args:
    shapes: of its blocks.
    residual: channels that are added are 'fixed', so that none may be removed,
      or of each stage a 'group' that is one decision.

  Raises:
    ValueError: `residual` is unknown.
  """
  if residual not in RESIDUALS:
    raise ValueError(unknown_name('residual', residual, RESIDUALS))
  # What is added to the network's input can't be removed.
  fixed = (INPUT,) if residual == 'fixed' else ()
  described: list[pruning.Layer] = [
    pruning.Conv('stem_conv', INPUT),
    pruning.Norm('stem_norm', 'stem_conv'),
  ]
  x = 'stem_norm'
  for i, shape in enumerate(shapes):
    described += _block_layers(f'blocks_{i}', shape, x)
    y = described[-1].name
    if shape.adds:
      described.append(pruning.Add(f'blocks_{i}', (y, x, *fixed)))
    x = described[-1].name
  return (
    *described,
    pruning.Conv('head_conv', x),
    pruning.Norm('head_norm', 'head_conv'),
    pruning.Dense('classifier', 'head_norm'),
  )


def _block_layers(name: str, shape: BlockShape, x: str) -> list[pruning.Layer]:
  described: list[pruning.Layer] = []
  if shape.expands:
    described = [
      pruning.Conv(f'{name}/expand', x),
      pruning.Norm(f'{name}/expand_norm', f'{name}/expand'),
    ]
    x = f'{name}/expand_norm'
  return [
    *described,
    pruning.Depthwise(f'{name}/depthwise', x),
    pruning.Norm(f'{name}/depthwise_norm', f'{name}/depthwise'),
    pruning.Conv(f'{name}/project', f'{name}/depthwise_norm'),
    pruning.Norm(f'{name}/project_norm', f'{name}/project'),
  ]


class Widths(NamedTuple):
  """Constructor arguments of a network of such blocks.

  Attributes:
    stem: channels of the first convolution.
    channels: that come out of the blocks of each stage.
    inner_channels: of each block.
    head: channels of the last convolution.
  """

  stem: int
  channels: tuple[int, ...]
  inner_channels: tuple[int, ...]
  head: int


def shrunk(
  shapes: Sequence[BlockShape],
  kept: Mapping[str, int],
  *,
  stem: int,
  head: int,
) -> Widths:
  """Returns the widths of a network whose groups keep so many channels.

  Args:
    shapes: of its blocks.
    kept: channels by name of the group, as `layers` makes them with either
      `residual`.
    stem: channels of the first convolution.
    head: channels of the last.

  Raises:
    ValueError: there is no such group, or it has not so many channels.
  """
  widths = {'stem_conv': stem}
  for i, shape in enumerate(shapes):
    if shape.expands:
      widths[f'blocks_{i}/expand'] = shape.inner
    # The others of its stage are added to the first block's.
    if not shape.adds:
      widths[f'blocks_{i}/project'] = shape.channels
  widths = kept_widths({**widths, 'head_conv': head}, kept)
  inner = [widths['stem_conv']] * len(shapes)
  for i, shape in enumerate(shapes):
    if shape.expands:
      inner[i] = widths[f'blocks_{i}/expand']
  projects = (w for name, w in widths.items() if name.endswith('/project'))
  return Widths(
    widths['stem_conv'], tuple(projects), tuple(inner), widths['head_conv']
  )


class Shrinkable:
  """What networks of a stem, such blocks and a head tell a search."""

  def layers(
    self: Any, *, residual: str = 'fixed'
  ) -> tuple[pruning.Layer, ...]:
    """Returns who reads whose channels; see `prunable.Prunable`.

    Args:
      residual: channels that are added are 'fixed', so that none may be
        removed, or of each stage a 'group' that is one decision.

    Raises:
      ValueError: `residual` is unknown.
    """
    return layers(self.block_shapes(), residual=residual)

  def with_channels(self: Any, kept: Mapping[str, int]) -> Any:
    """Returns the network whose groups keep so many channels.

    Args:
      kept: channels by name of the group, of either `residual`.

    Raises:
      ValueError: there is no such group, or it has not so many channels.
    """
    widths = shrunk(self.block_shapes(), kept, stem=self.stem, head=self.head)
    return self.clone(**widths._asdict())
