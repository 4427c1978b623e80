"""Arrays of parameters from the matrices that run instead of them."""

import math
from typing import Any

import jax
import jax.numpy as jnp

from bandwidth.inference.loading import EMBEDDING, kind_of
from bandwidth.inference.matrices import (
  Matrix,
  SparseMatrix,
  is_matrix,
  rows_of,
)


def has_rows(name: str) -> bool:
  """Whether vectors of a parameter are outputs of its matrix, as `loading` has.

  >>> has_rows('words/embedding'), has_rows('words/kernel')
  (True, False)
  """
  return kind_of(name) == EMBEDDING


def fits(name: str, matrix: tuple[int, int], shape: tuple[int, ...]) -> bool:
  """Whether a matrix of some shape can be that of a parameter of another."""
  if has_rows(name):
    return shape == matrix[::-1]
  return len(shape) > 1 and matrix == (math.prod(shape[:-1]), shape[-1])


def array_of(
  name: str,
  matrix: Matrix | jax.Array,
  shape: tuple[int, ...],
  outputs: slice = slice(None),
) -> jax.Array:
  """Decodes a parameter, on the device and inside jit.

  Args:
    name: name of the parameter, which says what its axes are.
    matrix: a compressed matrix of any form, or an array [K, N].
    shape: shape that the parameter has in the network.
    outputs: outputs of the matrix that belong to the parameter.

  Returns:
    float32, or of the array's dtype.
  """
  rows = _rows(matrix)[outputs]
  if has_rows(name):
    return rows
  *taps, inputs, count = shape
  # Inputs are ordered channel by channel, see `loading`.
  return jnp.moveaxis(rows.reshape(count, inputs, *taps), (0, 1), (-1, -2))


def _rows(matrix: Any) -> jax.Array:
  """The transposed matrix, [N, K]."""
  inputs, outputs = matrix.shape
  if not is_matrix(matrix):
    return jnp.asarray(matrix).T
  if not isinstance(matrix, SparseMatrix):
    return rows_of(matrix, jnp.arange(outputs))
  counts = jnp.diff(jnp.asarray(matrix.starts))
  rows = jnp.repeat(
    jnp.arange(outputs), counts, total_repeat_length=matrix.codes.shape[0]
  )
  values = jnp.asarray(matrix.codebook)[jnp.asarray(matrix.codes)]
  dense = jnp.zeros((outputs, inputs), jnp.float32)
  return dense.at[rows, jnp.asarray(matrix.columns)].set(values)
