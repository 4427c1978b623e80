"""MobileNets: convolutions of each channel alone, and of 1x1 across them."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Self

import flax.linen as nn
import jax

from bandwidth import pruning
from bandwidth.base import check_known
from bandwidth.pruning.connections import INPUT
from experiments.models.inverted_residual import (
  InvertedResidualNetwork,
  Stage,
  conv,
)
from experiments.models.prunable import kept_widths, normed

# Of the stem, then of the depthwise convolution of each block.
_V1_STRIDES = {
  'imagenet': (2, 1, 2, 1, 2, 1, 2, 1, 1, 1, 1, 1, 2, 1),
  'cifar': (1, 1, 1, 1, 2, 1, 2, 1, 1, 1, 1, 1, 2, 1),
}
_V1_CHANNELS = (32, 64, 128, 128, 256, 256, *(512,) * 6, 1024, 1024)

_V2_STEM_STRIDES = {'imagenet': 2, 'cifar': 1}
_V2_BLOCKS = (1, 2, 3, 4, 3, 3, 1)
_V2_STRIDES = {
  'imagenet': (1, 2, 2, 2, 1, 2, 1),
  'cifar': (1, 1, 2, 2, 1, 2, 1),
}
_V2_STAGES = {
  variant: [Stage(n, 3, s) for n, s in zip(_V2_BLOCKS, strides, strict=True)]
  for variant, strides in _V2_STRIDES.items()
}


class MobileNetV1(nn.Module):
  """MobileNet: a convolution, 13 separable blocks, a linear classifier.

  With 1000 classes 4,231,976 parameters, and 568,740,352 multiply-adds at
  224x224. The variant for 32x32 halves the image three times, not five: neither
  the first convolution nor the first strided block does; 175,556,608
  multiply-adds with ten classes, and 12,038,656 at a quarter of the width.

  Howard et al., arXiv 1704.04861, table 1, where the last depthwise convolution
  is printed with a stride of 2 but keeps its 7x7 pixels.
  """

  num_classes: int = 1000  # number of classes, a logit each
  # of the first convolution and of the 1x1 convolution of each block, in order:
  # 14 numbers
  channels: Sequence[int] = _V1_CHANNELS
  variant: str = 'imagenet'  # 'imagenet', or 'cifar' for images of 32x32
  norm_momentum: float = 0.9  # of the running statistics of batch norm

  def __post_init__(self) -> None:
    check_known('model.variant', self.variant, _V1_STRIDES)
    if len(self.channels) != len(_V1_CHANNELS):
      raise ValueError(
        f'channels={self.channels} has not {len(_V1_CHANNELS)} entries'
      )
    super().__post_init__()

  @nn.compact
  def __call__(self, images: jax.Array, *, train: bool = False) -> jax.Array:
    """Returns logits [N, num_classes] of images [N, H, W, C]."""
    batch_norm = partial(
      nn.BatchNorm, use_running_average=not train, momentum=self.norm_momentum
    )
    strides = _V1_STRIDES[self.variant]
    x = conv(self.channels[0], 3, stride=strides[0], name='stem')(images)
    x = nn.relu(batch_norm(name='stem_norm')(x))
    blocks = zip(self.channels[1:], strides[1:], strict=True)
    for i, (channels, stride) in enumerate(blocks):
      width, name = x.shape[-1], f'depthwise_{i}'
      x = conv(width, 3, stride=stride, groups=width, name=name)(x)
      x = nn.relu(batch_norm(name=f'depthwise_{i}_norm')(x))
      x = conv(channels, 1, name=f'pointwise_{i}')(x)
      x = nn.relu(batch_norm(name=f'pointwise_{i}_norm')(x))
    return nn.Dense(self.num_classes, name='classifier')(x.mean(axis=(1, 2)))

  def layers(self) -> tuple[pruning.Layer, ...]:
    """Returns who reads whose channels; see `prunable.Prunable`."""
    described = normed(pruning.Conv('stem', INPUT))
    for i in range(len(self.channels) - 1):
      x = described[-1].name
      described += normed(pruning.Depthwise(f'depthwise_{i}', x))
      x = described[-1].name
      described += normed(pruning.Conv(f'pointwise_{i}', x))
    return (*described, pruning.Dense('classifier', described[-1].name))

  def with_channels(self, kept: Mapping[str, int]) -> Self:
    """Returns the network of fewer channels; see `prunable.Prunable`."""
    names = ['stem', *(f'pointwise_{i}' for i in range(len(_V1_CHANNELS) - 1))]
    widths = dict(zip(names, self.channels, strict=True))
    return self.clone(channels=tuple(kept_widths(widths, kept).values()))


class MobileNetV2(InvertedResidualNetwork):
  """MobileNetV2: 17 inverted residual blocks in seven stages.

  With 1000 classes 3,504,872 parameters, and 300,774,272 multiply-adds at
  224x224. The variant for 32x32 halves the image three times, not five: neither
  the first convolution nor the second stage does; 87,976,448 multiply-adds with
  ten classes, and 26,324,224 at half the width.

  Sandler et al., arXiv 1801.04381, table 2.
  """

  channels: Sequence[int] = (16, 24, 32, 64, 96, 160, 320)
  variant: str = 'imagenet'  # 'imagenet', or 'cifar' for images of 32x32

  def __post_init__(self) -> None:
    check_known('model.variant', self.variant, _V2_STAGES)
    super().__post_init__()

  @nn.nowrap
  def stages(self) -> Sequence[Stage]:
    """Returns the stages in order."""
    return _V2_STAGES[self.variant]

  @nn.nowrap
  def stem_stride(self) -> int:
    """Returns the stride of the first convolution."""
    return _V2_STEM_STRIDES[self.variant]
