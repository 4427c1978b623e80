"""Products of one input, done together: a query, a key and a value are one.

A small product is done in less time than its call takes, and too small for two
threads. Kernels that read the same activations are put beside each other, so
that one call does them all; each layer then takes its part.
"""

import dataclasses
import functools
import math
from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bandwidth import tree
from bandwidth.inference.matrices import (
  CodebookMatrix,
  is_matrix,
)
from bandwidth.inference.networks.layers import rounded
from bandwidth.inference.products import matmul

_TOGETHER = (CodebookMatrix, jax.Array, np.ndarray)


@functools.partial(
  jax.tree_util.register_dataclass,
  data_fields=['whole'],
  meta_fields=['group', 'begin', 'end'],
)
@dataclasses.dataclass(frozen=True, kw_only=True)
class Part:
  """What a layer has of joined kernels.

  Attributes:
    whole: the joined matrix in the layer that is called first, or None.
    group: name of the layer that has the joined matrix.
    begin: index of the first output of this part.
    end: index after the last output of this part.
  """

  whole: Any
  group: str
  begin: int
  end: int


@functools.partial(
  jax.tree_util.register_dataclass,
  data_fields=['leaf'],
  meta_fields=['backend', 'mode'],
)
@dataclasses.dataclass(frozen=True, kw_only=True)
class Codes:
  """A parameter that a layer runs from, as it goes through Flax.

  Who multiplies is part of its type: Flax keeps what `nn.jit` has traced.

  Attributes:
    leaf: a compressed matrix, or a `Part` of one.
    backend: name of the backend, one of `inference.BACKENDS`.
    mode: mode of arithmetic, one of `inference.MODES`.
  """

  leaf: Any
  backend: str
  mode: str


def join_kernels(params: Any, reads: Sequence[tuple[str, Any]]) -> Any:
  """Joins the kernels of layers that read the same activations.

  Args:
    params: nested dictionaries with matrices.
    reads: names of kernels and what each multiplies, in the order of calls.

  Returns:
    Parameters in which such kernels are `Part`s: arrays, and codebooks of as
    many bits that divide their inputs alike. Others are as they were.
  """
  leaves = jax.tree_util.tree_leaves_with_path(params, is_leaf=_is_kernel)
  named = {tree.path_name(path): leaf for path, leaf in leaves}
  calls = Counter(name for name, _ in reads)
  groups: dict[tuple[Any, ...], list[str]] = {}
  for name, x in reads:
    kernel = named.get(name)
    # A layer that is called twice has no one input.
    if isinstance(kernel, _TOGETHER) and calls[name] == 1:
      groups.setdefault((id(x), *_kind(kernel)), []).append(name)
  for names in groups.values():
    if len(names) == 1:
      continue
    matrices = [named[name] for name in names]
    whole: Any = _beside(matrices)
    begin = 0
    for name, matrix in zip(names, matrices, strict=True):
      end = begin + matrix.shape[1]
      named[name] = Part(whole=whole, group=names[0], begin=begin, end=end)
      whole, begin = None, end
  return jax.tree_util.tree_map_with_path(
    lambda path, _: named[tree.path_name(path)], params, is_leaf=_is_kernel
  )


def _is_kernel(leaf: Any) -> bool:
  return is_matrix(leaf) or isinstance(leaf, Part)


def _kind(kernel: CodebookMatrix | jax.Array | np.ndarray) -> tuple[Any, ...]:
  """What kernels that are joined have in common."""
  if isinstance(kernel, CodebookMatrix):
    return kernel.bits, kernel.codebook.shape[1]
  return (
    type(kernel).__name__,
    str(getattr(kernel, 'dtype', '')),
    kernel.shape[0],
  )


def _beside(matrices: Sequence[Any]) -> Any:
  """One matrix with the outputs of several."""
  first = matrices[0]
  if not isinstance(first, CodebookMatrix):
    return jnp.concatenate([jnp.asarray(m) for m in matrices], axis=1)
  sizes = [m.shape[1] // m.codebook.shape[0] for m in matrices]
  group = math.gcd(*sizes)
  books = [
    jnp.repeat(jnp.asarray(m.codebook), size // group, axis=0)
    for m, size in zip(matrices, sizes, strict=True)
  ]
  return CodebookMatrix(
    codes=jnp.concatenate([jnp.asarray(m.codes) for m in matrices]),
    codebook=jnp.concatenate(books),
    shape=(first.shape[0], sum(m.shape[1] for m in matrices)),
    bits=first.bits,
  )


class Products(NamedTuple):
  """Products of one call of a network.

  Attributes:
    reads: names of kernels and what they multiply, in the order of calls.
    joined: by name of the group, what was multiplied, by what, and the product.
  """

  reads: list[tuple[str, Any]]
  joined: dict[str, tuple[Any, Any, jax.Array]]

  def multiply(
    self, name: str, codes: Codes, x: jax.Array, kernel: Any
  ) -> jax.Array:
    """Multiplies by a matrix, or by its `Part` of one.

    Args:
      name: name of the kernel parameter.
      codes: the parameter's backend and mode of arithmetic.
      x: [..., K], of a dtype that weights are rounded to as well.
      kernel: a compressed matrix, or a `Part` of one.

    Raises:
      ValueError: the layer that has the joined matrix was not called before.
    """
    self.reads.append((name, x))

    def times(matrix: Any) -> jax.Array:
      matrix = rounded(matrix, x.dtype)
      return matmul(x, matrix, backend=codes.backend, mode=codes.mode)

    if not isinstance(kernel, Part):
      return times(kernel)
    if kernel.whole is not None:
      self.joined[kernel.group] = x, kernel.whole, times(kernel.whole)
    if kernel.group not in self.joined:
      raise ValueError(
        f'{name} was joined with {kernel.group}, which this call does not '
        'reach before it: join for this call'
      )
    multiplied, whole, y = self.joined[kernel.group]
    if multiplied is not x:
      y = times(whole)
    return y[..., kernel.begin : kernel.end]
