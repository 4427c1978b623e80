"""What is equal on all workers is computed once."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bandwidth.collectives import deep_gradient_compression
from bandwidth.collectives.workers.ordered import same_on_all


def test_result_is_not_mapped_under_vmap():
  x = jnp.ones((2, 3, 5))

  def one(x):
    return same_on_all(x, ('host', 'data')) * 2

  inner = jax.vmap(one, axis_name='data', out_axes=None)
  out = jax.vmap(inner, axis_name='host', out_axes=None)(x)
  np.testing.assert_array_equal(out, np.full(5, 2.0))


@pytest.mark.slow
def test_updates_of_all_kinds_are_not_mapped():
  params = {'w': jnp.ones((8, 9)), 'b': jnp.ones(8)}
  for arguments in (
    {'density': 1},
    {'weight_decay': 0.1},
    {'dense_rules': (('b', True), ('.*', False)), 'nesterov': True},
  ):
    reducer = deep_gradient_compression('data', **arguments)
    copies = jax.tree.map(
      lambda leaf: jnp.stack([leaf] * 4), (params, reducer.init(params))
    )
    jax.vmap(
      lambda g, s, r=reducer: r.reduce(g, s, params),
      axis_name='data',
      out_axes=(None, 0),
    )(*copies)
