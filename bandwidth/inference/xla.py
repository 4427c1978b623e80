"""Products by XLA alone, on any device: the portable ones, not the fast ones.

Weights are decoded some outputs at a time, so that no more than `TILE` of them
are ever there: a whole decoded matrix would take the memory that was saved.
"""

import jax
import jax.numpy as jnp
from jax import lax

from bandwidth.inference.matrices import Matrix, SparseMatrix, rows_of
from bandwidth.inference.rounding import round_operands

TILE = 1 << 18
"""Weights that are decoded at a time."""


def product(x: jax.Array, matrix: Matrix, mode: str) -> jax.Array:
  """Returns x W, float32 [..., N].

  Args:
    x: float32 [..., K], activations.
    matrix: a compressed matrix of any form.
    mode: mode of arithmetic, one of `rounding.MODES`; 'exact' for a
      `SparseMatrix`.
  """
  if isinstance(matrix, SparseMatrix):
    return _sparse(x, matrix)
  x, matrix = round_operands(x, matrix, mode)
  tiles = _tiles(matrix)

  def of_tile(index: jax.Array) -> jax.Array:
    return jnp.matmul(x, rows_of(matrix, index).T, precision='highest')

  parts = lax.map(of_tile, tiles)
  whole = jnp.moveaxis(parts, 0, -2).reshape(*x.shape[:-1], tiles.size)
  return whole[..., : matrix.shape[1]]


def transposed(g: jax.Array, matrix: Matrix) -> jax.Array:
  """Returns g W', float32 [..., K]: what activations get of a gradient.

  Args:
    g: float32 [..., N], gradients of the product's outputs.
    matrix: a compressed matrix of any form.
  """
  inputs, outputs = matrix.shape
  if isinstance(matrix, SparseMatrix):
    rows, columns, values = _coordinates(matrix)

    def of_row(row: jax.Array) -> jax.Array:
      return jnp.zeros(inputs).at[columns].add(row[rows] * values)

    flat = lax.map(of_row, g.reshape(-1, outputs))
    return flat.reshape(*g.shape[:-1], inputs)
  tiles = _tiles(matrix)
  missing = tiles.size - outputs
  padded = jnp.pad(g, ((0, 0),) * (g.ndim - 1) + ((0, missing),))
  by_tile = jnp.moveaxis(padded.reshape(*g.shape[:-1], *tiles.shape), -2, 0)

  def add(
    total: jax.Array, tile: tuple[jax.Array, jax.Array]
  ) -> tuple[jax.Array, None]:
    index, own = tile
    part = jnp.matmul(own, rows_of(matrix, index), precision='highest')
    return total + part, None

  # Inside shard_map it varies over devices as g does.
  start = jnp.zeros_like(g, shape=(*g.shape[:-1], inputs))
  return lax.scan(add, start, (tiles, by_tile))[0]


def _tiles(matrix: Matrix) -> jax.Array:
  """Outputs by tile, int32 [T, R]; the last is repeated to fill the end."""
  inputs, outputs = matrix.shape
  rows = max(min(TILE // max(inputs, 1), outputs), 1)
  count = -(-outputs // rows)
  return jnp.minimum(jnp.arange(count * rows), outputs - 1).reshape(count, rows)


def _coordinates(
  matrix: SparseMatrix,
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """Outputs, inputs and values of the weights, [nonzeros] each."""
  starts = jnp.asarray(matrix.starts)
  count = matrix.codes.shape[0]
  rows = jnp.repeat(
    jnp.arange(matrix.shape[1]), jnp.diff(starts), total_repeat_length=count
  )
  values = jnp.asarray(matrix.codebook)[jnp.asarray(matrix.codes)]
  return rows, jnp.asarray(matrix.columns).astype(jnp.int32), values


def _sparse(x: jax.Array, matrix: SparseMatrix) -> jax.Array:
  rows, columns, values = _coordinates(matrix)

  def of_row(row: jax.Array) -> jax.Array:
    return jax.ops.segment_sum(
      row[columns] * values, rows, matrix.shape[1], indices_are_sorted=True
    )

  flat = lax.map(of_row, x.reshape(-1, matrix.shape[0]))
  return flat.reshape(*x.shape[:-1], matrix.shape[1])
