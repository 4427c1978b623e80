"""The values of non-zeros, coded bit by bit under adaptive counts.

Values are coded in batches of a quarter of the number of values before, at
least 8 and at most 4096. All bits of one kind in a batch are coded together,
with the counts (`logistic.Counts`, prior 1/2) of the earlier batches.
"""

from collections.abc import Callable, Iterator

import numpy as np

from bandwidth.coding.coders import binary, logistic

UNARY = 16
_GAMMA = 32


def code_signed(
  coder: binary.Coder, count: int, truth: np.ndarray | None
) -> np.ndarray:
  """Codes zigzag levels: 1, 2, 3, … stand for −1, 1, −2, and so on.

  Per batch: the signs, in one context; then for k = 1 … 15, whether magnitudes
  that are at least k exceed k, in context k; then the excess of magnitudes over
  16, see `_Gamma`.

  Args:
    coder: an encoder, or a decoder.
    count: number of levels to code.
    truth: [count] positive integers below 2^32 to encode; None for a decoder.

  Returns:
    [count] int64, the levels.
  """
  out = np.zeros(count, np.int64)
  signs, unary = logistic.Counts(1), logistic.Counts(UNARY)
  gamma = _Gamma(coder)
  for batch in _batches(count):
    known = None if truth is None else truth[batch]
    size = batch.stop - batch.start
    negative = _bits(coder, signs, 0, size, known, lambda v: v & 1)
    magnitudes = np.ones(size, np.int64)
    active = np.arange(size)
    for k in range(1, UNARY):
      if not active.size:
        break
      more = _bits(
        coder, unary, k, active.size, _at(known, active),
        lambda v, k=k: (v + 1 >> 1) > k,
      )  # fmt: skip
      active = active[more > 0]
      magnitudes[active] += 1
    if active.size:
      excess = _at(known, active)
      excess = None if excess is None else (excess + 1 >> 1) - UNARY
      magnitudes[active] += gamma.code(active.size, excess)
    out[batch] = 2 * magnitudes - negative
  return out


def code_labels(
  coder: binary.Coder, count: int, truth: np.ndarray | None, *, width: int
) -> np.ndarray:
  """Codes labels, highest bit first, each in the context of the bits above.

  Args:
    coder: an encoder, or a decoder.
    count: number of labels to code.
    truth: [count] integers below 2^width to encode; None for a decoder.
    width: bits of a label.

  Returns:
    [count] int64, the labels.
  """
  out = np.zeros(count, np.int64)
  counts = logistic.Counts(1 << width)
  for batch in _batches(count):
    known = None if truth is None else truth[batch]
    size = batch.stop - batch.start
    node = np.ones(size, np.int64)
    for place in range(width - 1, -1, -1):
      bits = _bits(
        coder, counts, node, size, known, lambda v, p=place: v >> p & 1
      )
      node = 2 * node + bits
    out[batch] = node - (1 << width)
  return out


class _Gamma:
  """Elias's gamma code of v + 1, v ≥ 0.

  With n = ⌊log2(v + 1)⌋: for k = 0, 1, … whether n > k, context k; then the n
  low bits of v + 1, highest first, place p under context p.
  """

  def __init__(self, coder: binary.Coder) -> None:
    self._coder = coder
    self._lengths = logistic.Counts(_GAMMA)
    self._digits = logistic.Counts(_GAMMA)

  def code(self, count: int, truth: np.ndarray | None) -> np.ndarray:
    known = None if truth is None else truth + 1
    length = np.zeros(count, np.int64)
    active = np.arange(count)
    for k in range(_GAMMA):
      if not active.size:
        break
      more = _bits(
        self._coder, self._lengths, k, active.size, _at(known, active),
        lambda v, k=k: v >> k > 1,
      )  # fmt: skip
      active = active[more > 0]
      length[active] += 1
    out = np.ones(count, np.int64)
    for place in range(int(length.max()) - 1, -1, -1):
      active = np.flatnonzero(length > place)
      bits = _bits(
        self._coder, self._digits, place, active.size, _at(known, active),
        lambda v, p=place: v >> p & 1,
      )  # fmt: skip
      out[active] = 2 * out[active] + bits
    return out - 1


def _at(known: np.ndarray | None, active: np.ndarray) -> np.ndarray | None:
  return None if known is None else known[active]


def _bits(
  coder: binary.Coder,
  counts: logistic.Counts,
  context: np.ndarray | int,
  size: int,
  known: np.ndarray | None,
  bit_of: Callable[[np.ndarray], np.ndarray],
) -> np.ndarray:
  """Codes one bit of each value and updates the counts."""
  context = np.broadcast_to(np.asarray(context, np.int64), (size,))
  truth = None if known is None else bit_of(known)
  bits = coder.code(counts.probability(context), truth)
  counts.update(context, bits)
  return bits


def _batches(count: int) -> Iterator[slice]:
  begin = 0
  while begin < count:
    end = min(count, begin + min(max(8, begin >> 2), 4096))
    yield slice(begin, end)
    begin = end
