"""Packed bits: words of 32, and the places of the ones in them."""

import jax
import jax.numpy as jnp
from jax import lax

WORD = 32


def pack_bits(bits: jax.Array) -> jax.Array:
  """Packs booleans into words, the first one into the lowest bit.

  Args:
    bits: bool [n], the booleans to pack.

  Returns:
    uint32 [ceil(n / 32)]; the bits that are missing are zero.

  >>> pack_bits(jnp.array([True, False, True]))
  Array([5], dtype=uint32)
  """
  padded = jnp.pad(bits, (0, -bits.size % WORD)).reshape(-1, WORD)
  weights = jnp.uint32(1) << jnp.arange(WORD, dtype=jnp.uint32)
  return jnp.sum(padded * weights[None, :], axis=1, dtype=jnp.uint32)


def unpack_bits(words: jax.Array, count: int) -> jax.Array:
  """Returns the first `count` bits of words, bool [count]."""
  places = jnp.arange(WORD, dtype=jnp.uint32)
  bits = (words[:, None] >> places[None, :]) & 1
  return bits.reshape(-1)[:count].astype(bool)


def positions_of_ones(words: jax.Array, count: int) -> jax.Array:
  """Returns the places of the first `count` ones, in order.

  Works on words, not on bits: `O(words + count)`.

  Args:
    words: uint32 [w], with at least `count` ones.
    count: number of ones to find; static.

  Returns:
    int32 [count].

  >>> positions_of_ones(jnp.array([0b101, 0b10], dtype=jnp.uint32), 3)
  Array([ 0,  2, 33], dtype=int32)
  """
  ones = lax.population_count(words).astype(jnp.int32)
  before = jnp.cumsum(ones) - ones
  # The word of each one: words that have any announce themselves at the place
  # of their first, and the largest announced so far holds.
  at = jnp.where(ones > 0, before, count)
  announced = (
    jnp.zeros(count, jnp.int32)
    .at[at]
    .max(jnp.arange(words.size, dtype=jnp.int32), mode='drop')
  )
  word = lax.cummax(announced)
  rank = jnp.arange(count, dtype=jnp.int32) - before[word]
  return word * WORD + _place_of_one(words[word], rank)


def _place_of_one(words: jax.Array, rank: jax.Array) -> jax.Array:
  """Place of the one that has `rank` ones below it, by halving the word."""
  place = jnp.zeros(words.shape, jnp.int32)
  for width in (16, 8, 4, 2, 1):
    low = words & jnp.uint32((1 << width) - 1)
    below = lax.population_count(low).astype(jnp.int32)
    higher = rank >= below
    rank = jnp.where(higher, rank - below, rank)
    words = jnp.where(higher, words >> width, low)
    place = jnp.where(higher, place + width, place)
  return place
