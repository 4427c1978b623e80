"""Factors and solves one by one, so that no program of a CPU deadlocks."""

import os
import pathlib
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg

from bandwidth.search import linear_algebra
from bandwidth.search.cma_es import decompose
from bandwidth.search.decisions import joint, options

ROOT = pathlib.Path(__file__).parents[2]
# Two calls that do not depend on each other, and two threads of XLA's pool.
PROGRAM = """
import os
os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:2])
import jax, jax.numpy as jnp
from bandwidth.search.linear_algebra import cholesky, solve_lower
many = 200 * jnp.eye(200) + jax.random.normal(jax.random.key(0), (8, 200, 200))

@jax.jit
def program():
  def of(i):
    factors = jax.vmap(cholesky)(many + i)
    solved = jax.vmap(solve_lower)(many * (1 + i), many[:, :, :50])
    return factors.sum() + solved.sum()
  return jax.lax.map(of, jnp.arange(20.0))

for _ in range(5):
  total = program().block_until_ready()
print(bool(jnp.isfinite(total).all()))
"""


def matrices(count=3, n=5):
  x = np.random.default_rng(0).normal(size=(count, n, n)).astype('f4')
  right = np.random.default_rng(1).normal(size=(count, n, 2)).astype('f4')
  return x @ x.swapaxes(1, 2) + np.eye(n, dtype='f4'), right


def batched(program, *arguments):
  """Calls of LAPACK with several matrices in a compiled program."""
  text = jax.jit(program).lower(*arguments).compile().as_text() or ''
  calls = re.findall(r'= \(?\w+\[([\d,]*)\].*custom_call_target="lapack_', text)
  assert calls
  return [shape for shape in calls if shape.count(',') > 1]


def test_of_many_each_is_what_scipy_finds():
  many, right = matrices()
  lower = jax.vmap(linear_algebra.cholesky)(many)
  solved = jax.vmap(linear_algebra.solve_lower)(lower, right)
  values, vectors = jax.vmap(linear_algebra.eigh)(many)
  # One factor, many right sides.
  shared = jax.vmap(
    lambda b: linear_algebra.solve_lower(lower[0], b, transposed=True)
  )(right)
  for i, (matrix, b) in enumerate(zip(many, right, strict=True)):
    expected = scipy.linalg.cholesky(matrix, lower=True)
    np.testing.assert_allclose(lower[i], expected, atol=1e-5)
    np.testing.assert_allclose(expected @ np.asarray(solved[i]), b, atol=1e-4)
    first = scipy.linalg.cholesky(many[0])
    np.testing.assert_allclose(first @ shared[i], b, atol=1e-4)
    np.testing.assert_allclose(
      values[i], scipy.linalg.eigvalsh(matrix), rtol=1e-4, atol=1e-5
    )
    np.testing.assert_allclose(
      matrix @ vectors[i], vectors[i] * values[i][None], atol=1e-4
    )


def test_maps_within_maps():
  many, _ = matrices(6)
  nested = jax.vmap(jax.vmap(linear_algebra.cholesky))
  found = nested(many.reshape(2, 3, 5, 5)).reshape(6, 5, 5)
  np.testing.assert_array_equal(found, jnp.linalg.cholesky(many))
  assert not batched(nested, many.reshape(2, 3, 5, 5))


@pytest.mark.parametrize(('platform', 'loop'), [('cpu', True), ('cuda', False)])
def test_elsewhere_a_batch_stays_one(platform, loop):
  traced = jax.jit(jax.vmap(linear_algebra.cholesky)).trace(matrices()[0])
  text = traced.lower(lowering_platforms=(platform,)).as_text()
  assert ('while' in text) == loop


def test_nan_stays_with_its_matrix():
  many, _ = matrices()
  many[1] = -many[1]
  found = jax.vmap(linear_algebra.cholesky)(many)
  np.testing.assert_array_equal(
    np.isnan(found).any((1, 2)), [False, True, False]
  )


def test_several_matrices_are_named():
  many, right = matrices()
  for name, call in {
    'matrix': lambda: linear_algebra.cholesky(many),
    'right': lambda: linear_algebra.solve_lower(many[0], right),
    'lower': lambda: linear_algebra.solve_lower(many, right[0]),
  }.items():
    with pytest.raises(ValueError, match=rf'{name}.shape=\(3, 5, .\) is not'):
      call()


def test_a_batch_is_found():
  many, _ = matrices()
  assert batched(jnp.linalg.cholesky, many) == ['3,5,5']


@pytest.fixture(name='factor', scope='module')
def make_factor():
  x = jax.random.normal(jax.random.key(0), (40, 12))
  return options.factorize(x[:12, :4], jnp.arange(12), options.moments(x))


def tables(factor):
  return options.option_table(
    factor, np.arange(1, 13), (12, 4), all_channels=12
  )


def realize(factor):
  # Two batches of the map, and what is left.
  return joint._realize(
    factor,
    jnp.arange(1, 11),
    jnp.full(10, 0.1),
    jnp.ones(10, bool),
    shape=(12, 4),
    refit=True,
  )


def measure(factor):
  kernel = joint.Kernel(factor, factor.lower @ factor.lower.T)
  return joint._measure(
    kernel, jnp.arange(1, 5), jnp.ones(3), jnp.ones(3, bool), refit=True
  )


@pytest.mark.parametrize('program', [tables, realize, measure])
def test_programs_of_options_have_no_batches(program, factor):
  assert not batched(program, factor)
  # As they would be, if somebody mapped them.
  several = jax.tree.map(lambda leaf: jnp.stack([leaf] * 2), factor)
  assert not batched(jax.vmap(program), several)


def test_other_programs_have_no_batches():
  many, right = matrices()
  inputs = jax.vmap(options.moments)(many)
  assert not batched(jax.vmap(decompose), many)
  assert not batched(
    jax.vmap(lambda w, m: options.factorize(w, jnp.arange(5), m)), right, inputs
  )


def test_nothing_else_calls_lapack():
  calls = re.compile(r'(jnp|lax|jax\.scipy|jax\.numpy)\.linalg\b(?!\.norm)')
  for folder in ('bandwidth', 'experiments'):
    for path in (ROOT / folder).rglob('*.py'):
      if path.name != 'linear_algebra.py':
        assert not calls.search(path.read_text('utf-8')), path


@pytest.mark.skipif(not hasattr(os, 'sched_setaffinity'), reason='Linux alone')
def test_two_cores_come_to_an_end():
  found = subprocess.run(
    [sys.executable, '-c', PROGRAM],
    capture_output=True,
    text=True,
    check=True,
    cwd=ROOT,
    timeout=90,
  )
  assert found.stdout.split() == ['True']
