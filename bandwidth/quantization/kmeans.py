"""k-means on a line: Lloyd, exact, and entropy-constrained.

Points on a line are sorted once. A cluster is then a run of neighbors, and its
mass, mean and inertia are differences of prefix sums, so that an iteration
costs O(k log n) however many weights there are. The sums are in float64.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np


class Sample(NamedTuple):
  """Sorted points with prefix sums.

  Attributes:
    values: float64 [n], the points in ascending order.
    mass: float64 [n + 1]; `mass[i]` is the importance of the first i points.
    first: float64 [n + 1]; the same sums of importance * value.
    second: float64 [n + 1]; the same sums of importance * value².
  """

  values: np.ndarray
  mass: np.ndarray
  first: np.ndarray
  second: np.ndarray


Initializer = Callable[[Sample, int], np.ndarray]
"""`(sample, clusters) -> centroids`, ascending float64 [clusters]."""

Solver = Callable[[Sample, int], np.ndarray]
"""`(sample, clusters) -> centroids`, ascending float64 [at most clusters]."""


def sort_sample(
  values: np.ndarray, importance: np.ndarray | None = None
) -> Sample:
  """Sorts points and sums them.

  Args:
    values: float [n], the points, finite.
    importance: float [n], positive; the weight of each point's squared error.
      None weighs all alike.

  Returns:
    The sample.
  """
  if importance is None:
    values = np.sort(values)
    weight = np.ones(values.size)
  else:
    order = np.argsort(values, kind='stable')
    values, weight = values[order], importance[order].astype(np.float64)
  # In the dtype of the centroids: NumPy would convert all at each search.
  values = values.astype(np.float64)
  first = weight * values
  return Sample(
    values=values,
    mass=_prefix(weight),
    first=_prefix(first),
    second=_prefix(first * values),
  )


def _prefix(terms: np.ndarray) -> np.ndarray:
  sums = np.empty(terms.size + 1)
  sums[0] = 0
  np.cumsum(terms, out=sums[1:])
  return sums


def linear_init(sample: Sample, clusters: int) -> np.ndarray:
  """Spaces centroids evenly from the least to the greatest value.

  Large weights are few but matter most, and this keeps centroids near them:
  the best of the three in Deep Compression (arXiv 1510.00149, section 3.2).

  >>> linear_init(sort_sample(np.array([0.0, 0.1, 1.0])), 3)
  array([0. , 0.5, 1. ])
  """
  return np.linspace(sample.values[0], sample.values[-1], clusters)


def density_init(sample: Sample, clusters: int) -> np.ndarray:
  """Spaces centroids evenly in the cumulative distribution of the values.

  Centroid i of k lies at quantile (i + 1/2) / k (arXiv 1510.00149, 3.2).

  >>> density_init(sort_sample(np.array([0.0, 0.1, 0.2, 1.0, 5.0])), 2)
  array([0.1, 1. ])
  """
  levels = (np.arange(clusters) + 0.5) / clusters * sample.mass[-1]
  ranks = np.searchsorted(sample.mass[1:], levels)
  return sample.values[ranks].astype(np.float64)


def forgy_init(key: jax.Array) -> Initializer:
  """Returns the initializer that picks values at random, without repetition.

  Args:
    key: a typed key of `jax.random`. The same key picks the same values.
  """
  seed = np.asarray(jax.random.key_data(key)).ravel()

  def init(sample: Sample, clusters: int) -> np.ndarray:
    generator = np.random.default_rng(seed)
    picked = generator.choice(np.unique(sample.values), clusters, replace=False)
    return np.sort(picked).astype(np.float64)

  return init


def lloyd(*, init: Initializer = linear_init, iterations: int = 300) -> Solver:
  """Returns Lloyd's algorithm: assign to the nearest, move to the mean.

  It stops early where nothing moves. A cluster that is empty then takes over
  half of the cluster with the greatest inertia, and the iterations go on: few
  weights far out would otherwise leave most of the range, and so most of a
  codebook, unused.

  Args:
    init: where centroids start: `linear_init`, `density_init` or
      `forgy_init(key)`.
    iterations: at most this many. 0 keeps the initial centroids.

  Raises:
    ValueError: `iterations` is negative.

  >>> points = sort_sample(np.array([0.0, 0.25, 0.75, 1.0]))
  >>> lloyd()(points, 2)
  array([0.125, 0.875])
  """
  if iterations < 0:
    raise ValueError(f'iterations={iterations} must not be negative')

  def solve(sample: Sample, clusters: int) -> np.ndarray:
    centroids = init(sample, clusters)
    for _ in range(iterations):
      cuts = nearest_cuts(sample, centroids)
      moved = cluster_means(sample, cuts, centroids)
      if np.array_equal(moved, centroids):
        moved = _fill_empty(sample, cuts, centroids)
        if np.array_equal(moved, centroids):
          break
      centroids = moved
    return centroids

  return solve


def _fill_empty(
  sample: Sample, cuts: np.ndarray, centroids: np.ndarray
) -> np.ndarray:
  """Gives empty clusters halves of those with the greatest inertia."""
  used = np.diff(cuts) > 0
  begin, end = cuts[:-1][used], cuts[1:][used]
  kept = centroids[used]
  mass, first, second = (np.diff(sums[cuts])[used] for sums in sample[1:])
  spread = np.maximum(second - first * first / mass, 0)
  # A run of equal values has no halves.
  spread[sample.values[begin] == sample.values[end - 1]] = 0
  split = np.argsort(-spread, kind='stable')[: centroids.size - kept.size]
  split = split[spread[split] > 0]
  if not split.size:
    return centroids
  width = np.sqrt(spread[split] / mass[split])
  whole = np.delete(kept, split)
  halves = [kept[split] - width, kept[split] + width]
  return np.sort(np.concatenate([whole, *halves]))


def nearest_cuts(sample: Sample, centroids: np.ndarray) -> np.ndarray:
  """Returns where in the sorted values each cluster begins, and the end.

  Args:
    sample: the points, from `sort_sample`.
    centroids: float64 [k], in ascending order.

  Returns:
    int64 [k + 1]. A point half way between two centroids goes to the lower.
  """
  middle = (centroids[1:] + centroids[:-1]) / 2
  return _with_ends(sample, np.searchsorted(sample.values, middle, 'right'))


def _with_ends(sample: Sample, inner: np.ndarray) -> np.ndarray:
  return np.concatenate([[0], inner, [sample.values.size]])


def cluster_means(
  sample: Sample, cuts: np.ndarray, empty: np.ndarray
) -> np.ndarray:
  """Returns the means of clusters, and the values `empty` where one is empty.

  Args:
    sample: the points, from `sort_sample`.
    cuts: int64 [k + 1], where each cluster begins, and the end.
    empty: float64 [k], the mean to give an empty cluster.

  Returns:
    float64 [k].
  """
  mass = np.diff(sample.mass[cuts])
  first = np.diff(sample.first[cuts])
  return np.where(mass > 0, first / np.where(mass > 0, mass, 1), empty)


def lower_envelope(
  centroids: np.ndarray, penalties: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
  """Who wins where: the lower envelope of (w − c_k)² + penalty_k.

  The parabolas are equally curved, so two of them cross once and each winner's
  weights are an interval.

  Args:
    centroids: float64 [k], c, in any order.
    penalties: float64 [k], added to squared errors, such as λ · bits.

  Returns:
    The indices of the winners, by ascending centroid, and the thresholds
    between them, one fewer.

  >>> lower_envelope(np.array([0.0, 1.0, 2.0]), np.array([0.0, 9.0, 1.0]))
  (array([0, 2]), array([1.25]))
  """
  order = np.lexsort((penalties, centroids))
  active: list[int] = []
  thresholds: list[float] = []
  for k in order:
    cross = np.inf
    while active:
      i = active[-1]
      gap = centroids[k] - centroids[i]
      cross = np.inf
      if gap != 0:
        middle = (centroids[k] + centroids[i]) / 2
        cross = middle + (penalties[k] - penalties[i]) / (2 * gap)
      if len(active) == 1 or cross > thresholds[-1]:
        break
      active.pop()
      thresholds.pop()
    if not active:
      active.append(int(k))
    elif np.isfinite(cross):
      active.append(int(k))
      thresholds.append(float(cross))
  return np.array(active), np.array(thresholds)


def inertia(sample: Sample, centroids: np.ndarray) -> float:
  """Returns the sum of importance * (value - nearest centroid)².

  >>> float(inertia(sort_sample(np.array([0.0, 1.0])), np.array([0.5])))
  0.5
  """
  cuts = nearest_cuts(sample, centroids)
  return squared_error(sample, cuts, centroids)


def squared_error(
  sample: Sample, cuts: np.ndarray, centroids: np.ndarray
) -> float:
  """Returns the sum of importance * (value - centroid of its run)²."""
  mass, first, second = (np.diff(sums[cuts]) for sums in sample[1:])
  terms = second - 2 * centroids * first + centroids**2 * mass
  return float(np.maximum(terms, 0).sum())


def exact_kmeans(*, resolution: int = 2**15) -> Solver:
  """Returns the solver that finds the least inertia, by dynamic programming.

  D_t(i) = min_j D_{t-1}(j) + inertia of points j … i - 1, whose minimizing j
  does not decrease with i: divide and conquer makes a layer O(m log m)
  (Grønlund et al. 2017, arXiv 1701.07204).

  Args:
    resolution: with more distinct values than this, clusters may begin only at
      so many places, spread over counts and over values. Inertias stay exact.

  Raises:
    ValueError: `resolution` is not positive.

  >>> exact_kmeans()(sort_sample(np.array([0.0, 0.1, 0.9, 1.0, 9.0])), 3)
  array([0.05, 0.95, 9.  ])
  """
  if resolution < 1:
    raise ValueError(f'resolution={resolution} must be positive')

  def solve(sample: Sample, clusters: int) -> np.ndarray:
    places = _candidate_cuts(sample, resolution)
    mass, first, second = (sums[places] for sums in sample[1:])

    def cost(begin: np.ndarray, end: np.ndarray) -> np.ndarray:
      weight = mass[end] - mass[begin]
      total = first[end] - first[begin]
      return second[end] - second[begin] - total * total / weight

    cuts = _best_cuts(cost, places.size - 1, clusters)
    return cluster_means(sample, places[cuts], np.zeros(cuts.size - 1))

  return solve


def _candidate_cuts(sample: Sample, resolution: int) -> np.ndarray:
  values = sample.values
  inner = np.flatnonzero(values[1:] != values[:-1]) + 1
  if inner.size >= resolution:
    half = resolution // 2
    by_count = inner[
      np.linspace(0, inner.size - 1, resolution - half, dtype=int)
    ]
    grid = np.linspace(values[0], values[-1], half + 2)[1:-1]
    by_value = np.searchsorted(values, grid)
    inner = np.unique(np.concatenate([by_count, by_value]))
    inner = inner[(inner > 0) & (inner < values.size)]
  return _with_ends(sample, inner)


def _best_cuts(
  cost: Callable[[np.ndarray, np.ndarray], np.ndarray],
  points: int,
  clusters: int,
) -> np.ndarray:
  """Returns the begin of each best cluster, and the end: int [clusters + 1]."""
  clusters = min(clusters, points)
  ends = np.arange(1, points + 1)
  best = np.full(points + 1, np.inf)
  best[1:] = cost(np.zeros_like(ends), ends)
  choices = []
  for layer in range(2, clusters + 1):
    best, choice = _layer(cost, best, layer)
    choices.append(choice)
  cuts = [points]
  for choice in reversed(choices):
    cuts.append(int(choice[cuts[-1]]))
  return np.array([0, *reversed(cuts)])


def _layer(
  cost: Callable[[np.ndarray, np.ndarray], np.ndarray],
  before: np.ndarray,
  layer: int,
) -> tuple[np.ndarray, np.ndarray]:
  """One layer of the program: all ends, coarse to fine, between neighbors.

  The best begin for an end lies between those of the ends to its left and
  right, which coarser strides have found.
  """
  points = before.size - 1
  best = np.full(points + 1, np.inf)
  choice = np.full(points + 1, layer - 1)
  count = points + 1 - layer
  stride = 1 << (count.bit_length() - 1)
  while stride:
    steps = np.arange(stride - 1, count, 2 * stride)
    ends = steps + layer
    low = np.where(steps >= stride, choice[ends - stride], layer - 1)
    above = steps + stride < count
    high = np.where(
      above, choice[np.where(above, ends + stride, layer)], points - 1
    )
    high = np.minimum(high, ends - 1)
    best[ends], choice[ends] = _ragged_argmin(cost, before, ends, low, high)
    stride //= 2
  return best, choice


def _ragged_argmin(
  cost: Callable[[np.ndarray, np.ndarray], np.ndarray],
  before: np.ndarray,
  ends: np.ndarray,
  low: np.ndarray,
  high: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
  """Least `before[j] + cost(j, end)` over low <= j <= high, for each end."""
  if not ends.size:
    return np.empty(0), np.empty(0, int)
  lengths = high - low + 1
  starts = np.cumsum(lengths) - lengths
  rows = np.repeat(np.arange(ends.size), lengths)
  begins = np.arange(lengths.sum()) - starts[rows] + low[rows]
  totals = before[begins] + cost(begins, ends[rows])
  least = np.minimum.reduceat(totals, starts)
  hits = np.flatnonzero(totals == least[rows])
  first = np.searchsorted(rows[hits], np.arange(ends.size))
  return least, begins[hits[first]]
