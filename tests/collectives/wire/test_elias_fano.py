"""The index code: every set of indices comes back, in the promised bits."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bandwidth.collectives.wire.elias_fano import EliasFano


@functools.cache
def compiled(size, count):
  """A code's two ways: one operation at a time would be compiled alone."""
  code = EliasFano(size, count)
  return code, jax.jit(code.encode), jax.jit(code.decode)


@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_round_trip(data):
  size = data.draw(st.sampled_from([1, 2, 31, 64, 1000, 4097]))
  count = data.draw(st.sampled_from(sorted({0, 1, size // 3, size - 1, size})))
  chosen = data.draw(st.permutations(range(size)))[:count]
  indices = np.sort(np.asarray(chosen, np.int32))
  code, encode, decode = compiled(size, count)
  words = encode(jnp.asarray(indices))
  assert words.shape == (code.words,)
  np.testing.assert_array_equal(decode(words), indices)


def transcribed(indices, size):
  """The two parts of the code, bit by bit."""
  low = math.floor(math.log2(size / len(indices)))
  bits = [(i >> b) & 1 for i in indices for b in range(low)]
  bits += [0] * (-len(bits) % 32)
  high = [0] * (len(indices) + (size >> low) + 1)
  for order, i in enumerate(indices):
    high[(i >> low) + order] = 1
  bits += high + [0] * (-len(high) % 32)
  return np.packbits(bits, bitorder='little').view(np.uint32)


def test_code_is_the_published_one():
  indices = [3, 4, 7, 13, 14, 15, 21, 43]
  words = EliasFano(64, 8).encode(jnp.asarray(indices))
  np.testing.assert_array_equal(words, transcribed(indices, 64))


@pytest.mark.slow
def test_largest_places_of_a_long_vector():
  size = 2**30 + 17
  indices = np.array([0, 5, 2**29, size - 2, size - 1], np.int32)
  code = EliasFano(size, 5)
  np.testing.assert_array_equal(
    code.decode(code.encode(jnp.asarray(indices))), indices
  )


@pytest.mark.parametrize(
  ('density', 'bits'), [(0.25, 4.0), (0.01, 8.56), (0.001, 11.95)]
)
def test_bits_an_index(density, bits):
  size = 25_600_000
  count = math.ceil(size * density)
  found = 32 * EliasFano(size, count).words / count
  assert found == pytest.approx(bits, abs=0.02)
