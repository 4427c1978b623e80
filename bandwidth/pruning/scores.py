"""Scores: how much each weight matters. The lowest are pruned first.

A score function maps a tree of parameters to a tree of scores of the same
shapes. All take the same keywords, so that one can stand for another.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from bandwidth.base import Params

Score = Callable[..., Params]
"""`(params, *, grads=None, key=None) -> scores`, of the same shapes."""


def magnitude(
  params: Params,
  *,
  grads: Params | None = None,
  key: jax.Array | None = None,
) -> Params:
  """Scores a weight by its magnitude.

  .. math:: s = |w|

  Args:
    params: tree of arrays, the weights.
    grads: ignored; other scores need them.
    key: ignored; other scores need one.

  Returns:
    Scores in the dtypes of the parameters.

  References:
    Han et al., Learning both Weights and Connections for Efficient Neural
    Networks, 2015, https://arxiv.org/abs/1506.02626

  >>> magnitude(jnp.array([-2.0, 1.0, 0.5])).tolist()
  [2.0, 1.0, 0.5]
  """
  del grads, key
  return jax.tree.map(jnp.abs, params)


def gradient(
  params: Params,
  *,
  grads: Params | None = None,
  key: jax.Array | None = None,
) -> Params:
  r"""Scores a weight by the first-order change of the loss without it.

  .. math:: s = |w \cdot \partial L / \partial w|

  Args:
    params: tree of arrays, the weights.
    grads: gradients of the loss, a tree of the same shapes.
    key: ignored; other scores need one.

  Returns:
    Scores in float32, because products of small numbers underflow in bfloat16.

  Raises:
    ValueError: `grads` is missing.

  References:
    Molchanov et al., Pruning Convolutional Neural Networks for Resource
    Efficient Inference, 2017, https://arxiv.org/abs/1611.06440;
    Lee et al., SNIP, 2019, https://arxiv.org/abs/1810.02340 (the same ranking)

  >>> w, g = jnp.array([-2.0, 1.0, 0.5]), jnp.array([0.5, -3.0, 0.0])
  >>> gradient(w, grads=g).tolist()
  [1.0, 3.0, 0.0]
  """
  del key
  return jax.tree.map(
    lambda w, g: jnp.abs(_float32(w) * _float32(g)),
    params,
    _required_grads(grads, 'gradient'),
  )


def gradient_magnitude(
  params: Params,
  *,
  grads: Params | None = None,
  key: jax.Array | None = None,
) -> Params:
  r"""Scores a weight by the magnitude of its gradient: how RigL grows.

  .. math:: s = |\partial L / \partial w|

  Args:
    params: ignored; other scores need them.
    grads: gradients of the loss, dense: also where a weight is pruned.
    key: ignored; other scores need one.

  Returns:
    Scores in the dtypes of the gradients.

  Raises:
    ValueError: `grads` is missing.

  References:
    Evci et al., Rigging the Lottery, 2020, https://arxiv.org/abs/1911.11134

  >>> gradient_magnitude(jnp.zeros(2), grads=jnp.array([0.5, -3.0])).tolist()
  [0.5, 3.0]
  """
  del params, key
  return jax.tree.map(jnp.abs, _required_grads(grads, 'gradient_magnitude'))


def random(
  params: Params,
  *,
  grads: Params | None = None,
  key: jax.Array | None = None,
) -> Params:
  """Scores a weight by a uniform random number: a control, and SET's growth.

  Args:
    params: tree of arrays, the weights, of which the shapes count.
    grads: ignored; other scores need them.
    key: a typed key, from `jax.random.key`.

  Returns:
    Scores in float32, uniform in [0, 1), independent from leaf to leaf.

  Raises:
    ValueError: `key` is missing.

  References:
    Mocanu et al., Scalable training of artificial neural networks with adaptive
    sparse connectivity (SET), 2018, https://arxiv.org/abs/1707.04780

  >>> scores = random(jnp.zeros(3), key=jax.random.key(0))
  >>> bool(jnp.all((0 <= scores) & (scores < 1)))
  True
  """
  del grads
  if key is None:
    raise ValueError('key=None: random scores need a key')
  leaves, structure = jax.tree.flatten(params)
  return jax.tree.unflatten(
    structure,
    [
      jax.random.uniform(jax.random.fold_in(key, i), jnp.shape(leaf))
      for i, leaf in enumerate(leaves)
    ],
  )


def _float32(x: jax.Array) -> jax.Array:
  """Widens half precision; leaves float64 as it is."""
  return jnp.asarray(x, jnp.promote_types(jnp.result_type(x), jnp.float32))


def _required_grads(grads: Params | None, name: str) -> Params:
  if grads is None:
    raise ValueError(f'grads=None: the score {name!r} needs gradients')
  return grads
