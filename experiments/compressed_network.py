"""Flax networks that run from compressed parameters.

The parameters of a network may hold matrices of `bandwidth.inference` instead
of kernels and embeddings. Layers that would read those are then done by
`inference.matmul`: dense layers and convolutions of 1x1 as products of their
channels, other convolutions as products of patches, embeddings by rows. The
kernel of a grouped convolution, a few weights for each channel, is decoded
where it is used.
"""

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from bandwidth import inference
from experiments.joined_products import Part, join_kernels

_Multiply = Callable[[jax.Array, Any], jax.Array]


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
    return self._run(_Call({}, {}, []), variables, args, options)

  def join(self, variables: Any, *args: Any, **options: Any) -> Any:
    """Joins kernels that read the same activations, see `joined_products`.

    Args:
      variables: of `apply`.
      *args: inputs of the network, or their shapes.
      **options: of `apply`.

    Returns:
      Variables for `apply`.
    """
    params = join_kernels(
      variables['params'], self._watch(variables, args, options)
    )
    return {**variables, 'params': params}

  def rows(self, variables: Any, *args: Any, **options: Any) -> dict[str, int]:
    """Returns how many rows of activations each kernel multiplies, by name.

    Args:
      variables: of `apply`.
      *args: inputs of the network, or their shapes.
      **options: of `apply`.
    """
    return {
      f'{name}/kernel': math.prod(x.shape[:-1])
      for name, x in self._watch(variables, args, options)
    }

  def _watch(
    self, variables: Any, args: Any, options: Mapping[str, Any]
  ) -> list[tuple[str, Any]]:
    """What products read, by name of the layer, in the order of calls."""
    call = _Call({}, {}, [])
    # Matrices stay whole: their shapes are in them.
    jax.eval_shape(lambda x: self._run(call, variables, x, options), args)
    return call.reads

  def _run(
    self, call: '_Call', variables: Any, args: Any, options: Mapping[str, Any]
  ) -> Any:
    params = _set_aside(variables['params'], (), call.embeddings)
    with nn.intercept_methods(functools.partial(self._intercept, call)):
      return self.model.apply({**variables, 'params': params}, *args, **options)

  def _intercept(
    self,
    own: '_Call',
    call: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    context: nn.module.InterceptorContext,
  ) -> Any:
    run = _LAYERS.get(type(context.module))
    if context.method_name != '__call__' or run is None:
      return call(*args, **kwargs)
    module: Any = context.module
    name = '/'.join(module.path)
    if isinstance(module, nn.Embed):
      matrix = own.embeddings.get(module.path)
    else:
      matrix = module.get_variable('params', 'kernel')
    (inputs,) = (*args, *kwargs.values())
    if not (inference.is_matrix(matrix) or isinstance(matrix, Part)):
      if isinstance(module, nn.Dense):
        own.reads.append((name, inputs))
      return call(*args, **kwargs)

    def multiply(x: jax.Array, kernel: Any) -> jax.Array:
      own.reads.append((name, x))
      if not isinstance(kernel, Part):
        return inference.matmul(x, kernel, **self._options)
      if kernel.whole is not None:
        own.products[name] = inference.matmul(x, kernel.whole, **self._options)
      return own.products[kernel.group][..., kernel.begin : kernel.end]

    y = run(module, matrix, inputs, multiply)
    if getattr(module, 'use_bias', False):
      y = y + jnp.reshape(
        module.get_variable('params', 'bias'), (1,) * (y.ndim - 1) + (-1,)
      )
    return y


class _Call(NamedTuple):
  """What layers of one call of a network tell each other.

  Attributes:
    embeddings: by path of the layer.
    products: of joined kernels, by name of the group.
    reads: names of layers and what their products read.
  """

  embeddings: dict[tuple[str, ...], Any]
  products: dict[str, jax.Array]
  reads: list[tuple[str, Any]]


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
  module: nn.Dense, matrix: Any, x: jax.Array, multiply: _Multiply
) -> jax.Array:
  del module
  return multiply(x, matrix)


def _embed(
  module: nn.Embed, matrix: Any, index: jax.Array, multiply: _Multiply
) -> jax.Array:
  del module, multiply
  return inference.rows_of(matrix, index)


def _conv(
  module: nn.Conv, matrix: Any, x: jax.Array, multiply: _Multiply
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
  return multiply(x, matrix)


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
