"""A vector in chunks, one for each owner, and their messages of few bits."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bandwidth.collectives.wire.codes import (
  pack_codes,
  packed_size,
  unpack_codes,
)
from bandwidth.collectives.wire.value_formats import from_bytes, to_bytes
from bandwidth.collectives.workers.ordered import (
  largest_magnitude,
  pairwise_sum,
  rounded,
)


class _Format(NamedTuple):
  """How the elements of buckets become codes.

  Attributes:
    bits: bits of a code: 1, 4 or 8.
    quantize: `(values [..., bucket], shares [...]) -> (codes, scales [...])`,
      where a share is one by the elements that a bucket really has.
    dequantize: `(codes as float32, scales [..., 1]) -> values`.
  """

  bits: int
  quantize: Callable[..., tuple[jax.Array, jax.Array]]
  dequantize: Callable[..., jax.Array]


def _integer_format(bits: int) -> _Format:
  levels = (1 << (bits - 1)) - 1

  def quantize(
    values: jax.Array, shares: jax.Array
  ) -> tuple[jax.Array, jax.Array]:
    del shares
    scales = largest_magnitude(values, -1) * np.float32(1 / levels)
    steps = jnp.round(values / jnp.where(scales == 0, 1, scales)[..., None])
    # Not finite: the scale says so.
    steps = jnp.where(jnp.abs(steps) <= levels, steps, 0)
    return steps + levels, scales

  def dequantize(codes: jax.Array, scales: jax.Array) -> jax.Array:
    return rounded((codes - levels) * scales)

  return _Format(bits, quantize, dequantize)


def _quantize_sign(
  values: jax.Array, shares: jax.Array
) -> tuple[jax.Array, jax.Array]:
  sums = pairwise_sum(jnp.moveaxis(jnp.abs(values), -1, 0))
  return jnp.where(values < 0, 1.0, 0.0), sums * shares


def _dequantize_sign(codes: jax.Array, scales: jax.Array) -> jax.Array:
  return rounded((1 - 2 * codes) * scales)


FORMATS = {
  'int8': _integer_format(8),
  'int4': _integer_format(4),
  'sign': _Format(1, _quantize_sign, _dequantize_sign),
}
"""How codes are made, by name."""


class Chunks(NamedTuple):
  """How a vector is dealt out to owners, and a chunk becomes a message.

  Attributes:
    elements: number of elements of the vector.
    workers: P, each of which owns a chunk.
    bucket: elements of a chunk that share a scale, at most.
    format: name of the format, a key of `FORMATS`.
  """

  elements: int
  workers: int
  bucket: int
  format: str

  @property
  def size(self) -> int:
    """Elements of a chunk, padding included, which fill whole bytes."""
    per_byte = 8 // FORMATS[self.format].bits
    return -(-self.elements // (self.workers * per_byte)) * per_byte

  @property
  def width(self) -> int:
    """Elements of a bucket, but for a last one that is shorter."""
    return max(min(self.bucket, self.size), 1)

  @property
  def buckets(self) -> int:
    """Scales of a chunk."""
    return -(-self.size // self.width)

  @property
  def nbytes(self) -> int:
    """Length of the message of a chunk: codes and float32 scales."""
    codes = packed_size(self.size, FORMATS[self.format].bits)
    return codes + 4 * self.buckets

  def split(self, vector: jax.Array) -> jax.Array:
    """Cuts a vector into chunks, padded with zeros: [workers, size]."""
    fill = self.workers * self.size - self.elements
    return jnp.pad(vector, (0, fill)).reshape(self.workers, self.size)

  def join(self, chunks: jax.Array) -> jax.Array:
    """Undoes `split`."""
    return chunks.reshape(-1)[: self.elements]

  def is_padding(self) -> np.ndarray:
    """Says which elements of the chunks are padding: bool [workers, size]."""
    places = np.arange(self.workers * self.size)
    return (places >= self.elements).reshape(self.workers, self.size)

  def shares(self) -> np.ndarray:
    """One by the elements of each bucket that are not padding.

    Returns:
      float32 [workers, buckets], zero where all are padding.
    """
    fill = ((0, 0), (0, self.buckets * self.width - self.size))
    real = np.pad(~self.is_padding(), fill)
    counts = real.reshape(self.workers, self.buckets, self.width).sum(-1)
    return np.where(counts > 0, 1 / np.maximum(counts, 1), 0).astype(np.float32)

  def encode(
    self, chunks: jax.Array, shares: jax.Array
  ) -> tuple[jax.Array, jax.Array]:
    """Rounds chunks.

    Args:
      chunks: float32 [rows, size], a chunk in each row.
      shares: float32 [rows, buckets], those of these chunks.

    Returns:
      The messages, uint8 [rows, nbytes], and what others will see of the
      chunks, float32 [rows, size].
    """
    form, rows = FORMATS[self.format], chunks.shape[0]
    fill = ((0, 0), (0, self.buckets * self.width - self.size))
    values = jnp.pad(chunks, fill).reshape(rows, self.buckets, self.width)
    codes, scales = form.quantize(values, shares)
    codes = codes.reshape(rows, -1)[:, : self.size]
    packed = pack_codes(codes.astype(jnp.uint8), form.bits)
    messages = jnp.concatenate(
      [packed, to_bytes(scales).reshape(rows, -1)], axis=1
    )
    return messages, self._dequantized(codes, scales)

  def decode(self, messages: jax.Array) -> jax.Array:
    """Returns the chunks of messages, float32 [rows, size]."""
    form, rows = FORMATS[self.format], messages.shape[0]
    packed, scales = jnp.split(messages, [self.nbytes - 4 * self.buckets], 1)
    codes = unpack_codes(packed, form.bits, self.size).astype(jnp.float32)
    return self._dequantized(
      codes, from_bytes(scales, jnp.float32).reshape(rows, self.buckets)
    )

  def _dequantized(self, codes: jax.Array, scales: jax.Array) -> jax.Array:
    each = jnp.broadcast_to(scales[..., None], (*scales.shape, self.width))
    along = each.reshape(scales.shape[0], -1)[:, : self.size]
    return FORMATS[self.format].dequantize(codes, along)
