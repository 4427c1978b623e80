"""Products inside shard_map, under vmap, exported, and lowered for others."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export
from jax.sharding import PartitionSpec as P

from bandwidth import inference
from bandwidth.inference import native

RNG = np.random.default_rng(3)
INPUTS, OUTPUTS, ROWS = 70, 6, 4
MESH = jax.make_mesh(
  (2, 2), ('data', 'model'), axis_types=(jax.sharding.AxisType.Auto,) * 2
)


def make(form):
  shape = (OUTPUTS, INPUTS)
  book = np.append(0, RNG.normal(size=15)).astype(np.float32)
  if form == 'codebook':
    return inference.codebook_matrix(RNG.integers(0, 16, shape), book)
  if form == 'uniform':
    return inference.uniform_matrix(RNG.integers(-128, 128, shape), 0.01)
  codes = RNG.integers(0, 16, shape) * (RNG.random(shape) < 0.2)
  return inference.sparse_matrix(codes, book)


FORMS = {form: make(form) for form in ('codebook', 'uniform', 'sparse')}
WEIGHTS = {form: inference.decode(matrix) for form, matrix in FORMS.items()}
X = RNG.normal(size=(ROWS, INPUTS)).astype(np.float32)
CASES = pytest.mark.parametrize(
  ('form', 'backend'),
  [(form, 'auto') for form in FORMS] + [('codebook', 'xla'), ('sparse', 'xla')],
)
close = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5)


def stacked(*matrices):
  """Matrices along a first axis, of NumPy's arrays."""
  return jax.tree.map(lambda *parts: np.stack(parts), *matrices)


@CASES
def test_rows_split_over_devices(form, backend):
  multiply = functools.partial(
    inference.matmul, matrix=FORMS[form], backend=backend
  )
  weights = WEIGHTS[form]
  split = functools.partial(
    jax.shard_map, mesh=MESH, in_specs=P('data'), out_specs=P('data')
  )
  g = RNG.normal(size=(ROWS, OUTPUTS)).astype(np.float32)
  close(jax.jit(split(multiply))(X), X @ weights)
  outside = jax.grad(lambda x: (split(multiply)(x) * g).sum())
  close(jax.jit(outside)(X), g @ weights.T)
  inside = split(jax.grad(lambda x: multiply(x).sum()))
  close(jax.jit(inside)(X), np.ones((ROWS, OUTPUTS)) @ weights.T)


