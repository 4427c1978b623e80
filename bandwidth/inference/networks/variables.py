"""Variables of a network, some of which are compressed.

What is said of them is by path: the names of the dictionaries that they are in.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax

from bandwidth.inference.matrices import is_matrix
from bandwidth.inference.networks.joined_products import Part

Path = tuple[str, ...]


class Packed(NamedTuple):
  """A compressed parameter of the caller's.

  Attributes:
    leaf: a compressed matrix, or a `Part` of one.
    matrix: the matrix or array that holds the parameter.
    outputs: outputs of the matrix that belong to the parameter.
  """

  leaf: Any
  matrix: Any
  outputs: slice

  @property
  def shape(self) -> tuple[int, int]:
    """(K, N) of the parameter."""
    inputs, outputs = self.matrix.shape
    return inputs, len(range(*self.outputs.indices(outputs)))


class Given(NamedTuple):
  """Arguments of a call, their arrays apart.

  Attributes:
    arrays: the arrays among the leaves, or their shapes.
    others: the other leaves, None in place of an array.
    structure: tree structure of all arguments.
  """

  arrays: list[Any]
  others: list[Any]
  structure: Any

  @classmethod
  def of(cls, args: Any, options: Mapping[str, Any]) -> 'Given':
    """Takes arguments apart."""
    leaves, structure = jax.tree.flatten((tuple(args), dict(options)))
    arrays = [leaf for leaf in leaves if _is_array(leaf)]
    others = [None if _is_array(leaf) else leaf for leaf in leaves]
    return cls(arrays, others, structure)

  def with_arrays(self, arrays: list[Any]) -> tuple[Any, dict[str, Any]]:
    """Returns positional and named arguments."""
    left = iter(arrays)
    return self.structure.unflatten(
      next(left) if each is None else each for each in self.others
    )


def _is_array(leaf: Any) -> bool:
  return hasattr(leaf, 'shape') and hasattr(leaf, 'dtype')


def signature(call: Any) -> Any:
  """What a plan depends on; None where that can't be told."""
  leaves, structure = jax.tree.flatten(call)
  facts = tuple(
    (leaf.shape, leaf.dtype) if _is_array(leaf) else (type(leaf), leaf)
    for leaf in leaves
  )
  try:
    hash((facts, structure))
  except TypeError:
    return None
  return facts, structure


def _is_packed(leaf: Any) -> bool:
  return is_matrix(leaf) or isinstance(leaf, Part)


def path_of(keys: Any) -> Path:
  """Names of dictionaries; boxes of Flax have no part in it."""
  return tuple(str(each.key) for each in keys if hasattr(each, 'key'))


def split(variables: Any) -> tuple[dict[Path, Packed], dict[Path, Any]]:
  """Compressed parameters, and arrays, by path."""
  found = jax.tree_util.tree_leaves_with_path(variables, is_leaf=_is_packed)
  leaves = {path_of(keys): leaf for keys, leaf in found}
  parts = [leaf for leaf in leaves.values() if isinstance(leaf, Part)]
  wholes = {p.group: p.whole for p in parts if p.whole is not None}
  packed = {}
  for path, leaf in leaves.items():
    if isinstance(leaf, Part):
      outputs = slice(leaf.begin, leaf.end)
      packed[path] = Packed(leaf, wholes[leaf.group], outputs)
    elif is_matrix(leaf):
      packed[path] = Packed(leaf, leaf, slice(None))
  return packed, {p: leaf for p, leaf in leaves.items() if p not in packed}


def replaced(variables: Any, form: Callable[[Path], Any]) -> Any:
  """Variables with something else for compressed parameters, by path."""
  return jax.tree_util.tree_map_with_path(
    lambda keys, leaf: form(path_of(keys)) if _is_packed(leaf) else leaf,
    variables,
    is_leaf=_is_packed,
  )


def without(variables: Any) -> Any:
  """Variables less what is compressed."""
  return {
    name: without(leaf) if isinstance(leaf, Mapping) else leaf
    for name, leaf in variables.items()
    if not _is_packed(leaf)
  }
