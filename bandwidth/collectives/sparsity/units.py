"""Units of selection: which elements of a tree compete with each other.

Deep Gradient Compression selects layer by layer; others from the whole vector
at once. A unit is a leaf, or several leaves laid one after another. Where
owners share the work, each picks from its part of every unit, and leaves that
are too small to be dealt out are selected together.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from bandwidth import tree
from bandwidth.base import Params, unknown_name
from bandwidth.collectives.sparsity.selection import Stripes, stripes

SCOPES = ('layer', 'global')
_LARGE = 8192
_MOST_PLACES = 2**31 - 1


class Units(NamedTuple):
  """How a tree becomes vectors, and vectors the tree.

  Attributes:
    shapes: shapes of the leaves, in the order of `jax.tree.leaves`.
    groups: indices of the leaves of each unit.
    dense: indices of the leaves that are not sparsified.
    layouts: how each unit is dealt out to owners.
  """

  shapes: tuple[tuple[int, ...], ...]
  groups: tuple[tuple[int, ...], ...]
  dense: tuple[int, ...]
  layouts: tuple[Stripes, ...]

  @property
  def sizes(self) -> tuple[int, ...]:
    """Elements of each unit."""
    return tuple(layout.size for layout in self.layouts)

  @property
  def local_sizes(self) -> tuple[int, ...]:
    """Elements of each unit that an owner has, padding included."""
    return tuple(layout.local_size for layout in self.layouts)

  @property
  def dense_size(self) -> int:
    """Elements that are not sparsified."""
    return sum(math.prod(self.shapes[i]) for i in self.dense)

  def counts(self, density: float) -> tuple[int, ...]:
    """Elements of each unit that are selected, by each owner from its part.

    `ceil(density n)` of each leaf, and of their sum each owner's share, rounded
    up.
    """
    found = []
    for group, layout in zip(self.groups, self.layouts, strict=True):
      k = sum(_count(density, math.prod(self.shapes[i])) for i in group)
      found.append(min(-(-k // layout.count), layout.local_size))
    return tuple(found)

  def vectors(self, leaves: Sequence[jax.Array]) -> list[jax.Array]:
    """Returns a float32 vector for each unit."""
    return [_joined([leaves[i] for i in group]) for group in self.groups]

  def dense_vector(self, leaves: Sequence[jax.Array]) -> jax.Array:
    """Returns a float32 vector of the leaves that are not sparsified."""
    return _joined([leaves[i] for i in self.dense])

  def leaves(
    self, vectors: Sequence[jax.Array], dense: jax.Array
  ) -> list[jax.Array]:
    """Undoes `vectors` and `dense_vector`: float32 leaves."""
    out: dict[int, jax.Array] = {}
    for group, vector in zip(
      (*self.groups, self.dense), (*vectors, dense), strict=True
    ):
      start = 0
      for i in group:
        stop = start + math.prod(self.shapes[i])
        part = vector if len(group) == 1 else vector[start:stop]
        out[i], start = part.reshape(self.shapes[i]), stop
    return [out[i] for i in range(len(self.shapes))]


def _count(density: float, size: int) -> int:
  # As if the density were the decimal fraction that was written: 0.001 of
  # 25,000 elements are 25, not 26.
  return min(math.ceil(round(density * size, 6)), size)


def _joined(parts: Sequence[jax.Array]) -> jax.Array:
  flat = [jnp.ravel(part).astype(jnp.float32) for part in parts]
  if len(flat) == 1:
    return flat[0]
  return jnp.concatenate(flat) if flat else jnp.zeros(0, jnp.float32)


def plan_units(
  params: Params,
  *,
  scope: str = 'layer',
  dense_rules: Sequence[tuple[str, bool]] = (),
  owners: int = 1,
) -> Units:
  """Decides which leaves are selected from together, and which not at all.

  Args:
    params: tree of arrays or abstract shapes.
    scope: 'layer': each leaf is a unit; 'global': all are one.
    dense_rules: pairs (expression, whether the parameter stays dense), the
      first match counts, see `bandwidth.tree.match_rules`. Empty: none does.
    owners: among whom each unit is dealt out. With several, leaves below
      `8192 * owners` elements form one unit together.

  Raises:
    ValueError: the scope is unknown, a rule is wrong, or a unit has 2^31
      elements or more.
  """
  check_scope(scope)
  named = tree.named_leaves(params)
  shapes = tuple(tuple(leaf.shape) for _, leaf in named)
  is_dense = _matches(dense_rules, params)
  dense = tuple(i for i, (name, _) in enumerate(named) if is_dense(name))
  rest = [
    i for i, s in enumerate(shapes) if i not in dense and math.prod(s) > 0
  ]
  empty = tuple(i for i, s in enumerate(shapes) if math.prod(s) == 0)
  groups = _groups(rest, shapes, scope, owners)
  sizes = [sum(math.prod(shapes[i]) for i in group) for group in groups]
  for group, size in zip(groups, sizes, strict=True):
    check_places(size, ', '.join(named[i][0] for i in group[:3]))
  return Units(
    shapes=shapes,
    groups=groups,
    dense=tuple(sorted({*dense, *empty})),
    layouts=tuple(stripes(size, owners) for size in sizes),
  )


def check_places(size: int, where: str) -> None:
  """Raises a `ValueError` where elements are too many for int32 indices.

  Args:
    size: elements that one selection, or one message, is made of.
    where: subject of the error message, in the plural.
  """
  if size > _MOST_PLACES:
    raise ValueError(
      f'params: {where} have {size:,} elements together, and indices reach '
      f"{_MOST_PLACES:,}: split the array, or use scope='layer', "
      "exchange='owner_sharded' or dense_rules"
    )


def check_scope(scope: str) -> None:
  """Raises a `ValueError` unless the scope is 'layer' or 'global'."""
  if scope not in SCOPES:
    raise ValueError(unknown_name('scope', scope, SCOPES))


def _groups(
  places: list[int], shapes: Any, scope: str, owners: int
) -> tuple[tuple[int, ...], ...]:
  if not places:
    return ()
  if scope == 'global':
    return (tuple(places),)
  limit = _LARGE * owners if owners > 1 else 0
  alone = [i for i in places if math.prod(shapes[i]) >= limit]
  together = tuple(i for i in places if i not in alone)
  return tuple((i,) for i in alone) + ((together,) if together else ())


def _matches(rules: Sequence[tuple[str, bool]], params: Params) -> Any:
  if not rules:
    return lambda name: False
  chosen = tree.match_rules(list(rules), params, argument='dense_rules')
  return lambda name: bool(chosen[name])
