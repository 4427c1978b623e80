"""Elias–Fano code of increasing indices, of a length that is known beforehand.

Of k indices below n, the `l = floor(log2(n / k))` low bits are stored as they
are, and the high parts in unary: a bitmap of `k + (n >> l) + 1` bits in which
bit `(index_i >> l) + i` is set. That is `l + 2` bits an index, at most half a
bit more than the entropy of a random choice, and the length depends on n and k
alone: the code has a static shape (Elias 1974; Vigna 2013, arXiv 1206.4300).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from bandwidth.collectives.wire.bits import (
  WORD,
  pack_bits,
  positions_of_ones,
  unpack_bits,
)


class EliasFano(NamedTuple):
  """The code of `count` distinct indices below `size`.

  Attributes:
    size: n, indices are below it; below 2^31 itself.
    count: k, the number of indices, at most n.
  """

  size: int
  count: int

  @property
  def low_bits(self) -> int:
    """Bits of an index that are stored as they are."""
    return max((self.size // max(self.count, 1)).bit_length() - 1, 0)

  @property
  def _low_words(self) -> int:
    return -(-self.count * self.low_bits // WORD)

  @property
  def _high_bits(self) -> int:
    return self.count + (self.size >> self.low_bits) + 1

  @property
  def words(self) -> int:
    """Length of the code in words of 32 bits."""
    if self.count in (0, self.size):
      return 0
    return self._low_words + -(-self._high_bits // WORD)

  def encode(self, indices: jax.Array) -> jax.Array:
    """Codes indices.

    Args:
      indices: int32 [count], distinct and increasing, below `size`.

    Returns:
      uint32 [words].

    >>> code = EliasFano(size=1000, count=3)
    >>> code.decode(code.encode(jnp.array([5, 6, 999])))
    Array([  5,   6, 999], dtype=int32)
    """
    if not self.words:
      return jnp.zeros(0, jnp.uint32)
    places = jnp.arange(self.low_bits, dtype=jnp.int32)
    low = (indices[:, None] >> places[None, :]) & 1
    high = (indices >> self.low_bits) + jnp.arange(self.count, dtype=jnp.int32)
    bitmap = jnp.zeros(self._high_bits, bool)
    bitmap = bitmap.at[high].set(
      True, unique_indices=True, indices_are_sorted=True
    )
    return jnp.concatenate(
      [pack_bits(low.reshape(-1).astype(bool)), pack_bits(bitmap)]
    )

  def decode(self, words: jax.Array) -> jax.Array:
    """Undoes `encode`: uint32 [words] -> int32 [count]."""
    order = jnp.arange(self.count, dtype=jnp.int32)
    if not self.words:
      return order
    low_words, high_words = jnp.split(words, [self._low_words])
    bits = unpack_bits(low_words, self.count * self.low_bits)
    places = jnp.arange(self.low_bits, dtype=jnp.int32)
    low = jnp.sum(
      bits.reshape(self.count, self.low_bits) << places[None, :],
      axis=1,
      dtype=jnp.int32,
    )
    high = positions_of_ones(high_words, self.count) - order
    return (high << self.low_bits) | low
