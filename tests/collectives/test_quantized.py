"""QSGD and TernGrad against transcriptions of their papers' equations."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, PartitionSpec

from bandwidth.collectives import qsgd, terngrad
from bandwidth.collectives.traffic import accounting
from bandwidth.collectives.wire.codes import (
  pack_codes,
  pack_trits,
  unpack_codes,
  unpack_trits,
)

P = 4
SHAPES = {'bias': (7,), 'kernel': (9, 10), 'scale': ()}
SIZES = [7, 90, 1]
BOTH = {
  'qsgd': functools.partial(qsgd, bucket=16),
  'terngrad': terngrad,
}
both = pytest.mark.parametrize('name', sorted(BOTH))


def gradients(steps=1, seed=0):
  rng = np.random.default_rng(seed)
  return [
    {k: np.float32(rng.normal(size=(P, *s))) for k, s in SHAPES.items()}
    for _ in range(steps)
  ]


def run(reducer, grads):
  state = reducer.init(jax.tree.map(lambda g: g[0], grads[0]))
  step = jax.jit(
    jax.vmap(
      reducer.reduce, (0, None), (None, None), axis_name='data', axis_size=P
    )
  )
  means = []
  for g in grads:
    mean, state = step(g, state)
    means.append(vector(mean))
  return means, state


def vector(tree, axes=0):
  leaves = [np.asarray(x) for x in jax.tree.leaves(tree)]
  return np.concatenate(
    [x.reshape(*x.shape[:axes], -1) for x in leaves], axis=-1
  )


def draws(seed, step, worker, size):
  key = jax.random.fold_in(jax.random.key(seed), step)
  return np.asarray(
    jax.random.uniform(jax.random.fold_in(key, worker), (size,))
  )


def quantized(v, u, s):
  """Equation of Q_s, one bucket."""
  norm = np.sqrt((v.astype(np.float64) ** 2).sum())
  place = np.abs(v) / norm * s
  level = np.floor(place)
  xi = (level + (u < place - level)) / s
  return norm * np.sign(v) * xi


@pytest.mark.parametrize(('bits', 'bucket'), [(2, 16), (4, 30), (8, 512)])
def test_qsgd_is_the_papers_equation(bits, bucket):
  grads = gradients(3)
  means, state = run(qsgd('data', bits=bits, bucket=bucket, seed=5), grads)
  for step, (mean, g) in enumerate(zip(means, grads, strict=True)):
    total = 0
    for worker, v in enumerate(vector(g, 1)):
      u = draws(5, step, worker, v.size)
      parts = range(0, v.size, bucket)
      total = total + np.concatenate(
        [
          quantized(v[i : i + bucket], u[i : i + bucket], 2 ** (bits - 1) - 1)
          for i in parts
        ]
      )
    np.testing.assert_allclose(mean, total / P, rtol=1e-5, atol=1e-6)
  assert state.step == 3


@pytest.mark.parametrize('clip', [None, 2.5, 1.0])
def test_terngrad_is_the_papers_equation(clip):
  grads = gradients(3)
  means, _ = run(terngrad('data', clip=clip, seed=2), grads)
  borders = np.cumsum(SIZES)[:-1]
  for step, (mean, g) in enumerate(zip(means, grads, strict=True)):
    clipped = []
    for v in vector(g, 1):
      layers = np.split(v, borders)
      if clip:
        sigmas = [np.sqrt((x**2).mean()) for x in layers]
        layers = [
          np.clip(x, -clip * s, clip * s)
          for x, s in zip(layers, sigmas, strict=True)
        ]
      clipped.append(layers)
    shared = [max(np.abs(w[i]).max() for w in clipped) for i in range(3)]
    scale = np.repeat(shared, SIZES)
    total = 0
    for worker, layers in enumerate(clipped):
      v = np.concatenate(layers)
      b = draws(2, step, worker, v.size) < np.abs(v) / scale
      total = total + scale * np.sign(v) * b
    np.testing.assert_allclose(mean, total / P, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
  'factory',
  [
    functools.partial(qsgd, bits=2, bucket=50),
    functools.partial(qsgd, bits=4),
    functools.partial(terngrad, clip=None),
  ],
)
def test_the_mean_over_many_draws_is_the_gradient(factory):
  reducer, count = factory(None, seed=1), 4000
  g = np.float32(np.random.default_rng(3).normal(size=60))
  state = reducer.init(g)
  seen = jax.jit(
    jax.vmap(lambda step: reducer.reduce(g, state._replace(step=step))[0])
  )(jnp.arange(count))
  seen = np.asarray(seen, np.float64)
  error = seen.std(0) / np.sqrt(count)
  assert (np.abs(seen.mean(0) - g) < 4.5 * error + 1e-6).all()
  assert seen.std(0).max() > 0.1


def test_clipping_is_the_only_bias_of_terngrad():
  reducer = terngrad(None, clip=1.0)
  g = np.float32([0.5, -0.5, 4.0, -1.0])
  sigma = np.sqrt((g**2).mean())
  seen = jax.jit(
    jax.vmap(
      lambda step: reducer.reduce(g, reducer.init(g)._replace(step=step))[0]
    )
  )(jnp.arange(4000))
  expected = np.clip(g, -sigma, sigma)
  np.testing.assert_allclose(seen.mean(0), expected, atol=0.1)
  np.testing.assert_allclose(np.unique(np.abs(seen)), [0, sigma], rtol=1e-6)


@pytest.mark.parametrize('size', [1e-30, 1e30])
@both
def test_small_and_large_gradients(name, size):
  reducer = BOTH[name](None)
  g = np.float32(size) * np.float32([3.0, 4.0])
  mean, _ = jax.jit(reducer.reduce)(g, reducer.init(g))
  assert np.isfinite(mean).all()
  assert np.abs(mean).max() > 0.5 * g.max()


@both
def test_zero_stays_zero(name):
  means, _ = run(
    BOTH[name]('data'), [jax.tree.map(np.zeros_like, gradients()[0])]
  )
  np.testing.assert_array_equal(means[0], 0)


@both
def test_what_is_not_finite_stays_so(name):
  found = []
  for worker, bad in enumerate([np.nan, np.inf, -np.inf, np.nan]):
    (grads,) = gradients()
    grads['kernel'][worker, 3, 3] = bad
    found.append(grads)
  means, _ = run(BOTH[name]('data'), found)
  for mean in means:
    assert not np.isfinite(mean[7 + 33])
    assert np.isfinite(mean[:7]).all() or name == 'qsgd'


@both
def test_integers_are_refused(name):
  reducer = BOTH[name](None)
  g = {'steps': jnp.ones(3, jnp.int32)}
  with pytest.raises(ValueError, match='steps is int32'):
    reducer.reduce(g, reducer.init(g))


def bytes_by_hand(name, workers):
  # 98 elements: 7 scales of 16, four bits each; or 3 scales, 5 trits a byte.
  if name == 'qsgd':
    return (workers - 1) * (49 + 7 * 4)
  return 2 * (workers - 1) * 12 / workers + (workers - 1) * 20


@pytest.mark.parametrize('workers', [4, 8])
@both
def test_compiled_bytes_are_the_predicted_ones(name, workers):
  reducer = BOTH[name]('data')
  params = jax.tree.map(lambda g: g[0], gradients()[0])
  state = reducer.init(params)
  grads = jax.tree.map(lambda p: jnp.zeros((workers, *p.shape)), params)
  mapped = jax.pmap(
    reducer.reduce, axis_name='data', in_axes=(0, None), out_axes=None
  )
  sent = accounting.wire_bytes(mapped.lower(grads, state).compile())
  assert sent == reducer.wire_bytes(params, workers=workers)
  assert sent == bytes_by_hand(name, workers)


@both
def test_two_axes_are_as_one(name):
  (grads,) = gradients()
  (flat,), _ = run(BOTH[name]('data'), [grads])
  reducer = BOTH[name](('slow', 'fast'))
  state = reducer.init(grads)
  pairs = jax.tree.map(lambda g: g.reshape(2, 2, *g.shape[1:]), grads)
  inner = jax.vmap(
    lambda g: reducer.reduce(g, state)[0], axis_name='fast', out_axes=None
  )
  both = jax.jit(jax.vmap(inner, axis_name='slow', out_axes=None))(pairs)
  np.testing.assert_array_equal(vector(both), flat)
  mesh = jax.make_mesh(
    (2, 2), ('slow', 'fast'), axis_types=(AxisType.Auto,) * 2
  )
  step = jax.jit(
    jax.shard_map(
      lambda g: reducer.reduce(jax.tree.map(lambda x: x[0], g), state)[0],
      mesh=mesh,
      in_specs=PartitionSpec(('slow', 'fast')),
      out_specs=PartitionSpec(),
      check_vma=False,
    )
  )
  np.testing.assert_array_equal(vector(step(grads)), flat)
  sent = accounting.wire_bytes(step.lower(grads).compile())
  params = jax.tree.map(lambda g: g[0], grads)
  assert sent == reducer.wire_bytes(params, workers=(2, 2))


@pytest.mark.compiler
@both
def test_many_elements_have_the_same_bits_under_pmap_and_vmap(name):
  reducer = BOTH[name]('data')
  g = np.float32(np.random.default_rng(4).normal(size=(P, 20_011)))
  one = functools.partial(reducer.reduce, state=reducer.init(g))
  simulated, _ = jax.jit(jax.vmap(one, axis_name='data'))(g)
  on_devices, _ = jax.pmap(one, axis_name='data')(g)
  np.testing.assert_array_equal(on_devices, simulated)


@pytest.mark.parametrize('shape', [(0,), (1,), (9,), (3, 13)])
@pytest.mark.parametrize('bits', [1, 2, 4, 8])
def test_codes_come_back(shape, bits):
  codes = np.random.default_rng(0).integers(0, 2**bits, shape, np.uint8)
  packed = pack_codes(jnp.asarray(codes), bits)
  assert packed.shape[-1] == -(-shape[-1] * bits // 8)
  np.testing.assert_array_equal(unpack_codes(packed, bits, shape[-1]), codes)


@pytest.mark.parametrize('shape', [(0,), (1,), (11,), (3, 10)])
def test_trits_come_back(shape):
  digits = np.random.default_rng(0).integers(0, 3, shape, np.uint8)
  packed = pack_trits(jnp.asarray(digits))
  assert packed.shape[-1] == -(-shape[-1] // 5)
  np.testing.assert_array_equal(unpack_trits(packed, shape[-1]), digits)


def test_bad_arguments():
  with pytest.raises(ValueError, match='bits=3'):
    qsgd('data', bits=3)
  with pytest.raises(ValueError, match='bucket=0'):
    qsgd('data', bucket=0)
  with pytest.raises(ValueError, match='clip=0'):
    terngrad('data', clip=0)
  with pytest.raises(ValueError, match=r'workers=\(2, 0\)'):
    qsgd('data').wire_bytes(jnp.zeros(3), workers=(2, 0))
  with pytest.raises(ValueError, match=r"axis_name=.*'data'.*not bound"):
    qsgd('data').reduce(jnp.zeros(3), qsgd('data').init(None))
