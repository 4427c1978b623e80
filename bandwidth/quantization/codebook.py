"""k-means weight sharing: a tensor becomes small codes and a short codebook.

Deep Compression (Han, Mao, Dally, ICLR 2016, arXiv 1510.00149), section 3.
Fitting runs on the host, where one sort serves all iterations; `nearest_codes`
and `refine_centroids` are the same in JAX, for use inside a compiled step.
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bandwidth.quantization import kmeans


@dataclasses.dataclass(frozen=True, kw_only=True)
class Codebook:
  """A tensor with shared weights, on the host.

  Invariants, checked on construction: `groups` divides `codes.shape[axis]`,

      centroids.shape == (entries,)             where axis is None
      centroids.shape == (groups, entries)      otherwise
      0 <= codes < entries, all centroids are finite
      centroids[..., 0] == 0                    where zero is reserved

  Attributes:
    codes: uint8 or uint16, in the shape of the weights.
    centroids: float32 [entries] or [groups, entries].
    axis: the axis of the weights along which each index has its own centroids,
      or, where there are fewer groups than indices, each run of as many
      neighbors. None: the tensor has one codebook.
    reserves_zero: code 0 stands for pruned weights and means exactly 0.0.
  """

  codes: np.ndarray
  centroids: np.ndarray
  axis: int | None = None
  reserves_zero: bool = True

  def __post_init__(self):
    codes, centroids = self.codes, self.centroids
    if codes.dtype not in (np.uint8, np.uint16):
      raise ValueError(f'codes.dtype={codes.dtype} must be uint8 or uint16')
    if centroids.dtype != np.float32:
      raise ValueError(f'centroids.dtype={centroids.dtype} must be float32')
    check_axis(self.axis, codes.shape)
    self._check_groups()
    if codes.size and int(codes.max()) >= centroids.shape[-1]:
      raise ValueError(
        f'code {int(codes.max())} is outside {centroids.shape[-1]} entries'
      )
    if not np.isfinite(centroids).all():
      raise ValueError('centroids must be finite')
    if self.reserves_zero and np.any(centroids[..., :1]):
      raise ValueError('centroids[..., 0] must be 0 where zero is reserved')

  def _check_groups(self) -> None:
    shape, wanted = self.centroids.shape, '(entries,)'
    fits = len(shape) == 1
    if self.axis is not None:
      size = self.codes.shape[self.axis]
      wanted = f'(a divisor of {size}, entries)'
      fits = len(shape) == 2 and (
        shape[0] == size or (0 < shape[0] < size and size % shape[0] == 0)
      )
    if not fits:
      raise ValueError(f'centroids.shape={shape} must be {wanted}')

  @property
  def entries(self) -> int:
    """The number of entries of a codebook."""
    return self.centroids.shape[-1]

  def decode(self) -> np.ndarray:
    """Returns the weights, float32.

    >>> codes = np.array([0, 2, 1], np.uint8)
    >>> Codebook(codes=codes, centroids=np.float32([0, 0.5, -1])).decode()
    array([ 0. , -1. ,  0.5], dtype=float32)
    """
    if self.axis is None:
      return self.centroids[self.codes]
    rows, groups = np.moveaxis(self.codes, self.axis, 0), len(self.centroids)
    flat = rows.reshape(groups, rows.size // max(groups, 1))
    values = np.take_along_axis(self.centroids, flat.astype(np.int64), axis=1)
    return np.moveaxis(values.reshape(rows.shape), 0, self.axis)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sharing:
  """How a tensor's weights are shared.

  Attributes:
    entries: codebook entries, the reserved zero included: 2 ** bits, or any
      other number, as an entropy coder does not care. 1 to 65536.
    axis: one codebook for each index of this axis; None: one for the tensor.
    reserve_zero: entry 0 is exactly 0.0 and holds the pruned weights, and only
      those. Without it zeros are clustered like all other values.
  """

  entries: int
  axis: int | None = None
  reserve_zero: bool = True

  def __post_init__(self):
    least = 1 + self.reserve_zero
    if not least <= self.entries <= 2**16:
      raise ValueError(
        f'entries={self.entries} must be between {least} and 65536'
      )


def check_axis(axis: int | None, shape: tuple[int, ...]) -> None:
  """Raises ValueError where `axis` is none of the axes of `shape`."""
  if axis is not None and not -len(shape) <= axis < len(shape):
    raise ValueError(f'axis={axis} is outside shape {shape}')


def code_dtype(entries: int) -> Any:
  """Returns the least unsigned dtype for codes below `entries`."""
  return np.uint8 if entries <= 2**8 else np.uint16


def fit_codebook(
  weights: Any,
  sharing: Sharing,
  *,
  mask: Any = None,
  importance: Any = None,
  solver: kmeans.Solver | None = None,
) -> Codebook:
  """Shares the weights of a tensor: argmin_C Σ_i Σ_{w in c_i} |w − c_i|².

  Entries that no weight uses are dropped, so that with fewer distinct weights
  than entries the codebook is exact and short. With an axis, all codebooks are
  as long as the longest; the others repeat their last entry.

  Args:
    weights: float array of any shape and float dtype, on host or device.
    sharing: the number of entries, the axis, and whether zero is reserved.
    mask: bool, in the shape of `weights` or a scalar; True survives. None: what
      is not zero. Only where zero is reserved.
    importance: positive float, in the shape of `weights`: the weight of each
      squared error, for example a diagonal of the Fisher matrix. None: all 1.
    solver: `kmeans.lloyd(init=..., iterations=...)`, which is the default, or
      `kmeans.exact_kmeans()`.

  Returns:
    The codes, in the shape of `weights`, and float32 centroids, ascending after
    the reserved zero.

  Raises:
    ValueError: a weight is not finite; shapes disagree; a mask without a
      reserved zero.

  Source: arXiv 1510.00149, equation 2.

  >>> weights = np.float32([[0.0, 0.9, 1.1], [-2.0, 0.0, 1.0]])
  >>> shared = fit_codebook(weights, Sharing(entries=4))
  >>> shared.centroids, shared.codes.tolist()
  (array([ 0.  , -2.  ,  0.95,  1.1 ], dtype=float32), [[0, 2, 3], [1, 0, 2]])
  """
  solver = solver or kmeans.lloyd()
  rows = surviving_rows(weights, sharing, mask, importance)
  tables = []
  for row in rows:
    if row.values.size == 0:
      tables.append(np.empty(0, np.float32))
      continue
    sample = kmeans.sort_sample(row.values, row.importance)
    distinct = distinct_values(sample.values)
    clusters = sharing.entries - sharing.reserve_zero
    if distinct.size <= clusters:
      centroids = distinct
    else:
      centroids = solver(sample, clusters)
      cuts = kmeans.nearest_cuts(sample, centroids)
      centroids = centroids[np.diff(cuts) > 0]
    tables.append(np.unique(centroids.astype(np.float32)))
  thresholds = [(t[1:].astype(np.float64) + t[:-1]) / 2 for t in tables]
  return assemble(np.shape(weights), sharing, rows, tables, thresholds)


class Row(NamedTuple):
  """One group of weights: who survives, and the survivors.

  Attributes:
    survives: bool [weights of the group], True where a weight survives.
    values: float32 [survivors], the weights that survive.
    importance: float [survivors], weights of their squared errors. None: all 1.
  """

  survives: np.ndarray
  values: np.ndarray
  importance: np.ndarray | None


def distinct_values(values: np.ndarray) -> np.ndarray:
  """Returns the distinct values of an ascending array, float64."""
  keep = np.ones(values.size, bool)
  keep[1:] = values[1:] != values[:-1]
  return values[keep]


def surviving_rows(
  weights: Any, sharing: Sharing, mask: Any, importance: Any
) -> list[Row]:
  """Checks the arguments of a fit and returns one row for each group.

  Args:
    weights: float array of any shape.
    sharing: gives the axis of the groups, and whether zero is reserved.
    mask: bool, like `weights` or a scalar; None: what is not zero.
    importance: positive float, like `weights` or a scalar; None: all alike.

  Returns:
    The rows, in the order of the axis.

  Raises:
    ValueError: as `fit_codebook`.
  """
  values = np.asarray(weights).astype(np.float32)
  if not np.isfinite(values).all():
    raise ValueError('weights must be finite')
  check_axis(sharing.axis, values.shape)
  if mask is None:
    survives = (
      values != 0 if sharing.reserve_zero else np.ones_like(values, bool)
    )
  else:
    survives = _full(mask, values.shape, 'mask').astype(bool)
    if not sharing.reserve_zero and not survives.all():
      raise ValueError('mask needs Sharing(reserve_zero=True)')
  if importance is not None:
    importance = _full(importance, values.shape, 'importance')
    if not (np.isfinite(importance).all() and (importance > 0).all()):
      raise ValueError('importance must be finite and positive')
  return [
    Row(s, v[s], None if importance is None else i[s])
    for s, v, i in zip(
      _groups(survives, sharing.axis),
      _groups(values, sharing.axis),
      _groups(values if importance is None else importance, sharing.axis),
      strict=True,
    )
  ]


def _full(array: Any, shape: tuple[int, ...], argument: str) -> np.ndarray:
  array = np.asarray(array)
  if array.shape not in (shape, ()):
    raise ValueError(f'{argument}.shape={array.shape} must be {shape} or ()')
  return np.broadcast_to(array, shape)


def _groups(array: np.ndarray, axis: int | None) -> np.ndarray:
  if axis is None:
    return array.reshape(1, -1)
  rows = np.moveaxis(array, axis, 0)
  return rows.reshape(len(rows), rows.size // max(len(rows), 1))


def assemble(
  shape: tuple[int, ...],
  sharing: Sharing,
  rows: list[Row],
  tables: list[np.ndarray],
  thresholds: list[np.ndarray],
) -> Codebook:
  """Codes every group by its thresholds, and pads the tables to one length.

  Args:
    shape: shape of the weights, and so of the codes.
    sharing: gives the axis of the groups, and whether zero is reserved.
    rows: the weights of each group, in the order of the axis.
    tables: ascending float32 centroids of each group, without the zero.
    thresholds: float64, between the centroids of each group.
  """
  offset = int(sharing.reserve_zero)
  entries = max([1, *(table.size + offset for table in tables)])
  codes = [np.zeros(row.survives.size, code_dtype(entries)) for row in rows]
  centroids = np.zeros((len(rows), entries), np.float32)
  for i, (row, table) in enumerate(zip(rows, tables, strict=True)):
    if table.size:
      found = np.searchsorted(thresholds[i], row.values)
      codes[i][row.survives] = found + offset
      centroids[i, offset:] = table[-1]
      centroids[i, offset : offset + table.size] = table
  if sharing.axis is None:
    return Codebook(
      codes=codes[0].reshape(shape),
      centroids=centroids[0],
      reserves_zero=sharing.reserve_zero,
    )
  first = (shape[sharing.axis],)
  rest = tuple(np.delete(shape, sharing.axis))
  stacked = np.array(codes, code_dtype(entries)).reshape(first + rest)
  return Codebook(
    codes=np.ascontiguousarray(np.moveaxis(stacked, 0, sharing.axis)),
    centroids=centroids,
    axis=sharing.axis,
    reserves_zero=sharing.reserve_zero,
  )


def nearest_codes(weights: jax.Array, centroids: jax.Array) -> jax.Array:
  """Returns the index of the nearest centroid. Pure JAX.

  Args:
    weights: float array of any shape and float dtype.
    centroids: float32 [entries], ascending, not empty.

  Returns:
    int32, in the shape of `weights`. Half way between two, the lower wins.

  >>> nearest_codes(jnp.array([0.1, 0.6, 5.0]), jnp.array([0.0, 1.0])).tolist()
  [0, 1, 1]
  """
  middle = (centroids[1:] + centroids[:-1]) / 2
  return jnp.searchsorted(middle, weights.astype(jnp.float32)).astype(jnp.int32)


def refine_centroids(
  weights: jax.Array,
  centroids: jax.Array,
  *,
  iterations: int,
  mask: jax.Array | None = None,
) -> jax.Array:
  """Runs Lloyd's algorithm on the device. Pure JAX, static shapes.

  Means are accumulated in float32, as offsets from the old centroid, so that
  large clusters lose little precision.

  Args:
    weights: float array of any shape and float dtype.
    centroids: float32 [entries], ascending; where to start.
    iterations: number of iterations of Lloyd's algorithm, static.
    mask: bool, in the shape of `weights`; False takes no part. None: all do.

  Returns:
    float32 [entries], ascending. Empty clusters keep their centroid.

  >>> refine_centroids(
  ...   jnp.array([0.0, 0.25, 0.75, 1.0]), jnp.array([0.0, 1.0]), iterations=2
  ... ).tolist()
  [0.125, 0.875]
  """
  values = weights.astype(jnp.float32).ravel()
  ones = jnp.ones_like(values) if mask is None else mask.ravel() * 1.0
  entries = centroids.shape[0]

  def step(_: int, old: jax.Array) -> jax.Array:
    codes = nearest_codes(values, old)
    count = jax.ops.segment_sum(ones, codes, entries)
    offset = jax.ops.segment_sum((values - old[codes]) * ones, codes, entries)
    return old + offset / jnp.maximum(count, 1)

  return jax.lax.fori_loop(0, iterations, step, centroids.astype(jnp.float32))
