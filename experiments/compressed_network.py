"""Flax networks that run from compressed parameters.

The parameters of a network may hold matrices of `bandwidth.inference` instead
of kernels and embeddings. Layers that would read those are then done by
`inference.matmul`: dense layers and convolutions of 1x1 as products of their
channels, other convolutions as products of patches, embeddings by rows. The
kernel of a grouped convolution, a few weights for each channel, is decoded
where it is used.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from bandwidth import inference


class CompressedNetwork:
  """A network whose `apply` takes compressed parameters too.

  Attributes:
    model: the network.
  """

  def __init__(
    self, model: nn.Module, *, backend: str = 'auto', mode: str = 'exact'
  ) -> None:
    """Chooses who multiplies.

    Args:
      model: of Flax's own layers.
      backend: of `inference.BACKENDS`.
      mode: of `inference.MODES`.
    """
    # Products by hand would look for arrays.
    fields = getattr(model, '__dataclass_fields__', {})
    self.model = (
      model.clone(convolution='xla') if 'convolution' in fields else model
    )
    self._options = {'backend': backend, 'mode': mode}

  def apply(self, variables: Any, *args: Any, **options: Any) -> Any:
    """Runs the network; arguments are those of `nn.Module.apply`."""
    embeddings: dict[tuple[str, ...], Any] = {}
    params = _set_aside(variables['params'], (), embeddings)
    with nn.intercept_methods(functools.partial(self._intercept, embeddings)):
      return self.model.apply({**variables, 'params': params}, *args, **options)

  def _intercept(
    self,
    embeddings: Mapping[tuple[str, ...], Any],
    call: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    context: nn.module.InterceptorContext,
  ) -> Any:
    run = _LAYERS.get(type(context.module))
    if context.method_name != '__call__' or run is None:
      return call(*args, **kwargs)
    module: Any = context.module
    if isinstance(module, nn.Embed):
      matrix = embeddings.get(module.path)
    else:
      matrix = module.get_variable('params', 'kernel')
    if not inference.is_matrix(matrix):
      return call(*args, **kwargs)
    (inputs,) = (*args, *kwargs.values())
    y = run(module, matrix, inputs, self._options)
    if getattr(module, 'use_bias', False):
      y = y + jnp.reshape(
        module.get_variable('params', 'bias'), (1,) * (y.ndim - 1) + (-1,)
      )
    return y


def _set_aside(
  node: Any, path: tuple[str, ...], embeddings: dict[tuple[str, ...], Any]
) -> Any:
  """Takes embeddings out of parameters; Flax asks for arrays of their shape.

  Args:
    node: nested dictionaries.
    path: of it.
    embeddings: gets them, by path of the layer.
  """
  if not isinstance(node, Mapping):
    return node
  kept = {name: _set_aside(x, (*path, name), embeddings)
          for name, x in node.items()}  # fmt: skip
  if inference.is_matrix(node.get('embedding')):
    matrix = embeddings[path] = node['embedding']
    # A zero that looks like a whole array takes no memory.
    kept['embedding'] = np.broadcast_to(np.float32(0), matrix.shape[::-1])
  return kept


def _dense(
  module: nn.Dense, matrix: Any, x: jax.Array, options: Mapping[str, str]
) -> jax.Array:
  del module
  return inference.matmul(x, matrix, **options)


def _embed(
  module: nn.Embed, matrix: Any, index: jax.Array, options: Mapping[str, str]
) -> jax.Array:
  del module, options
  return inference.rows_of(matrix, index)


def _conv(
  module: nn.Conv, matrix: Any, x: jax.Array, options: Mapping[str, str]
) -> jax.Array:
  """Convolves images [N, H, W, C]."""
  size: Any = module.kernel_size
  size = (size,) if isinstance(size, int) else tuple(size)
  strides = _pair(module.strides)
  dilation = _pair(module.kernel_dilation)
  padding: Any = module.padding
  if isinstance(padding, int):
    padding = ((padding, padding),) * 2
  names = ('NHWC', 'HWIO', 'NHWC')
  if x.ndim != 4 or len(size) != 2 or padding in ('CIRCULAR', 'CAUSAL'):
    raise ValueError(
      f'{"/".join(module.path)}: a compressed convolution of {len(size)} axes '
      f'and padding={padding!r} is not known'
    )
  if module.feature_group_count > 1:
    kernel = _dense_kernel(matrix, size)
    return lax.conv_general_dilated(
      x, kernel, strides, padding, rhs_dilation=dilation,
      dimension_numbers=names, feature_group_count=module.feature_group_count,
    )  # fmt: skip
  if size == (1, 1) and padding in ('SAME', 'VALID', ((0, 0), (0, 0))):
    x = x[:, :: strides[0], :: strides[1]]
  else:
    x = lax.conv_general_dilated_patches(
      x, size, strides, padding, rhs_dilation=dilation, dimension_numbers=names
    )
  return inference.matmul(x, matrix, **options)


def _pair(given: int | Sequence[int] | None) -> tuple[int, int]:
  if given is None or isinstance(given, int):
    return (given or 1,) * 2
  return (given[0], given[1])


def _dense_kernel(matrix: Any, size: tuple[int, int]) -> jax.Array:
  """The kernel [height, width, inputs, outputs] of a grouped convolution."""
  rows = inference.rows_of(matrix, jnp.arange(matrix.shape[1]))
  kernel = rows.reshape(matrix.shape[1], -1, *size)
  return kernel.transpose(2, 3, 1, 0)


_LAYERS: dict[type, Callable[..., jax.Array]] = {
  nn.Dense: _dense,
  nn.Embed: _embed,
  nn.Conv: _conv,
}
