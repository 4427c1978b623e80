r"""Shares the weights of a matrix, codes and codebooks in turns.

Codes of a few bits run faster than entropy-coded levels, and a codebook for
each row makes up for much of what the fixed number of levels costs. Codes are
chosen column by column, later columns making up for earlier (`feedback`). With
codes given, the cost of a row w is a quadratic function of its codebook c,

.. math:: (w - c P') H (w - c P')', \quad P_{jk} = [\mathrm{code}_j = k],

so that the best codebook solves :math:`P' H P c' = P' H w'`. Each turn of both
lowers the cost a little more.
"""

import numpy as np

from bandwidth.quantization import kmeans
from bandwidth.quantization.codebook import Codebook, Sharing, fit_codebook
from bandwidth.quantization.feedback import (
  RoundingPlan,
  Sensitivity,
  damped,
  feed_back,
  make_rounding_plan,
)

# Rows whose codebooks are solved for at a time.
_ROWS = 48
# Keeps an entry that hardly matters where it was, and the equations solvable.
_INERTIA = 1e-4


def share_with_feedback(
  weights: np.ndarray,
  sensitivity: Sensitivity,
  *,
  entries: int = 16,
  together: int = 1,
  rounds: int = 8,
  largest: int | None = None,
) -> Codebook:
  """Shares the weights of rows so that the matrix costs little.

  Args:
    weights: float [rows, columns]: a row for each output of a layer.
    sensitivity: what errors of the matrix cost; its `rows` weigh rows that
      share a codebook.
    entries: number of entries of a codebook, at most 256.
    together: neighboring rows that share a codebook; it divides the rows.
    rounds: turns; the best one of each codebook is kept.
    largest: codebooks are integers up to this, which one of them reaches, times
      a scale of their own, as products of integers have them
      (`inference.rounding`). Rounded later they cost far more. None: any.

  Returns:
    Codes, with centroids of each group of rows: float32 [rows / together,
    entries] along axis 0. Zero is not reserved.

  Raises:
    ValueError: shapes disagree, a weight is not finite, or a number is out of
      range.

  Source: the codes are of GPTQ (Frantar et al., arXiv 2210.17323), the
  centroids a weighted least-squares fit.

  >>> hessian = np.array([[2.0, 1.0], [1.0, 2.0]])
  >>> weights = np.float32([[0.5, -1.0], [3.0, 3.0]])
  >>> found = share_with_feedback(
  ...   weights, Sensitivity(hessian, np.ones(2)), entries=2
  ... )
  >>> found.codes.tolist(), found.centroids.round(3)
  ([[1, 0], [0, 0]], array([[-1. ,  0.5],
         [ 3. ,  0. ]], dtype=float32))
  """
  weights = np.asarray(weights)
  plan = make_rounding_plan(sensitivity)
  _check(weights, plan, entries, together)
  if rounds < 1:
    raise ValueError(f'rounds={rounds} is not positive')
  if largest is not None and largest < 1:
    raise ValueError(f'largest={largest} is not positive')
  ordered = np.asarray(weights, np.float32)[:, plan.order]
  hessian = damped(np.asarray(sensitivity.hessian, np.float64))
  hessian = hessian[np.ix_(plan.order, plan.order)].astype(np.float32)
  share = plan.rows if together > 1 else np.ones(len(weights))
  importance = share[:, None] * np.sqrt(plan.cost / plan.cost.mean())
  books = _first_books(ordered, importance, entries, together)
  least = np.full(len(books), np.inf)
  best_books, best_codes = books, np.zeros(ordered.shape, np.uint8)
  for _ in range(rounds):
    codes = _codes(ordered, np.repeat(books, together, axis=0), plan.pull)
    books, cost = _solve_books(ordered, codes, books, hessian, share, largest)
    better = cost < least
    least = np.where(better, cost, least)
    best_books = np.where(better[:, None], books, best_books)
    of_row = np.repeat(better, together)[:, None]
    best_codes = np.where(of_row, codes, best_codes)
    books = np.sort(books, axis=1)
  back = np.argsort(plan.order)
  return Codebook(
    codes=best_codes[:, back],
    centroids=best_books.astype(np.float32),
    axis=0,
    reserves_zero=False,
  )


def _check(
  weights: np.ndarray, plan: RoundingPlan, entries: int, together: int
) -> None:
  """Raises ValueError where a matrix is not shared so."""
  wanted = (plan.rows.size, plan.cost.size)
  if weights.shape != wanted:
    raise ValueError(f'weights.shape={weights.shape} must be {wanted}')
  if not 1 <= entries <= 256:
    raise ValueError(f'entries={entries} is not in 1 to 256')
  if together < 1 or len(weights) % together:
    raise ValueError(f'together={together} does not divide {len(weights)} rows')


