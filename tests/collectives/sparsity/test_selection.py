"""Exact selection, against NumPy's stable sort."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bandwidth.collectives.sparsity.selection import (
  Stripes,
  kth_largest,
  striped_top_k,
  stripes,
  top_k_indices,
)
from bandwidth.collectives.wire.bits import (
  pack_bits,
  positions_of_ones,
  unpack_bits,
)


def largest(x, k):
  magnitude = np.where(np.isnan(x), np.inf, np.abs(x))
  return np.sort(np.argsort(-magnitude, kind='stable')[:k])


KINDS = {
  'normal': lambda rng, n: rng.normal(size=n),
  'ties': lambda rng, n: np.round(rng.normal(size=n)),
  'zeros': lambda rng, n: np.zeros(n),
  'one_block': lambda rng, n: np.arange(n) * (np.arange(n) < 100.0),
  'denormal': lambda rng, n: rng.normal(size=n) * 1e-40,
}


@pytest.mark.parametrize('kind', sorted(KINDS))
@pytest.mark.parametrize(
  ('n', 'k'), [(1, 1), (7, 0), (7, 3), (500, 499), (5000, 40), (70_001, 71)]
)
def test_top_k_is_that_of_a_stable_sort(kind, n, k):
  x = KINDS[kind](np.random.default_rng(n), n).astype(np.float32)
  found = jax.jit(top_k_indices, static_argnums=1)(x, k)
  np.testing.assert_array_equal(found, largest(x, k))


def misleading(rng, n):
  """Large where a sample would be taken, with any offset; small elsewhere."""
  x = rng.normal(size=n) * 1e-3
  stride = n // 2**14
  x[stride // 2 :: stride] += 5.0
  return x


@pytest.mark.parametrize('kind', ['normal', 'ties', 'misleading'])
@pytest.mark.parametrize('k', [30, 75_000, 299_990])
def test_kth_of_so_many_that_a_sample_is_taken(kind, k):
  n = 300_007
  made = {**KINDS, 'misleading': misleading}[kind]
  x = made(np.random.default_rng(n), n).astype(np.float32)
  keys = np.abs(x).view(np.int32)
  found = jax.jit(kth_largest, static_argnums=1)(keys, k)
  assert found == np.sort(keys)[n - k]
  if k == 75_000:
    places = jax.jit(top_k_indices, static_argnums=1)(x, k)
    np.testing.assert_array_equal(places, largest(x, k))


def test_not_a_number_comes_first():
  x = np.ones(40_000, np.float32)
  x[[3, 30_000]] = np.nan, -np.inf
  np.testing.assert_array_equal(top_k_indices(jnp.asarray(x), 2), [3, 30_000])


@pytest.mark.parametrize('k', [-1, 5])
def test_more_than_there_is(k):
  with pytest.raises(ValueError, match=f'k={k} is not in'):
    top_k_indices(jnp.ones(4), k)


@pytest.mark.parametrize(
  ('n', 'owners', 'k'), [(50_000, 4, 12), (50_000, 4, 900), (90, 8, 2)]
)
def test_each_owner_selects_from_its_stripe(n, owners, k):
  x = np.random.default_rng(0).normal(size=n).astype(np.float32)
  layout = stripes(n, owners)
  found = np.asarray(
    jax.jit(lambda v: striped_top_k(v, layout, k))(jnp.asarray(x))
  )
  place = np.arange(n)
  owner = (place // layout.block) % owners
  for p in range(owners):
    mine = place[owner == p]
    expected = mine[largest(x[mine], k)]
    places = np.asarray(layout.places(jnp.asarray(found[p]), p))
    np.testing.assert_array_equal(places, expected)


def test_stripes_split_and_join():
  layout = Stripes(size=1000, count=3, block=16)
  x = jnp.arange(1000.0)
  parts = layout.split(x)
  assert parts.shape == (3, layout.local_size)
  np.testing.assert_array_equal(layout.join(parts), x)
  local = jnp.arange(layout.local_size, dtype=jnp.int32)
  for p in range(3):
    places = np.asarray(layout.places(local, p))
    inside = places < 1000
    np.testing.assert_array_equal(
      np.asarray(parts[p])[inside], places[inside].astype(np.float32)
    )


@pytest.mark.parametrize('n', [0, 1, 31, 32, 33, 1000])
def test_bits_are_those_of_numpy(n):
  bits = np.random.default_rng(n).random(n) < 0.3
  words = pack_bits(jnp.asarray(bits))
  packed = np.packbits(bits, bitorder='little')
  np.testing.assert_array_equal(
    np.asarray(words).view(np.uint8)[: packed.size], packed
  )
  np.testing.assert_array_equal(unpack_bits(words, n), bits)
  ones = np.flatnonzero(bits)
  np.testing.assert_array_equal(positions_of_ones(words, ones.size), ones)
