"""The k elements of largest magnitude, exactly, at the speed of memory.

`lax.top_k` keeps a heap over all elements, which is quick where they are few
and few of them are wanted. A longer vector is read once, for the maxima of its
blocks: the k blocks with the largest maxima hold the k largest elements, since
an element outside of them has k others that are at least as large. The blocks
are few, so their elements are found in the same way, with smaller blocks. Where
many are wanted, a sample of what remains tells roughly how large its k-th
largest value is, those nearby are searched for it bit by bit, and the places of
what reaches it are counted off.
"""

import functools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from bandwidth.collectives.wire.bits import WORD, pack_bits, positions_of_ones

_BLOCKS = (128, 16)
_SHORT, _FEW = 2**14, 2**9  # of what `lax.top_k` is quick with
_NORMAL, _MIDDLE = 0x00800000, 0x40000000  # bits of 2^-126 and of 2
_BITS = 31  # of a key
_SAMPLED, _SAMPLE = 2**18, 2**14  # of so many keys a sample is taken, its least
_TOGETHER = 2**20  # elements; longer vectors are not copied to lie side by side


def top_k_indices(values: jax.Array, k: int) -> jax.Array:
  """Returns the places of the k elements of largest magnitude, in order.

  Of equal elements the first ones are taken, as `lax.top_k` does. NaN counts as
  infinite.

  Args:
    values: float32 [n], the vector to select from.
    k: number of elements to select, static, `0 <= k <= n`.

  Returns:
    int32 [k], increasing.

  Raises:
    ValueError: k is negative, or larger than n.

  >>> top_k_indices(jnp.array([1.0, -4.0, 0.0, 3.0]), 2)
  Array([1, 3], dtype=int32)
  """
  if not 0 <= k <= values.size:
    raise ValueError(f'k={k} is not in [0, {values.size}]')
  if k == values.size:
    return jnp.arange(k, dtype=jnp.int32)
  return _largest(_keys(values), k)


