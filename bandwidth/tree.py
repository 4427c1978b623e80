"""Parameter names, rules over them, and sizes of trees.

A parameter's name is its path in the tree, joined by slashes: `Conv_0/kernel`,
keys of dictionaries, attributes of dataclasses, indices of sequences and of
nodes that have no names for their parts. `None` and empty containers have no
leaves, hence no names, and stay where they are.

Rules are ordered pairs (regular expression, value); the first expression that
matches the whole name gives the value.
"""

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

import jax
import numpy as np

T = TypeVar('T')


def _key_name(key: Any) -> str:
  for attribute in ('key', 'name', 'idx'):
    if hasattr(key, attribute):
      return str(getattr(key, attribute))
  return str(key)


def path_name(path: Sequence[Any]) -> str:
  """Returns the name of the leaf at a key path of `jax.tree_util`."""
  return '/'.join(_key_name(key) for key in path)


def named_leaves(
  tree: Any, *, is_leaf: Callable[[Any], bool] | None = None
) -> list[tuple[str, Any]]:
  """Returns the leaves with their names, in the order of `jax.tree.leaves`.

  An attribute `value` that is all there is to a node is left out: the kernel of
  an `nnx.State` is 'layer/kernel', as that of a dictionary.

  Args:
    tree: any pytree.
    is_leaf: as that of `jax.tree.leaves`.

  Raises:
    ValueError: two leaves have the same name.

  >>> named_leaves({'Dense_0': {'bias': 1, 'kernel': 2, 'scale': None}})
  [('Dense_0/bias', 1), ('Dense_0/kernel', 2)]
  """
  leaves = jax.tree_util.tree_leaves_with_path(tree, is_leaf=is_leaf)
  paths = [path for path, _ in leaves]
  found = [
    path_name(path[:-1] if _wraps_one_value(paths, i) else path)
    for i, path in enumerate(paths)
  ]
  if len(set(found)) < len(found):
    twice = next(name for name in found if found.count(name) > 1)
    raise ValueError(f'tree: two leaves have the name {twice!r}')
  return [(name, leaf) for name, (_, leaf) in zip(found, leaves, strict=True)]


def _wraps_one_value(paths: list[tuple[Any, ...]], place: int) -> bool:
  """Whether a leaf is the attribute `value`, and nothing lies beside it."""
  path = paths[place]
  if not path or getattr(path[-1], 'name', None) != 'value':
    return False
  beside = paths[max(place - 1, 0) : place] + paths[place + 1 : place + 2]
  return all(other[: len(path) - 1] != path[:-1] for other in beside)


def names(tree: Any) -> list[str]:
  """Returns the names of the leaves, in the order of `jax.tree.leaves`."""
  return [name for name, _ in named_leaves(tree)]


def fill(like: Any, named: Mapping[str, Any]) -> Any:
  """Returns named leaves in the structure of a tree: undoes `named_leaves`.

  Args:
    like: a tree whose leaves have these names; what they are doesn't matter.
    named: leaves by name.

  Raises:
    ValueError: a leaf of `like` has no value, or a value no leaf; all are
      listed.

  >>> fill(({'w': 0}, None), {'0/w': 5})
  ({'w': 5}, None)
  """
  wanted = names(like)
  for kind, missing in (
    ('have no value', set(wanted) - set(named)),
    ('are no leaves of the tree', set(named) - set(wanted)),
  ):
    if missing:
      raise ValueError(f'named: {", ".join(sorted(missing))} {kind}')
  structure = jax.tree.structure(like)
  return jax.tree.unflatten(structure, [named[name] for name in wanted])


