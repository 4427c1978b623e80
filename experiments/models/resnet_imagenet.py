"""ResNet-50 for images of 224 pixels (He et al., arXiv 1512.03385, table 1)."""

from collections.abc import Sequence
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp

from experiments.models.resnet import he_normal


class ResNetImagenet(nn.Module):
  """Bottleneck blocks in four groups; with (3, 4, 6, 3) of them ResNet-50.

  A block that halves the image does so in its convolution of 3x3, as most
  implementations since the paper do. ResNet-50 has 25,557,032 parameters for a
  thousand classes.
  """

  num_classes: int = 1000  # number of classes, a logit each
  blocks: Sequence[int] = (3, 4, 6, 3)  # number of blocks of each group
  # channels of the first convolution, and of the 3x3 ones of the first group
  width: int = 64
  norm_momentum: float = 0.9  # of the running statistics of batch norm
  # of activations and products, 'bfloat16' on accelerators. Parameters and
  # statistics are float32.
  dtype: str = 'float32'

  @nn.compact
  def __call__(self, images: jax.Array, *, train: bool = False) -> jax.Array:
    """Returns logits [N, num_classes] of images [N, H, W, C]."""
    dtype = jnp.dtype(self.dtype)
    conv = partial(nn.Conv, use_bias=False, kernel_init=he_normal, dtype=dtype)
    norm = partial(
      nn.BatchNorm,
      use_running_average=not train,
      momentum=self.norm_momentum,
      dtype=dtype,
    )
    x = conv(self.width, (7, 7), strides=(2, 2), padding=3)(images)
    x = nn.max_pool(
      nn.relu(norm()(x)), (3, 3), strides=(2, 2), padding=((1, 1), (1, 1))
    )
    for group, count in enumerate(self.blocks):
      width = self.width * 2**group
      for block in range(count):
        stride = 2 if group > 0 and block == 0 else 1
        y = nn.relu(norm()(conv(width, (1, 1))(x)))
        strides = (stride, stride)
        y = nn.relu(norm()(conv(width, (3, 3), strides=strides, padding=1)(y)))
        y = norm()(conv(4 * width, (1, 1))(y))
        if block == 0:
          x = norm()(conv(4 * width, (1, 1), strides=strides)(x))
        x = nn.relu(x + y)
    x = x.mean(axis=(1, 2)).astype(jnp.float32)
    return nn.Dense(self.num_classes)(x)
