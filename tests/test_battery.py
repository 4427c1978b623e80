"""What every reducer must survive; adding one adds a line to the table."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from traces import Counted

from bandwidth.collectives import (
  deep_gradient_compression,
  dense_all_reduce,
  momentum_correction,
  no_memory,
  power_sgd,
  qsgd,
  random_k,
  shared_mask,
  sign_error_feedback,
  skip_nonfinite,
  sparse_all_reduce,
  stack_states,
  terngrad,
  two_phase_quantized,
)

WORKERS = 4
REDUCERS = {
  'dense_float32': functools.partial(dense_all_reduce, dtype='float32'),
  'dense_bfloat16': functools.partial(dense_all_reduce, dtype='bfloat16'),
  'dense_float16': functools.partial(dense_all_reduce, dtype='float16'),
  'dgc': functools.partial(deep_gradient_compression, density=0.2),
  'dgc_everything': functools.partial(
    deep_gradient_compression,
    density=0.1,
    nesterov=True,
    clip_norm=0.5,
    weight_decay=0.1,
    dense_rules=(('bias', True), ('.*', False)),
  ),
  'dgc_dense': functools.partial(deep_gradient_compression, density=1),
  'dgc_owners': functools.partial(
    deep_gradient_compression,
    density=0.2,
    exchange='owner_sharded',
    dense_rules=(('bias', True), ('.*', False)),
    workers=WORKERS,
  ),
  'top_k': functools.partial(sparse_all_reduce, density=0.2),
  'top_k_sign': functools.partial(
    sparse_all_reduce, density=0.5, values='sign', scope='global'
  ),
  'top_k_forgetful': functools.partial(
    sparse_all_reduce, density=0.3, values='float32', memory=no_memory()
  ),
  'random_k': functools.partial(random_k, density=0.3),
  'random_k_skipping': lambda axis: skip_nonfinite(
    random_k(axis, density=0.3), axis
  ),
  'random_k_unbiased': functools.partial(
    random_k, density=0.3, memory=no_memory(), dtype='bfloat16'
  ),
  'shared_mask': functools.partial(
    shared_mask, density=0.3, memory=momentum_correction()
  ),
  'qsgd': functools.partial(qsgd, bits=4, bucket=8),
  'qsgd_two_bits': functools.partial(qsgd, bits=2),
  'terngrad': terngrad,
  'terngrad_unclipped': functools.partial(terngrad, clip=None),
  'two_phase_int8': functools.partial(two_phase_quantized, workers=WORKERS),
  'two_phase_int4': functools.partial(
    two_phase_quantized, format='int4', bucket=3, workers=WORKERS
  ),
  'sign': functools.partial(sign_error_feedback, workers=WORKERS, bucket=4),
  'power_sgd': functools.partial(power_sgd, rank=1),
}
LOSSLESS = ('dense_bfloat16', 'dense_float16', 'dense_float32', 'dgc_dense')

every_reducer = pytest.mark.parametrize('name', sorted(REDUCERS))


def fast_for(names):
  """All reducers as parameters, those not among the names slow."""
  return [
    name if name in names else pytest.param(name, marks=pytest.mark.slow)
    for name in sorted(REDUCERS)
  ]


def make_params(dtype=jnp.float32):
  return {
    'kernel': jnp.ones((5, 3), dtype),
    'scalar': jnp.ones((), dtype),
    'empty': jnp.ones((0, 2), dtype),
    'bias': jnp.ones((7,), dtype),
  }


def make_grads(dtype=jnp.float32, seed=0):
  rng = np.random.default_rng(seed)
  return jax.tree.map(
    lambda leaf: jnp.asarray(rng.normal(size=(WORKERS, *leaf.shape)), dtype),
    make_params(dtype),
  )


def all_workers(reducer, params):
  """The reducer over simulated workers: (grads, state) -> (mean, state)."""
  return jax.vmap(
    lambda grads, state: reducer.reduce(grads, state, params),
    axis_name='data',
  )


def make_state(reducer, params):
  return stack_states(reducer.init(params), WORKERS)


@every_reducer
def test_init_on_abstract_shapes(name):
  reducer = REDUCERS[name]('data')
  abstract = jax.eval_shape(reducer.init, jax.eval_shape(make_params))
  concrete = reducer.init(make_params())
  same = jax.tree.map(
    lambda a, b: a.shape == b.shape and a.dtype == b.dtype, abstract, concrete
  )
  assert all(jax.tree.leaves(same))


def check_shapes_and_dtypes(before, after):
  assert jax.tree.structure(before) == jax.tree.structure(after)
  for old, new in zip(
    jax.tree.leaves(before), jax.tree.leaves(after), strict=True
  ):
    assert (old.shape, old.dtype) == (new.shape, new.dtype)


@every_reducer
def test_bfloat16_stays_and_state_does(name):
  reducer, params = REDUCERS[name]('data'), make_params(jnp.bfloat16)
  state, grads = make_state(reducer, params), make_grads(jnp.bfloat16)
  out = jax.jit(all_workers(reducer, params))(grads, state)
  check_shapes_and_dtypes((grads, state), out)


# Each operation compiles alone, which takes as long as all other tests.
@pytest.mark.parametrize('name', fast_for(['qsgd']))
def test_jit_equals_no_jit(name):
  reducer, params = REDUCERS[name]('data'), make_params()
  reduce = all_workers(reducer, params)
  state = make_state(reducer, params)
  jax.tree.map(
    functools.partial(np.testing.assert_allclose, rtol=1e-6),
    reduce(make_grads(), state),
    jax.jit(reduce)(make_grads(), state),
  )


@every_reducer
def test_does_not_recompile_and_all_get_one_mean(name):
  reducer, params = REDUCERS[name]('data'), make_params()
  state = make_state(reducer, params)
  reduce = Counted(all_workers(reducer, params))
  jitted = jax.jit(reduce)
  compiled = jitted(make_grads(), state)
  jitted(make_grads(seed=1), compiled[1])
  assert reduce.traces == 1
  check_shapes_and_dtypes((make_grads(), state), compiled)
  for leaf in jax.tree.leaves(compiled[0]):
    np.testing.assert_array_equal(leaf, np.broadcast_to(leaf[:1], leaf.shape))


@pytest.mark.compiler
@pytest.mark.parametrize(
  'name',
  fast_for(
    (
      'dense_bfloat16',
      'dense_float16',
      'dense_float32',
      'dgc_dense',
      'dgc_everything',
      'power_sgd',
      'qsgd_two_bits',
      'sign',
      'terngrad_unclipped',
      'top_k_forgetful',
      'two_phase_int4',
      'two_phase_int8',
    )
  ),
)
def test_same_bits_under_pmap_shard_map_and_vmap(name):
  from jax.sharding import AxisType
  from jax.sharding import PartitionSpec as P

  # Without the empty leaf: JAX returns sharded arrays of no elements unsharded,
  # and can't fetch them.
  params, grads = make_params(), make_grads()
  del params['empty'], grads['empty']
  reducer = REDUCERS[name]('data')
  state = make_state(reducer, params)

  def one(grads, state):
    return reducer.reduce(grads, state, params)

  mesh = jax.make_mesh((WORKERS,), ('data',), axis_types=(AxisType.Auto,))
  without = functools.partial(jax.tree.map, lambda leaf: leaf[0])
  within = functools.partial(jax.tree.map, lambda leaf: leaf[None])
  mapped = {
    'vmap': jax.jit(jax.vmap(one, axis_name='data')),
    'pmap': jax.pmap(one, axis_name='data'),
    'shard_map': jax.jit(
      jax.shard_map(
        lambda grads, state: within(one(without(grads), without(state))),
        mesh=mesh,
        in_specs=P('data'),
        out_specs=P('data'),
        check_vma=False,
      )
    ),
  }
  out = {kind: jax.device_get(fn(grads, state)) for kind, fn in mapped.items()}
  for kind in ('pmap', 'shard_map'):
    jax.tree.map(np.testing.assert_array_equal, out[kind], out['vmap'])


@pytest.mark.parametrize('name', LOSSLESS)
def test_one_worker_without_an_axis_keeps_its_gradients(name):
  reducer, params = REDUCERS[name](None), make_params()
  grads = jax.tree.map(lambda leaf: leaf[0], make_grads())
  mean, _ = reducer.reduce(grads, reducer.init(params), params)
  jax.tree.map(np.testing.assert_array_equal, mean, grads)


@every_reducer
def test_closed_forms_take_abstract_shapes_and_check_the_workers(name):
  reducer, params = REDUCERS[name]('data'), make_params()
  abstract = jax.eval_shape(make_params)
  sent = reducer.wire_bytes(params, 8)
  assert isinstance(sent, int)
  assert sent == reducer.wire_bytes(abstract, workers=np.int64(8)) > 0
  assert reducer.wire_bytes(abstract, (2, 4)) >= reducer.wire_bytes(abstract, 1)
  assert reducer.wire_bytes(params, 1) == 0
  for wrong in (0, -1, (4, 0), 1.5, True, 'data'):
    with pytest.raises(ValueError, match='workers='):
      reducer.wire_bytes(params, wrong)


@every_reducer
def test_gradients_that_are_already_summed_are_refused(name):
  from jax.sharding import AxisType
  from jax.sharding import PartitionSpec as P

  reducer, params = REDUCERS[name]('data'), make_params()
  mesh = jax.make_mesh((WORKERS,), ('data',), axis_types=(AxisType.Auto,))

  def loss(params, x):
    return sum(jnp.sum(leaf * x[0]) for leaf in jax.tree.leaves(params))

  def step(params, x, state):
    state = jax.tree.map(lambda leaf: leaf[0], state)
    grads = jax.grad(loss)(params, x)
    return reducer.reduce(grads, state, params)[0]

  mapped = jax.shard_map(
    step, mesh=mesh, in_specs=(P(), P('data'), P('data')), out_specs=P()
  )
  with pytest.raises(ValueError, match='pass check_vma=False'):
    jax.eval_shape(mapped, params, jnp.arange(4.0), make_state(reducer, params))


WITH_SCALES = (
  'qsgd',
  'sign',
  'terngrad',
  'terngrad_unclipped',
  'two_phase_int4',
  'two_phase_int8',
)


@pytest.mark.parametrize('name', WITH_SCALES)
def test_not_a_number_in_a_long_vector_reaches_all_workers(name):
  """XLA:CPU loses NaN in a maximum over a thousand elements and more."""
  params = {'w': jnp.zeros(6000), 'bias': jnp.zeros(3)}
  reducer = REDUCERS[name]('data')
  grads = {
    'w': np.random.default_rng(0).normal(size=(WORKERS, 6000)),
    'bias': np.zeros((WORKERS, 3)),
  }
  grads = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), grads)
  grads['w'] = grads['w'].at[1, 2000].set(jnp.nan)
  mean, _ = jax.jit(all_workers(reducer, params))(
    grads, make_state(reducer, params)
  )
  assert not np.isfinite(mean['w']).all(axis=1).any()


@pytest.mark.parametrize('bad', [np.nan, np.inf])
def test_a_step_that_is_not_finite_leaves_no_trace(bad):
  """With it, as without it: the same means and states behind."""
  reducer, params = REDUCERS['random_k_skipping']('data'), make_params()
  reduce = jax.jit(all_workers(reducer, params))
  plain = jax.jit(all_workers(REDUCERS['random_k']('data'), params))
  wanted, state = plain(make_grads(), make_state(reducer, params))
  found, kept = reduce(make_grads(), make_state(reducer, params))
  jax.tree.map(np.testing.assert_array_equal, (found, kept), (wanted, state))
  grads = make_grads(seed=1)
  grads['bias'] = grads['bias'].at[2, 3].set(bad)
  mean, kept = reduce(grads, kept)
  assert all(np.isnan(leaf).all() for leaf in jax.tree.leaves(mean))
  jax.tree.map(np.testing.assert_array_equal, kept, state)
