"""Factors and solves matrices, on a CPU one after another.

XLA:CPU divides a batch of matrices that LAPACK works on among the threads of
its pool, and the thread that does so sleeps until the others are done. Where
as many calls as there are threads do so at a time, none is left to do the
work, and the program never ends: with two cores, two calls that do not depend
on each other are enough. A call with one matrix does the work itself.
So `jax.vmap` of the functions here, which `jax.lax.map` with a `batch_size` is
too, becomes a loop on a CPU; elsewhere a batch stays one. Forward derivatives
alone pass through them.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.custom_batching import custom_vmap
from jax.scipy.linalg import solve_triangular


def _one_by_one(function: Callable[..., Any]) -> Callable[..., Any]:
  """Maps a function in a loop, where the program is one of a CPU."""
  mapped = custom_vmap(function)

  @mapped.def_vmap
  def rule(size: int, batched: list[bool], *arrays: jax.Array) -> Any:
    axes = [0 if each else None for each in batched]

    def in_turn(*arrays: jax.Array) -> Any:
      def of(i: jax.Array) -> Any:
        pairs = zip(arrays, batched, strict=True)
        # Those of NumPy cannot be indexed by what is traced.
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
    matrix: A, float32 [n, n], symmetric. NaN comes out where it is not positive
      definite.

  Raises:
    ValueError: it is no matrix.

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
    lower: L, float32 [n, n]; what is above the diagonal is not read.
    right: b, float32 [n, m].
    transposed: whether L' x = b is solved instead.

  Raises:
    ValueError: one of them is no matrix.

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
    matrix: float32 [n, n]; the mean of it and its transpose counts.

  Raises:
    ValueError: it is no matrix.

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
