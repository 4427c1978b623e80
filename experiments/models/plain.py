"""Plain networks for 32x32 images (He et al., arXiv 1512.03385, 4.2)."""

from collections.abc import Mapping, Sequence
from typing import Self

import flax.linen as nn
import jax

from bandwidth import pruning
from bandwidth.pruning.connections import INPUT
from experiments.models.prunable import kept_widths
from experiments.models.resnet import he_normal

_GROUPS = (16, 32, 64)


class PlainCifar(nn.Module):
  """6n+2 layers: convolutions of 3x3 in three groups, a linear classifier.

  A residual network without its shortcuts. The first convolutions of the second
  and third group halve the image. Plain-20 has 269,722 parameters and
  40,551,040 multiply-adds at 32x32.
  """

  depth: int = 20  # number of layers with weights, 6n+2
  num_classes: int = 10  # number of classes, a logit each
  # of each of the 6n+1 convolutions, in order; None: 16, 32 and 64 in the three
  # groups
  channels: Sequence[int] | None = None
  norm_momentum: float = 0.9  # of the running statistics of batch norm

  def __post_init__(self) -> None:
    if self.depth < 8 or (self.depth - 2) % 6:
      raise ValueError(f'depth={self.depth} is not 6n+2 with n of at least 1')
    if self.channels and len(self.channels) != self.depth - 1:
      raise ValueError(
        f'channels={self.channels} has not {self.depth - 1} entries'
      )
    super().__post_init__()

  def widths(self) -> tuple[int, ...]:
    """Returns the channels of each convolution."""
    if self.channels:
      return tuple(self.channels)
    per_group = (self.depth - 2) // 3
    later = [width for width in _GROUPS for _ in range(per_group)]
    return (_GROUPS[0], *later)

  @nn.compact
  def __call__(self, images: jax.Array, *, train: bool = False) -> jax.Array:
    """Returns logits [N, num_classes] of images [N, H, W, C]."""
    per_group = (self.depth - 2) // 3
    halving = (1 + per_group, 1 + 2 * per_group)
    x = images
    for i, channels in enumerate(self.widths()):
      stride = 2 if i in halving else 1
      x = nn.Conv(
        channels,
        (3, 3),
        strides=(stride, stride),
        use_bias=False,
        kernel_init=he_normal,
      )(x)
      norm = nn.BatchNorm(not train, momentum=self.norm_momentum)
      x = nn.relu(norm(x))
    return nn.Dense(self.num_classes)(x.mean(axis=(1, 2)))

  def layers(self) -> tuple[pruning.Layer, ...]:
    """Returns who reads whose channels; see `prunable.Prunable`."""
    described: list[pruning.Layer] = []
    x = INPUT
    for i in range(self.depth - 1):
      described += [
        pruning.Conv(f'Conv_{i}', x),
        pruning.Norm(f'BatchNorm_{i}', f'Conv_{i}'),
      ]
      x = f'BatchNorm_{i}'
    return (*described, pruning.Dense('Dense_0', x))

  def with_channels(self, kept: Mapping[str, int]) -> Self:
    """Returns the network of fewer channels; see `prunable.Prunable`."""
    widths = {f'Conv_{i}': width for i, width in enumerate(self.widths())}
    return self.clone(channels=tuple(kept_widths(widths, kept).values()))
