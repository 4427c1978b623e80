import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from bandwidth.coding import CodebookTensor, RawTensor, UniformTensor
from bandwidth.coding import tensors as tensors_lib


def test_codebooks_on_a_grid_against_loops():
  rng = np.random.default_rng(0)
  codes = rng.integers(0, 5, (4, 6, 10))
  codebook = rng.normal(size=(2, 5, 5)).astype(np.float32)
  array = CodebookTensor(codes, codebook).to_array()
  for i, j, k in np.ndindex(codes.shape):
    assert array[i, j, k] == codebook[j // 3, k // 2, codes[i, j, k]]


def test_steps_on_a_grid_against_loops():
  rng = np.random.default_rng(0)
  levels = rng.integers(-9, 9, (6, 4))
  step = rng.random((3, 2)).astype(np.float32)
  tensor = UniformTensor(levels, step)
  array = tensor.to_array()
  for i, j in np.ndindex(levels.shape):
    assert array[i, j] == np.float32(levels[i, j]) * step[i // 2, j // 2]
  assert tensor.count_nonzero() == np.count_nonzero(array)


@pytest.mark.parametrize('axis', [0, 1, 2, -1])
def test_along_axis(axis):
  rng = np.random.default_rng(1)
  codes = rng.integers(0, 3, (2, 3, 4))
  books = rng.normal(size=(codes.shape[axis], 3)).astype(np.float32)
  array = CodebookTensor.along_axis(codes, books, axis=axis).to_array()
  scaled = UniformTensor.along_axis(codes, abs(books[:, 0]), axis=axis)
  for index in np.ndindex(codes.shape):
    assert array[index] == books[index[axis], codes[index]]
    step = abs(books[index[axis], 0])
    assert scaled.to_array()[index] == np.float32(codes[index]) * step


def test_neighbors_along_an_axis():
  codes, books = np.arange(12).reshape(6, 2) % 2, np.float32([[0, 1], [2, 3]])
  array = CodebookTensor.along_axis(codes, books, axis=0)
  assert array.grid == (2, 1)
  np.testing.assert_array_equal(
    array.to_array(), np.repeat([[0, 1], [2, 3]], 3, axis=0)
  )
  scaled = UniformTensor.along_axis(codes, [2.0, 3.0], axis=0)
  assert scaled.to_array()[:, 1].tolist() == [2, 2, 2, 3, 3, 3]
  with pytest.raises(ValueError, match='does not divide shape'):
    UniformTensor.along_axis(codes, np.ones(4), axis=0)
  with pytest.raises(ValueError, match='axis=None is not of values that'):
    UniformTensor.along_axis(codes, np.ones(6), axis=None)


def test_ternary_tensor():
  tensor = CodebookTensor(np.array([0, 1, 2, 1]), [0.0, 1.5, -0.5])
  assert tensor.to_array().tolist() == [0.0, 1.5, -0.5, 1.5]
  assert tensor.zero_reserved
  assert tensor.count_nonzero() == 3


def test_dtypes():
  tensor = CodebookTensor(np.array([1]), [0.0, 1.0], dtype='bfloat16')
  assert tensor.to_array().dtype == ml_dtypes.bfloat16
  assert tensor.codes.dtype == np.uint8
  wide = CodebookTensor(np.zeros(100, int), np.zeros(300))
  assert wide.codes.dtype == np.uint16
  levels = UniformTensor(np.array([3]), 0.5, dtype='float16')
  assert levels.to_array().dtype == np.float16
  assert RawTensor(jnp.ones(3, jnp.bfloat16)).dtype == 'bfloat16'
  for name in tensors_lib.DTYPES:
    assert tensors_lib.dtype_of(name).name == name


@pytest.mark.parametrize(
  ('make', 'match'),
  [
    (lambda: CodebookTensor(np.array([3]), [0.0, 1.0]), 'codes reach'),
    (lambda: CodebookTensor(np.array([-1]), [0.0, 1.0]), 'codes reach'),
    (lambda: CodebookTensor(np.array([0.5]), [0.0, 1.0]), 'codes has dtype'),
    (lambda: CodebookTensor(np.array([0]), [0.0, np.nan]), 'codebook .* NaN'),
    (lambda: CodebookTensor(np.array([0]), [0.0, np.inf]), 'codebook .* NaN'),
    (lambda: CodebookTensor(np.array([0]), [0.0, 1e39]), 'codebook .* NaN'),
    (lambda: CodebookTensor(np.array([0]), []), 'codebook has shape'),
    (lambda: CodebookTensor(np.zeros(4, int), np.zeros((3, 2))), 'divide'),
    (lambda: CodebookTensor(np.array([0]), [0.0], dtype='int8'), "'int8'"),
    (lambda: UniformTensor(np.array([1]), -0.5), 'negative'),
    (lambda: UniformTensor(np.array([1]), np.nan), 'step holds NaN'),
    (lambda: UniformTensor(np.array([2**31]), 1.0), '32 bits'),
    (lambda: UniformTensor(np.array([1.0]), 1.0), 'levels has dtype'),
    (lambda: UniformTensor(np.ones((2, 4), int), np.ones(3)), 'divide'),
    (lambda: RawTensor(np.array(['a'])), 'no file holds'),
    (lambda: RawTensor(np.array([None])), 'no file holds'),
    (
      lambda: CodebookTensor.along_axis(np.zeros(3, int), [[0.0]], axis=1),
      'axis=1',
    ),
  ],
)
def test_errors(make, match):
  with pytest.raises(ValueError, match=match):
    make()
