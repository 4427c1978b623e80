"""Parameter names, rules over them, and sizes of trees.

A parameter's name is its path in the tree, joined by slashes: `Conv_0/kernel`.
Rules are ordered pairs (regular expression, value); the first expression that
matches the whole name gives the value.
"""

import math
import re
from collections.abc import Callable, Iterable, Sequence
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


def named_leaves(tree: Any) -> list[tuple[str, Any]]:
  """Returns the leaves with their names, in the order of `jax.tree.leaves`.

  >>> named_leaves({'Dense_0': {'bias': 1, 'kernel': 2}})
  [('Dense_0/bias', 1), ('Dense_0/kernel', 2)]
  """
  leaves = jax.tree_util.tree_leaves_with_path(tree)
  return [(path_name(path), leaf) for path, leaf in leaves]


def names(tree: Any) -> list[str]:
  """Returns the names of the leaves, in the order of `jax.tree.leaves`."""
  return [name for name, _ in named_leaves(tree)]


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


def map_named(fn: Callable[..., Any], tree: Any, *rest: Any) -> Any:
  """Maps `fn(name, leaf, *rest_leaves)` over trees of one structure.

  >>> map_named(lambda name, x: f'{name}={x}', {'a': 1, 'b': [2]})
  {'a': 'a=1', 'b': ['b/0=2']}
  """
  return jax.tree_util.tree_map_with_path(
    lambda path, *leaves: fn(path_name(path), *leaves), tree, *rest
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
