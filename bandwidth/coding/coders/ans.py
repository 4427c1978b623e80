"""rANS with integer frequencies that a few bytes describe.

The coder is `constriction.stream.stack.AnsCoder`. A table holds one small float
per symbol, e exponent bits and q mantissa bits, from which both sides derive
frequencies F_s ≥ 1, Σ F_s = 2^20, in integers:

  w_s = (2^q + m_s)·2^(x_s − 1)                 0 where x_s = 0: s never occurs
  F_s = 1 + ⌊w_s·(2^20 − n) / Σ w⌋              n symbols occur
  the rest of 2^20 goes to the first largest F_s.

The n symbols that occur, renumbered 0 … n−1, have 24-bit cumulatives

  c_i = ⌊C_i·(2^24 − n) / 2^20⌋ + i,   C_i = F_0 + … + F_(i−1),   c_n = 2^24,

(`Categorical(F / 2^20, perfect=False)`: the quotients are dyadic, so the double
precision inside is exact and no platform can differ). The state is 64 bits
wide. To decode a symbol, find i with c_i ≤ state mod 2^24 < c_(i+1) and set
state = (state >> 24)·(c_(i+1) − c_i) + state mod 2^24 − c_i; whenever the state
is below 2^32 and words are left, state = state·2^32 + next word. Words are
taken from the end of the stream, little-endian, and the zero bytes that end the
last word are left out. After the last symbol the state is 0 and no word is
left, which is checked.
"""

from typing import NamedTuple

import numpy as np
from constriction import stream  # pyrefly: ignore[missing-module-attribute]

TOTAL_BITS = 20
MAX_ALPHABET = 1 << 16
EXPONENTS = 15
MANTISSAS = (0, 1, 2, 3, 4, 6, 8)


class Table(NamedTuple):
  """Small floats of the symbols 0 … A−1.

  Attributes:
    exponents: [A] uint8 in 0 … 15; zero for a symbol that never occurs.
    mantissas: [n] uint8, of the symbols that occur, below 2^mantissa_bits.
    mantissa_bits: q, bits of a mantissa, 0 to 8.
  """

  exponents: np.ndarray
  mantissas: np.ndarray
  mantissa_bits: int


def make_table(counts: np.ndarray, *, mantissa_bits: int) -> Table:
  """Rounds counts to small floats.

  Args:
    counts: [A] occurrences, at least two of them positive, A at most 2^16.
    mantissa_bits: q, 0 to 8.

  Returns:
    The table; counts below 2^−14 of the largest share the smallest weight.

  >>> make_table(np.array([90, 0, 10]), mantissa_bits=2)
  Table(exponents=array([4, 0, 1], dtype=uint8),
        mantissas=array([2, 1], dtype=uint8), mantissa_bits=2)
  """
  counts = np.asarray(counts, np.int64)
  present = np.flatnonzero(counts)
  kept = counts[present]
  # Rounded to 1 + q significant bits, in integers.
  scale = _bit_length(kept) - 1 - mantissa_bits
  half = np.where(scale > 0, np.int64(1) << np.maximum(scale - 1, 0), 0)
  kept = kept + half
  top = _bit_length(kept)
  shift = top - 1 - mantissa_bits
  digits = np.where(
    shift >= 0, kept >> np.maximum(shift, 0), kept << np.maximum(-shift, 0)
  )
  exponents = np.zeros(counts.size, np.uint8)
  relative = top - top.max() + EXPONENTS
  mantissas = np.where(relative >= 1, digits - (1 << mantissa_bits), 0)
  exponents[present] = np.maximum(relative, 1)
  # A table uses no higher exponents than it needs: fewer bits each.
  exponents[present] -= exponents[present].min() - 1
  return Table(exponents, mantissas.astype(np.uint8), mantissa_bits)


def _bit_length(values: np.ndarray) -> np.ndarray:
  """Bits of positive integers below 2^53."""
  return np.frexp(values.astype(np.float64))[1].astype(np.int64)


