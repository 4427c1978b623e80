"""Shapes of the layers that cost something, read off a network's own run."""

import math
from collections.abc import Callable, Iterable
from typing import Any

import flax.linen as nn
import jax
import numpy as np

from bandwidth import tree
from bandwidth.search.problem.space import LayerShape
from experiments.models.lenet import LeNet5

# Normalization: next to nothing, and folded into convolutions when deployed.
_FREE = (nn.BatchNorm, nn.LayerNorm, nn.RMSNorm, nn.GroupNorm, nn.InstanceNorm)


def layer_shapes(
  model: nn.Module, example: jax.Array | jax.ShapeDtypeStruct
) -> tuple[LayerShape, ...]:
  """Runs a network on shapes alone and notes its convolutions and dense layers.

  Args:
    model: a network of `nn.Conv` and `nn.Dense`. `LeNet5` is described alike
      whichever way it convolves.
    example: its input, examples along the first axis; only shape and dtype
      matter.

  Returns:
    The layers in the order of computation, for one example. A dense layer that
    reads flattened images has all their numbers as `inputs`.

  Raises:
    ValueError: a layer has parameters but is neither of these, nor a
      normalization; a convolution is grouped but not depthwise; a layer runs
      twice, or in the steps of a recurrence.
  """
  model = in_plain_layers(model)
  found: dict[str, LayerShape] = {}
  free: set[str] = set()

  def note(
    run: Callable[..., Any], args: Any, kwargs: Any, context: Any
  ) -> jax.Array:
    module, name = context.module, '/'.join(context.module.path)
    if context.method_name != '__call__':
      return run(*args, **kwargs)
    if isinstance(module, nn.RNNCellBase):
      raise ValueError(f'{name}: a recurrence has no fixed cost')
    y = run(*args, **kwargs)
    if isinstance(module, _FREE):
      free.add(name)
    elif isinstance(module, nn.Conv | nn.Dense):
      if name in found:
        raise ValueError(f'{name}: a layer that runs twice is not supported')
      x = args[0] if args else kwargs['inputs']
      found[name] = _describe(name, module, x, y, examples=example.shape[0])
    return y

  with nn.intercept_methods(note):
    variables = jax.eval_shape(model.init, jax.random.key(0), example)
  for name in tree.names(variables.get('params', {})):
    layer = name.rpartition('/')[0]
    if layer not in found and layer not in free:
      raise ValueError(f'{layer}: neither a convolution nor a dense layer')
  return tuple(found.values())


def in_plain_layers(model: nn.Module) -> nn.Module:
  """Returns the same network, of the same parameters, made of plain layers.

  `LeNet5` can convolve by matrix products, where no `nn.Conv` is called.
  """
  if isinstance(model, LeNet5):
    return model.clone(convolution='xla')
  return model


def macs(shapes: Iterable[LayerShape]) -> int:
  """Returns the multiply-adds of an example, exactly.

  Those of convolutions and dense layers; no biases, no normalization.

  Args:
    shapes: layers, as `layer_shapes` returns them.
  """
  return sum(shape.weights * shape.positions for shape in shapes)


def _describe(
  name: str,
  module: nn.Conv | nn.Dense,
  x: jax.Array,
  y: jax.Array,
  *,
  examples: int,
) -> LayerShape:
  shape = LayerShape(
    name=name,
    kind='dense',
    inputs=x.shape[-1],
    outputs=y.shape[-1],
    positions=_numbers(y, examples),
    pixels=_numbers(x, examples),
    bias=module.use_bias,
  )
  if isinstance(module, nn.Dense):
    return shape
  groups = module.feature_group_count
  if groups not in (1, shape.inputs):
    raise ValueError(
      f'{name}: feature_group_count={groups} is neither 1 nor the '
      f'{shape.inputs} inputs'
    )
  return shape._replace(
    kind='depthwise' if groups > 1 else 'conv',
    taps=int(np.prod(module.kernel_size)),
    stride=int(np.max(module.strides or 1)),
  )


def _numbers(x: jax.Array, examples: int) -> int:
  """Numbers of each channel for one example, wherever the batch lies."""
  return math.prod(x.shape[:-1]) // examples
