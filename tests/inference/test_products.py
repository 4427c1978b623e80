"""Products of every form by every backend, against NumPy in float64."""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from traces import Counted

from bandwidth import inference
from bandwidth.inference import backends, native, pallas, products, xla

RNG = np.random.default_rng(1)
# Of whole blocks and not, of one input, of more outputs than a tile has.
SHAPES = ((300, 17), (256, 33), (1, 1), (64, 5))
NATIVE = pytest.mark.skipif(
  native.compiler() is None, reason='there is no C++ compiler'
)


def forms(inputs, outputs):
  """Matrices by name."""
  shape = (outputs, inputs)
  made = {
    'codebook4': inference.codebook_matrix(
      RNG.integers(0, 16, shape), RNG.normal(size=16)
    ),
    'codebook8': inference.codebook_matrix(
      RNG.integers(0, 200, shape), RNG.normal(size=200)
    ),
    'by_output': inference.codebook_matrix(
      RNG.integers(0, 4, shape), RNG.normal(size=(outputs, 1, 4))
    ),
    'ternary': inference.ternary_matrix(RNG.integers(-1, 2, shape), 0.7, -0.4),
    'int4': inference.uniform_matrix(RNG.integers(-8, 8, shape), 0.1, bits=4),
    'int8': inference.uniform_matrix(
      RNG.integers(-128, 128, shape), RNG.random((outputs, 1))
    ),
  }
  for entries in (9, 30, 250):
    book = RNG.normal(size=entries)
    book[0] = 0
    codes = RNG.integers(1, entries, shape) * (RNG.random(shape) < 0.3)
    made[f'sparse{entries}'] = inference.sparse_matrix(codes, book)
  if inputs == 256:
    made['runs'] = inference.codebook_matrix(
      RNG.integers(0, 16, shape), RNG.normal(size=(1, 2, 16))
    )
    made['int8_runs'] = inference.uniform_matrix(
      RNG.integers(-128, 128, shape), RNG.random((1, 4))
    )
  return made


def few(backend, made):
  """Forms that a backend goes through; XLA takes a second to compile each."""
  if backend != 'xla':
    return made
  kept = ('codebook4', 'by_output', 'int8', 'sparse9', 'runs', 'int8_runs')
  return {name: matrix for name, matrix in made.items() if name in kept}


@pytest.fixture(params=['xla', *native.INSTRUCTIONS[1:]])
def backend(request):
  """A backend; of the native one each set of kernels."""
  if request.param == 'xla':
    yield request.param
    return
  if native.compiler() is None:
    pytest.skip('there is no C++ compiler')
  if native.use(request.param) != request.param:
    pytest.skip(f'this machine has no {request.param}')
  yield 'native'
  native.use('best')


def relative(y, wanted):
  scale = np.linalg.norm(wanted)
  return np.linalg.norm(np.asarray(y, np.float64) - wanted) / (scale or 1)


@pytest.mark.parametrize('shape', SHAPES)
def test_equals_the_decoded_product(backend, shape):
  x = RNG.normal(size=(5, shape[0])).astype(np.float32)
  for name, matrix in few(backend, forms(*shape)).items():
    wanted = x.astype(np.float64) @ inference.decode(matrix).astype(np.float64)
    y = inference.matmul(jnp.asarray(x), matrix, backend=backend)
    assert relative(y, wanted) < 1e-6, name
    one = inference.matmul(jnp.asarray(x[0]), matrix, backend=backend)
    assert relative(one, wanted[0]) < 1e-6, name


def to_integers(values, largest):
  """Rounds rows, as the docstring of `rounding` says, in float32."""
  values = np.asarray(values, np.float32)
  most = np.abs(values).max(-1, keepdims=True)
  integers = np.rint(values * (np.float32(largest) / most))
  return integers.astype(np.float64) * (most / np.float32(largest))


