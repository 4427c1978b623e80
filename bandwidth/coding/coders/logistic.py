"""Adaptive probabilities of bits in integers: counts, stretch and squash.

A probability p represents p / 2^16 and stays within 2^4 … 2^16 − 2^4.
stretch(p) = log2(p / (2^16 − p)) in units of 2^−8; squash is its inverse. Both
are tables built by squaring integers, so that they are equal on all machines.
"""

import functools
from typing import NamedTuple

import numpy as np

ONE = 1 << 16
LOW, HIGH = 1 << 4, ONE - (1 << 4)
HALF = ONE >> 1


class Squash(NamedTuple):
  """The inverse of `stretch`.

  Attributes:
    table: [2·bound + 1] int64; entry x + bound is the smallest p of stretch at
      least x.
    bound: the largest stretch, a positive integer.
  """

  table: np.ndarray
  bound: int


@functools.cache
def stretch() -> np.ndarray:
  """Returns the stretch of every p, clipped to its limits: [2^16] int64.

  >>> stretch()[[1 << 15, 3 << 14, 1 << 14]]
  array([   0,  405, -405])
  """
  p = np.clip(np.arange(ONE, dtype=np.uint64), LOW, HIGH)
  return _log2(p) - _log2(ONE - p)


@functools.cache
def squash() -> Squash:
  """Returns the table of squash.

  >>> squash().table[squash().bound], squash().bound
  (np.int64(32768), 3071)
  """
  values = stretch()
  bound = int(values[-1])
  found = np.searchsorted(values, np.arange(-bound, bound + 1))
  return Squash(np.clip(found, LOW, HIGH), bound)


def _log2(values: np.ndarray) -> np.ndarray:
  """⌊2^8·log2 v⌋ of positive integers below 2^17, a bit for each squaring."""
  whole = np.frexp(values.astype(np.float64))[1].astype(np.int64) - 1
  mantissa = values << (31 - whole).astype(np.uint64)
  out = whole
  for _ in range(8):
    mantissa = mantissa * mantissa >> np.uint64(31)
    carry = mantissa >> np.uint64(32)
    mantissa >>= carry
    out = 2 * out + carry.astype(np.int64)
  return out


def ratio(ones: np.ndarray, seen: np.ndarray | int, prior: int) -> np.ndarray:
  """Returns (2^17·ones + prior) / (2·seen + 1), rounded down and clipped.

  The prior counts as half an observation: with a prior of 1/2, this is the
  Krichevsky-Trofimov estimator.

  >>> ratio(np.array([0, 1]), np.array([0, 1]), HALF)
  array([32768, 54613])
  """
  return np.clip((2 * ONE * ones + prior) // (2 * seen + 1), LOW, HIGH)


class Counts:
  """Adaptive counts of ones and of trials, by context."""

  def __init__(self, contexts: int, *, prior: int = HALF) -> None:
    self._ones = np.zeros(contexts, np.int64)
    self._seen = np.zeros(contexts, np.int64)
    self._prior = prior

  def probability(self, context: np.ndarray) -> np.ndarray:
    """Returns `ratio` of the contexts, integers of any shape."""
    return ratio(self._ones[context], self._seen[context], self._prior)

  def update(self, context: np.ndarray, bits: np.ndarray) -> None:
    """Counts the bits, of the shape of `context`."""
    context, bits = context.reshape(-1), bits.reshape(-1)
    size = self._ones.size
    self._seen += np.bincount(context, minlength=size)
    self._ones += np.bincount(context[bits > 0], minlength=size)
