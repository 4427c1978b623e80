"""Activations and codebooks as integers: x ≈ scale · round(x / scale).

Of the three modes of arithmetic `int16` and `int8` round both, each row and
each codebook with a scale of its own, the largest magnitude over the largest
integer, but no less than the least normal number. Integers of a `UniformMatrix`
are exact as they are.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp

from bandwidth.inference.matrices import CodebookMatrix, Matrix

# Less is 0 on most devices, and its inverse infinite.
_LEAST_SCALE = float(jnp.finfo(jnp.float32).tiny)


class _Largest(NamedTuple):
  """Largest integers of a mode."""

  activations: int
  codebook: int


# Four products of 16 bits have to fit into 32; native/kernels.h has the same.
LARGEST = {'int16': _Largest(32767, 16383), 'int8': _Largest(127, 127)}

MODES = ('exact', *LARGEST)
"""Modes of arithmetic."""


def to_integers(values: jax.Array, largest: int) -> tuple[jax.Array, jax.Array]:
  """Rounds along the last axis.

  Args:
    values: float32 [..., n], rounded with a scale for each row.
    largest: largest magnitude of the integers, positive.

  Returns:
    int32 [..., n], up to the largest, and what they are to be multiplied by,
    float32 [..., 1].
  """
  most = jnp.abs(values).max(axis=-1, keepdims=True, initial=0.0)
  most = jnp.maximum(most, largest * _LEAST_SCALE)
  return jnp.round(values * (largest / most)).astype(jnp.int32), most / largest


def rounded(values: jax.Array, largest: int) -> jax.Array:
  """Rounds along the last axis to integers up to `largest` times a scale.

  >>> rounded(jnp.array([0.5, -1.0]), 127).tolist()
  [0.5039370059967041, -1.0]
  """
  integers, scale = to_integers(values, largest)
  return integers.astype(jnp.float32) * scale


def round_operands(
  x: jax.Array, matrix: Matrix, mode: str
) -> tuple[jax.Array, Matrix]:
  """Returns what a mode multiplies, as float32.

  Args:
    x: float32 [..., K], activations.
    matrix: not a `SparseMatrix`, unless the mode is 'exact'.
    mode: mode of arithmetic, one of `MODES`.
  """
  if mode == 'exact':
    return x, matrix
  largest = LARGEST[mode]
  if isinstance(matrix, CodebookMatrix):
    book = rounded(jnp.asarray(matrix.codebook), largest.codebook)
    matrix = dataclasses.replace(matrix, codebook=book)
  return rounded(x, largest.activations), matrix
