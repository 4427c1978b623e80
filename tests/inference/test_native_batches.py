"""Batches and outputs around the borders of native tiles, against NumPy."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from bandwidth import inference
from bandwidth.inference import native

RNG = np.random.default_rng(5)
# Rows that registers, groups of registers and panels of rows have, one more,
# and what leaves a last group of each width.
BATCHES = (1, 2, 4, 5, 8, 9, 17, 33, 49, 65, 130)
LARGEST = {'int16': (32767, 16383), 'int8': (127, 127)}


@pytest.fixture(params=native.INSTRUCTIONS[1:])
def instructions(request):
  if native.compiler() is None:
    pytest.skip('there is no C++ compiler')
  if native.use(request.param) != request.param:
    pytest.skip(f'this machine has no {request.param}')
  yield request.param
  native.use('best')


def codebook(bits, inputs, outputs, groups=1, runs=1):
  book = RNG.normal(size=(groups, runs, 2**bits))
  return inference.codebook_matrix(
    RNG.integers(0, 2**bits, (outputs, inputs)), book, bits=bits
  )


def uniform(inputs, outputs, groups=1, runs=1):
  levels = RNG.integers(-128, 128, (outputs, inputs))
  return inference.uniform_matrix(levels, RNG.random((groups, runs)) + 0.1)


def sparse(inputs, outputs):
  book = RNG.normal(size=40)
  book[0] = 0
  kept = RNG.random((outputs, inputs)) < 0.2
  kept[outputs // 2] = False
  return inference.sparse_matrix(
    RNG.integers(1, 40, (outputs, inputs)) * kept, book
  )


MATRICES = {
  'one book': lambda: codebook(4, 300, 25),
  'by output': lambda: codebook(4, 256, 24, groups=24),
  'by run': lambda: codebook(4, 384, 26, runs=3),
  'by output and run': lambda: codebook(4, 384, 13, groups=13, runs=3),
  'two bits': lambda: codebook(2, 520, 12),
  'two bits by run': lambda: codebook(2, 512, 7, runs=2),
  'eight bits': lambda: codebook(8, 200, 25),
  'eight bits by output': lambda: codebook(8, 190, 6, groups=6),
  'eight bits by run': lambda: codebook(8, 192, 5, runs=3),
  'uniform': lambda: uniform(700, 49),
  'uniform by output and run': lambda: uniform(192, 10, groups=5, runs=3),
  'sparse': lambda: sparse(333, 35),
}


def to_integers(values, largest):
  """Rounds along the last axis, as `rounding` says, in float32."""
  values = np.asarray(values, np.float32)
  most = np.abs(values).max(-1, keepdims=True)
  integers = np.rint(values * (np.float32(largest) / most))
  return integers.astype(np.float64) * (most / np.float32(largest))


def product(x, matrix, mode):
  """What a mode multiplies, in float64."""
  if mode == 'exact' or isinstance(matrix, inference.SparseMatrix):
    return x.astype(np.float64) @ inference.decode(matrix)
  activations, entries = LARGEST[mode]
  if isinstance(matrix, inference.CodebookMatrix):
    book = to_integers(matrix.codebook, entries).astype(np.float32)
    matrix = dataclasses.replace(matrix, codebook=book)
  return to_integers(x, activations) @ inference.decode(matrix)


@pytest.mark.parametrize('name', MATRICES)
def test_rows_and_outputs_around_tiles(instructions, name):
  matrix = MATRICES[name]()
  x = RNG.normal(size=(max(BATCHES), matrix.shape[0])).astype(np.float32)
  # Rows of other scales must not touch each other.
  x *= 10.0 ** RNG.integers(-3, 4, (len(x), 1))
  for mode in inference.MODES:
    wanted = product(x, matrix, mode)
    scale = np.linalg.norm(wanted, axis=1, keepdims=True)
    for batch in BATCHES:
      y = inference.matmul(
        jnp.asarray(x[:batch]), matrix, backend='native', mode=mode
      )
      error = np.abs(np.asarray(y) - wanted[:batch]) / scale[:batch]
      assert error.max() < 1e-6, (mode, batch)


def test_many_outputs_are_divided_among_threads(instructions):
  matrix = codebook(4, 512, 1001)
  x = RNG.normal(size=(20, 512)).astype(np.float32)
  for mode in inference.MODES:
    wanted = product(x, matrix, mode)
    for batch in (1, 4, 20):
      y = inference.matmul(
        jnp.asarray(x[:batch]), matrix, backend='native', mode=mode
      )
      np.testing.assert_allclose(
        y, wanted[:batch], rtol=1e-4, atol=1e-3, err_msg=f'{mode} {batch}'
      )


def test_a_row_that_is_not_finite_touches_no_other(instructions):
  for name in ('one book', 'eight bits', 'uniform', 'sparse'):
    matrix = MATRICES[name]()
    if name == 'sparse':
      matrix = inference.sparse_matrix(np.ones((5, 64), int), [0.0, 0.5])
    x = np.ones((20, matrix.shape[0]), np.float32)
    x[3, 5], x[18, 5] = np.nan, np.inf
    for mode in inference.MODES:
      y = inference.matmul(jnp.asarray(x), matrix, backend='native', mode=mode)
      finite = np.isfinite(y).all(1)
      assert not finite[[3, 18]].any(), (name, mode)
      assert np.delete(finite, [3, 18]).all(), (name, mode)


def test_activations_of_one_sign(instructions):
  """What weights add to them is small beside their sum."""
  x = RNG.random((9, 4096)).astype(np.float32)
  for matrix in (codebook(4, 4096, 8), codebook(8, 4096, 8), uniform(4096, 8)):
    for mode in inference.MODES:
      wanted = product(x, matrix, mode)
      for batch in (1, 9):
        y = inference.matmul(
          jnp.asarray(x[:batch]), matrix, backend='native', mode=mode
        )
        error = np.linalg.norm(np.asarray(y) - wanted[:batch])
        assert error < 1e-6 * np.linalg.norm(wanted[:batch]), (mode, batch)
