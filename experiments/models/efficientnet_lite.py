"""EfficientNet-Lite0: inverted residual blocks with depthwise convolutions.

Tan and Le, arXiv 1905.11946, as Lite: ReLU6 and no squeeze-and-excitation.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from bandwidth import tree

# (blocks, kernel size, stride of the first) of each group.
_GROUPS = (
  (1, 3, 1), (2, 3, 2), (2, 5, 2), (3, 3, 2), (3, 5, 1), (4, 5, 2), (1, 3, 1),
)  # fmt: skip
_BLOCKS = sum(blocks for blocks, _, _ in _GROUPS)
_EXPANSION = 6

he_normal = nn.initializers.variance_scaling(2.0, 'fan_out', 'normal')


class BlockShape(NamedTuple):
  """What makes a block.

  Attributes:
    inner: channels of the depthwise convolution.
    channels: that come out.
    size: of its kernel.
    stride: of it.
    expands: whether a 1x1 convolution makes the inner channels.
  """

  inner: int
  channels: int
  size: int
  stride: int
  expands: bool


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
    inner, channels, size, stride, expands = self.shape
    norm = partial(_norm, train=train, momentum=self.norm_momentum)
    x = images
    if expands:
      x = nn.relu6(norm('expand_norm')(_conv(inner, 1, name='expand')(x)))
    depthwise = _conv(
      inner, size, stride=stride, groups=inner, name='depthwise'
    )
    x = nn.relu6(norm('depthwise_norm')(depthwise(x)))
    x = norm('project_norm')(_conv(channels, 1, name='project')(x))
    return x + images if stride == 1 and x.shape == images.shape else x


class EfficientNetLite(nn.Module):
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
    if len(self.channels) != len(_GROUPS):
      raise ValueError(
        f'channels={self.channels} has not {len(_GROUPS)} entries'
      )
    inner = self.inner_channels
    if inner and (len(inner) != _BLOCKS or inner[0] != self.stem):
      raise ValueError(
        f'inner_channels={inner} has not {_BLOCKS} entries, the first '
        f'stem={self.stem}'
      )
    super().__post_init__()

  def block_shapes(self) -> list[BlockShape]:
    """Returns the shapes of all blocks, in order."""
    shapes = []
    before = self.stem
    groups = zip(_GROUPS, self.channels, strict=True)
    for group, ((blocks, size, stride), channels) in enumerate(groups):
      for i in range(blocks):
        inner = before * (_EXPANSION if group else 1)
        if self.inner_channels:
          inner = self.inner_channels[len(shapes)]
        step = 1 if i else stride
        shapes.append(BlockShape(inner, channels, size, step, group > 0))
        before = channels
    return shapes

  def setup(self) -> None:
    """Builds the layers, which two methods use."""
    self.stem_conv = _conv(self.stem, 3, stride=2)
    self.blocks = [
      InvertedResidual(shape, self.norm_momentum)
      for shape in self.block_shapes()
    ]
    self.head_conv = _conv(self.head, 1)
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


def _conv(
  channels: int,
  size: int,
  *,
  stride: int = 1,
  groups: int = 1,
  name: str | None = None,
) -> nn.Conv:
  return nn.Conv(
    channels,
    (size, size),
    strides=(stride, stride),
    feature_group_count=groups,
    use_bias=False,
    kernel_init=he_normal,
    name=name,
  )


def _norm(name: str, *, train: bool, momentum: float) -> nn.BatchNorm:
  return nn.BatchNorm(
    use_running_average=not train, momentum=momentum, epsilon=1e-3, name=name
  )


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
