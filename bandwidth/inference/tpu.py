"""Products by Pallas kernels for TPUs.

A program makes some outputs. It goes through the packed words of their rows,
takes the fields of each word one by one, chooses among what they may mean, as a
TPU has no look-up, and multiplies by activations that were put into the order
of fields before.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from bandwidth.inference.matrices import LANES, CodebookMatrix, Matrix
from bandwidth.inference.rounding import round_operands

_OUTPUTS = 128
_WORDS = 128
# Rows of activations that are multiplied one by one; more by a matrix product.
_FEW = 4
_LEAST_ROWS = 16
# Entries of a codebook that are chosen among.
_MOST_CHOICES = 16


def why_not(matrix: Matrix) -> str:
  """Returns why the kernel can't run a matrix; empty where it can.

  Args:
    matrix: a `CodebookMatrix` or `UniformMatrix`, without runs of inputs.
  """
  if isinstance(matrix, CodebookMatrix) and 2**matrix.bits > _MOST_CHOICES:
    return f'a TPU chooses among at most {_MOST_CHOICES} entries'
  return ''


def product(
  x: jax.Array,
  matrix: Matrix,
  mode: str,
  *,
  interpret: bool = False,
) -> jax.Array:
  """Returns x W, float32 [..., N].

  Args:
    x: float32 [..., K], activations.
    matrix: a compressed matrix that `why_not` accepts.
    mode: mode of arithmetic, one of `rounding.MODES`; operands are rounded,
      then multiplied as floats.
    interpret: whether XLA runs it, on any device.
  """
  x, matrix = round_operands(x, matrix, mode)
  inputs, outputs = matrix.shape
  words, by_field = _packed(x.reshape(-1, inputs), matrix)
  words = _filled(words, _OUTPUTS, _WORDS)
  by_field = _filled(by_field, 1, _WORDS)
  batch = by_field.shape[0]
  if batch > _FEW:
    most = max(_LEAST_ROWS, 1 << (batch - 1).bit_length())
    by_field = jnp.pad(by_field, ((0, most - batch), (0, 0), (0, 0)))
  run = _kernel_call(words.shape, by_field.shape, matrix, interpret=interpret)
  y = run(words, by_field, _tables(matrix, words.shape[0]))
  return y[:batch, :outputs].reshape(*x.shape[:-1], outputs)


def _packed(x: jax.Array, matrix: Any) -> tuple[jax.Array, jax.Array]:
  """Words [N, W] uint32, and activations by field of a word, [B, F, W]."""
  if isinstance(matrix, CodebookMatrix):
    packed, fields = jnp.asarray(matrix.codes), 32 // matrix.bits
    block, order = (fields, LANES), (0, 2, 1, 3)
  else:
    packed, fields = jnp.asarray(matrix.levels), 4
    block, order = (LANES, fields), (0, 3, 1, 2)
  outputs, row = packed.shape
  words = jax.lax.bitcast_convert_type(
    packed.reshape(outputs, row // 4, 4), jnp.uint32
  )
  filled = row // 4 * fields
  x = jnp.pad(x, ((0, 0), (0, filled - x.shape[-1])))
  by_block = x.reshape(len(x), -1, *block)
  by_field = jnp.transpose(by_block, order).reshape(len(x), fields, row // 4)
  return words, by_field


def _filled(array: jax.Array, rows: int, columns: int) -> jax.Array:
  """Fills up first and last axis to multiples."""
  missing = [(0, 0)] * array.ndim
  missing[0] = (0, -array.shape[0] % rows)
  missing[-1] = (0, -array.shape[-1] % columns)
  return jnp.pad(array, missing) if any(m for _, m in missing) else array


def _tables(matrix: Any, outputs: int) -> jax.Array:
  """What codes of an output mean, [N, entries]; of integers steps, [N, 1]."""
  book = isinstance(matrix, CodebookMatrix)
  shared = matrix.codebook[:, 0] if book else matrix.step
  group = jnp.minimum(jnp.arange(outputs), matrix.shape[1] - 1)
  return jnp.asarray(shared)[group // (matrix.shape[1] // shared.shape[0])]


def _kernel_call(
  words: tuple[int, ...],
  by_field: tuple[int, ...],
  matrix: Any,
  *,
  interpret: bool,
) -> Any:
  rows = _OUTPUTS
  bits = matrix.bits if isinstance(matrix, CodebookMatrix) else None
  return pl.pallas_call(
    functools.partial(_kernel, bits=bits),
    grid=(words[0] // rows,),
    in_specs=[
      pl.BlockSpec((rows, words[1]), lambda i: (i, 0)),
      pl.BlockSpec(by_field, lambda i: (0, 0, 0)),
      pl.BlockSpec((rows, 2**bits if bits else 1), lambda i: (i, 0)),
    ],
    out_specs=pl.BlockSpec((by_field[0], rows), lambda i: (0, i)),
    out_shape=jax.ShapeDtypeStruct((by_field[0], words[0]), jnp.float32),
    interpret=interpret,
  )


def _kernel(
  words_ref: Any,
  x_ref: Any,
  table_ref: Any,
  y_ref: Any,
  *,
  bits: int | None,
) -> None:
  """Makes the products of some outputs.

  Args:
    words_ref: uint32 [rows, W], packed rows of the matrix.
    x_ref: float32 [B, fields, W], activations by field of a word.
    table_ref: float32 [rows, entries], or [rows, 1] steps.
    y_ref: float32 [B, rows], where the products go.
    bits: bits of a code; None: integers of 8 bits.
  """
  rows, width = words_ref.shape
  batch, fields, _ = x_ref.shape
  few = batch <= _FEW

  def step(i: jax.Array, sums: Any) -> Any:
    at = pl.ds(i * _WORDS, _WORDS)
    words = words_ref[:, at]
    for field in range(fields):
      weights = _weights(words, field, table_ref, bits=bits)
      if few:
        sums = [
          own + weights * x_ref[b, field, at][None]
          for b, own in enumerate(sums)
        ]
      else:
        x = x_ref[:, field, at]
        sums += jnp.dot(x, weights.T, precision='highest')
    return sums

  shape = (rows, _WORDS) if few else (batch, rows)
  zero = jnp.zeros(shape, jnp.float32)
  sums = jax.lax.fori_loop(
    0, width // _WORDS, step, [zero] * batch if few else zero
  )
  scale = table_ref[:, 0] if bits is None else None
  if few:
    for b, own in enumerate(sums):
      total = own.sum(axis=1)
      y_ref[b, :] = total if scale is None else total * scale
  else:
    y_ref[...] = sums if scale is None else sums * scale[None]


def _weights(
  words: jax.Array,
  field: int,
  table_ref: Any,
  *,
  bits: int | None,
) -> jax.Array:
  """What one field of each word means, float32 [rows, columns]."""
  shifted = words >> jnp.uint32(field * (bits or 8))
  codes = (shifted & jnp.uint32(2 ** (bits or 8) - 1)).astype(jnp.int32)
  if bits is None:
    return ((codes ^ 128) - 128).astype(jnp.float32)
  return _choose(codes, table_ref)


def _choose(codes: jax.Array, table_ref: Any) -> jax.Array:
  weights = jnp.zeros(codes.shape, jnp.float32)
  for entry in range(table_ref.shape[1]):
    value = table_ref[:, entry : entry + 1]
    weights = jnp.where(codes == entry, value, weights)
  return weights
