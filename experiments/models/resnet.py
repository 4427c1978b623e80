"""Residual networks for 32x32 images (He et al., arXiv 1512.03385, 4.2)."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Self

import flax.linen as nn
import jax
import jax.numpy as jnp

from bandwidth import pruning
from bandwidth.pruning.connections import INPUT
from experiments.models.prunable import kept_widths

he_normal = nn.initializers.variance_scaling(2.0, 'fan_out', 'normal')


class ResNetCifar(nn.Module):
  """6n+2 layers: a convolution, three groups of n blocks, a linear classifier.

  Shortcuts have no parameters (option A): where a block changes shape they take
  every second pixel and pad channels with zeros. ResNet-20, 56 and 110 have
  269,722, 853,018 and 1,727,962 parameters.
  """

  depth: int = 20  # number of layers with weights, 6n+2
  num_classes: int = 10  # number of classes, a logit each
  # of each group; the first convolution has those of the first group
  channels: Sequence[int] = (16, 32, 64)
  # of the first convolution in each of the 3n blocks, in order; None: the
  # channels of the block's group
  inner_channels: Sequence[int] | None = None
  norm_momentum: float = 0.9  # of the running statistics of batch norm

  def __post_init__(self) -> None:
    if self.depth < 8 or (self.depth - 2) % 6:
      raise ValueError(f'depth={self.depth} is not 6n+2 with n of at least 1')
    blocks = (self.depth - 2) // 2
    if self.inner_channels and len(self.inner_channels) != blocks:
      raise ValueError(
        f'inner_channels={self.inner_channels} has not {blocks} entries'
      )
    super().__post_init__()

  def inner_widths(self) -> tuple[int, ...]:
    """Returns the channels of the first convolution in each block."""
    if self.inner_channels:
      return tuple(self.inner_channels)
    per_group = (self.depth - 2) // 6
    return tuple(width for width in self.channels for _ in range(per_group))

  @nn.compact
  def __call__(self, images: jax.Array, *, train: bool = False) -> jax.Array:
    """Returns logits [N, num_classes] of images [N, H, W, C]."""
    conv = partial(
      nn.Conv, kernel_size=(3, 3), use_bias=False, kernel_init=he_normal
    )
    norm = partial(
      nn.BatchNorm, use_running_average=not train, momentum=self.norm_momentum
    )
    x = nn.relu(norm()(conv(self.channels[0])(images)))
    per_group, widths = (self.depth - 2) // 6, self.inner_widths()
    for group, channels in enumerate(self.channels):
      for i in range(per_group):
        inner = widths[group * per_group + i]
        stride = 2 if group > 0 and i == 0 else 1
        y = nn.relu(norm()(conv(inner, strides=(stride, stride))(x)))
        y = norm()(conv(channels)(y))
        x = nn.relu(y + _shortcut(x, channels, stride))
    return nn.Dense(self.num_classes)(x.mean(axis=(1, 2)))

  def layers(self) -> tuple[pruning.Layer, ...]:
    """Returns who reads whose channels; see `prunable.Prunable`.

    Shortcuts without parameters give all blocks the channels of their groups:
    none of those may be removed, as none of the input's.
    """
    described: list[pruning.Layer] = [
      pruning.Conv('Conv_0', INPUT),
      pruning.Norm('BatchNorm_0', 'Conv_0'),
    ]
    for inner in range(1, self.depth - 1, 2):
      outer = inner + 1
      described += [
        pruning.Conv(f'Conv_{inner}', INPUT),
        pruning.Norm(f'BatchNorm_{inner}', f'Conv_{inner}'),
        pruning.Conv(f'Conv_{outer}', f'BatchNorm_{inner}'),
        pruning.Norm(f'BatchNorm_{outer}', f'Conv_{outer}'),
      ]
    return (*described, pruning.Dense('Dense_0', INPUT))

  def with_channels(self, kept: Mapping[str, int]) -> Self:
    """Returns the network of fewer channels; see `prunable.Prunable`."""
    inner = self.inner_widths()
    widths = {f'Conv_{2 * i + 1}': width for i, width in enumerate(inner)}
    return self.clone(inner_channels=tuple(kept_widths(widths, kept).values()))


def _shortcut(x: jax.Array, channels: int, stride: int) -> jax.Array:
  x = x[:, ::stride, ::stride]
  missing = channels - x.shape[-1]
  before = missing // 2
  return jnp.pad(x, ((0, 0),) * 3 + ((before, missing - before),))