@pytest.mark.parametrize('mode', ['int16', 'int8'])
def test_modes_round_rows_and_codebooks(backend, mode):
  inputs, outputs = 512, 40
  activations, entries = {'int16': (32767, 16383), 'int8': (127, 127)}[mode]
  x = RNG.normal(size=(6, inputs)).astype(np.float32)
  errors = {}
  for name, matrix in few(backend, forms(inputs, outputs)).items():
    exact = x.astype(np.float64) @ inference.decode(matrix)
    y = inference.matmul(jnp.asarray(x), matrix, backend=backend, mode=mode)
    errors[name] = relative(y, exact)
    if isinstance(matrix, inference.SparseMatrix):
      assert errors[name] < 1e-6
      continue
    rounded = matrix
    if isinstance(matrix, inference.CodebookMatrix):
      book = to_integers(matrix.codebook, entries).astype(np.float32)
      rounded = dataclasses.replace(matrix, codebook=book)
    wanted = to_integers(x, activations) @ inference.decode(rounded)
    assert relative(y, wanted) < 1e-6, name
  assert max(errors.values()) < {'int16': 1e-4, 'int8': 2e-2}[mode]


def test_largest_integers_do_not_overflow(backend):
  """All activations and weights at their largest, of equal and unequal sign."""
  inputs = 4096
  for sign in (1.0, -1.0):
    x = jnp.full((1, inputs), sign)
    for matrix in (
      inference.codebook_matrix(np.ones((2, inputs), int), [0.0, 1.0]),
      inference.codebook_matrix(
        np.ones((2, inputs), int), np.linspace(1, -1, 16)[::-1] * -1 - 0.0
      ),
      inference.uniform_matrix(np.full((2, inputs), -128), 1 / 128),
    ):
      wanted = sign * inputs * inference.decode(matrix)[0, 0]
      for mode in inference.MODES:
        y = inference.matmul(x, matrix, backend=backend, mode=mode)
        np.testing.assert_allclose(y, np.full((1, 2), wanted), rtol=1e-2)


@pytest.mark.parametrize('batch', [1, pytest.param(6, marks=pytest.mark.slow)])
def test_tpu_kernel_interpreted(batch):
  for shape, names in (
    ((300, 17), ('codebook4', 'by_output', 'int8')),
    ((64, 5), ('ternary',)),
  ):
    x = RNG.normal(size=(batch, shape[0])).astype(np.float32)
    for name in names:
      matrix = forms(*shape)[name]
      assert not pallas.why_not(matrix, 'tpu')
      wanted = x.astype(np.float64) @ inference.decode(matrix)
      y = pallas.product(
        jnp.asarray(x), matrix, 'exact', device='tpu', interpret=True
      )
      assert relative(y, wanted) < 1e-6, name


def test_what_pallas_kernels_cannot_do():
  made = forms(256, 33)
  for device, name, reason in (
    ('gpu', 'sparse9', 'no kernel for a SparseMatrix'),
    ('gpu', 'runs', 'know no runs of inputs'),
    ('tpu', 'codebook8', 'chooses among at most 16 entries'),
    ('cpu', 'codebook4', 'are for GPUs and TPUs'),
  ):
    assert reason in pallas.why_not(made[name], device)


def test_inside_jit_without_another_trace(backend):
  matrix = forms(256, 33)['codebook4']
  counted = Counted(functools.partial(inference.matmul, backend=backend))
  product = jax.jit(counted)
  x = jnp.ones((3, 256))
  first = product(x, matrix)
  other = inference.codebook_matrix(
    RNG.integers(0, 16, (33, 256)), RNG.normal(size=16)
  )
  product(x + 1, other)
  assert counted.traces == 1
  np.testing.assert_allclose(
    first, inference.matmul(x, matrix, backend=backend), rtol=1e-6
  )


