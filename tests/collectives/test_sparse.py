"""Exchanges: transcriptions, bytes on the wire, other numbers of workers."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, PartitionSpec

from bandwidth.collectives import (
  deep_gradient_compression,
  no_memory,
  sparse_all_reduce,
  stack_states,
)
from bandwidth.collectives.traffic import accounting

P = 4


def stacked(tree, count=P):
  return jax.tree.map(lambda leaf: jnp.stack([leaf] * count), tree)


def mapped(fn, axes=('data',)):
  """A worker's function over simulated workers, and as a program of devices."""
  mesh = jax.make_mesh(
    (P,) if len(axes) == 1 else (2, P // 2),
    axes,
    axis_types=(AxisType.Auto,) * len(axes),
  )
  spec = PartitionSpec(axes)

  def one(*args):
    out = fn(*jax.tree.map(lambda leaf: leaf[0], args))
    return jax.tree.map(lambda leaf: leaf[None], out)

  return jax.jit(
    jax.shard_map(
      one, mesh=mesh, in_specs=spec, out_specs=spec, check_vma=False
    )
  )


def owners_in_numpy(v, owned, count, forward, block):
  """One step of the owner-sharded exchange of [P, n] candidates, exactly."""
  n = v.shape[1]
  owner = (np.arange(n) // block) % P
  sums, left = owned.copy(), v.copy()
  for p in range(P):
    for o in range(P):
      mine = np.flatnonzero(owner == o)
      top = np.argsort(-np.abs(v[p, mine]), kind='stable')[:count]
      sums[mine[top]] += v[p, mine[top]]
      left[p, mine[top]] = 0
  mean, kept = np.zeros(n), sums.copy()
  for o in range(P):
    mine = np.flatnonzero(owner == o)
    top = np.argsort(-np.abs(sums[mine]), kind='stable')[: forward * count]
    mean[mine[top]] = sums[mine[top]] / P
    kept[mine[top]] = 0
  return mean, left, kept


@pytest.mark.parametrize('forward', [1, 2])
def test_owners_add_up_select_again_and_keep_the_rest(forward):
  n, density = 4000, 0.02
  reducer = sparse_all_reduce(
    'data', density=density, values='float32', exchange='owner_sharded',
    workers=P, forward=forward,
  )  # fmt: skip
  rng = np.random.default_rng(0)
  state = stacked(reducer.init(jnp.zeros(n)))
  step = jax.jit(jax.vmap(reducer.reduce, axis_name='data', out_axes=(None, 0)))
  left, kept = np.zeros((P, n)), np.zeros(n)
  for _ in range(4):
    grads = rng.normal(size=(P, n)).astype(np.float32)
    mean, state = step(jnp.asarray(grads), state)
    expected, left, kept = owners_in_numpy(
      left + grads, kept, round(n * density / P), forward, 125
    )
    np.testing.assert_allclose(mean, expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(state.kept.residual, left, atol=1e-6)
    assert np.count_nonzero(mean) == forward * n * density


PARAMS = {
  'kernel': jnp.ones((200, 50)),
  'bias': jnp.ones(33),
  'scalar': jnp.ones(()),
}
REDUCERS = {
  'all_gather': functools.partial(sparse_all_reduce, density=0.01),
  'owner_sharded': functools.partial(
    sparse_all_reduce, density=0.01, exchange='owner_sharded', workers=P
  ),
  'dense_part': functools.partial(
    deep_gradient_compression,
    density=0.01,
    exchange='owner_sharded',
    workers=P,
    dense_rules=(('kernel', False), ('.*', True)),
  ),
  'dense': functools.partial(deep_gradient_compression, density=1),
}


@pytest.mark.parametrize('name', sorted(REDUCERS))
def test_closed_form_is_what_the_program_sends(name):
  reducer = REDUCERS[name]('data')
  state = stacked(reducer.init(PARAMS))
  compiled = (
    mapped(lambda g, s: reducer.reduce(g, s))
    .lower(stacked(PARAMS), state)
    .compile()
  )
  expected = reducer.wire_bytes(PARAMS, workers=P)
  assert accounting.wire_bytes(compiled) == expected
  dense = accounting.dense_wire_bytes(PARAMS, workers=P)
  assert expected == dense if name == 'dense' else expected < dense / 20


def test_masking_before_a_dense_mean_saves_nothing():
  def masked(g):
    keep = jnp.abs(g) >= jnp.sort(jnp.abs(g).ravel())[-10]
    return jax.lax.pmean(jnp.where(keep, g, 0.0), 'data')

  grads = jnp.ones((P, 4096))
  compiled = mapped(masked).lower(grads).compile()
  sent = accounting.wire_bytes(compiled)
  assert sent == accounting.dense_wire_bytes(grads[0], workers=P)


@pytest.mark.parametrize('exchange', ['all_gather', 'owner_sharded'])
def test_two_links(exchange):
  # Dense inside of a group of two, sparse between two groups.
  make = functools.partial(
    deep_gradient_compression, density=0.01, values='float32',
    momentum=0.0, exchange=exchange,
  )  # fmt: skip
  reducer = make(('host', 'data'), workers=(2, 2))
  state = stacked(reducer.init(PARAMS))
  rng = np.random.default_rng(0)
  grads = jax.tree.map(
    lambda x: jnp.asarray(rng.normal(size=(P, *x.shape)), jnp.float32), PARAMS
  )
  step = mapped(lambda g, s: reducer.reduce(g, s), ('host', 'data'))
  put_in = jax.tree.map(lambda x: np.float64(x).mean(0), grads)
  total = jax.tree.map(np.zeros_like, put_in)
  for _ in range(3):
    mean, state = step(grads, state)
    total = jax.tree.map(lambda t, m: t + m[0], total, mean)
    for leaf in jax.tree.leaves(mean):
      np.testing.assert_array_equal(leaf, np.stack([leaf[0]] * P))
  assert 0 < np.count_nonzero(mean['kernel'][0]) <= 2 * 0.015 * 10_000
  flush = mapped(lambda s, p: reducer.flush(s, p), ('host', 'data'))
  left, _ = flush(state, stacked(PARAMS))
  for name, total_of in total.items():
    np.testing.assert_allclose(
      total_of + left[name][0], 3 * put_in[name], rtol=1e-4, atol=1e-5
    )
  compiled = step.lower(grads, state).compile()
  assert accounting.wire_bytes(compiled) == reducer.wire_bytes(
    PARAMS, workers=(2, 2)
  )


@pytest.mark.parametrize('exchange', ['all_gather', 'owner_sharded'])
@pytest.mark.parametrize(
  ('old', 'new'),
  [
    (4, 2),
    pytest.param(2, 4, marks=pytest.mark.slow),
    pytest.param(3, 5, marks=pytest.mark.slow),
    (4, 4),
  ],
)
def test_other_workers_conserve_what_is_pending(exchange, old, new):
  params = {'w': jnp.ones((3000, 11)), 'b': jnp.ones(9)}
  make = functools.partial(
    deep_gradient_compression, 'data', density=0.01, exchange=exchange,
    weight_decay=0.1,
  )  # fmt: skip
  before = make(workers=old)
  rng = np.random.default_rng(0)
  grads = jax.tree.map(
    lambda x: jnp.asarray(rng.normal(size=(old, *x.shape)), jnp.float32),
    params,
  )
  state = stacked(before.init(params), old)
  step = jax.jit(
    jax.vmap(lambda g, s: before.reduce(g, s, params), axis_name='data')
  )
  for _ in range(3):
    _, state = step(grads, state)

  def pending(reducer, state, count):
    flush = jax.vmap(reducer.flush, axis_name='data', out_axes=(None, 0))
    return jax.jit(flush)(state, stacked(params, count))[0]

  after = make(workers=new)
  dealt = after.resplit(jax.device_get(state), params, workers=old)
  shapes = jax.tree.map(jnp.shape, stacked(after.init(params), new))
  assert jax.tree.map(jnp.shape, dealt) == shapes
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6),
    pending(before, state, old),
    pending(after, dealt, new),
  )
  for a, b in zip(
    jax.tree.leaves(state.sparse.kept.momentum),
    jax.tree.leaves(dealt.sparse.kept.momentum),
    strict=True,
  ):
    np.testing.assert_allclose(a.mean(0), b.mean(0), rtol=1e-5, atol=1e-6)


def test_without_memory_the_rest_is_lost():
  reducer = sparse_all_reduce(
    None, density=0.5, values='float32', memory=no_memory()
  )
  mean, _ = reducer.reduce(jnp.array([1.0, -3.0]), reducer.init(jnp.ones(2)))
  np.testing.assert_array_equal(mean, [0.0, -3.0])


@pytest.mark.slow
def test_global_scope_lets_layers_compete():
  grads = {'a': jnp.array([1.0, 2.0]), 'b': jnp.array([10.0, 20.0])}
  for scope, expected in (
    ('layer', [[0, 2], [0, 20]]),
    ('global', [[0, 0], [10, 20]]),
  ):
    reducer = sparse_all_reduce(
      None, density=0.5, values='float32', scope=scope
    )
    mean, _ = reducer.reduce(grads, reducer.init(grads))
    np.testing.assert_array_equal(mean['a'], expected[0])
    np.testing.assert_array_equal(mean['b'], expected[1])


@pytest.mark.parametrize('exchange', ['all_gather', 'owner_sharded'])
def test_rules_that_leave_nothing_to_select_average_densely(exchange):
  reducer = sparse_all_reduce(
    'data',
    density=0.1,
    values='float8',
    exchange=exchange,
    dense_rules=[('.*', True)],
    workers=P,
  )
  grads = np.random.default_rng(0).normal(size=(P, 6, 5)).astype(np.float32)
  state = stack_states(reducer.init(jnp.zeros((6, 5))), P)
  mean, _ = jax.vmap(reducer.reduce, axis_name='data')(grads, state)
  np.testing.assert_allclose(mean[1], grads.mean(0), rtol=1e-5, atol=1e-6)
  assert reducer.wire_bytes(jnp.zeros((6, 5)), P) == (
    accounting.dense_wire_bytes(jnp.zeros((6, 5)), P)
  )


@pytest.mark.parametrize(
  ('arguments', 'sizes'),
  [
    ({}, (2**31,)),
    ({'exchange': 'owner_sharded', 'workers': 4}, (2**31 + 1000,)),
    ({'scope': 'global'}, (2**30, 2**30)),
    ({}, (2**30, 2**30)),
  ],
)
def test_more_elements_than_indices_reach_are_named(arguments, sizes):
  params = {
    f'w{i}': jax.ShapeDtypeStruct((n,), jnp.bfloat16)
    for i, n in enumerate(sizes)
  }
  reducer = sparse_all_reduce('data', density=1e-3, **arguments)
  message = r'2,14.,48.,... elements together, and indices reach 2,147,483,647'
  with pytest.raises(ValueError, match=message):
    reducer.wire_bytes(params, 4)
