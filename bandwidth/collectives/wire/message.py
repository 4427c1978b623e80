"""One vector for a whole tree of gradients, so that a step sends one message.

Every collective costs a rendezvous of all workers. A tree of many small leaves
is therefore packed into one float32 vector before it is exchanged.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from bandwidth import tree
from bandwidth.base import Params


class Packed(NamedTuple):
  """A tree as one vector.

  Attributes:
    vector: float32 [size], the leaves in the order of `jax.tree.leaves`.
    unpack: gives a vector of that length the tree's structure, shapes and
      dtypes.
  """

  vector: jax.Array
  unpack: Callable[[jax.Array], Params]


def pack(grads: Params) -> Packed:
  """Lays the leaves of a tree one after another in a float32 vector.

  Args:
    grads: a tree of real floating-point arrays, of any shapes, scalar and empty
      ones included.

  Raises:
    ValueError: a leaf is not floating-point; the message names it.

  >>> packed = pack({'a': jnp.ones((2, 2)), 'b': jnp.zeros((1,))})
  >>> packed.vector.shape
  (5,)
  """
  check_floating(grads)
  leaves, structure = jax.tree.flatten(grads)
  shapes = [(leaf.shape, leaf.dtype) for leaf in leaves]
  flat = [jnp.ravel(leaf).astype(jnp.float32) for leaf in leaves]
  vector = jnp.concatenate(flat) if flat else jnp.zeros(0, jnp.float32)

  def unpack(vector: jax.Array) -> Params:
    out, start = [], 0
    for shape, dtype in shapes:
      stop = start + math.prod(shape)
      out.append(vector[start:stop].reshape(shape).astype(dtype))
      start = stop
    return jax.tree.unflatten(structure, out)

  return Packed(vector, unpack)


def check_floating(grads: Params) -> None:
  """Raises a `ValueError` that names a leaf which is not floating-point."""
  for name, leaf in tree.named_leaves(grads):
    if not jnp.issubdtype(leaf.dtype, jnp.floating):
      raise ValueError(
        f'grads: {name} is {leaf.dtype}; a gradient is floating-point'
      )


def cast(update: Params, like: Params) -> Params:
  """Gives leaves the dtypes of another tree."""
  return jax.tree.map(lambda u, g: u.astype(g.dtype), update, like)
