"""The innermost steps of a kernel in JAX, as interpret mode runs them."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from bandwidth.inference.gpu.decoding import THREADS, Decoding
from bandwidth.inference.matrices import LANES


class Portable:
  """Steps over arrays of `length` elements, as many for each thread.

  Sums have an element for each of the 128 threads until `finish`.
  """

  def __init__(self, decoding: Decoding, length: int) -> None:
    """Takes the decoding and the words of a step."""
    self._decoding, self._length = decoding, length

  def fill(self, table_ref: Any, shared_ref: Any) -> Any:
    """Makes tables ready; returns what `accumulate` wants."""
    del shared_ref
    return table_ref

  def words(self, row_ref: Any, first: Any) -> jax.Array:
    """Loads words from the first on; beyond the row's end any of its words."""
    index = first + jnp.arange(self._length).reshape(THREADS, -1)
    vector = index.shape[1]
    begin = jnp.minimum(index[:, :1], row_ref.shape[0] - vector)
    return row_ref[(begin + jnp.arange(vector)[None]).reshape(-1)]

  def activations(self, ref: Any, first: Any) -> list[jax.Array]:
    """Loads what multiplies words from the first on, by `packed` group.

    Args:
      ref: floats [inputs], in their own order; where arithmetic is of integers,
        words [groups, words of a row].
      first: index of the first word.
    """
    decoding = self._decoding
    count = len(decoding.packed)
    if decoding.integers:
      at = pl.ds(first, self._length)
      return [ref[group, at] for group in range(count)]
    words = first + jnp.arange(self._length)
    if decoding.bits is None:
      return [ref[count * words + field] for field in range(count)]
    block, lane = words // LANES, words % LANES
    return [
      ref[LANES * (count * block + field) + lane] for field in range(count)
    ]

  def zero(self) -> jax.Array:
    """A sum of nothing."""
    return jnp.zeros(THREADS, self._decoding.sums)

  def accumulate(
    self,
    sums: Sequence[Sequence[jax.Array]],
    words: Sequence[jax.Array],
    group: int,
    xs: Sequence[jax.Array],
    tables: Any,
  ) -> list[list[jax.Array]]:
    """Adds products of a group of fields.

    Args:
      sums: sums so far, by row of activations and by output.
      words: packed words of each output.
      group: index of the group in `decoding.groups`.
      xs: for each row of activations, what multiplies the group.
      tables: tables of the codes that `fill` returned.
    """
    fields = self._decoding.groups[group]
    weights = [
      [self._weight(own, field, output, tables) for field in fields]
      for output, own in enumerate(words)
    ]
    totals = []
    for number, (of_x, x) in enumerate(zip(sums, xs, strict=True)):
      parts = self._parts(x, group, number)
      totals.append(
        [
          total + _by_thread([w * p for w, p in zip(own, parts, strict=True)])
          for total, own in zip(of_x, weights, strict=True)
        ]
      )
    return totals

  def _parts(self, x: jax.Array, group: int, number: int) -> list[jax.Array]:
    """The activations of each field of a group."""
    decoding = self._decoding
    if not decoding.integers:
      return [x]
    low = decoding.halves and number % 2 == 1
    first = 2 * (group % 2) if decoding.pairs else 0
    return [
      (_byte if low else _signed_byte)(x, first + i)
      for i in range(len(decoding.groups[group]))
    ]

  def _weight(
    self, words: jax.Array, field: int, output: int, tables: Any
  ) -> jax.Array:
    decoding = self._decoding
    if decoding.bits is None:
      return _signed_byte(words, field).astype(decoding.sums)
    codes = words >> jnp.uint32(field * decoding.width)
    codes = (codes & jnp.uint32(2**decoding.width - 1)).astype(jnp.int32)
    table = tables[0 if decoding.shared else output, :]
    if decoding.pairs:
      table = _signed_half(table[: 2**decoding.width])
    elif decoding.integers:
      table = jnp.stack([_signed_byte(table, i) for i in range(4)], 1)
    return table.reshape(-1)[codes]

  def finish(
    self, sums: Sequence[jax.Array], scratch_ref: Any, y_ref: Any
  ) -> None:
    """Writes the totals of some outputs.

    Args:
      sums: sums by thread, of each output.
      scratch_ref: shared memory, [warps, outputs].
      y_ref: [outputs], where the totals go.
    """
    del scratch_ref
    dtype = self._decoding.totals
    y_ref[...] = jnp.stack([total.astype(dtype).sum() for total in sums])


def _by_thread(products: list[jax.Array]) -> jax.Array:
  """Adds what each thread has of some arrays."""
  return jnp.stack(products).reshape(len(products), THREADS, -1).sum((0, 2))


def _byte(words: jax.Array, number: int) -> jax.Array:
  shifted = words >> jnp.uint32(8 * number)
  return (shifted & jnp.uint32(255)).astype(jnp.int32)


def _signed_byte(words: jax.Array, number: int) -> jax.Array:
  return (_byte(words, number) ^ 128) - 128


def _signed_half(words: jax.Array) -> jax.Array:
  """The lower 16 bits."""
  return ((words & jnp.uint32(65535)).astype(jnp.int32) ^ 32768) - 32768
