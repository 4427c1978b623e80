"""PowerSGD: gradients of low rank (Vogels et al. 2019, arXiv 1905.13727)."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from bandwidth.base import AxisName, GradientReducer, Params
from bandwidth.collectives.sparsity.memory import mean_over
from bandwidth.collectives.traffic.closed_forms import all_reduce_bytes
from bandwidth.collectives.wire.message import check_floating
from bandwidth.collectives.workers.axes import axis_names, count_workers
from bandwidth.collectives.workers.ordered import axis_size, in_turns

_NEGLIGIBLE = 1e-5


class PowerSGDState(NamedTuple):
  """State of a worker; one array for each matrix that is compressed."""

  residual: tuple[jax.Array, ...]  # float32 [rows, cols]
  q: tuple[jax.Array, ...]  # float32 [cols, rank], the same on all workers


def power_sgd(
  axis_name: AxisName = 'data', *, rank: int = 2, seed: int = 0
) -> GradientReducer:
  """Averages gradients as products of two thin matrices.

  Of each matrix M_p, the gradient of a worker and what it kept, one step of
  subspace iteration is taken from where the last step ended (algorithms 1 and
  2 of Vogels et al. 2019):

    `P = orthogonalize((1/P) sum_p M_p Q);  Q = (1/P) sum_p M_p^T P`

  All workers return `P Q^T`, and keep `M_p - P Q^T`. Averages are sums of
  float32 vectors, of all leaves at once: two all-reduces a step, whose bytes
  don't grow with the number of workers.

  A leaf of shape [..., cols] is a matrix [rows, cols]. Leaves of fewer than two
  dimensions, and those where `rank (rows + cols) >= rows · cols`, travel in
  full with the first message. Where M has a rank below that of Q, columns of Q
  would become zero and stay so; they keep their last value instead.

  A gradient that is not finite comes out as a mean that is not finite, in its
  leaf, on all workers; neither is the state finite then, so go on from the
  state before.

  Args:
    axis_name: mapped axis, or axes, of the workers. None: one worker.
    rank: number of columns of P and Q, positive.
    seed: seed of the first Q, an int; the same on all workers.

  Returns:
    A reducer with the state `PowerSGDState`. `mean_grads` has the dtypes of
    `grads`.

  Raises:
    ValueError: `rank` is not positive; at `reduce`, a gradient is not
      floating-point or an axis not bound.

  >>> reducer = power_sgd(None, rank=1)
  >>> grads = jnp.outer(jnp.arange(3.0), jnp.arange(4.0))
  >>> mean, _ = reducer.reduce(grads, reducer.init(grads))
  >>> bool(jnp.allclose(mean, grads))
  True
  """
  if rank < 1:
    raise ValueError(f'rank={rank} is not positive')
  axes = axis_names(axis_name)

  def init(params: Params) -> PowerSGDState:
    shapes = _matrix_shapes(params, rank)
    return PowerSGDState(
      tuple(jnp.zeros(s, jnp.float32) for s in shapes if s),
      tuple(_first_q(seed, i, s[1], rank) for i, s in enumerate(shapes) if s),
    )

  def reduce(
    grads: Params, state: PowerSGDState, params: Params = None
  ) -> tuple[Params, PowerSGDState]:
    del params
    axis_size(axes)
    check_floating(grads)
    leaves, structure = jax.tree.flatten(grads)
    parts = _Parts.of(leaves, rank)
    matrices = [m + e for m, e in zip(parts.low, state.residual, strict=True)]
    dense, decoded, q = _iterate(axes, parts.dense, matrices, list(state.q))
    residual = [m - d for m, d in zip(matrices, decoded, strict=True)]
    means = _Parts(dense, decoded).leaves(leaves, rank)
    return jax.tree.unflatten(structure, means), PowerSGDState(
      tuple(residual), tuple(q)
    )

  def wire_bytes(params: Params, workers: int | Sequence[int]) -> int:
    sent = 0
    leaves = jax.tree.leaves(params)
    for leaf, shape in zip(leaves, _matrix_shapes(params, rank), strict=True):
      sent += rank * sum(shape) if shape else math.prod(leaf.shape)
    return all_reduce_bytes(4 * sent, count_workers(workers))

  def flush(
    state: PowerSGDState, params: Params
  ) -> tuple[Params, PowerSGDState]:
    leaves, structure = jax.tree.flatten(params)
    dense = [jnp.zeros_like(leaf) for leaf in _Parts.of(leaves, rank).dense]
    mean = mean_over(list(state.residual), axes)
    out = _Parts(dense, mean).leaves(leaves, rank)
    zeros = jax.tree.map(jnp.zeros_like, state.residual)
    return jax.tree.unflatten(structure, out), state._replace(residual=zeros)

  return GradientReducer(init, reduce, wire_bytes, flush)


def _matrix_shapes(params: Params, rank: int) -> list[tuple[int, int] | None]:
  """Rows and columns of each leaf as a matrix; None: it travels in full."""
  return [_matrix_shape(leaf.shape, rank) for leaf in jax.tree.leaves(params)]


def _matrix_shape(shape: tuple[int, ...], rank: int) -> tuple[int, int] | None:
  if len(shape) < 2:
    return None
  rows, cols = math.prod(shape[:-1]), shape[-1]
  return (rows, cols) if rank * (rows + cols) < rows * cols else None


def _first_q(seed: int, leaf: int, cols: int, rank: int) -> jax.Array:
  key = jax.random.fold_in(jax.random.key(seed, impl='threefry2x32'), leaf)
  return jax.random.normal(key, (cols, rank), jnp.float32)


class _Parts(NamedTuple):
  """Leaves that travel in full, and matrices of the others; all float32."""

  dense: list[jax.Array]
  low: list[jax.Array]

  @classmethod
  def of(cls, leaves: list[jax.Array], rank: int) -> '_Parts':
    parts = cls([], [])
    for leaf in leaves:
      shape, leaf = _matrix_shape(leaf.shape, rank), leaf.astype(jnp.float32)
      if shape:
        parts.low.append(leaf.reshape(shape))
      else:
        parts.dense.append(leaf)
    return parts

  def leaves(self, like: list[jax.Array], rank: int) -> list[jax.Array]:
    """Undoes `of`, shapes and dtypes included."""
    dense, low = iter(self.dense), iter(self.low)
    return [
      next(low if _matrix_shape(leaf.shape, rank) else dense)
      .reshape(leaf.shape)
      .astype(leaf.dtype)
      for leaf in like
    ]


_Arrays = list[jax.Array]


def _iterate(
  axes: tuple[str, ...], dense: _Arrays, matrices: _Arrays, q: _Arrays
) -> tuple[_Arrays, _Arrays, _Arrays]:
  """Returns means of `dense`, those of the matrices, and the next Q."""
  thin = in_turns(_times)(matrices, q)
  means = mean_over([*dense, *thin], axes)
  dense, thin = means[: len(dense)], means[len(dense) :]
  p = in_turns(_orthogonalized)(thin)
  new = mean_over(in_turns(_transposed_times)(matrices, p), axes)
  decoded = in_turns(_times_transposed)(p, new)
  kept = [
    jnp.where(jnp.all(a == 0, axis=0, keepdims=True), b, a)
    for a, b in zip(new, q, strict=True)
  ]
  return dense, decoded, kept


def _times(a: _Arrays, b: _Arrays) -> _Arrays:
  return [_matmul(x, y) for x, y in zip(a, b, strict=True)]


def _transposed_times(a: _Arrays, b: _Arrays) -> _Arrays:
  return [_matmul(x.T, y) for x, y in zip(a, b, strict=True)]


def _times_transposed(a: _Arrays, b: _Arrays) -> _Arrays:
  return [_matmul(x, y.T) for x, y in zip(a, b, strict=True)]


def _matmul(a: jax.Array, b: jax.Array) -> jax.Array:
  # In full precision: what is orthogonal has to be so to float32.
  return jnp.matmul(a, b, precision=lax.Precision.HIGHEST)


def _orthogonalized(matrices: _Arrays) -> _Arrays:
  return [orthogonalize(matrix) for matrix in matrices]


def orthogonalize(matrix: jax.Array) -> jax.Array:
  """Makes columns orthonormal, by modified Gram–Schmidt.

  A column that depends on those before it, to 1e-5 of its norm, becomes zero:
  what is left of it is rounding, orthogonal to nothing.

  Args:
    matrix: float32 [rows, rank], whose columns are made orthonormal.

  >>> orthogonalize(jnp.array([[3.0, 3.0], [4.0, 4.0]]))
  Array([[0.6, 0. ],
         [0.8, 0. ]], dtype=float32)
  """
  largest = jnp.max(jnp.abs(matrix), axis=0, initial=0, keepdims=True)
  # Relative to the largest, squares neither overflow nor vanish.
  rest = matrix / jnp.where(largest == 0, 1, largest)
  limits = _NEGLIGIBLE * jnp.sqrt(jnp.sum(rest * rest, axis=0))
  columns = []
  for j in range(matrix.shape[1]):
    norm = jnp.sqrt(jnp.sum(rest[:, 0] ** 2))
    # Written so that NaN stays NaN.
    is_zero = norm <= limits[j]
    unit = jnp.where(is_zero, 0, rest[:, 0] / jnp.where(is_zero, 1, norm))
    columns.append(unit)
    along = _matmul(unit[None, :], rest[:, 1:])
    rest = rest[:, 1:] - unit[:, None] * along
  return jnp.stack(columns, axis=1)
