"""EfficientNet-Lite0: inverted residual blocks with depthwise convolutions.

Tan and Le, arXiv 1905.11946, as Lite: ReLU6 and no squeeze-and-excitation.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from experiments.models.inverted_residual import InvertedResidualNetwork, Stage
from experiments.models.parameters import from_published

_STAGES = (
  Stage(1, 3, 1),
  Stage(2, 3, 2),
  Stage(2, 5, 2),
  Stage(3, 3, 2),
  Stage(3, 5, 1),
  Stage(4, 5, 2),
  Stage(1, 3, 1),
)


class EfficientNetLite(InvertedResidualNetwork):
  """EfficientNet-Lite0: 4,652,008 parameters with 1000 classes.

  Images are RGB, (x - 127) / 128 with x in 0 to 255 for the published weights,
  best of a size that 32 divides. There is no dropout. Seven stages, 16 blocks.
  """

  channels: Sequence[int] = (16, 24, 40, 80, 112, 192, 320)
  norm_momentum: float = 0.99

  @nn.nowrap
  def stages(self) -> Sequence[Stage]:
    """Returns the stages in order."""
    return _STAGES


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
  shapes = jax.eval_shape(model.init, jax.random.key(0), images)

  def source(name: str) -> tuple[str, tuple[int, ...] | None]:
    axes = (1, 0) if name.startswith('classifier/') else (2, 3, 1, 0)
    return source_of(name), axes

  return {
    kind: from_published(arrays, variables, source)
    for kind, variables in shapes.items()
  }
