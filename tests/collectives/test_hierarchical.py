"""State on two axes, dealt out to other workers."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bandwidth.collectives import deep_gradient_compression

PARAMS = {'w': jnp.ones((3000, 11)), 'b': jnp.ones(9)}


def make(workers, **arguments):
  return deep_gradient_compression(
    ('host', 'data'), density=0.01, workers=workers, **arguments
  )


def mapped(function, workers):
  """Of one worker, over all; they lie along one axis, the fast one last."""
  inner = jax.vmap(function, axis_name='data')
  both = jax.jit(jax.vmap(inner, axis_name='host'))

  def call(*trees):
    split = jax.tree.map(lambda x: x.reshape(*workers, *x.shape[1:]), trees)
    out = both(*split)
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), out)

  return call


def copies(tree, workers):
  count = workers[0] * workers[1]
  return jax.tree.map(lambda x: jnp.stack([x] * count), tree)


def trained(workers, **arguments):
  """A reducer and the state of its workers after three steps."""
  reducer = make(workers, **arguments)
  rng = np.random.default_rng(0)
  grads = jax.tree.map(
    lambda x: jnp.asarray(rng.normal(size=x.shape), jnp.float32),
    copies(PARAMS, workers),
  )
  state = copies(reducer.init(PARAMS), workers)
  step = mapped(lambda g, s: reducer.reduce(g, s, PARAMS), workers)
  for _ in range(3):
    _, state = step(grads, state)
  return reducer, jax.device_get(state)


def pending(reducer, state, workers):
  """The update that waits, as a flush would apply it."""
  flush = mapped(lambda s: reducer.flush(s, PARAMS)[0], workers)
  return jax.tree.map(lambda x: x[0], flush(state))


def momentum_of(reducer, state, workers):
  """The mean over groups of u, put together from its stripes."""
  kept = state.sparse.kept
  moved = state.sparse._replace(kept=kept._replace(residual=kept.momentum))
  owned = jax.tree.map(np.zeros_like, moved.owned)
  moved = moved._replace(owned=owned)
  return pending(reducer, state._replace(sparse=moved), workers)


@pytest.mark.parametrize(
  ('exchange', 'old', 'new'),
  [
    ('all_gather', (2, 2), (4, 2)),
    pytest.param('all_gather', (2, 4), (3, 1), marks=pytest.mark.slow),
    ('owner_sharded', (4, 2), (2, 2)),
    pytest.param('owner_sharded', (2, 2), (2, 4), marks=pytest.mark.slow),
  ],
)
def test_other_workers_conserve_what_is_pending(exchange, old, new):
  before, state = trained(old, exchange=exchange, weight_decay=0.1)
  after = make(new, exchange=exchange, weight_decay=0.1)
  dealt = after.resplit(state, PARAMS, workers=old)
  like = copies(after.init(PARAMS), new)
  assert jax.tree.map(jnp.shape, dealt) == jax.tree.map(jnp.shape, like)
  close = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6)
  for measure in (pending, momentum_of):
    expected = measure(before, state, old)
    assert all(leaf.any() for leaf in jax.tree.leaves(expected))
    jax.tree.map(close, measure(after, dealt, new), expected)


def test_one_axis_and_two_do_not_mix():
  flat = deep_gradient_compression('data', density=0.01, workers=4)
  state = jax.device_get(copies(flat.init(PARAMS), (2, 2)))
  with pytest.raises(ValueError, match=r'workers=\(4,\): the state of 1 axes'):
    make((2, 2)).resplit(state, PARAMS, workers=4)
  with pytest.raises(ValueError, match=r'workers=\(2, 2\): the state of 2 ax'):
    flat.resplit(state, PARAMS, workers=(2, 2))