class Stripes(NamedTuple):
  """A vector dealt out to owners in turn, block by block.

  Element i lies in block `i // block`, which owner `(i // block) % count` owns.
  An owner sees its blocks one after another, so it has an index of its own,
  the local one.

  Attributes:
    size: number of elements of the vector.
    count: number of owners, positive.
    block: number of elements of a block.
  """

  size: int
  count: int
  block: int

  @property
  def local_size(self) -> int:
    """Elements of an owner, padding included."""
    return -(-self.size // (self.count * self.block)) * self.block

  def split(self, vector: jax.Array) -> jax.Array:
    """Returns what each owner has: [size] -> [count, local_size]."""
    padded = jnp.pad(vector, (0, self.count * self.local_size - self.size))
    rows = padded.reshape(-1, self.count, self.block)
    return rows.swapaxes(0, 1).reshape(self.count, -1)

  def join(self, parts: jax.Array) -> jax.Array:
    """Undoes `split`: [count, local_size] -> [size]."""
    rows = parts.reshape(self.count, -1, self.block).swapaxes(0, 1)
    return rows.reshape(-1)[: self.size]

  def places(self, local: jax.Array, owner: jax.Array | int) -> jax.Array:
    """Places in the vector of an owner's local indices.

    Those of padding are at `size` or beyond.
    """
    row, offset = local // self.block, local % self.block
    return (row * self.count + owner) * self.block + offset


def stripes(size: int, count: int) -> Stripes:
  """Deals a vector of `size` elements out to `count` owners.

  >>> stripes(10_000_000, 4)
  Stripes(size=10000000, count=4, block=128)
  """
  if count == 1:
    return Stripes(size, 1, 1)
  return Stripes(size, count, max(1, min(_BLOCKS[0], size // (8 * count))))


def striped_top_k(values: jax.Array, layout: Stripes, k: int) -> jax.Array:
  """Returns the local indices of each owner's k elements of largest magnitude.

  Args:
    values: float32 [layout.size], the vector to select from.
    layout: how the vector is dealt out to owners.
    k: elements that each owner selects, `0 <= k <= layout.local_size`; static.
      Padding counts as smaller than zero.

  Returns:
    int32 [layout.count, k], increasing along the last axis.

  Raises:
    ValueError: k is out of range.

  >>> striped_top_k(jnp.array([1.0, -4.0, 0.0, 5.0]), Stripes(4, 2, 1), 1)
  Array([[0],
         [1]], dtype=int32)
  """
  if layout.count == 1:
    return top_k_indices(values, k)[None]
  if not 0 <= k <= layout.local_size:
    raise ValueError(f'k={k} is not in [0, {layout.local_size}]')
  padding = layout.count * layout.local_size - layout.size
  keys = jnp.pad(_keys(values), (0, padding), constant_values=-1)
  rows = keys.reshape(-1, layout.count, layout.block)
  if layout.block == _BLOCKS[0] and 4 * k * layout.block <= layout.local_size:
    maxima = _maxima(rows.reshape(-1, layout.block))
    maxima = maxima.reshape(-1, layout.count).T
    chosen = jax.vmap(lambda m: _largest(m, k))(maxima)
    owners = jnp.arange(layout.count, dtype=jnp.int32)[:, None]
    inside = rows[chosen, owners].reshape(layout.count, -1)
    places = jax.vmap(lambda x: _largest(x, k))(inside)
    blocks = jnp.take_along_axis(chosen, places // layout.block, axis=1)
    return blocks * layout.block + places % layout.block
  local = rows.swapaxes(0, 1).reshape(layout.count, -1)
  return jax.vmap(lambda x: _largest(x, k))(local)


def select_each(
  vectors: Sequence[jax.Array],
  layouts: Sequence[Stripes],
  counts: Sequence[int],
) -> list[jax.Array]:
  """Returns `striped_top_k` of each vector.

  Vectors alike are selected from at once: a network has few shapes, and one
  program for each shape is compiled in a fraction of the time that one for each
  array takes, and starts fewer kernels.

  Args:
    vectors: float32, of the sizes of their layouts.
    layouts: how each vector is dealt out to its owners.
    counts: k, elements that each owner selects, for each vector.

  >>> layout = Stripes(3, 1, 1)
  >>> select_each([jnp.array([1.0, 2.0, 0.0])] * 2, [layout] * 2, [1, 1])
  [Array([[1]], dtype=int32), Array([[1]], dtype=int32)]
  """
  alike: dict[Any, list[int]] = {}
  for i, (layout, k) in enumerate(zip(layouts, counts, strict=True)):
    key = (layout, k) if layout.size <= _TOGETHER else i
    alike.setdefault(key, []).append(i)
  found: dict[int, jax.Array] = {}
  for members in alike.values():
    layout, k = layouts[members[0]], counts[members[0]]
    select = functools.partial(striped_top_k, layout=layout, k=k)
    if len(members) == 1:
      found[members[0]] = select(vectors[members[0]])
    else:
      stacked = jnp.stack([vectors[i] for i in members])
      found.update(zip(members, jax.vmap(select)(stacked), strict=True))
  return [found[i] for i in range(len(vectors))]


def _keys(values: jax.Array) -> jax.Array:
  """Magnitudes as integers of the same order: int32, not negative."""
  bits = lax.bitcast_convert_type(values.astype(jnp.float32), jnp.int32)
  return bits & jnp.int32(0x7FFFFFFF)


def _largest(keys: jax.Array, k: int) -> jax.Array:
  if k == 0:
    return jnp.zeros(0, jnp.int32)
  if keys.size <= _SHORT and k <= _FEW:
    return _by_heap(keys, k)
  for block in _BLOCKS:
    # Fewer elements are left than there were, by a margin that pays.
    if 4 * k * block <= keys.size:
      return _by_blocks(keys, k, block)
  return _by_threshold(keys, k)


def _by_heap(keys: jax.Array, k: int) -> jax.Array:
  # XLA:CPU sorts integers to find their largest, so they become floats of the
  # same order, all finite and normal, half of them negative.
  above = keys - _MIDDLE
  magnitude = jnp.where(above < 0, -1 - above, above) + _NORMAL
  floats = lax.bitcast_convert_type(magnitude, jnp.float32)
  places = lax.top_k(jnp.where(above < 0, -floats, floats), k)[1]
  return jnp.sort(places)


def _by_blocks(keys: jax.Array, k: int, block: int) -> jax.Array:
  padded = jnp.pad(keys, (0, -keys.size % block), constant_values=-1)
  rows = padded.reshape(-1, block)
  return _inside(rows, _largest(_maxima(rows), k), k)


def _inside(rows: jax.Array, chosen: jax.Array, k: int) -> jax.Array:
  """The k largest of the elements of chosen rows."""
  block = rows.shape[1]
  places = _largest(rows[chosen].reshape(-1), k)
  return chosen[places // block] * block + places % block


def _maxima(rows: jax.Array) -> jax.Array:
  """Maxima of rows, by halves: vector instructions, where a reduction has none.

  XLA:CPU reads 25 million elements 15 times faster so.
  """
  while rows.shape[1] % 2 == 0:
    half = rows.shape[1] // 2
    rows = jnp.maximum(rows[:, :half], rows[:, half:])
  return rows.max(axis=1)


def _by_threshold(keys: jax.Array, k: int) -> jax.Array:
  threshold = kth_largest(keys, k)
  above = keys > threshold
  equal = keys == threshold
  spare = k - _count(above)
  words = pack_bits(above) | _first_ones(pack_bits(equal), spare)
  return positions_of_ones(words, k)


def _first_ones(words: jax.Array, count: jax.Array) -> jax.Array:
  """Keeps the first `count` ones."""
  ones = lax.population_count(words).astype(jnp.int32)
  allowed = count - (jnp.cumsum(ones) - ones)

  def drop_highest(_: int, kept: jax.Array) -> jax.Array:
    excess = lax.population_count(kept).astype(jnp.int32) > allowed
    highest = jnp.uint32(WORD - 1) - lax.clz(kept)
    return jnp.where(
      excess & (kept > 0), kept & ~(jnp.uint32(1) << highest), kept
    )

  return lax.fori_loop(0, WORD, drop_highest, words)


def kth_largest(keys: jax.Array, k: int) -> jax.Array:
  """Returns the k-th largest of keys that are not negative.

  Of many keys a sample tells between which two values it lies, all but
  certainly; those between them are collected, and searched bit by bit. Where
  the sample misled, all keys are.

  Args:
    keys: int32 [n]; those below zero are padding.
    k: static, `1 <= k`, and at most the keys that are not padding.

  Returns:
    int32 [].
  """
  if keys.size < _SAMPLED:
    return _kth_by_bits(keys, k, _BITS)
  low, high, spread = _bracket(keys, k)
  above = _count(keys >= high)
  words = pack_bits((keys >= low) & (keys < high))
  between = jnp.sum(lax.population_count(words), dtype=jnp.int32)
  right = (above < k) & (above + between >= k) & (between <= spread)
  places = positions_of_ones(words, spread)
  collected = keys.at[places].get(mode='clip')
  collected = jnp.where(jnp.arange(spread) < between, collected, -1)
  found = _kth_by_bits(collected, k - above, _BITS)
  # No `lax.cond`, which under `jax.vmap` does both.
  searched = _kth_by_bits(keys, k, jnp.where(right, 0, _BITS))
  return jnp.where(right, found, searched)


def _bracket(keys: jax.Array, k: int) -> tuple[jax.Array, jax.Array, int]:
  """Where a sample says that the k-th largest key is.

  Returns:
    Two keys, with high probability `low <= k-th largest < high`, and a number
    that the keys between them hardly exceed.
  """
  size = max(_SAMPLE, keys.size // 128)
  stride = keys.size // size
  sample = keys[stride // 2 :: stride][:size]
  share = k / keys.size
  margin = 5 * math.sqrt(size * share * (1 - share)) + 2
  first = math.floor(size * share - margin)
  last = math.ceil(size * share + margin)
  low, high = jnp.int32(0), jnp.int32(2**31 - 1)
  if last <= size:
    low = _kth_by_bits(sample, last, _BITS)
  if first >= 1:
    high = _kth_by_bits(sample, first, _BITS) + 1
  wide = min(last, size) - max(first, 0) + margin
  return low, high, min(math.ceil(wide * keys.size / size), keys.size)


def _kth_by_bits(
  keys: jax.Array, k: jax.Array | int, bits: jax.Array | int
) -> jax.Array:
  """The k-th largest key, bit by bit; zero if `bits` is zero."""

  def set_bit(i: jax.Array, found: jax.Array) -> jax.Array:
    candidate = found | (jnp.int32(1) << (_BITS - 1 - i))
    return jnp.where(_count(keys >= candidate) >= k, candidate, found)

  return lax.fori_loop(0, bits, set_bit, jnp.zeros((), jnp.int32))


def _count(mask: jax.Array) -> jax.Array:
  """Counts what is true: XLA:CPU packs bits faster than it adds them up."""
  return jnp.sum(lax.population_count(pack_bits(mask)), dtype=jnp.int32)
