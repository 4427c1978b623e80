"""From a matrix, activations and a mode to what the kernel multiplies."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from bandwidth.inference.gpu.decoding import Decoding
from bandwidth.inference.matrices import (
  LANES,
  CodebookMatrix,
  UniformMatrix,
)
from bandwidth.inference.rounding import LARGEST, round_operands, to_integers

MOST_INPUTS = 1 << 15
"""Of a row, whose thread's sums of low bytes fit into 32 bits."""


class Operands(NamedTuple):
  """What `kernel.multiply` takes, and what its products are to be scaled by.

  Attributes:
    words: uint32 [N, words], packed rows of the matrix.
    x: activations, as `kernel.multiply` takes them.
    tables: tables of the codes, in the form of `decoding.table`.
    decoding: how words become weights, and with what arithmetic.
    scale: float32 [1 or B, 1 or N], factor of the products.
  """

  words: jax.Array
  x: jax.Array
  tables: jax.Array
  decoding: Decoding
  scale: jax.Array

  def scaled(self, y: jax.Array) -> jax.Array:
    """Turns what the kernel made into products, float32 [B, N]."""
    y = y.astype(jnp.float32)
    if self.decoding.halves:
      y = y[0::2] * 256 + y[1::2]
    return y * self.scale


def operands(x: jax.Array, matrix: Any, mode: str) -> Operands:
  """Rounds and packs.

  Args:
    x: float32 [B, K], rows of activations.
    matrix: a `CodebookMatrix` or `UniformMatrix`, without runs of inputs.
    mode: mode of arithmetic, one of `rounding.MODES`.
  """
  book = isinstance(matrix, CodebookMatrix)
  packed = jnp.asarray(matrix.codes if book else matrix.levels)
  words = jax.lax.bitcast_convert_type(
    packed.reshape(len(packed), -1, 4), jnp.uint32
  )
  arithmetic = _arithmetic(matrix, mode)
  decoding = Decoding(
    bits=matrix.bits if book else None,
    shared=not book or matrix.codebook.shape[0] == 1,
    arithmetic=arithmetic,
  )
  if arithmetic != 'floats':
    return _integers(words, x, matrix, decoding, mode)
  x, rounded = round_operands(x, matrix, mode)
  if isinstance(rounded, CodebookMatrix):
    tables = _by_output(rounded.codebook[:, 0], rounded, decoding)
    scale = jnp.ones((1, 1), jnp.float32)
  else:
    tables = jnp.zeros((1, 1), jnp.float32)
    scale = _spread(matrix.step, matrix).T
  return Operands(words, x, tables, decoding, scale)


def _arithmetic(matrix: Any, mode: str) -> str:
  """How a kernel multiplies in a mode, of `decoding.ARITHMETIC`."""
  if mode == 'exact':
    return 'floats'
  if isinstance(matrix, UniformMatrix):
    return 'bytes' if mode == 'int8' else 'floats'
  if matrix.bits == 4 and matrix.codebook.shape[0] == 1:
    if mode == 'int8':
      return 'pairs8'
    return 'pairs16' if matrix.shape[0] <= MOST_INPUTS else 'floats'
  return 'bytes' if mode == 'int8' and matrix.bits < 8 else 'floats'


def _integers(
  words: jax.Array,
  x: jax.Array,
  matrix: Any,
  decoding: Decoding,
  mode: str,
) -> Operands:
  largest = LARGEST[mode]
  levels, of_row = to_integers(x, largest.activations)
  by_field = _by_field(levels, words.shape[1], decoding)
  if decoding.halves:
    halves = jnp.stack([by_field >> 8, by_field & 255], 1)
    by_field = halves.reshape(-1, *by_field.shape[1:])
  packed = _packed(by_field, decoding)
  if isinstance(matrix, UniformMatrix):
    tables = jnp.zeros((1, 1), jnp.float32)
    of_output = _spread(matrix.step, matrix).T
    return Operands(words, packed, tables, decoding, of_row * of_output)
  book = jnp.asarray(matrix.codebook)[:, 0]
  entries, of_book = to_integers(book, largest.codebook)
  if decoding.pairs:
    (own,) = entries.astype(jnp.uint32) & 65535
    tables = (own[None, :] | own[:, None] << 16).reshape(1, -1)
  else:
    by_word = entries.reshape(len(entries), -1, 4)
    tables = _by_output(_words_of(by_word), matrix, decoding)
  return Operands(
    words, packed, tables, decoding, of_row * _spread(of_book, matrix).T
  )


def _spread(of_group: Any, matrix: Any) -> jax.Array:
  """What groups have, for each output: [G, …] to [N, …]."""
  of_group = jnp.asarray(of_group)
  return jnp.repeat(of_group, matrix.shape[1] // len(of_group), axis=0)


def _by_output(
  tables: jax.Array, matrix: CodebookMatrix, decoding: Decoding
) -> jax.Array:
  tables = jnp.asarray(tables)
  return tables if decoding.shared else _spread(tables, matrix)


def _by_field(levels: jax.Array, width: int, decoding: Decoding) -> jax.Array:
  """Integers [B, K] in the order of fields, [B, fields, words of a row]."""
  fields = 32 // decoding.width
  levels = jnp.pad(levels, ((0, 0), (0, width * fields - levels.shape[1])))
  if decoding.bits is None:
    return levels.reshape(len(levels), width, fields).swapaxes(1, 2)
  by_block = levels.reshape(len(levels), -1, fields, LANES)
  return by_block.swapaxes(1, 2).reshape(len(levels), fields, width)


def _packed(by_field: jax.Array, decoding: Decoding) -> jax.Array:
  """Bytes [B, fields, W] to words of four, [B, groups, W]."""
  groups = [
    _words_of(jnp.stack([by_field[:, field] for field in group], -1))
    for group in decoding.packed
  ]
  return jnp.stack(groups, 1)


def _words_of(numbers: jax.Array) -> jax.Array:
  """Bytes [..., 4] to words."""
  own = numbers.astype(jnp.uint32) & jnp.uint32(255)
  parts = [own[..., i] << jnp.uint32(8 * i) for i in range(4)]
  return functools.reduce(jnp.bitwise_or, parts)
