"""One product for all forms and backends: y = x W.

    matrix = codebook_matrix(codes, codebook)      # packed, [N, K] codes
    y = matmul(x, matrix)                          # [..., K] -> [..., N]

It works inside jit, under vmap and inside `jax.shard_map`. Its gradient with
respect to x is g W'; of the modes that round, that of the product without
rounding.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bandwidth.base import unknown_name
from bandwidth.inference import backends, xla
from bandwidth.inference.backends import BACKENDS, native_problem
from bandwidth.inference.matrices import (
  FORMS,
  CodebookMatrix,
  Matrix,
  SparseMatrix,
  UniformMatrix,
  block_inputs,
)
from bandwidth.inference.rounding import MODES

__all__ = ['check_matrix', 'matmul', 'native_problem']

_FLOATS = (jnp.float32, jnp.bfloat16, jnp.float16)
# Sums of so many products of 8 bits fit into 32.
_MOST_INPUTS = {'int8': 1 << 16}


def matmul(
  x: jax.Array,
  matrix: Matrix | jax.Array,
  *,
  backend: str = 'auto',
  mode: str = 'exact',
) -> jax.Array:
  """Multiplies activations by a compressed matrix, without decoding it.

  What `auto` is depends on the device that a program is lowered for. It is
  `xla` where `jax.export` exports it, to run anywhere (`native` can't be
  exported, unless checks of custom calls are disabled), and, with one warning,
  where the kernels of a CPU can't be built or loaded.

  Two variables of the environment are read when a program is traced:
  BANDWIDTH_BACKEND, of `BACKENDS`, is what `auto` stands for, and
  BANDWIDTH_KERNELS, of `native.INSTRUCTIONS`, the kernels of a CPU.

  Args:
    x: float32, bfloat16 or float16 [..., K]; sums are of float32.
    matrix: a compressed matrix of any form, or an array, [K, N].
    backend: name of the backend, one of `BACKENDS`.
    mode: 'exact' is the product with the decoded matrix to the tolerance of
      float32; 'int16' and 'int8' round activations, by row, and codebooks to
      integers (`rounding`). A `SparseMatrix` and an array are exact always.

  Returns:
    [..., N], of the dtype of x.

  Raises:
    ValueError: a name is unknown, be it in the environment; x has another dtype
      or last axis; parts of the matrix have other shapes or dtypes than its
      form says; the backend can't run it.

  >>> from bandwidth.inference.matrices import uniform_matrix
  >>> matrix = uniform_matrix(np.array([[1, -2], [0, 3]]), 0.5)
  >>> matmul(jnp.array([1.0, 2.0]), matrix, backend='xla').tolist()
  [-1.5, 3.0]
  """
  x = jnp.asarray(x)
  _check_operands(x, matrix, backend, mode)
  if not isinstance(matrix, FORMS):
    return jnp.matmul(x, jnp.asarray(matrix, x.dtype))
  if isinstance(matrix, SparseMatrix):
    mode = 'exact'
  inputs, outputs = matrix.shape
  if inputs > _MOST_INPUTS.get(mode, inputs):
    raise ValueError(
      f'mode={mode!r}: sums of {inputs} products need more than 32 bits'
    )
  backend = backends.settled(backend, matrix)
  if 0 in (*x.shape, outputs):
    return jnp.zeros_like(x, shape=(*x.shape[:-1], outputs))
  x32, matrix = _varying_alike((x.astype(jnp.float32), matrix))
  return _product(backend, mode)(x32, matrix).astype(x.dtype)


def _check_operands(
  x: jax.Array, matrix: Matrix | jax.Array, backend: str, mode: str
) -> None:
  """Raises ValueError as `matmul` says."""
  if backend not in BACKENDS:
    raise ValueError(unknown_name('backend', backend, BACKENDS))
  if mode not in MODES:
    raise ValueError(unknown_name('mode', mode, MODES))
  if x.dtype not in _FLOATS:
    raise ValueError(
      f'x.dtype={x.dtype} is none of float32, bfloat16 and float16'
    )
  shape = matrix.shape
  if len(shape) != 2 or x.ndim < 1 or x.shape[-1] != shape[0]:
    raise ValueError(f'x has shape {x.shape}, the matrix {tuple(shape)}')
  if isinstance(matrix, FORMS):
    check_matrix(matrix)


def _varying_alike(tree: Any) -> Any:
  """Lets arrays inside `jax.shard_map` vary over the same axes of its mesh.

  What is equal on all devices is not of the type of what is not, and operations
  want one type. The gradient of what is equal is the sum over devices then.
  """
  own = [_axes_of(leaf) for leaf in jax.tree.leaves(tree)]
  axes = frozenset().union(*own)

  def vary(leaf: Any) -> Any:
    missing = tuple(sorted(axes - _axes_of(leaf)))
    return jax.lax.pcast(leaf, missing, to='varying') if missing else leaf

  return jax.tree.map(vary, tree)


def _axes_of(leaf: Any) -> frozenset[Any]:
  """Axes of a mesh over which an array varies."""
  return jax.typeof(leaf).manual_axis_type.varying


def check_matrix(matrix: Matrix) -> None:
  """Checks a form's shapes and dtypes; what codes mean is safe in any case.

  Raises:
    ValueError: one is not what `matrices` says.
  """
  inputs, outputs = matrix.shape
  if isinstance(matrix, CodebookMatrix):
    _expect('bits', matrix.bits in (2, 4, 8), matrix.bits)
    row = 64 * -(-inputs // block_inputs(matrix.bits))
    _expect_array('codes', matrix.codes, np.uint8, (outputs, row))
    _expect_groups('codebook', matrix.codebook, (inputs, outputs), 3)
    entries = matrix.codebook.shape[-1]
    _expect('codebook entries', entries == 2**matrix.bits, entries)
  elif isinstance(matrix, UniformMatrix):
    row = 64 * -(-inputs // 64)
    _expect_array('levels', matrix.levels, np.int8, (outputs, row))
    _expect_groups('step', matrix.step, (inputs, outputs), 2)
  else:
    count = matrix.codes.shape
    _expect_array('starts', matrix.starts, np.int32, (outputs + 1,))
    wide = inputs > 2**16
    columns = np.int32 if wide else np.uint16
    _expect_array('columns', matrix.columns, columns, count)
    _expect_array('codes', matrix.codes, np.uint8, (count or (0,))[:1])
    book = matrix.codebook
    right = len(book.shape) == 1 and 1 <= book.shape[0] <= 256
    _expect('codebook', right and book.dtype == np.float32, book.shape)


def _expect(name: str, right: bool, value: Any) -> None:
  if not right:
    raise ValueError(f'matrix: {name}={value} is not possible')


def _expect_array(
  name: str, array: Any, dtype: Any, shape: tuple[int, ...]
) -> None:
  if tuple(array.shape) != shape or array.dtype != dtype:
    raise ValueError(
      f'matrix: {name} are {array.dtype} {tuple(array.shape)}; '
      f'{np.dtype(dtype)} {shape} are wanted'
    )


def _expect_groups(
  name: str, array: Any, shape: tuple[int, int], axes: int
) -> None:
  right = len(array.shape) == axes and array.dtype == np.float32
  if right:
    groups, runs = array.shape[:2]
    right = groups and runs and not shape[1] % groups and not shape[0] % runs
  if not right:
    raise ValueError(
      f'matrix: {name} is {array.dtype} {tuple(array.shape)}, which does not '
      f'fit {shape[0]} inputs and {shape[1]} outputs'
    )


@functools.cache
def _product(backend: str, mode: str) -> Callable[..., jax.Array]:
  """The product of a backend, with its gradient and its way under vmap."""
  call = _under_vmap(
    functools.partial(backends.product, backend=backend, mode=mode)
  )

  @jax.custom_vjp
  def product(x: jax.Array, matrix: Matrix) -> jax.Array:
    return call(x, matrix)

  def forward(x: jax.Array, matrix: Matrix) -> tuple[jax.Array, Matrix]:
    # Itself, so that there are gradients of gradients.
    return product(x, matrix), matrix

  def backward(matrix: Matrix, g: jax.Array) -> tuple[jax.Array, None]:
    return xla.transposed(g, matrix), None

  product.defvjp(forward, backward)
  return product


def _under_vmap(
  run: Callable[[jax.Array, Matrix], jax.Array],
) -> Callable[[jax.Array, Matrix], jax.Array]:
  """A batch of activations is more rows; matrices go one after another."""

  @jax.custom_batching.custom_vmap
  def call(x: jax.Array, matrix: Matrix) -> jax.Array:
    return run(x, matrix)

  @call.def_vmap
  def rule(
    axis_size: int, batched: tuple[bool, Any], x: jax.Array, matrix: Matrix
  ) -> tuple[jax.Array, bool]:
    x_batched, parts = batched
    if not any(jax.tree.leaves(parts)):
      return call(x, matrix), True

    def one(i: jax.Array) -> jax.Array:
      # Outside of jit they may be NumPy's, which no traced index takes.
      own = jax.tree.map(
        lambda leaf, split: jnp.asarray(leaf)[i] if split else leaf,
        matrix,
        parts,
      )
      return call(jnp.asarray(x)[i] if x_batched else x, own)

    return jax.lax.map(one, jnp.arange(axis_size)), True

  return call
