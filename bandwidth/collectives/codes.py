"""Small integers packed into bytes.

XLA sends booleans and four-bit integers as whole bytes, so codes are packed by
hand before they travel.
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
  """Packs codes of 1, 2, 4 or 8 bits, the first one into the lowest bits.

  Args:
    codes: uint8 [..., n], below `2^bits`.
    bits: of a code.

  Returns:
    uint8 [..., packed_size(n, bits)]; bits that are missing are zero.

  >>> pack_codes(jnp.array([1, 2, 3], jnp.uint8), 4)
  Array([33,  3], dtype=uint8)
  """
  return _joined(codes, [1 << (bits * i) for i in range(8 // bits)])


def unpack_codes(packed: jax.Array, bits: int, count: int) -> jax.Array:
  """Undoes `pack_codes`: uint8 [..., count]."""
  places = jnp.arange(8 // bits, dtype=jnp.uint8) * jnp.uint8(bits)
  codes = packed[..., None] >> _along_last(places, packed.ndim)
  codes = codes & jnp.uint8((1 << bits) - 1)
  return codes.reshape(*packed.shape[:-1], -1)[..., :count]


def trits_size(count: int) -> int:
  """Returns the bytes of `count` digits of base three.

  >>> trits_size(11)
  3
  """
  return -(-count // TRITS)


def pack_trits(digits: jax.Array) -> jax.Array:
  """Packs digits of base three, five a byte, the first one the lowest.

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
  powers = jnp.array([3**i for i in range(TRITS)], jnp.uint8)
  digits = packed[..., None] // _along_last(powers, packed.ndim)
  digits = digits % jnp.uint8(3)
  return digits.reshape(*packed.shape[:-1], -1)[..., :count]


def _joined(digits: jax.Array, weights: list[int]) -> jax.Array:
  width = len(weights)
  rows, count = digits.shape[:-1], digits.shape[-1]
  fill = [(0, 0)] * len(rows) + [(0, -count % width)]
  groups = jnp.pad(digits, fill).reshape(*rows, -1, width)
  factors = _along_last(jnp.array(weights, jnp.uint8), len(rows) + 1)
  return jnp.sum(groups * factors, axis=-1, dtype=jnp.uint8)


def _along_last(vector: jax.Array, others: int) -> jax.Array:
  return vector.reshape((1,) * others + (-1,))
