"""Inverted residual blocks, narrow between blocks and wide inside; networks.

Sandler et al., MobileNetV2, arXiv 1801.04381, table 1.
"""

import abc
from collections.abc import Mapping, Sequence
from functools import partial
from typing import NamedTuple, Self

import flax.linen as nn
import jax

from bandwidth import pruning
from bandwidth.base import check_known
from bandwidth.pruning.connections import INPUT
from experiments.models.depthwise import convolve_depthwise
from experiments.models.prunable import kept_widths, normed
from experiments.models.resnet import he_normal

RESIDUALS = ('fixed', 'group')
_EXPANSION = 6


class Stage(NamedTuple):
  """Blocks one after another whose outputs have one width."""

  blocks: int  # how many
  size: int  # height and width of their kernels
  stride: int  # of the first block


class BlockShape(NamedTuple):
  """What makes a block.

  The first block of a stage does not add, even if a search gives what comes in
  and what comes out the same width.
  """

  inner: int  # channels of the depthwise convolution
  channels: int  # that come out
  size: int  # height and width of the depthwise kernel
  stride: int  # of the depthwise convolution
  expands: bool  # whether a 1x1 convolution makes the inner channels
  adds: bool  # whether what comes in is added to what comes out


class InvertedResidual(nn.Module):
  """Expands channels, convolves each alone, and projects them back."""

  shape: BlockShape  # channels, kernel and stride
  norm_momentum: float  # of the running statistics of batch norm

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


class InvertedResidualNetwork(nn.Module):
  """A convolution, inverted residual blocks, a convolution, a classifier.

  Blocks are in stages of equal width; those of the first do not expand.
  """

  num_classes: int = 1000  # number of classes, a logit each
  stem: int = 32  # channels of the first convolution
  channels: Sequence[int] = ()  # that come out of the blocks of each stage
  # of the depthwise convolution of each block, in order; None: six times what
  # comes in. The first block does not expand, so its inner channels are those
  # of the stem.
  inner_channels: Sequence[int] | None = None
  head: int = 1280  # channels of the last convolution, the pooled features
  norm_momentum: float = 0.9  # of the running statistics of batch norm

  def __post_init__(self) -> None:
    stages, inner = self.stages(), self.inner_channels
    if len(self.channels) != len(stages):
      raise ValueError(
        f'channels={self.channels} has not {len(stages)} entries'
      )
    blocks = sum(stage.blocks for stage in stages)
    if inner and (len(inner) != blocks or inner[0] != self.stem):
      raise ValueError(
        f'inner_channels={inner} has not {blocks} entries, the first '
        f'stem={self.stem}'
      )
    super().__post_init__()

  @nn.nowrap
  @abc.abstractmethod
  def stages(self) -> Sequence[Stage]:
    """Returns the stages in order."""

  @nn.nowrap
  def stem_stride(self) -> int:
    """Returns the stride of the first convolution."""
    return 2

  def block_shapes(self) -> list[BlockShape]:
    """Returns the shapes of all blocks, in order."""
    shapes = []
    before = self.stem
    pairs = zip(self.stages(), self.channels, strict=True)
    for index, (stage, width) in enumerate(pairs):
      for i in range(stage.blocks):
        inner = before * (_EXPANSION if index else 1)
        if self.inner_channels:
          inner = self.inner_channels[len(shapes)]
        stride = 1 if i else stage.stride
        shapes.append(
          BlockShape(inner, width, stage.size, stride, index > 0, i > 0)
        )
        before = width
    return shapes

  def setup(self) -> None:
    """Builds the layers, which two methods use."""
    self.stem_conv = conv(self.stem, 3, stride=self.stem_stride())
    self.blocks = [
      InvertedResidual(shape, self.norm_momentum)
      for shape in self.block_shapes()
    ]
    self.head_conv = conv(self.head, 1)
    self.stem_norm, self.head_norm = (
      nn.BatchNorm(momentum=self.norm_momentum, epsilon=1e-3) for _ in range(2)
    )
    self.classifier = nn.Dense(self.num_classes)

  def features(self, images: jax.Array, *, train: bool = False) -> jax.Array:
    """Returns the pooled features [N, head] of images [N, H, W, 3]."""
    frozen = not train
    x = nn.relu6(self.stem_norm(self.stem_conv(images), frozen))
    for block in self.blocks:
      x = block(x, train=train)
    x = nn.relu6(self.head_norm(self.head_conv(x), frozen))
    return x.mean(axis=(1, 2))

  def __call__(self, images: jax.Array, *, train: bool = False) -> jax.Array:
    """Returns logits [N, num_classes] of images [N, H, W, 3]."""
    return self.classifier(self.features(images, train=train))

  def layers(self, *, residual: str = 'fixed') -> tuple[pruning.Layer, ...]:
    """Returns who reads whose channels; see `prunable.Prunable`.

    Args:
      residual: channels that are added are 'fixed', so that none may be
        removed, or of each stage a 'group' that is one decision.

    Raises:
      ValueError: `residual` is unknown.
    """
    check_known('residual', residual, RESIDUALS)
    # What is added to the network's input can't be removed.
    fixed = (INPUT,) if residual == 'fixed' else ()
    described: list[pruning.Layer] = [
      pruning.Conv('stem_conv', INPUT),
      pruning.Norm('stem_norm', 'stem_conv'),
    ]
    x = 'stem_norm'
    for i, shape in enumerate(self.block_shapes()):
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

  def with_channels(self, kept: Mapping[str, int]) -> Self:
    """Returns the network of fewer channels; see `prunable.Prunable`.

    Groups are those of `layers` with either `residual`.
    """
    shapes = self.block_shapes()
    widths = {'stem_conv': self.stem}
    for i, shape in enumerate(shapes):
      if shape.expands:
        widths[f'blocks_{i}/expand'] = shape.inner
      # The others of its stage are added to the first block's.
      if not shape.adds:
        widths[f'blocks_{i}/project'] = shape.channels
    widths = kept_widths({**widths, 'head_conv': self.head}, kept)
    stem = widths['stem_conv']
    inner = (widths.get(f'blocks_{i}/expand', stem) for i in range(len(shapes)))
    projects = (w for name, w in widths.items() if name.endswith('/project'))
    return self.clone(
      stem=stem,
      channels=tuple(projects),
      inner_channels=tuple(inner),
      head=widths['head_conv'],
    )


def _block_layers(name: str, shape: BlockShape, x: str) -> list[pruning.Layer]:
  expand = []
  if shape.expands:
    expand = normed(pruning.Conv(f'{name}/expand', x))
    x = f'{name}/expand_norm'
  return [
    *expand,
    *normed(pruning.Depthwise(f'{name}/depthwise', x)),
    *normed(pruning.Conv(f'{name}/project', f'{name}/depthwise_norm')),
  ]
