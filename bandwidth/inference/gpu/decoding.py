"""What the words of a packed row mean, and how they are multiplied."""

import dataclasses
from typing import Any

import jax.numpy as jnp

ARITHMETIC = ('floats', 'bytes', 'pairs8', 'pairs16')
"""How a kernel multiplies.

`floats` look weights up and multiply them one by one. `bytes` have four
activations in a word and multiply four weights at once, picked from registers.
`pairs8` have that too, and look up two weights of 16 bits at once in shared
memory. `pairs16` have activations of 16 bits as two rows, of high bytes and of
low ones.
"""

THREADS = 128
"""Of a warpgroup."""

WARP = 32
"""Threads of a warp, and banks of shared memory."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Decoding:
  """How words are read.

  Attributes:
    bits: bits of a code; None: words are four signed bytes.
    shared: whether all outputs have one table.
    arithmetic: how words are multiplied, one of `ARITHMETIC`; pairs need 4 bits
      and one table.
  """

  bits: int | None
  shared: bool
  arithmetic: str = 'floats'

  @property
  def integers(self) -> bool:
    """Whether activations are bytes, four in a word."""
    return self.arithmetic != 'floats'

  @property
  def pairs(self) -> bool:
    """Whether two weights are looked up at once."""
    return self.arithmetic.startswith('pairs')

  @property
  def halves(self) -> bool:
    """Whether rows of activations are high bytes and low bytes in turn."""
    return self.arithmetic == 'pairs16'

  @property
  def width(self) -> int:
    """Bits of a field."""
    return self.bits or 8

  @property
  def groups(self) -> tuple[tuple[int, ...], ...]:
    """Fields of a word that are multiplied at once.

    Four bytes are picked by the nibbles of half a word, of which fields of two
    bits are every other one.
    """
    count = 32 // self.width
    if not self.integers:
      return tuple((field,) for field in range(count))
    if self.pairs:
      return tuple((f, f + 1) for f in range(0, count, 2))
    if self.width == 2:
      return tuple(
        tuple(range(8 * half + odd, 8 * half + 8, 2))
        for half in range(2)
        for odd in range(2)
      )
    return tuple(tuple(range(f, f + 4)) for f in range(0, count, 4))

  @property
  def packed(self) -> tuple[tuple[int, ...], ...]:
    """Fields whose activations are the bytes of a word."""
    if self.pairs:
      count = 32 // self.width
      return tuple(tuple(range(f, f + 4)) for f in range(0, count, 4))
    return self.groups

  @property
  def table(self) -> tuple[int, Any]:
    """Elements of a table and their dtype; without codes it is not read."""
    if self.bits is None:
      return 1, jnp.float32
    if self.pairs:
      return 4**self.bits, jnp.uint32
    if self.integers:
      return 2**self.bits // 4, jnp.uint32
    return 2**self.bits, jnp.float32

  @property
  def kept(self) -> int:
    """Elements of a table in shared memory; of pairs each bank has all."""
    return self.table[0] * (WARP if self.pairs else 1)

  @property
  def sums(self) -> Any:
    """The dtype of sums."""
    return jnp.int32 if self.integers else jnp.float32

  @property
  def totals(self) -> Any:
    """The dtype of products: halves of long rows do not fit into integers."""
    return jnp.float32 if self.halves else self.sums
