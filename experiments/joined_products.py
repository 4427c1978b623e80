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
from typing import Any

import jax
import jax.numpy as jnp

from bandwidth import inference, tree

_ALONE = (inference.SparseMatrix, inference.UniformMatrix)


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
    group: name of that layer.
    begin: first output of this one.
    end: one more than its last.
  """

  whole: Any
  group: str
  begin: int
  end: int


def join_kernels(params: Any, reads: Sequence[tuple[str, Any]]) -> Any:
  """Joins the kernels of layers that read the same activations.

  Args:
    params: nested dictionaries with matrices.
    reads: names of layers and what each reads, in the order of their calls.

  Returns:
    Parameters in which such kernels are `Part`s: arrays, and codebooks of as
    many bits that divide their inputs alike. Others are as they were.
  """
  leaves = jax.tree_util.tree_leaves_with_path(
    params, is_leaf=inference.is_matrix
  )
  named = {tree.path_name(path): leaf for path, leaf in leaves}
  calls = Counter(name for name, _ in reads)
  groups: dict[tuple[Any, ...], list[str]] = {}
  for name, x in reads:
    kernel = named.get(f'{name}/kernel')
    # A layer that is called twice has no one input.
    if kernel is not None and calls[name] == 1:
      groups.setdefault((id(x), *_kind(kernel)), []).append(name)
  for names in groups.values():
    first = named[f'{names[0]}/kernel']
    if len(names) > 1 and not isinstance(first, _ALONE):
      matrices = [named[f'{name}/kernel'] for name in names]
      whole: Any = _beside(matrices)
      begin = 0
      for name, matrix in zip(names, matrices, strict=True):
        end = begin + matrix.shape[1]
        named[f'{name}/kernel'] = Part(
          whole=whole, group=names[0], begin=begin, end=end
        )
        whole, begin = None, end
  return tree.nested(named.items())


def _kind(kernel: Any) -> tuple[Any, ...]:
  """What kernels that are joined have in common."""
  if isinstance(kernel, inference.CodebookMatrix):
    return kernel.bits, kernel.codebook.shape[1]
  return (
    type(kernel).__name__,
    str(getattr(kernel, 'dtype', '')),
    kernel.shape[0],
  )


def _beside(matrices: Sequence[Any]) -> Any:
  """One matrix with the outputs of several."""
  first = matrices[0]
  if not isinstance(first, inference.CodebookMatrix):
    return jnp.concatenate([jnp.asarray(m) for m in matrices], axis=1)
  sizes = [m.shape[1] // m.codebook.shape[0] for m in matrices]
  group = math.gcd(*sizes)
  books = [
    jnp.repeat(jnp.asarray(m.codebook), size // group, axis=0)
    for m, size in zip(matrices, sizes, strict=True)
  ]
  return inference.CodebookMatrix(
    codes=jnp.concatenate([jnp.asarray(m.codes) for m in matrices]),
    codebook=jnp.concatenate(books),
    shape=(first.shape[0], sum(m.shape[1] for m in matrices)),
    bits=first.bits,
  )