def test_vmap(backend):
  made = [forms(64, 5)['codebook4'] for _ in range(3)]
  x = jnp.asarray(RNG.normal(size=(3, 2, 64)).astype(np.float32))

  def product(x, matrix):
    return inference.matmul(x, matrix, backend=backend)

  same = jax.vmap(product, (0, None))(x, made[0])
  wanted = np.asarray(x) @ inference.decode(made[0])
  np.testing.assert_allclose(same, wanted, rtol=1e-5, atol=1e-5)
  within = jax.vmap(jax.vmap(product, (0, None)), (0, None))(x, made[0])
  np.testing.assert_allclose(within, wanted, rtol=1e-5, atol=1e-5)

  stacked = jax.tree.map(lambda *parts: jnp.stack(parts), *made)
  each = jax.vmap(product)(x, stacked)
  for i, matrix in enumerate(made):
    wanted = np.asarray(x[i]) @ inference.decode(matrix)
    np.testing.assert_allclose(each[i], wanted, rtol=1e-5, atol=1e-5)
  shared = jax.vmap(product, (None, 0))(x[0], stacked)
  for i, matrix in enumerate(made):
    wanted = np.asarray(x[0]) @ inference.decode(matrix)
    np.testing.assert_allclose(shared[i], wanted, rtol=1e-5, atol=1e-5)


def test_gradient_is_that_of_the_decoded_product(backend, monkeypatch):
  monkeypatch.setattr(xla, 'TILE', 1000)
  products._product.cache_clear()
  x = RNG.normal(size=(4, 300)).astype(np.float32)
  target = RNG.normal(size=(4, 17))
  for (name, matrix), mode in itertools.product(
    few(backend, forms(300, 17)).items(), ('exact', 'int8')
  ):
    weights = inference.decode(matrix).astype(np.float64)

    def loss(x, matrix=matrix, mode=mode):
      y = inference.matmul(x, matrix, backend=backend, mode=mode)
      return (y * target).sum()

    got = jax.jit(jax.grad(loss))(jnp.asarray(x))
    np.testing.assert_allclose(
      got, target @ weights.T, rtol=1e-4, atol=1e-4, err_msg=name
    )


def test_narrow_activations(backend):
  x = jnp.asarray(RNG.normal(size=(2, 64)), jnp.bfloat16)
  matrix = forms(64, 5)['int4']
  y = inference.matmul(x, matrix, backend=backend)
  assert y.dtype == jnp.bfloat16
  wanted = np.asarray(x, np.float64) @ inference.decode(matrix)
  np.testing.assert_allclose(np.asarray(y, np.float64), wanted, rtol=1e-2)