def frequencies(table: Table) -> np.ndarray:
  """Returns the integer frequencies of the symbols that occur.

  Args:
    table: at least two symbols that occur.

  Returns:
    [n] int64, positive, of sum 2^20.

  Raises:
    ValueError: fewer than two symbols, or too many.

  >>> frequencies(make_table(np.array([90, 0, 10]), mantissa_bits=2)).tolist()
  [949653, 98923]
  """
  present = np.flatnonzero(table.exponents)
  if not 2 <= present.size <= MAX_ALPHABET:
    raise ValueError(f'{present.size} symbols in a table of frequencies')
  powers = table.exponents[present].astype(np.int64) - 1
  digits = (1 << table.mantissa_bits) + table.mantissas.astype(np.int64)
  weights = digits << powers
  total = 1 << TOTAL_BITS
  spread = weights * (total - present.size) // int(weights.sum())
  out = spread + 1
  out[np.argmax(out)] += total - int(out.sum())
  return out


def bits_of_symbols(table: Table) -> np.ndarray:
  """Returns the bits of each symbol, log2(2^20 / F_s); inf if it never occurs.

  >>> bits_of_symbols(make_table(np.array([3, 0, 3]), mantissa_bits=0))
  array([ 1., inf,  1.])
  """
  costs = np.full(table.exponents.size, np.inf)
  costs[np.flatnonzero(table.exponents)] = TOTAL_BITS - np.log2(
    frequencies(table)
  )
  return costs


def encode(symbols: np.ndarray, table: Table) -> bytes:
  """Codes symbols.

  Args:
    symbols: [n] unsigned integers that occur in the table.
    table: frequencies of the symbols, of `make_table`.

  Returns:
    The stream; `decode` needs the same table and n.

  Raises:
    ValueError: a symbol that the table lacks.

  >>> table = make_table(np.array([90, 0, 10]), mantissa_bits=2)
  >>> encode(np.array([0, 0, 2, 0]), table).hex()
  'b1261801'
  """
  present = np.flatnonzero(table.exponents)
  ranks = np.full(table.exponents.size, -1, np.int32)
  ranks[present] = np.arange(present.size, dtype=np.int32)
  symbols = np.asarray(symbols)
  if symbols.size and int(symbols.max()) >= ranks.size:
    raise ValueError(f'symbol {symbols.max()} is not in the table')
  ranked = ranks[symbols]
  if symbols.size and int(ranked.min()) < 0:
    raise ValueError(f'symbol {symbols[ranked.argmin()]} is not in the table')
  coder = stream.stack.AnsCoder()
  coder.encode_reverse(ranked, _model(table))
  return coder.get_compressed().astype('<u4').tobytes().rstrip(b'\0')


def decode(data: bytes | memoryview, table: Table, count: int) -> np.ndarray:
  """Inverts `encode`.

  Args:
    data: the whole stream, of `encode`.
    table: the table that the stream was made with.
    count: number of symbols in the stream.

  Returns:
    [count] uint16.

  Raises:
    ValueError: a stream that this table cannot have made.

  >>> table = make_table(np.array([90, 0, 10]), mantissa_bits=2)
  >>> decode(bytes.fromhex('b1261801'), table, 4)
  array([0, 0, 2, 0], dtype=uint16)
  """
  if len(data) and not data[-1]:
    raise ValueError('a stream never ends in a zero byte')
  words = np.frombuffer(bytes(data) + bytes(-len(data) % 4), '<u4')
  coder = stream.stack.AnsCoder(words.astype(np.uint32))
  ranks = coder.decode(_model(table), count)
  if not coder.is_empty():
    raise ValueError('the coder does not end in its first state')
  present = np.flatnonzero(table.exponents).astype(np.uint16)
  return present[ranks]


def _model(table: Table) -> stream.model.Categorical:
  probabilities = frequencies(table) / (1 << TOTAL_BITS)
  return stream.model.Categorical(probabilities, perfect=False)
