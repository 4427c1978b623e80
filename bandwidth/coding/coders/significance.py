"""Which elements of a matrix are not zero, coded row by row.

For a row r, `done` rows after the first live one, and each column j:

  strides s_1 … s_n     rows r − s_i are its neighbors (n ≤ 6); missing ones
                        are of zeros
  near                  Σ 2^(i−1)·neighbor_i[j] over the first three
  pop                   Σ neighbor_i[j] over all
  level_i               min(9, bit length of the ones in neighbor i); most = the
                        largest
  column                stretch(ratio(ones in column j so far, done, P))
  bin                   (column + bound) >> 8

Seven stretched probabilities are mixed: `column`; that of a fast counter per
column, first P, c += (bit·2^16 − c) >> 4; and those of five families of counts
(`logistic.Counts` with prior P), under the contexts near, near + 8·bin,
10·bin + level_1, 25·pop + bin, 10·pop + most. The mixture is

  p = squash((Σ w_i·x_i) >> 16),   w_i += (Σ_j x_ij·(bit_j·2^16 − p_j)) >> 19

with w_i = 9000 at first, the shifts rounding down and the sum clipped to
squash's domain.
"""

from collections.abc import Sequence

import numpy as np

from bandwidth.coding.coders import binary, logistic

MAX_STRIDES = 6
_BINS, _LEVELS = 25, 10
_SIZES = (8, 8 * _BINS, _BINS * _LEVELS, 7 * _BINS, 7 * _LEVELS)
_OFFSETS = np.cumsum([0, *_SIZES[:-1]])[:, None]
_FIRST_WEIGHT = 9000
_RATE = 19
# Comparing all pairs of rows takes memory quadratic in their number.
_COMPARE_ROWS = 2048


def code(
  coder: binary.Coder,
  found: np.ndarray,
  live_rows: np.ndarray,
  *,
  truth: np.ndarray | None,
  strides: Sequence[int],
  prior: int,
) -> None:
  """Codes the live rows of a matrix into `found`.

  Args:
    coder: an encoder, or a decoder.
    found: [rows, columns] uint8, zeros; receives the result.
    live_rows: [n] indices of the rows to code, ascending.
    truth: [rows, columns] bool to encode; None for a decoder.
    strides: at most six positive distances.
    prior: P, within the limits of `logistic`.
  """
  rows, columns = found.shape
  stretch, (squash, bound) = logistic.stretch(), logistic.squash()
  counts = logistic.Counts(sum(_SIZES), prior=prior)
  weights = np.full(2 + len(_SIZES), _FIRST_WEIGHT, np.int64)
  column_ones = np.zeros(columns, np.int64)
  fast = np.full(columns, prior, np.int64)
  level = np.zeros(rows, np.int64)
  inputs = np.empty((weights.size, columns), np.int64)
  contexts = np.empty((len(_SIZES), columns), np.int64)
  for done, row in enumerate(live_rows.tolist()):
    inputs[0] = stretch[logistic.ratio(column_ones, done, prior)]
    inputs[1] = stretch[fast]
    _contexts(contexts, found, level, row, strides, inputs[0] + bound >> 8)
    inputs[2:] = stretch[counts.probability(contexts)]
    mixed = np.clip(weights @ inputs >> 16, -bound, bound)
    probability = squash[mixed + bound]
    bits = coder.code(probability, truth[row] if truth is not None else None)
    bits = bits.astype(np.int64)
    found[row] = bits
    counts.update(contexts, np.broadcast_to(bits, contexts.shape))
    weights += inputs @ ((bits << 16) - probability) >> _RATE
    column_ones += bits
    fast += (bits << 16) - fast >> 4
    level[row] = min(int(bits.sum()).bit_length(), _LEVELS - 1)


def _contexts(
  out: np.ndarray,
  found: np.ndarray,
  level: np.ndarray,
  row: int,
  strides: Sequence[int],
  bins: np.ndarray,
) -> None:
  """Writes the five contexts of each column of a row."""
  near, pop = out[0], out[3]
  near[:] = 0
  pop[:] = 0
  first = most = 0
  for place, stride in enumerate(strides):
    if stride > row:
      continue
    neighbor = found[row - stride]
    pop += neighbor
    if place < 3:
      near += neighbor.astype(np.int64) << place
    here = int(level[row - stride])
    first = here if place == 0 else first
    most = max(most, here)
  out[1] = near + 8 * bins
  out[2] = _LEVELS * bins + first
  out[4] = _LEVELS * pop + most
  out[3] = _BINS * pop + bins
  out += _OFFSETS


def choose_strides(shape: tuple[int, ...], mask: np.ndarray) -> list[int]:
  """Picks the distances to the earlier rows that predict a row best.

  Args:
    shape: of the tensor, whose last axis are the columns.
    mask: [rows, columns] bool, its non-zeros.

  Returns:
    The distances at which non-zeros coincide most often, if there are few
    enough rows to compare all pairs; else the strides of the axes. At most six
    for 2048 non-zeros or more, three for 256 or more, and none for fewer, which
    are too few to learn from.
  """
  rows, columns = mask.shape
  ones = int(mask.sum())
  if rows < 8 or columns < 2 or ones < 256:
    return []
  wanted = MAX_STRIDES if ones >= 2048 else 3
  if rows <= _COMPARE_ROWS:
    dense = mask.astype(np.float32)
    overlap = dense @ dense.T
    limit = rows // 2
    score = np.array([np.trace(overlap, -s) for s in range(1, limit + 1)])
    score *= rows / (rows - np.arange(1.0, limit + 1))
    return (np.argsort(-score, kind='stable')[:wanted] + 1).tolist()
  strides, stride = [1, 2], 1
  for size in shape[-2:0:-1]:
    stride *= size
    strides.append(stride)
  unique = sorted({s for s in strides if s < rows})
  return unique[:wanted]
