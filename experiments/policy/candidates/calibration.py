"""Inputs of a network's layers, gathered for a search."""

import functools
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from bandwidth.search.decisions.options import Moments, moments
from experiments.models.geometry import in_plain_layers

# Of zeros.
_PADDINGS = ('SAME', 'SAME_LOWER', 'VALID')


def input_moments(
  model: nn.Module,
  variables: Mapping[str, Any],
  batches: jax.Array,
  layers: Collection[str],
  *,
  points: int,
  key: jax.Array,
) -> dict[str, Moments]:
  """Returns the moments of what layers read, in evaluation mode.

  Args:
    model: a network of `nn.Conv` and `nn.Dense`.
    variables: its parameters and statistics.
    batches: images, float32 [B, N, H, W, C].
    layers: paths of the modules, convolutions and dense layers.
    points: of each convolution's result in each batch, at random, the same in
      all its images; fewer results are all used. He et al., AMC, take 10.
    key: typed key of the points.

  Returns:
    Of each layer, over all batches alike; rows are those of
    `options.to_matrix` of its kernel.

  Raises:
    ValueError: a layer is not called, or not of a kind that can be refitted.
  """
  model = in_plain_layers(model)
  of_batch = functools.partial(_of_batch, model, tuple(layers), points)

  @jax.jit
  def mean(variables: Any, batches: jax.Array, keys: jax.Array) -> Any:
    def add(total: Any, batch: tuple[jax.Array, jax.Array]) -> tuple[Any, None]:
      return jax.tree.map(jnp.add, total, of_batch(variables, *batch)), None

    like = jax.eval_shape(of_batch, variables, batches[0], keys[0])
    nothing = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape), like)
    total, _ = lax.scan(add, nothing, (batches, keys))
    return jax.tree.map(lambda leaf: leaf / len(batches), total)

  return mean(variables, batches, jax.random.split(key, batches.shape[0]))


def _of_batch(
  model: nn.Module,
  layers: tuple[str, ...],
  points: int,
  variables: Any,
  images: jax.Array,
  key: jax.Array,
) -> dict[str, Moments]:
  found: dict[str, Moments] = {}

  def watch(
    call: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    context: nn.module.InterceptorContext,
  ) -> Any:
    result = call(*args, **kwargs)
    name = '/'.join(context.module.path)
    if name in layers and context.method_name == '__call__':
      inputs = args[0] if args else kwargs['inputs']
      own_key = jax.random.fold_in(key, len(found))
      rows = _rows(context.module, inputs, result, points, own_key)
      found[name] = moments(rows)
    return result

  with nn.intercept_methods(watch):
    model.apply(variables, images)
  missing = sorted(set(layers) - set(found))
  if missing:
    raise ValueError(f'layers: {missing[0]} is not called')
  return found


def _rows(
  module: nn.Module,
  inputs: jax.Array,
  outputs: Any,
  points: int,
  key: jax.Array,
) -> jax.Array:
  """What a layer reads for single results, [N, rows of its matrix]."""
  if isinstance(module, nn.Dense):
    return inputs.reshape(-1, inputs.shape[-1])
  conv = _plain_convolution(module)
  size, strides = _pair(conv.kernel_size), _pair(conv.strides)
  padded = _pad(inputs, size, strides, conv.padding)
  height, width = outputs.shape[1:3]
  count = min(points, height * width)
  chosen = jax.random.choice(key, height * width, (count,), replace=False)

  def patch(point: jax.Array) -> jax.Array:
    corner = (point // width * strides[0], point % width * strides[1])
    return lax.dynamic_slice(
      padded, (0, *corner, 0), (padded.shape[0], *size, padded.shape[-1])
    )

  patches = jax.vmap(patch)(chosen)  # [points, N, h, w, C]
  channels_first = jnp.moveaxis(patches, -1, 2)
  return channels_first.reshape(-1, padded.shape[-1] * math.prod(size))


def _plain_convolution(module: nn.Module) -> nn.Conv:
  """Returns the layer as a convolution of all channels of an image."""
  name = '/'.join(module.path)
  if not isinstance(module, nn.Conv):
    raise ValueError(f'{name}: {type(module).__name__} cannot be refitted')
  if module.feature_group_count != 1:
    raise ValueError(
      f'{name}: feature_group_count={module.feature_group_count} cannot be '
      'refitted, only convolutions of all channels'
    )
  size = module.kernel_size
  dilations = (*_pair(module.input_dilation), *_pair(module.kernel_dilation))
  if isinstance(size, int) or len(size) != 2 or set(dilations) != {1}:
    raise ValueError(
      f'{name}: cannot be refitted, only convolutions of two axes without '
      'dilation'
    )
  if isinstance(module.padding, str) and module.padding not in _PADDINGS:
    raise ValueError(
      f'{name}: padding={module.padding!r} cannot be refitted, only zeros'
    )
  return module


def _pair(value: int | Sequence[int] | None) -> tuple[int, ...]:
  if value is None or isinstance(value, int):
    return (value or 1,) * 2
  return tuple(value)


def _pad(
  inputs: jax.Array,
  size: tuple[int, ...],
  strides: tuple[int, ...],
  padding: Any,
) -> jax.Array:
  if isinstance(padding, str):
    pads = lax.padtype_to_pads(inputs.shape[1:3], size, strides, padding)
  elif isinstance(padding, int):
    pads = [(padding, padding)] * 2
  else:
    pads = [(p, p) if isinstance(p, int) else tuple(p) for p in padding]
  return jnp.pad(inputs, ((0, 0), *pads, (0, 0)))
