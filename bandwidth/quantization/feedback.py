r"""Quantizes a matrix column by column, later columns making up for earlier.

The output error of a layer with inputs x is not :math:`|E|^2` but

.. math:: \operatorname{tr}(E H E'), \quad H = \mathbb{E}[x x'].

With :math:`H^{-1} = U' U`, U upper triangular, rounding column j by
:math:`e_j` and subtracting :math:`e_j U_{jk} / U_{jj}` from each later column k
leaves

.. math:: \sum_j d_j |e_j|^2, \quad d_j = 1 / U_{jj}^2

(Frantar et al., GPTQ, arXiv 2210.17323). Steps in proportion to :math:`U_{jj}`
then make all columns cost alike, which is what an entropy coder wants.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from bandwidth.quantization.uniform import UniformLevels

_DAMPING = 0.01
_BLOCK = 64
_HIGHEST = 1023
# Sums in float32 are symmetric to less.
_ASYMMETRY = 1e-3


class Sensitivity(NamedTuple):
  """What an error E of a matrix costs: Σ_i rows_i · E_i H E_iᵀ.

  Attributes:
    hessian: H, float [columns, columns], symmetric and positive semidefinite:
      the mean of x xᵀ over inputs x of the layer.
    rows: float [rows], positive: what an error of each output counts.
    by_row: whether each row has its own step, or each column.
  """

  hessian: np.ndarray
  rows: np.ndarray
  by_row: bool = False


class RoundingPlan(NamedTuple):
  """What there is to know of a matrix before its scale.

  Attributes:
    order: int [columns]; those that matter most come first, while others can
      still make up for them.
    cost: float64 [columns], d, cost of an error of each column in that order.
    pull: float32 [columns, columns], U_jk / U_jj in that order.
    rows: float [rows], positive: what an error of each output counts.
    level: geometric mean of `rows` by which steps of columns are set.
    by_row: whether each row has its own step, or each column.
  """

  order: np.ndarray
  cost: np.ndarray
  pull: np.ndarray
  rows: np.ndarray
  level: float
  by_row: bool

  def of_rows(self, picked: np.ndarray) -> 'RoundingPlan':
    """Returns the plan of some rows, whose steps are those of the whole."""
    return self._replace(rows=self.rows[picked])


def make_rounding_plan(sensitivity: Sensitivity) -> RoundingPlan:
  """Factorizes the Hessian of a matrix, on the host in float64.

  A hundredth of the mean of its diagonal is added to it, so that no direction
  of weights is free.

  Args:
    sensitivity: what an error of the matrix costs.

  Raises:
    ValueError: the Hessian is not square, finite, symmetric or positive
      semidefinite, or rows are not positive.
  """
  hessian = np.asarray(sensitivity.hessian, np.float64)
  rows = np.asarray(sensitivity.rows)
  _check_sensitivity(hessian, rows)
  hessian = damped(hessian)
  order = np.argsort(-np.diag(hessian), kind='stable')
  try:
    inverse = np.linalg.inv(hessian[np.ix_(order, order)])
    upper = np.linalg.cholesky((inverse + inverse.T) / 2).T
  except np.linalg.LinAlgError:
    raise ValueError('hessian is not positive semidefinite') from None
  diagonal = np.diag(upper)
  return RoundingPlan(
    order=order,
    cost=1 / diagonal**2,
    pull=(upper / diagonal[:, None]).astype(np.float32),
    rows=rows,
    level=float(np.exp(np.log(rows).mean())),
    by_row=sensitivity.by_row,
  )


def _check_sensitivity(hessian: np.ndarray, rows: np.ndarray) -> None:
  if hessian.ndim != 2 or len(hessian) != hessian.shape[1]:
    raise ValueError(f'hessian.shape={hessian.shape} is not square')
  if not np.isfinite(hessian).all():
    raise ValueError('hessian must be finite')
  largest = np.abs(hessian).max(initial=0)
  if np.abs(hessian - hessian.T).max(initial=0) > _ASYMMETRY * largest:
    raise ValueError('hessian is not symmetric')
  if rows.ndim != 1 or not ((rows > 0) & (rows < np.inf)).all():
    raise ValueError('rows must be positive and finite, along one axis')


def damped(hessian: np.ndarray) -> np.ndarray:
  """Returns a Hessian that no direction of weights is free in."""
  columns = len(hessian)
  damping = _DAMPING * np.trace(hessian) / columns
  return hessian + np.eye(columns) * max(damping, 1e-30)


def quantize_with_feedback(
  weights: np.ndarray, plan: RoundingPlan, *, scale: float, price: float
) -> UniformLevels:
  r"""Quantizes a matrix so that its cost plus a price of its bits is small.

  .. math:: \min_L \sum_i r_i E_i H E_i' + \lambda \, \mathrm{bits}(L),
    \quad E = W - L \Delta

  It goes over the matrix twice: with the bits that levels take after the first
  time, the second chooses among the neighbors of a weight and zero.

  Args:
    weights: W, float [rows, columns]: a row for each output of a layer.
    plan: plan of this matrix, from `make_rounding_plan`.
    scale: factor of all steps, positive, the same for all matrices of a
      network.
    price: λ / scale², not negative; 0 is GPTQ with steps of these columns.

  Returns:
    Levels, int32, with a step for each row or each column (axis 0 or 1). Steps
    are powers of √2 in eight bits of mantissa, so that they take next to
    nothing in a file.

  Raises:
    ValueError: shapes disagree, a weight is not finite, or a number is out of
      range.

  Source: Frantar et al., GPTQ, arXiv 2210.17323, algorithm 1; the price is of
  Lagrangian rate-distortion optimization.

  The second weight makes up for the first, whose input is nearly the same:

  >>> hessian = np.array([[2.0, 1.9], [1.9, 2.0]])
  >>> plan = make_rounding_plan(Sensitivity(hessian, np.ones(1)))
  >>> weights = np.float32([[0.7, 1.2]])
  >>> found = quantize_with_feedback(weights, plan, scale=1.0, price=0.0)
  >>> found.levels, found.decode().round(2)
  (array([[0, 3]], dtype=int32), array([[0.  , 2.12]], dtype=float32))
  """
  weights = np.asarray(weights)
  if weights.shape != (plan.rows.size, plan.cost.size):
    raise ValueError(
      f'weights.shape={weights.shape} must be '
      f'{(plan.rows.size, plan.cost.size)}'
    )
  if not np.isfinite(weights).all():
    raise ValueError('weights must be finite')
  if not 0 < scale < np.inf:
    raise ValueError(f'scale={scale} must be finite and positive')
  if not 0 <= price < np.inf:
    raise ValueError(f'price={price} must be finite and not negative')
  size = np.abs(weights)
  if plan.by_row:
    shared = float(np.exp(np.log(plan.cost).mean()))
    steps = _steps(scale / np.sqrt(plan.rows * shared), size.max(1))[:, None]
  else:
    largest = size.max(0)[plan.order]
    steps = _steps(scale / np.sqrt(plan.level * plan.cost), largest)[None]
  ratio = plan.rows[:, None] * plan.cost[None] * (steps / scale) ** 2
  ordered = weights[:, plan.order].astype(np.float32)
  ratio = ratio.astype(np.float32)
  levels = _sweep(ordered, steps, plan.pull, ratio, None)
  levels = _sweep(ordered, steps, plan.pull, ratio, price * _bits(levels))
  back = np.argsort(plan.order)
  return UniformLevels(
    levels=levels[:, back].astype(np.int32),
    step=steps[:, 0] if plan.by_row else steps[0, back],
    axis=0 if plan.by_row else 1,
  )


def _steps(steps: np.ndarray, largest: np.ndarray) -> np.ndarray:
  """Rounds steps; those of which too many would be needed are made larger."""
  # What earlier columns leave to a weight may be larger than it was.
  steps = np.maximum(steps, np.maximum(largest / (_HIGHEST / 4), 1e-30))
  exponent, half = np.divmod(np.rint(2 * np.log2(steps)), 2)
  return np.where(half > 0, 1.4140625, 1.0).astype(np.float32) * np.exp2(
    exponent
  ).astype(np.float32)


def _bits(levels: np.ndarray) -> np.ndarray:
  """Bits of the levels from -1023 to 1023."""
  codes = (levels + _HIGHEST).astype(np.int64)
  counts = np.bincount(codes.ravel(), minlength=2 * _HIGHEST + 1) + 0.3
  return (-np.log2(counts / counts.sum())).astype(np.float32)


def _sweep(
  weights: np.ndarray,
  steps: np.ndarray,
  pull: np.ndarray,
  ratio: np.ndarray,
  penalty: np.ndarray | None,
) -> np.ndarray:
  """One pass over the columns.

  Args:
    weights: float32 [rows, columns], in the order of the plan.
    steps: float32 [rows, 1] or [1, columns], the steps of the levels.
    pull: [columns, columns], what an error of a column does to later ones.
    ratio: [rows, columns], cost of an error of one step.
    penalty: cost of the bits of each level. None: bits cost nothing.

  Returns:
    Levels, float32 [rows, columns].
  """
  steps = np.broadcast_to(steps, weights.shape)
  levels = np.empty_like(weights)

  def round_column(j: int, left: np.ndarray) -> np.ndarray:
    levels[:, j] = _choose(left / steps[:, j], ratio[:, j], penalty)
    return levels[:, j] * steps[:, j]

  feed_back(weights, pull, round_column)
  return levels


def feed_back(
  weights: np.ndarray,
  pull: np.ndarray,
  round_column: Callable[[int, np.ndarray], np.ndarray],
) -> None:
  """Rounds column by column, in blocks, as matrix products are fast.

  Args:
    weights: float32 [rows, columns], in the order of the plan.
    pull: float32 [columns, columns], `RoundingPlan.pull`.
    round_column: (column, what it should be by then [rows]) -> what it is.
  """
  left = weights.copy()
  columns = weights.shape[1]
  for begin in range(0, columns, _BLOCK):
    end = min(begin + _BLOCK, columns)
    errors = np.empty((weights.shape[0], end - begin), np.float32)
    for j in range(begin, end):
      errors[:, j - begin] = left[:, j] - round_column(j, left[:, j])
      left[:, j + 1 : end] -= np.outer(
        errors[:, j - begin], pull[j, j + 1 : end]
      )
    left[:, end:] -= errors @ pull[begin:end, end:]


def _choose(
  value: np.ndarray, ratio: np.ndarray, penalty: np.ndarray | None
) -> np.ndarray:
  """The cheapest of zero, the two levels around a value and one below."""
  if penalty is None:
    return np.clip(np.rint(value), -_HIGHEST, _HIGHEST)
  sign = np.sign(value)
  inner = np.clip(np.trunc(value), 1 - _HIGHEST, _HIGHEST - 1)
  closer = inner - sign * (inner != 0)
  tried = np.stack([np.zeros_like(value), closer, inner, inner + sign])
  cost = ratio * np.square(value - tried)
  cost += penalty[(tried + _HIGHEST).astype(np.int64)]
  return np.take_along_axis(tried, cost.argmin(axis=0)[None], axis=0)[0]
