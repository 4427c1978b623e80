"""All that a worker sends in a step, as one buffer of bytes.

  indices, Elias–Fano     values and their scales     dense elements, float32

Its length depends on what is static alone: sizes, counts, the format of values.
"""

import itertools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from bandwidth.collectives.wire.elias_fano import EliasFano
from bandwidth.collectives.wire.value_formats import (
  from_bytes,
  to_bytes,
  value_format,
)


class Entries(NamedTuple):
  """Selected elements of several vectors, one for each unit of selection.

  Attributes:
    indices: int32 [count] for each vector, increasing.
    values: float32 [count] for each vector, in the order of the indices.
  """

  indices: list[jax.Array]
  values: list[jax.Array]


class SparseMessage(NamedTuple):
  """The layout of a message.

  Attributes:
    sizes: number of elements of each vector.
    counts: number of selected elements of each vector.
    dense: number of elements that are sent in full beside them.
    values: name of the format of the values, see `value_format`.
  """

  sizes: tuple[int, ...]
  counts: tuple[int, ...]
  dense: int
  values: str

  @property
  def index_code(self) -> EliasFano:
    """Of all indices together, vectors laid one after another."""
    return EliasFano(sum(self.sizes), sum(self.counts))

  @property
  def nbytes(self) -> int:
    """Length of the message, everything counted."""
    return (
      4 * self.index_code.words
      + value_format(self.values).nbytes(self.counts)
      + 4 * self.dense
    )

  def encode(self, entries: Entries, dense: jax.Array) -> jax.Array:
    """Packs entries and dense elements: uint8 [nbytes].

    Args:
      entries: indices and values, `counts[i]` of vector i.
      dense: float32 [dense], elements sent in full.
    """
    indices = [
      index + start
      for index, start in zip(entries.indices, _starts(self.sizes), strict=True)
    ]
    packed = value_format(self.values).encode(
      _joined(entries.values, jnp.float32), self.counts
    )
    code = self.index_code.encode(_joined(indices, jnp.int32))
    return jnp.concatenate([to_bytes(code), packed, to_bytes(dense)])

  def decode(self, data: jax.Array) -> tuple[Entries, jax.Array]:
    """Undoes `encode`, but for what the format of values rounds."""
    words = 4 * self.index_code.words
    coded = value_format(self.values).nbytes(self.counts)
    index_bytes, value_bytes, dense = jnp.split(data, [words, words + coded])
    index = self.index_code.decode(from_bytes(index_bytes, jnp.uint32))
    value = value_format(self.values).decode(value_bytes, self.counts)
    borders = list(itertools.accumulate(self.counts))[:-1]
    indices = [
      part - start
      for part, start in zip(
        jnp.split(index, borders), _starts(self.sizes), strict=True
      )
    ]
    return (
      Entries(indices, jnp.split(value, borders)),
      from_bytes(dense, jnp.float32),
    )

  def rounded(self, values: list[jax.Array]) -> list[jax.Array]:
    """Returns what others will see of the values."""
    form = value_format(self.values)
    data = form.encode(_joined(values, jnp.float32), self.counts)
    borders = list(itertools.accumulate(self.counts))[:-1]
    return jnp.split(form.decode(data, self.counts), borders)


def _starts(sizes: tuple[int, ...]) -> list[int]:
  return [0, *itertools.accumulate(sizes)][:-1]


def _joined(parts: list[jax.Array], dtype: jax.typing.DTypeLike) -> jax.Array:
  return jnp.concatenate(parts) if parts else jnp.zeros(0, dtype)
