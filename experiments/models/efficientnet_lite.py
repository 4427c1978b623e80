"""EfficientNet-Lite0: inverted residual blocks with depthwise convolutions.

Tan and Le, arXiv 1905.11946, as Lite: ReLU6 and no squeeze-and-excitation.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from bandwidth import tree
from experiments.models import inverted_residual
from experiments.models.inverted_residual import (
  BlockShape,
  InvertedResidual,
  Stage,
  conv,
)

_STAGES = (
  Stage(1, 3, 1),
  Stage(2, 3, 2),
  Stage(2, 5, 2),
  Stage(3, 3, 2),
  Stage(3, 5, 1),
  Stage(4, 5, 2),
  Stage(1, 3, 1),
)


class EfficientNetLite(inverted_residual.Shrinkable, nn.Module):
  """EfficientNet-Lite0: 4,652,008 parameters with 1000 classes.

  Images are RGB, (x - 127) / 128 with x in 0 to 255 for the published weights,
  best of a size that 32 divides. There is no dropout.

  Attributes:
    num_classes: outputs.
    stem: channels of the first convolution.
    channels: that come out of the blocks of each of the seven groups.
    inner_channels: of the depthwise convolution of each of the 16 blocks, in
      order; None: six times what comes in. The first block does not expand, so
      its inner channels are those of the stem.
    head: channels of the last convolution, the pooled features.
    norm_momentum: of the running statistics of batch norm.
  """

  num_classes: int = 1000
  stem: int = 32
  channels: Sequence[int] = (16, 24, 40, 80, 112, 192, 320)
  inner_channels: Sequence[int] | None = None
  head: int = 1280
  norm_momentum: float = 0.99

  def __post_init__(self) -> None:
    inverted_residual.check_channels(
      _STAGES,
      stem=self.stem,
      channels=self.channels,
      inner_channels=self.inner_channels,
    )
    super().__post_init__()

  def block_shapes(self) -> list[BlockShape]:
    """Returns the shapes of all blocks, in order."""
    return inverted_residual.block_shapes(
      _STAGES,
      stem=self.stem,
      channels=self.channels,
      inner_channels=self.inner_channels,
    )

  def setup(self) -> None:
    """Builds the layers, which two methods use."""
    self.stem_conv = conv(self.stem, 3, stride=2)
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


_MODULES = {
  'stem_conv': '_conv_stem',
  'stem_norm': '_bn0',
  'expand': '_expand_conv',
  'expand_norm': '_bn0',
  'depthwise': '_depthwise_conv',
  'depthwise_norm': '_bn1',
  'project': '_project_conv',
  'project_norm': '_bn2',
  'head_conv': '_conv_head',
  'head_norm': '_bn1',
  'classifier': '_fc',
}
_LEAVES = {
  'kernel': 'weight',
  'scale': 'weight',
  'bias': 'bias',
  'mean': 'running_mean',
  'var': 'running_var',
}


def source_of(name: str) -> str:
  """Returns what the PyTorch state dictionary calls a variable.

  >>> source_of('blocks_3/expand/kernel'), source_of('head_norm/mean')
  ('_blocks.3._expand_conv.weight', '_bn1.running_mean')
  """
  *block, module, leaf = name.split('/')
  prefix = f'_blocks.{block[0].split("_")[1]}.' if block else ''
  return f'{prefix}{_MODULES[module]}.{_LEAVES[leaf]}'


def efficientnet_variables(arrays: Mapping[str, np.ndarray]) -> dict[str, Any]:
  """Returns the variables of `EfficientNetLite()` from PyTorch's arrays.

  Args:
    arrays: a state dictionary of efficientnet-lite0: convolutions
      [out, in / groups, H, W], which become [H, W, in / groups, out], and a
      classifier [out, in].

  Raises:
    ValueError: an array is missing or has another shape.
  """
  model = EfficientNetLite(num_classes=len(arrays.get('_fc.bias', [0])))
  images = jnp.zeros((1, 32, 32, 3))
  wanted = jax.eval_shape(model.init, jax.random.key(0), images)

  def load(name: str, like: Any) -> jax.Array:
    source = source_of(name)
    if source not in arrays:
      raise ValueError(f'arrays: {source} is missing')
    array = np.asarray(arrays[source], np.float32)
    if array.ndim > 1:
      array = array.transpose((2, 3, 1, 0) if array.ndim == 4 else (1, 0))
    if array.shape != like.shape:
      raise ValueError(
        f'arrays: {source}.shape={arrays[source].shape} is wrong'
      )
    return jnp.asarray(array)

  return {kind: tree.map_named(load, wanted[kind]) for kind in wanted}
