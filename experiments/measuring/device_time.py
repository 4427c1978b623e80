"""Seconds of programs: of the host's clock on a CPU, of kernels on a GPU.

A GPU's host takes longer to launch a small product than the GPU to make it, and
a matrix that was just read is still in its cache. There, a program multiplies
by copies of a matrix one after the other, more than the cache holds, and the
time is that of its kernels, as CUPTI records it.
"""

import importlib
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from bandwidth.inference.planning import interleaved

_CACHE = 1 << 28
_MOST_COPIES = 12
_LEAST_SECONDS = 5e-3


class Product(NamedTuple):
  """Something to time.

  Attributes:
    fn: (x, matrix) -> y.
    x: activations.
    matrix: a pytree of arrays.
    options: of the compiler.
  """

  fn: Callable[..., Any]
  x: jax.Array
  matrix: Any
  options: Mapping[str, Any] | None = None

  def compiled(self) -> Any:
    """The program of one product."""
    lowered = jax.jit(self.fn).lower(self.x, self.matrix)
    return lowered.compile(compiler_options=_dict(self.options))


def _dict(options: Mapping[str, Any] | None) -> dict[str, Any] | None:
  return dict(options) if options else None


def seconds_of(products: Sequence[Product], repeats: int) -> list[float]:
  """Returns the median seconds of each product.

  Args:
    products: to time.
    repeats: of which the median counts.
  """
  if jax.default_backend() == 'gpu':
    return [_kernel_seconds(product, repeats) for product in products]
  programs = []
  for product in products:
    run = product.compiled()
    programs.append(lambda run=run, p=product: run(p.x, p.matrix))
  return interleaved(programs, repeats, least_seconds=_LEAST_SECONDS)


def apart(
  programs: Sequence[Callable[[], Any]],
  first: int,
  repeats: int,
  *,
  least_seconds: float,
) -> list[float]:
  """Returns median seconds; programs of other libraries take turns later.

  Their threads wait for more work for a while, as fast as they can, and slow
  down whatever comes after them.

  Args:
    programs: XLA's and ours, then the others.
    first: how many are XLA's and ours.
    repeats: turns.
    least_seconds: of a turn.
  """
  return [
    seconds
    for part in (programs[:first], programs[first:])
    for seconds in interleaved(part, repeats, least_seconds=least_seconds)
  ]


def _kernel_seconds(product: Product, repeats: int) -> float:
  """Seconds of a GPU's kernels for one product."""
  leaves = jax.tree.leaves(product.matrix)
  size = sum(leaf.nbytes for leaf in leaves)
  copies = min(max(-(-_CACHE // size), 2), _MOST_COPIES)
  # Of other values, or one rounding would do for all.
  xs = [product.x * (1 + i / 16) for i in range(copies)]
  xs = [x.astype(product.x.dtype) for x in xs]
  matrices = [
    jax.tree.map(lambda leaf: jnp.array(leaf, copy=True), product.matrix)
    for _ in range(copies)
  ]

  def all_of_them(xs: Any, matrices: Any) -> Any:
    return [product.fn(*pair) for pair in zip(xs, matrices, strict=True)]

  run = (
    jax.jit(all_of_them)
    .lower(xs, matrices)
    .compile(compiler_options=_dict(product.options))
  )
  profiler = importlib.import_module('jax.experimental.mosaic.gpu.profiler')
  measured = profiler.Cupti(finalize=False).measure(run, iterations=repeats)
  _, milliseconds = measured(xs, matrices)
  if repeats == 1:
    milliseconds = [milliseconds]
  return statistics.median(milliseconds) / 1e3 / copies