def nested(named: Iterable[tuple[str, Any]]) -> dict[str, Any]:
  """Returns named leaves as nested dictionaries, one level a slash.

  Raises:
    ValueError: a name continues, or is the beginning of, another leaf's.

  >>> nested([('Dense_0/bias', 1), ('Dense_0/kernel', 2)])
  {'Dense_0': {'bias': 1, 'kernel': 2}}
  """
  root: dict[str, Any] = {}
  leaves: set[str] = set()
  for name, value in named:
    *parents, leaf = name.split('/')
    node = root
    for depth, parent in enumerate(parents):
      path = '/'.join(parents[: depth + 1])
      if path in leaves:
        raise ValueError(f'{name!r} continues the name of another tensor')
      node = node.setdefault(parent, {})
    if leaf in node:
      raise ValueError(f'{name!r} is also the beginning of other names')
    node[leaf] = value
    leaves.add(name)
  return root


def map_named(
  fn: Callable[..., Any],
  tree: Any,
  *rest: Any,
  is_leaf: Callable[[Any], bool] | None = None,
) -> Any:
  """Maps `fn(name, leaf, *rest_leaves)` over trees of one structure.

  >>> map_named(lambda name, x: f'{name}={x}', {'a': 1, 'b': [2]})
  {'a': 'a=1', 'b': ['b/0=2']}
  """
  structure = jax.tree.structure(tree, is_leaf=is_leaf)
  leaves = zip(
    named_leaves(tree, is_leaf=is_leaf),
    *(structure.flatten_up_to(other) for other in rest),
    strict=True,
  )
  return jax.tree.unflatten(
    structure, [fn(name, leaf, *others) for (name, leaf), *others in leaves]
  )


def match_rules(
  rules: Sequence[tuple[str, T]], tree: Any, *, argument: str = 'rules'
) -> dict[str, T]:
  """Gives every leaf the value of the first rule that matches its whole name.

  Args:
    rules: pairs (regular expression, value), in order of precedence.
    tree: the tree whose leaves are to be covered.
    argument: the caller's name of `rules`, for error messages.

  Returns:
    A dictionary from name to value, in the order of `jax.tree.leaves`.

  Raises:
    ValueError: an expression is malformed, a leaf is matched by no rule, or a
      rule is the first match of no leaf. The message lists them all.

  >>> match_rules([('.*/bias', 32), ('.*', 4)], {'d': {'bias': 0, 'kernel': 0}})
  {'d/bias': 32, 'd/kernel': 4}
  """
  compiled = [_compile(pattern, argument) for pattern, _ in rules]
  matched: dict[str, T] = {}
  uncovered, used = [], set()
  for name in names(tree):
    hits = (i for i, regex in enumerate(compiled) if regex.fullmatch(name))
    index = next(hits, None)
    if index is None:
      uncovered.append(name)
    else:
      used.add(index)
      matched[name] = rules[index][1]
  if uncovered:
    raise ValueError(f'{argument}: no rule matches {", ".join(uncovered)}')
  unused = [rules[i][0] for i in range(len(rules)) if i not in used]
  if unused:
    raise ValueError(
      f'{argument}: first match of no parameter: {", ".join(map(repr, unused))}'
      f'; the parameters are {", ".join(names(tree))}'
    )
  return matched


def _compile(pattern: str, argument: str) -> re.Pattern[str]:
  try:
    return re.compile(pattern)
  except re.error as error:
    raise ValueError(
      f'{argument}: bad expression {pattern!r}: {error}'
    ) from None


def size(tree: Any) -> int:
  """Returns the number of elements. Leaves may be abstract shapes.

  >>> size({'a': np.zeros((3, 4)), 'b': np.zeros(())})
  13
  """
  return sum(math.prod(np.shape(leaf)) for leaf in jax.tree.leaves(tree))


def nbytes(tree: Any) -> int:
  """Returns the bytes of all elements in their dtypes. Leaves may be abstract.

  >>> nbytes([np.zeros(3, np.float32), np.zeros(2, np.int8)])
  14
  """
  return sum(
    math.prod(leaf.shape) * leaf.dtype.itemsize
    for leaf in jax.tree.leaves(tree)
  )


def count_nonzero(tree: Any) -> int:
  """Returns the number of elements that are not zero. Leaves are concrete.

  >>> count_nonzero([np.array([0.0, 2.0]), np.array(1)])
  2
  """
  return sum(int(np.count_nonzero(leaf)) for leaf in jax.tree.leaves(tree))
