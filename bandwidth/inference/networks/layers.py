"""Layers of Flax from codes: what they compute, and where that is not known.

Functions take a layer as it is bound, the matrix of its parameter, what it
reads, and who multiplies; the parameter itself is an array in none of them.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from bandwidth.inference.matrices import (
  CodebookMatrix,
  SparseMatrix,
  UniformMatrix,
  rows_of,
)

Multiply = Callable[[jax.Array, Any], jax.Array]

_FLOATS = tuple(map(jnp.dtype, ('float32', 'bfloat16', 'float16')))
_ANY = {'parent', 'name', 'features', 'dtype', 'param_dtype'}
_LINEAR = _ANY | {'use_bias', 'precision', 'kernel_init', 'bias_init'}


class Layer(NamedTuple):
  """A method of a layer that can run from codes.

  Attributes:
    leaf: name of the parameter within the layer.
    run: (layer, matrix, inputs, bias or None, multiply) -> outputs.
    fields: names of the layer's fields that may have any value; others must
      have Flax's default.
  """

  leaf: str
  run: Callable[..., jax.Array]
  fields: frozenset[str]

  def refusal(self, module: Any, matrix: Any, x: Any, bias: Any) -> str:
    """Why it can't be run from a matrix; empty where it can."""
    kind = type(module).__name__
    for field in dataclasses.fields(module):
      given = getattr(module, field.name)
      if field.name not in self.fields and not _same(given, field.default):
        return f'its {kind} has an own {field.name}'
    if getattr(module, 'padding', '') in _UNKNOWN_PADDING:
      return f'its {kind} has padding={module.padding!r}'
    if self.run is embed:
      dtype = jnp.dtype(module.dtype or jnp.float32)
      if isinstance(matrix, SparseMatrix):
        return 'a sparse matrix has no rows to be looked up'
    else:
      dtype = _dtype(module, x, bias)
      if isinstance(matrix, UniformMatrix) and dtype != jnp.float32:
        return f'products of its integers are of float32, not {dtype}'
    if dtype not in _FLOATS:
      return f'its {kind} computes in {dtype}'
    return ''


_UNKNOWN_PADDING = ('CIRCULAR', 'REFLECT', 'CAUSAL')


def _same(given: Any, default: Any) -> bool:
  if given is default:
    return True
  return isinstance(given, int | str) and given == default


def _dtype(module: Any, x: Any, bias: Any) -> Any:
  """What a product is of, by Flax's promotion of x, weights and bias."""
  if module.dtype is not None:
    return jnp.dtype(module.dtype)
  return jnp.result_type(x, jnp.float32, *([] if bias is None else [bias]))


def rounded(matrix: Any, dtype: Any) -> Any:
  """The matrix whose weights are those of another dtype, still as float32."""
  if dtype == jnp.float32 or not isinstance(
    matrix, CodebookMatrix | SparseMatrix
  ):
    return matrix
  book = jnp.asarray(matrix.codebook).astype(dtype).astype(jnp.float32)
  return dataclasses.replace(matrix, codebook=book)


def _linear(
  module: Any, x: Any, bias: Any, product: Callable[[jax.Array], jax.Array]
) -> jax.Array:
  """A product in the dtype of Flax, and the bias."""
  dtype = _dtype(module, x, bias)
  # Joined products know their inputs by identity.
  y = product(x if x.dtype == dtype else jnp.asarray(x, dtype))
  if bias is None:
    return y
  return y + jnp.asarray(bias, dtype).reshape((1,) * (y.ndim - 1) + (-1,))


def dense(
  module: Any, matrix: Any, x: Any, bias: Any, multiply: Multiply
) -> jax.Array:
  """`nn.Dense`."""
  return _linear(module, x, bias, lambda x: multiply(x, matrix))


def attend(
  module: Any, matrix: Any, x: Any, bias: Any, multiply: Multiply
) -> jax.Array:
  """`nn.Embed.attend`; vectors are outputs of the matrix."""
  return _linear(module, x, bias, lambda x: multiply(x, matrix))


def embed(
  module: Any, matrix: Any, index: Any, bias: Any, multiply: Multiply
) -> jax.Array:
  """`nn.Embed`; NaN, as of Flax, for an index that is out of range."""
  del bias, multiply
  count = matrix.shape[1]
  if count == 1:
    place = jnp.zeros(jnp.shape(index), jnp.int32)
  else:
    place = jnp.take(jnp.arange(count), index, axis=0, fill_value=-1)
  if place.size:
    vectors = rows_of(matrix, jnp.maximum(place, 0))
    vectors = jnp.where(place[..., None] < 0, jnp.nan, vectors)
  else:
    vectors = jnp.zeros((*place.shape, matrix.shape[0]), jnp.float32)
  return vectors if module.dtype is None else vectors.astype(module.dtype)


def conv(
  module: Any, matrix: Any, x: Any, bias: Any, multiply: Multiply
) -> jax.Array:
  """`nn.Conv` of all channels, [..., *space, C]."""
  size = module.kernel_size
  size = (size,) if isinstance(size, int) else tuple(size)
  axes = len(size)
  lead = x.shape[: -axes - 1]
  if len(lead) != 1:
    x = x.reshape(math.prod(lead), *x.shape[-axes - 1 :])

  def product(x: jax.Array) -> jax.Array:
    return multiply(_patches(module, x, size), matrix)

  y = _linear(module, x, bias, product)
  return y.reshape(*lead, *y.shape[1:])


def _patches(module: Any, x: jax.Array, size: tuple[int, ...]) -> jax.Array:
  """What a kernel is multiplied by, channel by channel."""
  axes = len(size)
  strides, dilation, spread = (
    _each(given, axes)
    for given in (module.strides, module.kernel_dilation, module.input_dilation)
  )
  padding = module.padding
  if not isinstance(padding, str):
    padding = [(p, p) if isinstance(p, int) else tuple(p)
               for p in _each(padding, axes)]  # fmt: skip
  if isinstance(padding, str):
    unpadded = padding in ('SAME', 'VALID')
  else:
    unpadded = not np.any(padding)
  if unpadded and set(size) == set(spread) == {1}:
    return x[:, *(slice(None, None, stride) for stride in strides)]
  space = '0123456789'[:axes]
  return lax.conv_general_dilated_patches(
    x, size, strides, padding, lhs_dilation=spread, rhs_dilation=dilation,
    dimension_numbers=(f'N{space}C', f'{space}IO', f'N{space}C'),
    precision=lax.Precision.HIGHEST,
  )  # fmt: skip


def _each(given: int | Sequence[Any] | None, axes: int) -> tuple[Any, ...]:
  """One for each axis."""
  if given is None or isinstance(given, int):
    return (1 if given is None else given,) * axes
  return tuple(given)


DENSE = Layer('kernel', dense, frozenset(_LINEAR))
CONV = Layer(
  'kernel',
  conv,
  frozenset(
    _LINEAR | {'kernel_size', 'strides', 'padding', 'kernel_dilation',
               'input_dilation'}
  ),
)  # fmt: skip
_EMBED = frozenset(_ANY | {'num_embeddings', 'embedding_init'})
EMBED = Layer('embedding', embed, _EMBED)
ATTEND = Layer('embedding', attend, _EMBED)
