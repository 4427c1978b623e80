"""Small integers packed into bytes.

XLA sends booleans and four-bit integers as whole bytes, so codes are packed by
hand before they travel. Byte j of B holds the codes j, j + B, j + 2B and so on:
long vectors are added up, and no array has a short last axis, which a TPU would
pad to 128 elements.
"""

import jax
import jax.numpy as jnp

TRITS = 5
"""Digits of base three in a byte: 3^5 = 243."""


def packed_size(count: int, bits: int) -> int:
  """Returns the bytes of `count` codes of `bits` bits.

  >>> packed_size(9, 4)
  5
  """
  return -(-count * bits // 8)


def pack_codes(codes: jax.Array, bits: int) -> jax.Array:
  """Packs codes of 1, 2, 4 or 8 bits, the first ones into the lowest bits.

  Args:
    codes: uint8 [..., n], below `2^bits`.
    bits: bits of a code: 1, 2, 4 or 8.

  Returns:
    uint8 [..., packed_size(n, bits)]; codes that are missing are zero.

  >>> pack_codes(jnp.array([1, 2, 3], jnp.uint8), 4)
  Array([49,  2], dtype=uint8)
  """
  return _joined(codes, [1 << (bits * i) for i in range(8 // bits)])


def unpack_codes(packed: jax.Array, bits: int, count: int) -> jax.Array:
  """Undoes `pack_codes`: uint8 [..., count]."""
  mask = jnp.uint8((1 << bits) - 1)
  parts = [(packed >> jnp.uint8(i)) & mask for i in range(0, 8, bits)]
  return jnp.concatenate(parts, axis=-1)[..., :count]


def trits_size(count: int) -> int:
  """Returns the bytes of `count` digits of base three.

  >>> trits_size(11)
  3
  """
  return -(-count // TRITS)


def pack_trits(digits: jax.Array) -> jax.Array:
  """Packs digits of base three, five a byte, the first ones the lowest.

  Args:
    digits: uint8 [..., n] of 0, 1 and 2.

  Returns:
    uint8 [..., trits_size(n)].

  >>> pack_trits(jnp.array([1, 0, 2], jnp.uint8))
  Array([19], dtype=uint8)
  """
  return _joined(digits, [3**i for i in range(TRITS)])


def unpack_trits(packed: jax.Array, count: int) -> jax.Array:
  """Undoes `pack_trits`: uint8 [..., count]."""
  parts = [packed // jnp.uint8(3**i) % jnp.uint8(3) for i in range(TRITS)]
  return jnp.concatenate(parts, axis=-1)[..., :count]


def _joined(digits: jax.Array, weights: list[int]) -> jax.Array:
  size = -(-digits.shape[-1] // len(weights))
  fill = size * len(weights) - digits.shape[-1]
  padded = jnp.pad(digits, [(0, 0)] * (digits.ndim - 1) + [(0, fill)])
  total = jnp.zeros((*digits.shape[:-1], size), jnp.uint8)
  for i, weight in enumerate(weights):
    part = padded[..., i * size : (i + 1) * size]
    total = total + part * jnp.uint8(weight)
  return total
