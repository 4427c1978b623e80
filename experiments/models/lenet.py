"""The two LeNets on which Deep Compression was measured first."""

from collections.abc import Mapping, Sequence
from typing import Self

import flax.linen as nn
import jax

from bandwidth import pruning
from bandwidth.base import check_known
from bandwidth.pruning.connections import INPUT
from experiments.models.matrix_convolution import convolve_and_pool
from experiments.models.parameters import KernelAndBias
from experiments.models.prunable import kept_widths

CONVOLUTIONS = ('xla', 'matrix')


class LeNet300(nn.Module):
  """LeNet-300-100: two hidden layers, 266,610 parameters on 28x28 inputs.

  LeCun et al., "Gradient-based learning applied to document recognition", 1998;
  Han et al., arXiv 1510.00149, table 2.
  """

  num_classes: int = 10  # number of classes, a logit each
  features: Sequence[int] = (300, 100)  # units of the hidden layers

  @nn.compact
  def __call__(self, images: jax.Array, *, train: bool = False) -> jax.Array:
    """Returns logits [N, num_classes] of images [N, H, W, C]."""
    del train
    x = images.reshape(images.shape[0], -1)
    for features in self.features:
      x = nn.relu(nn.Dense(features)(x))
    return nn.Dense(self.num_classes)(x)

  def layers(self) -> tuple[pruning.Layer, ...]:
    """Returns who reads whose channels; see `prunable.Prunable`."""
    names = [INPUT, *(f'Dense_{i}' for i in range(len(self.features) + 1))]
    pairs = zip(names[1:], names, strict=False)
    return tuple(pruning.Dense(name, before) for name, before in pairs)

  def with_channels(self, kept: Mapping[str, int]) -> Self:
    """Returns the network of fewer channels; see `prunable.Prunable`."""
    widths = {f'Dense_{i}': width for i, width in enumerate(self.features)}
    return self.clone(features=tuple(kept_widths(widths, kept).values()))


class LeNet5(nn.Module):
  """LeNet-5 as Caffe has it: 431,080 parameters on 28x28 inputs.

  Two convolutions of 5x5, each followed by 2x2 max pooling and by no other
  nonlinearity, then 500 rectified units. Han et al., arXiv 1510.00149, table 3.
  """

  num_classes: int = 10  # number of classes, a logit each
  channels: Sequence[int] = (20, 50)  # filters of the convolutions
  features: int = 500  # units of the hidden layer
  # 'xla', or 'matrix': the same on matrix products, for CPUs
  convolution: str = 'xla'

  def __post_init__(self) -> None:
    check_known('model.convolution', self.convolution, CONVOLUTIONS)
    super().__post_init__()

  @nn.compact
  def __call__(self, images: jax.Array, *, train: bool = False) -> jax.Array:
    """Returns logits [N, num_classes] of images [N, H, W, C]."""
    del train
    x = images
    if self.convolution == 'matrix':
      layers, inputs = [], images.shape[-1]
      for i, channels in enumerate(self.channels):
        kernel = (5, 5, inputs, channels)
        layers.append(KernelAndBias(kernel, name=f'Conv_{i}')())
        inputs = channels
      x = convolve_and_pool(images, layers)
    else:
      for channels in self.channels:
        x = nn.Conv(channels, (5, 5), padding='VALID')(x)
        x = nn.max_pool(x, (2, 2), strides=(2, 2))
    x = x.reshape(x.shape[0], -1)
    x = nn.relu(nn.Dense(self.features)(x))
    return nn.Dense(self.num_classes)(x)

  def layers(self) -> tuple[pruning.Layer, ...]:
    """Returns who reads whose channels; see `prunable.Prunable`."""
    names = [INPUT, *(f'Conv_{i}' for i in range(len(self.channels)))]
    pairs = zip(names[1:], names, strict=False)
    return (
      *(pruning.Conv(name, before) for name, before in pairs),
      pruning.Dense('Dense_0', names[-1]),
      pruning.Dense('Dense_1', 'Dense_0'),
    )

  def with_channels(self, kept: Mapping[str, int]) -> Self:
    """Returns the network of fewer channels; see `prunable.Prunable`."""
    widths = {f'Conv_{i}': width for i, width in enumerate(self.channels)}
    *channels, features = kept_widths(
      {**widths, 'Dense_0': self.features}, kept
    ).values()
    return self.clone(channels=tuple(channels), features=features)
