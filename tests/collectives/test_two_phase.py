"""Two-phase quantized averages against a transcription with error feedback."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, PartitionSpec

from bandwidth.collectives import sign_error_feedback, two_phase_quantized
from bandwidth.collectives.traffic import accounting

P = 4
SHAPES = {'bias': (7,), 'kernel': (9, 10), 'scale': ()}
N = 98
FORMATS = ('int4', 'int8', 'sign')
BITS = {'int4': 4, 'int8': 8, 'sign': 1}
every_format = pytest.mark.parametrize('format', FORMATS)


def gradients(steps=1, workers=P, seed=0):
  rng = np.random.default_rng(seed)
  return [
    {k: np.float32(rng.normal(size=(workers, *s))) for k, s in SHAPES.items()}
    for _ in range(steps)
  ]


def make_params():
  return {k: np.ones(s, np.float32) for k, s in SHAPES.items()}


def vectors(tree):
  leaves = [np.asarray(x) for x in jax.tree.leaves(tree)]
  return np.concatenate([x.reshape(x.shape[0], -1) for x in leaves], axis=1)


def vector(tree):
  return vectors(jax.tree.map(lambda x: np.asarray(x)[None], tree))[0]


def make_state(reducer, workers=P):
  return jax.tree.map(
    lambda leaf: jnp.stack([leaf] * workers), reducer.init(make_params())
  )


def mapped(fn):
  # The mean is one for all: computed once, not by each simulated worker.
  return jax.jit(jax.vmap(fn, axis_name='data', out_axes=(None, 0)))


def run(reducer, grads, state=None):
  """Means, and the states after each step."""
  workers = jax.tree.leaves(grads[0])[0].shape[0]
  state = make_state(reducer, workers) if state is None else state
  step, means, states = mapped(reducer.reduce), [], []
  for g in grads:
    mean, state = step(g, state)
    means.append(vector(mean))
    states.append(jax.device_get(state))
  return means, states


def chunk_of(elements, workers, format):
  per_byte = 8 // BITS[format]
  return -(-elements // (workers * per_byte)) * per_byte


def rounded_off(chunk, real, format, bucket):
  """What others see of a chunk of which the first `real` elements count."""
  out = np.zeros_like(chunk)
  for i in range(0, real, bucket):
    x = chunk[i : min(i + bucket, real)]
    if format == 'sign':
      seen = np.where(x < 0, -1, 1) * np.abs(x).mean()
    else:
      scale = np.abs(x).max() / {'int8': 127, 'int4': 7}[format]
      seen = np.round(x / scale) * scale
    out[i : i + x.size] = seen
  return out


def transcription(grads, format, bucket, workers=P):
  """Worker and owner error feedback; yields mean, e and E of each step."""
  chunk = chunk_of(N, workers, format)
  real = [int(np.clip(N - o * chunk, 0, chunk)) for o in range(workers)]
  e = np.zeros((workers, workers, chunk))
  own = np.zeros((workers, chunk))
  for g in grads:
    v = np.zeros((workers, workers * chunk))
    v[:, :N] = vectors(g)
    v = v.reshape(workers, workers, chunk) + e
    seen = np.array(
      [
        [rounded_off(v[p, o], real[o], format, bucket) for o in range(workers)]
        for p in range(workers)
      ]
    )
    e = v - seen
    total = seen.sum(0) + own
    mean = np.array(
      [rounded_off(total[o], real[o], format, bucket) for o in range(workers)]
    )
    own = total - mean
    yield (
      mean.reshape(-1)[:N] / workers,
      e.reshape(workers, -1)[:, :N],
      own.copy(),
    )


@every_format
@pytest.mark.parametrize(('workers', 'bucket'), [(4, 10), (3, 1024), (1, 8)])
def test_steps_are_those_of_the_equations(format, workers, bucket):
  grads = gradients(3, workers)
  reducer = two_phase_quantized(
    'data', format=format, bucket=bucket, workers=workers
  )
  means, states = run(reducer, grads)
  expected = transcription(grads, format, bucket, workers)
  for mean, state, (m, e, own) in zip(means, states, expected, strict=True):
    np.testing.assert_allclose(mean, m, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(vectors(state.residual), e, atol=2e-5)
    np.testing.assert_allclose(state.owned, own, atol=2e-5)


def pending(state, workers, chunk):
  """Sum over workers of all that waits, float64 [N]."""
  owned = np.zeros(workers * chunk)
  owned[:] = np.asarray(state.owned, np.float64).reshape(-1)
  assert not owned[N:].any()
  return vectors(state.residual).astype(np.float64).sum(0) + owned[:N]


@every_format
def test_nothing_is_lost(format):
  grads = gradients(6)
  reducer = two_phase_quantized('data', format=format, bucket=16, workers=P)
  means, states = run(reducer, grads)
  sent = P * np.sum(means, axis=0, dtype=np.float64)
  given = np.sum([vectors(g) for g in grads], axis=(0, 1), dtype=np.float64)
  waits = pending(states[-1], P, chunk_of(N, P, format))
  np.testing.assert_allclose(sent + waits, given, atol=1e-4)
  assert np.abs(waits).max() > 0.01


@every_format
def test_flush_averages_what_waits(format):
  reducer = two_phase_quantized('data', format=format, workers=P)
  _, states = run(reducer, gradients(2))
  params = jax.tree.map(jnp.asarray, make_params())
  mean, state = mapped(lambda s: reducer.flush(s, params))(states[-1])
  expected = pending(states[-1], P, chunk_of(N, P, format)) / P
  np.testing.assert_allclose(vector(mean), expected, atol=1e-5)
  assert not any(leaf.any() for leaf in jax.tree.leaves(state))


@every_format
@pytest.mark.parametrize(('old', 'new'), [(4, 2), (2, 4), (3, 5), (4, 4)])
def test_resplit_conserves_what_waits(format, old, new):
  before = two_phase_quantized('data', format=format, workers=old)
  _, states = run(before, gradients(2, old))
  after = two_phase_quantized('data', format=format, workers=new)
  state = after.resplit(states[-1], make_params(), workers=old)
  assert state.owned.shape == (new, chunk_of(N, new, format))
  np.testing.assert_allclose(
    pending(state, new, chunk_of(N, new, format)) / new,
    pending(states[-1], old, chunk_of(N, old, format)) / old,
    atol=1e-6,
  )
  like = make_state(after, new)
  same = jax.tree.map(
    lambda a, b: (a.shape, a.dtype) == (b.shape, b.dtype), state, like
  )
  assert all(jax.tree.leaves(same))


@pytest.mark.parametrize('workers', [4, 8])
@every_format
def test_compiled_bytes_are_the_predicted_ones(format, workers):
  reducer = two_phase_quantized(
    'data', format=format, bucket=5, workers=workers
  )
  grads = gradients(1, workers)[0]
  step = jax.pmap(reducer.reduce, axis_name='data')
  lowered = step.lower(grads, make_state(reducer, workers))
  sent = accounting.wire_bytes(lowered.compile())
  assert sent == reducer.wire_bytes(make_params(), workers=workers)
  chunk = chunk_of(N, workers, format)
  message = chunk * BITS[format] // 8 + 4 * -(-chunk // 5)
  assert sent == 2 * (workers - 1) * message


@pytest.mark.parametrize(('format', 'ratio'), [('int8', 3.98), ('sign', 31.03)])
def test_ratio_to_dense_at_a_million_elements(format, ratio):
  params = jax.ShapeDtypeStruct((1 << 20,), jnp.float32)
  reducer = two_phase_quantized('data', format=format, workers=16)
  dense = accounting.dense_wire_bytes(params, workers=16)
  assert dense / reducer.wire_bytes(params, workers=16) == pytest.approx(
    ratio, abs=0.02
  )


@every_format
def test_two_axes_are_as_one(format):
  (grads,) = gradients()
  make = functools.partial(two_phase_quantized, format=format, bucket=8)
  flat, states = run(make('data', workers=P), [grads])
  reducer = make(('slow', 'fast'), workers=(2, 2))
  state = make_state(reducer)
  pairs = jax.tree.map(lambda g: g.reshape(2, 2, *g.shape[1:]), (grads, state))
  inner = jax.vmap(reducer.reduce, axis_name='fast', out_axes=(None, 0))
  outer = jax.vmap(inner, axis_name='slow', out_axes=(None, 0))
  mean, new = jax.jit(outer)(*pairs)
  np.testing.assert_array_equal(vector(mean), flat[0])
  np.testing.assert_array_equal(new.owned.reshape(P, -1), states[0].owned)
  workers = PartitionSpec(('slow', 'fast'))
  out = jax.jit(
    jax.shard_map(
      lambda g, s: reducer.reduce(*jax.tree.map(lambda x: x[0], (g, s)))[0],
      mesh=jax.make_mesh(
        (2, 2), ('slow', 'fast'), axis_types=(AxisType.Auto,) * 2
      ),
      in_specs=workers,
      out_specs=PartitionSpec(),
      check_vma=False,
    )
  )(grads, state)
  np.testing.assert_array_equal(vector(out), flat[0])


@pytest.mark.compiler
@every_format
def test_many_elements_have_the_same_bits_under_pmap_and_vmap(format):
  reducer = two_phase_quantized('data', format=format, workers=P)
  g = np.float32(np.random.default_rng(4).normal(size=(2, P, 20_011)))
  ways = {
    'vmap': jax.jit(jax.vmap(reducer.reduce, axis_name='data')),
    'pmap': jax.pmap(reducer.reduce, axis_name='data'),
  }
  out = {}
  for name, step in ways.items():
    state = jax.tree.map(lambda x: jnp.stack([x] * P), reducer.init(g[0, 0]))
    _, state = step(g[0], state)
    out[name] = jax.device_get(step(g[1], state))
  jax.tree.map(np.testing.assert_array_equal, out['vmap'], out['pmap'])


@every_format
def test_what_is_not_finite_stays_so(format):
  reducer = two_phase_quantized('data', format=format, workers=P)
  step, state = mapped(reducer.reduce), make_state(reducer)
  for bad in (np.nan, np.inf, -np.inf):
    (grads,) = gradients()
    grads['kernel'][2, 3, 3] = bad
    mean, _ = step(grads, state)
    assert not np.isfinite(vector(mean)[7 + 33])


def test_zero_stays_zero_and_scales_of_all_sizes_work():
  for format in FORMATS:
    reducer = two_phase_quantized(None, format=format, workers=1)
    reduce = jax.jit(reducer.reduce)
    for size in (0, 1e-30, 1e30):
      g = np.float32(size) * np.float32([1, -1])
      mean, _ = reduce(g, reducer.init(g))
      np.testing.assert_allclose(mean, g, rtol=1e-5)


def test_sign_preset_is_the_sign_format():
  grads = gradients(2)
  preset = sign_error_feedback('data', workers=P, bucket=9)
  named = two_phase_quantized('data', format='sign', workers=P, bucket=9)
  np.testing.assert_array_equal(run(preset, grads)[0], run(named, grads)[0])


def test_residuals_of_bfloat16_parameters_are_float32():
  reducer = sign_error_feedback(None, workers=1)
  g = {'w': jnp.array([1.0, 2.5], jnp.bfloat16)}
  mean, state = jax.jit(reducer.reduce)(g, reducer.init(g))
  assert mean['w'].dtype == jnp.bfloat16
  np.testing.assert_array_equal(state.residual['w'], [-0.75, 0.75])
  assert state.residual['w'].dtype == jnp.float32


def test_bad_arguments():
  with pytest.raises(ValueError, match=r"format='int3' is unknown.*int4, int8"):
    two_phase_quantized('data', format='int3', workers=2)
  with pytest.raises(ValueError, match='bucket=0'):
    two_phase_quantized('data', bucket=0, workers=2)
  with pytest.raises(ValueError, match='workers=0'):
    two_phase_quantized('data', workers=0)
  reducer = two_phase_quantized('data', workers=2)
  with pytest.raises(ValueError, match=r'workers=2, but .* have 4 workers'):
    run(reducer, gradients())
  one = two_phase_quantized(None, workers=1)
  with pytest.raises(ValueError, match='is int32'):
    one.reduce(jnp.ones(2, jnp.int32), one.init(jnp.ones(2)))