@pytest.mark.parametrize('mode', ['exact', 'int8'])
def test_outputs_split_over_devices(mode):
  """Activations are the same on all: their gradient is a sum over devices."""
  matrix, weights = FORMS['uniform'], WEIGHTS['uniform']

  def multiply(x, levels):
    own = inference.UniformMatrix(
      levels=levels, step=matrix.step, shape=(INPUTS, OUTPUTS // 2)
    )
    return inference.matmul(x, own, mode=mode)

  split = jax.shard_map(
    multiply, mesh=MESH, in_specs=(P(), P('model')), out_specs=P(None, 'model')
  )
  error = {'exact': 1e-5, 'int8': 0.1}[mode]
  np.testing.assert_allclose(
    jax.jit(split)(X, matrix.levels), X @ weights, atol=error
  )
  g = RNG.normal(size=(ROWS, OUTPUTS)).astype(np.float32)
  total = jax.grad(lambda x: (split(x, matrix.levels) * g).sum())
  close(jax.jit(total)(X), g @ weights.T)


def test_what_varies_over_devices_is_known_to():
  """A result that is not the same on all can't be passed off as that."""
  split = jax.shard_map(
    lambda x: inference.matmul(x, FORMS['codebook']),
    mesh=MESH,
    in_specs=P('data'),
    out_specs=P(),
  )
  with pytest.raises(ValueError, match='out_specs'):
    jax.jit(split)(X)


@CASES
def test_matrices_of_numpy_under_vmap(form, backend):
  multiply = functools.partial(inference.matmul, backend=backend)
  matrix, weights = FORMS[form], WEIGHTS[form]
  both = stacked(matrix, matrix)
  close(jax.vmap(multiply)(X[:2], both), X[:2] @ weights)
  close(jax.vmap(multiply, (None, 0))(X, both)[1], X @ weights)
  twice = jax.vmap(jax.vmap(multiply))
  y = twice(X.reshape(2, 2, -1), stacked(both, both))
  close(y.reshape(ROWS, -1), X @ weights)
  gradient = jax.grad(lambda x: (jax.vmap(multiply)(x, both) ** 2).sum())
  close(gradient(X[:2]), 2 * X[:2] @ weights @ weights.T, rtol=1e-4)


@CASES
def test_gradients_of_gradients(form, backend):
  weights = WEIGHTS[form].astype(np.float64)

  def loss(x):
    return (inference.matmul(x, FORMS[form], backend=backend) ** 3).sum()

  def slope(x):
    return jax.grad(loss)(x).sum()

  wanted = (6 * (X[0] @ weights) * weights.sum(0)) @ weights.T
  got = jax.jit(jax.grad(slope))(jnp.asarray(X[0]))
  np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize('form', FORMS)
def test_what_is_exported_runs_anywhere(form):
  multiply = jax.jit(lambda x: inference.matmul(x, FORMS[form]))
  given = jax.ShapeDtypeStruct(X.shape, X.dtype)
  exported = export.export(multiply, platforms=('cpu', 'cuda', 'tpu'))(given)
  assert 'custom_call' not in exported.mlir_module()
  close(exported.call(X), X @ WEIGHTS[form])
  rows = jax.ShapeDtypeStruct(export.symbolic_shape(f'rows, {INPUTS}'), X.dtype)
  close(export.export(multiply)(rows).call(X), X @ WEIGHTS[form])


def test_native_kernels_are_lowered_for_cpus_alone():
  def lowered(platform, backend):
    multiply = jax.jit(
      lambda x: inference.matmul(x, FORMS['codebook'], backend=backend)
    )
    traced = multiply.trace(X)
    return traced.lower(lowering_platforms=(platform,)).as_text()

  assert 'custom_call' not in lowered('cuda', 'auto')
  assert 'custom_call' not in lowered('tpu', 'auto')
  if native.compiler() is None:
    pytest.skip('there is no C++ compiler')
  assert 'bandwidth_codebook' in lowered('cpu', 'auto')
  with pytest.raises(ValueError, match="'native': its kernels are for CPUs"):
    lowered('cuda', 'native')
  with pytest.raises(ValueError, match='Cannot serialize code'):
    export.export(
      jax.jit(
        lambda x: inference.matmul(x, FORMS['codebook'], backend='native')
      )
    )(X)


def test_backends_of_the_environment(monkeypatch):
  def lowered(backend='auto'):
    multiply = jax.jit(
      lambda x: inference.matmul(x, FORMS['codebook'], backend=backend)
    )
    return multiply.lower(X).as_text()

  monkeypatch.setenv('BANDWIDTH_BACKEND', 'xla')
  assert 'bandwidth_codebook' not in lowered()
  if native.compiler() is not None:
    assert 'bandwidth_codebook' in lowered('native')
    monkeypatch.setenv('BANDWIDTH_BACKEND', 'native')
    assert 'bandwidth_codebook' in lowered()
  monkeypatch.setenv('BANDWIDTH_BACKEND', 'gpu')
  with pytest.raises(ValueError, match="BANDWIDTH_BACKEND='gpu' is unknown"):
    lowered()
  monkeypatch.setenv('BANDWIDTH_BACKEND', 'pallas')
  with pytest.raises(
    ValueError, match="BANDWIDTH_BACKEND='pallas': its kernel"
  ):
    lowered()
  assert 'bandwidth_codebook' not in lowered('xla')
