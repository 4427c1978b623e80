"""Entropy-constrained weight sharing: codes chosen for their coded length."""

from typing import Any, NamedTuple

import numpy as np

from bandwidth.quantization import kmeans
from bandwidth.quantization.codebook import (
  Codebook,
  Row,
  Sharing,
  assemble,
  code_dtype,
  distinct_values,
  surviving_rows,
)


class EntropyCodebook(NamedTuple):
  """A codebook fitted with `fit_entropy_constrained`.

  Attributes:
    codebook: the codes and centroids.
    bits: ideal code length of all codes, sum of -log2(frequency), in bits.
    distortion: sum of importance * (weight - centroid)².
  """

  codebook: Codebook
  bits: float
  distortion: float


def fit_entropy_constrained(
  weights: Any,
  sharing: Sharing,
  *,
  lagrangian: float,
  mask: Any = None,
  importance: Any = None,
  init: kmeans.Initializer = kmeans.linear_init,
  iterations: int = 100,
) -> EntropyCodebook:
  """Shares weights for a file that is entropy-coded.

  Each weight takes the code argmin_k (w − c_k)² + λ·bits(k), then centroids
  move to means and bits(k) = −log2 of the frequency; both are repeated. The
  cheapest codes win weights, rare ones vanish, so `entries` is only an upper
  bound. A reserved zero competes like any other entry, its value fixed: the
  pruned weights make it cheap, and small survivors join them.

  Args:
    weights: float array of any shape and float dtype.
    sharing: as for `fit_codebook`, but `axis` must be None.
    lagrangian: λ, squared error per bit; 0 is Lloyd's algorithm.
    mask: bool, in the shape of `weights` or a scalar; True survives. None: what
      is not zero. Only where zero is reserved.
    importance: positive float, in the shape of `weights`: the weight of each
      squared error. None: all 1.
    init: function that returns the first centroids, as in `kmeans`.
    iterations: largest number of iterations.

  Returns:
    The codebook with its ideal code length and distortion.

  Raises:
    ValueError: as `fit_codebook`; `lagrangian` is negative; an axis is given.

  Source: Chou, Lookabaugh, Gray, Entropy-constrained vector quantization, IEEE
  Transactions on Acoustics, Speech, and Signal Processing 37(1), 1989.

  >>> weights = np.float32([0.0] * 12 + [0.1, 1.0, 1.1, 1.0])
  >>> sharing = Sharing(entries=8)
  >>> fit = fit_entropy_constrained(weights, sharing, lagrangian=0.05)
  >>> fit.codebook.centroids, round(fit.bits, 2)
  (array([0.       , 1.0333333], dtype=float32), 11.14)
  """
  if not lagrangian >= 0:
    raise ValueError(f'lagrangian={lagrangian} must not be negative')
  if sharing.axis is not None:
    raise ValueError(f'axis={sharing.axis} must be None: rates are pooled')
  (row,) = surviving_rows(weights, sharing, mask, importance)
  if row.values.size == 0:
    empty = assemble(np.shape(weights), sharing, [row], [row.values], [])
    return EntropyCodebook(codebook=empty, bits=0.0, distortion=0.0)
  sample = kmeans.sort_sample(row.values, row.importance)
  clusters = sharing.entries - sharing.reserve_zero
  distinct = distinct_values(sample.values)
  start = distinct if distinct.size <= clusters else init(sample, clusters)
  zeros = row.survives.size - row.values.size
  # Two local minima: from the start, and from where Lloyd's algorithm ends.
  plain = _constrain(sample, start, zeros, sharing, 0.0, iterations)
  fits = [
    _constrain(sample, begin, zeros, sharing, lagrangian, iterations)
    for begin in (start, plain.centroids)
  ]
  books = [
    _entropy_codebook(weights, sharing, row, sample, zeros, fit)
    for fit in (*fits, plain)
  ]
  return min(books, key=lambda fit: fit.distortion + lagrangian * fit.bits)


class _Intervals(NamedTuple):
  """Codewords with the thresholds between them, and which is the zero."""

  centroids: np.ndarray
  thresholds: np.ndarray
  zero: np.ndarray


def _constrain(
  sample: kmeans.Sample,
  start: np.ndarray,
  zeros: int,
  sharing: Sharing,
  lagrangian: float,
  iterations: int,
) -> _Intervals:
  centroids = np.unique(start)
  zero = np.zeros(centroids.size, bool)
  if sharing.reserve_zero:
    at = np.searchsorted(centroids, 0.0)
    centroids = np.insert(centroids[centroids != 0], at, 0.0)
    zero = centroids == 0
  cuts = kmeans.nearest_cuts(sample, centroids)
  thresholds = (centroids[1:] + centroids[:-1]) / 2
  for _ in range(iterations):
    counts = np.diff(cuts) + zeros * zero
    used = counts > 0
    means = kmeans.cluster_means(sample, cuts, centroids)
    centroids, zero = np.where(zero, 0.0, means)[used], zero[used]
    rates = -np.log2(counts[used] / counts.sum())
    active, thresholds = kmeans.lower_envelope(centroids, lagrangian * rates)
    centroids, zero = centroids[active], zero[active]
    moved = np.searchsorted(sample.values, thresholds, 'right')
    moved = np.concatenate([[0], moved, [sample.values.size]])
    if np.array_equal(moved, cuts):
      break
    cuts = moved
  return _Intervals(centroids, thresholds, zero)


def _entropy_codebook(
  weights: Any,
  sharing: Sharing,
  row: Row,
  sample: kmeans.Sample,
  zeros: int,
  fit: _Intervals,
) -> EntropyCodebook:
  cuts = np.searchsorted(sample.values, fit.thresholds, 'right')
  cuts = np.concatenate([[0], cuts, [sample.values.size]])
  counts = np.diff(cuts) + zeros * fit.zero
  used = counts > 0
  table = fit.centroids.astype(np.float32)
  distortion = kmeans.squared_error(sample, cuts, table.astype(np.float64))
  bits = -(counts[used] * np.log2(counts[used] / counts.sum())).sum()
  # Entry numbers: the zero first, then the used ones by value.
  rank = np.cumsum(used & ~fit.zero) - 1 + sharing.reserve_zero
  rank[fit.zero] = 0
  codes = np.zeros(row.survives.size, code_dtype(sharing.entries))
  codes[row.survives] = rank[np.searchsorted(fit.thresholds, row.values)]
  rest = table[used & ~fit.zero]
  head = np.zeros(int(sharing.reserve_zero), np.float32)
  codebook = Codebook(
    codes=codes.reshape(np.shape(weights)),
    centroids=np.concatenate([head, rest]),
    reserves_zero=sharing.reserve_zero,
  )
  return EntropyCodebook(codebook, float(bits), distortion)