@pytest.mark.parametrize('bad', [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_stays_so(backend, bad):
  x = np.ones((2, 64), np.float32)
  x[0, 3] = bad
  made = forms(64, 5)
  for name in ('codebook4', 'codebook8', 'int8'):
    for mode in inference.MODES:
      y = inference.matmul(
        jnp.asarray(x), made[name], backend=backend, mode=mode
      )
      assert not np.isfinite(y[0]).any(), (name, mode)
      assert np.isfinite(y[1]).all()


def test_large_sums_of_small_products_are_finite(backend):
  """An activation times a level is too large, times its step it is not."""
  levels = RNG.integers(-100, 101, (5, 64))
  levels[:, 3] = [100, -100, 0, 100, 1]
  matrix = inference.uniform_matrix(levels, 0.001)
  x = RNG.normal(size=(3, 64)).astype(np.float32)
  x[1, 3] = 3e38
  wanted = x.astype(np.float64) @ inference.decode(matrix)
  for mode in inference.MODES:
    y = inference.matmul(jnp.asarray(x), matrix, backend=backend, mode=mode)
    for got, row in zip(y, wanted, strict=True):
      assert relative(got, row) < 5e-2, mode
  y = inference.matmul(jnp.asarray(x), matrix, backend=backend)
  np.testing.assert_allclose(y, wanted, rtol=1e-5, atol=1e-5)


def test_empty_operands(backend):
  matrix = inference.codebook_matrix(np.zeros((0, 8), int), np.zeros(4))
  y = inference.matmul(jnp.ones((3, 8)), matrix, backend=backend)
  assert y.shape == (3, 0)
  matrix = inference.codebook_matrix(np.zeros((2, 8), int), np.zeros(4))
  y = inference.matmul(jnp.ones((0, 8)), matrix, backend=backend)
  assert y.shape == (0, 2)


@NATIVE
def test_columns_that_are_too_large_are_not_followed():
  """Columns are data: what they say must not lead out of the activations."""
  matrix = forms(300, 17)['sparse9']
  wrong = dataclasses.replace(
    matrix,
    columns=np.full_like(matrix.columns, 65535),
    starts=matrix.starts[::-1].copy(),
  )
  for name in native.INSTRUCTIONS:
    native.use(name)
    y = inference.matmul(jnp.ones((2, 300)), wrong, backend='native')
    assert np.isfinite(y).all()
  native.use('best')


def test_without_a_compiler(monkeypatch):
  monkeypatch.setattr(native, 'compiler', lambda: None)
  cached = (native.library, backends.native_problem, backends.warn)
  for function in cached:
    function.cache_clear()
  matrix = forms(64, 5)['codebook4']
  try:
    with pytest.raises(ValueError, match=r"'native': .*needs a C\+\+ compiler"):
      inference.matmul(jnp.ones(64), matrix, backend='native')
    with pytest.warns(UserWarning, match='XLA multiplies, which is slower'):
      y = inference.matmul(jnp.ones(64), matrix)
  finally:
    for function in cached:
      function.cache_clear()
  wanted = inference.decode(matrix).sum(0)
  np.testing.assert_allclose(y, wanted, rtol=1e-4, atol=1e-5)


def test_rows_of_small_numbers_are_not_lost(backend):
  """Scales are normal numbers: rows are rounded as finely as these allow."""
  made = forms(64, 5)
  x = RNG.normal(size=(2, 64)) * [[1e-34], [1e-36]]
  x = x.astype(np.float32)
  for name in ('codebook4', 'codebook8', 'int8'):
    wanted = x.astype(np.float64) @ inference.decode(made[name])
    for mode in ('int16', 'int8'):
      y = inference.matmul(
        jnp.asarray(x), made[name], backend=backend, mode=mode
      )
      for got, row in zip(y, wanted, strict=True):
        assert relative(got, row) < 5e-2, (name, mode)


BAD = {
  'backend': ({'backend': 'cuda'}, "backend='cuda' is unknown"),
  'mode': ({'mode': 'int4'}, "mode='int4' is unknown"),
  'dtype': ({'x': jnp.ones(64, jnp.int32)}, 'x.dtype=int32 is none of'),
  'inputs': ({'x': jnp.ones(65)}, r'x has shape \(65,\), the matrix \(64, 5\)'),
  'scalar': ({'x': jnp.float32(1)}, r'x has shape \(\), the matrix'),
  'codes': (
    {'codes': np.zeros((5, 63), np.uint8)},
    r'codes are uint8 \(5, 63\); uint8 \(5, 64\) are wanted',
  ),
  'dtype of codes': (
    {'codes': np.zeros((5, 64), np.int8)},
    r'codes are int8 \(5, 64\); uint8',
  ),
  'entries': (
    {'codebook': np.zeros((1, 1, 15), np.float32)},
    'codebook entries=15 is not possible',
  ),
  'groups': (
    {'codebook': np.zeros((2, 1, 16), np.float32)},
    r'codebook is float32 \(2, 1, 16\), which does not fit 64 inputs and 5',
  ),
  'pallas': ({'backend': 'pallas'}, "'pallas': its kernels are for GPUs"),
}


@pytest.mark.parametrize('name', BAD)
def test_what_is_refused(name):
  given, message = BAD[name]
  given = dict(given)
  matrix = forms(64, 5)['codebook4']
  parts = {k: given.pop(k) for k in ('codes', 'codebook') if k in given}
  x = given.pop('x', jnp.ones(64))
  with pytest.raises(ValueError, match=message):
    inference.matmul(x, dataclasses.replace(matrix, **parts), **given)