def _first_books(
  ordered: np.ndarray, importance: np.ndarray, entries: int, together: int
) -> np.ndarray:
  """Codebooks without regard to what columns have to do with each other."""
  groups = len(ordered) // together
  found = fit_codebook(
    ordered.reshape(groups, -1),
    Sharing(entries=entries, axis=0, reserve_zero=False),
    importance=importance.astype(np.float32).reshape(groups, -1),
    solver=kmeans.lloyd(init=_between),
  ).centroids
  # Entries that no weight needs repeat the last.
  missing = entries - found.shape[1]
  return np.pad(found, ((0, 0), (0, missing)), mode='edge')


def _between(sample: kmeans.Sample, clusters: int) -> np.ndarray:
  """Starts halfway: evenly spread misses the middle, by density the ends."""
  even = kmeans.linear_init(sample, clusters)
  return (even + kmeans.density_init(sample, clusters)) / 2


def _codes(
  ordered: np.ndarray, books: np.ndarray, pull: np.ndarray
) -> np.ndarray:
  """Codes of the nearest entries, uint8 [rows, columns].

  Args:
    ordered: weights, in the order of the plan.
    books: [rows, entries], the codebook of each row, ascending.
    pull: float32 [columns, columns], `RoundingPlan.pull`.
  """
  middles = (books[:, 1:] + books[:, :-1]) / 2
  codes = np.empty(ordered.shape, np.uint8)
  rows = np.arange(len(ordered))

  def round_column(j: int, left: np.ndarray) -> np.ndarray:
    codes[:, j] = np.count_nonzero(left[:, None] > middles, axis=1)
    return books[rows, codes[:, j]]

  feed_back(ordered, pull, round_column)
  return codes


def _solve_books(
  ordered: np.ndarray,
  codes: np.ndarray,
  books: np.ndarray,
  hessian: np.ndarray,
  share: np.ndarray,
  largest: int | None,
) -> tuple[np.ndarray, np.ndarray]:
  """Returns the best codebooks of codes, and what each group costs."""
  groups, entries = books.shape
  together = len(ordered) // groups
  step = max(_ROWS // together, 1)
  solved, cost = np.empty_like(books), np.empty(groups)
  for begin in range(0, groups, step):
    own = slice(begin, begin + step)
    rows = slice(begin * together, (begin + step) * together)
    w, weight = ordered[rows], share[rows]
    picks = (codes[rows, :, None] == np.arange(entries)).astype(np.float32)
    # [columns, rows, entries]: one product for all rows.
    felt = hessian @ picks.transpose(1, 0, 2).reshape(len(hessian), -1)
    felt = felt.reshape(len(hessian), len(w), entries).transpose(1, 2, 0)
    left = np.matmul(felt, picks).astype(np.float64)
    right = np.matmul(felt, w[..., None])[..., 0].astype(np.float64)
    left = (left * weight[:, None, None]).reshape(
      -1, together, entries, entries
    ).sum(axis=1)  # fmt: skip
    right = (right * weight[:, None]).reshape(-1, together, entries).sum(axis=1)
    inertia = _INERTIA * np.trace(left, axis1=1, axis2=2)[:, None] / entries
    left += inertia[..., None] * np.eye(entries)
    right += inertia * books[own]
    best = np.linalg.solve(left, right[..., None])[..., 0]
    # An entry that no weight uses may be anything; 0 widens no scale.
    used = picks.sum(axis=1).reshape(-1, together, entries).any(axis=1)
    best = np.where(used, best, 0.0)
    solved[own] = best if largest is None else _as_integers(best, left, largest)
    spread = np.repeat(solved[own], together, axis=0)
    error = w - np.take_along_axis(spread, codes[rows].astype(np.int64), axis=1)
    each = np.einsum('rc,rc->r', error @ hessian, error) * weight
    cost[own] = each.reshape(-1, together).sum(axis=1)
  return solved, cost


def _as_integers(
  books: np.ndarray, curvature: np.ndarray, largest: int
) -> np.ndarray:
  """Rounds codebooks to integers of a scale, entry by entry with feedback.

  Args:
    books: [groups, entries], entries of least cost.
    curvature: [groups, entries, entries], second derivatives of the cost.
    largest: largest magnitude of the integers, positive.
  """
  # The largest comes first, and is an integer by the choice of the scale.
  order = np.argsort(-np.abs(books), axis=1, kind='stable')
  left = np.take_along_axis(books, order, axis=1)
  ordered = np.take_along_axis(curvature, order[:, :, None], axis=1)
  ordered = np.take_along_axis(ordered, order[:, None], axis=2)
  inverse = np.linalg.inv(ordered)
  pull = np.linalg.cholesky((inverse + inverse.swapaxes(1, 2)) / 2)
  scale = np.maximum(np.abs(left[:, :1]), 1e-30) / largest
  rounded = np.empty_like(left)
  for j in range(left.shape[1]):
    own = np.clip(np.rint(left[:, j : j + 1] / scale), -largest, largest)
    rounded[:, j : j + 1] = own * scale
    error = (left[:, j] - rounded[:, j]) / pull[:, j, j]
    left[:, j + 1 :] -= error[:, None] * pull[:, j + 1 :, j]
  made = np.empty_like(rounded)
  np.put_along_axis(made, order, rounded, axis=1)
  return made
