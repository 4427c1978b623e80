"""Matrix factorizations and solves that run one by one on a CPU.

XLA:CPU splits a batch of LAPACK calls among the threads of its pool, and the
thread that does so sleeps until the others are done. If as many threads do so
at once as there are in the pool, none is left to do the work, and the program
hangs: on two cores, two independent calls are enough. A call with one matrix
does the work itself. Therefore `jax.vmap` of the functions here, and
`jax.lax.map` with a `batch_size`, which uses it, become a loop on a CPU;
elsewhere they run as a batch. Only forward-mode derivatives are supported.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.custom_batching import custom_vmap
from jax.scipy.linalg import solve_triangular


def _one_by_one(function: Callable[..., Any]) -> Callable[..., Any]:
  """Makes `jax.vmap` of a function a loop on CPUs."""
  mapped = custom_vmap(function)

  @mapped.def_vmap
  def rule(size: int, batched: list[bool], *arrays: jax.Array) -> Any:
    axes = [0 if each else None for each in batched]

    def in_turn(*arrays: jax.Array) -> Any:
      def of(i: jax.Array) -> Any:
        pairs = zip(arrays, batched, strict=True)
        # A NumPy array cannot be indexed by a tracer.
        return mapped(*(jnp.asarray(x)[i] if each else x for x, each in pairs))

      return jax.lax.map(of, jnp.arange(size))

    found = jax.lax.platform_dependent(
      *arrays, cpu=in_turn, default=jax.vmap(function, axes)
    )
    return found, jax.tree.map(lambda _: True, found)

  return mapped


_cholesky = _one_by_one(jnp.linalg.cholesky)
_eigh = _one_by_one(functools.partial(jnp.linalg.eigh, symmetrize_input=True))
_solve = {
  transposed: _one_by_one(
    functools.partial(solve_triangular, lower=True, trans=int(transposed))
  )
  for transposed in (False, True)
}


def cholesky(matrix: jax.Array) -> jax.Array:
  """Returns L, lower triangular with A = L L'.

  Args:
    matrix: A, float32 [n, n], symmetric. The result is NaN if it is not
      positive definite.

  Raises:
    ValueError: `matrix` does not have two axes.

  >>> cholesky(jnp.array([[4.0, 2.0], [2.0, 5.0]])).tolist()
  [[2.0, 0.0], [1.0, 2.0]]
  """
  _check('matrix', matrix)
  return _cholesky(matrix)


def solve_lower(
  lower: jax.Array, right: jax.Array, *, transposed: bool = False
) -> jax.Array:
  """Solves L x = b by substitution.

  Args:
    lower: L, float32 [n, n]; entries above the diagonal are not read.
    right: b, float32 [n, m].
    transposed: whether to solve L' x = b instead.

  Raises:
    ValueError: `lower` or `right` does not have two axes.

  >>> lower = jnp.array([[2.0, 0.0], [1.0, 2.0]])
  >>> solve_lower(lower, jnp.array([[4.0], [4.0]])).tolist()
  [[2.0], [1.0]]
  """
  _check('lower', lower)
  _check('right', right)
  return _solve[transposed](lower, right)


def eigh(matrix: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Returns eigenvalues, ascending, and eigenvectors as columns.

  Args:
    matrix: float32 [n, n]; it is symmetrized first, (A + A') / 2.

  Raises:
    ValueError: `matrix` does not have two axes.

  >>> eigh(jnp.array([[2.0, 0.0], [0.0, 1.0]]))[0].tolist()
  [1.0, 2.0]
  """
  _check('matrix', matrix)
  values, vectors = _eigh(matrix)
  return values, vectors


def _check(name: str, array: jax.Array) -> None:
  if array.ndim != 2:
    raise ValueError(
      f'{name}.shape={array.shape} is not that of one matrix; map over several'
    )
