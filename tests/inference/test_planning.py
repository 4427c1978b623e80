"""Plans, from tables made up and measured."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bandwidth import inference
from bandwidth.inference import planning
from bandwidth.inference.planning import Timing, predict

RNG = np.random.default_rng(3)


def table_of(cost):
  """A table whose seconds are a call, bytes of weights, and arithmetic."""
  return [
    Timing(kind, weights, batch, 1e-6 + weights * (byte + 2e-10 * batch))
    for kind, byte in cost.items()
    for weights in (10, 1000, 100_000)
    for batch in (1, 64)
  ]


COST = {
  'dense': 1e-9,
  'codebook2': 2e-10,
  'codebook4': 3e-10,
  'codebook8': 5e-10,
  'uniform': 5e-10,
  'sparse': 2e-9,
}


def made(density):
  book = np.arange(9.0)
  shape = (40, 50)
  codes = RNG.integers(1, 9, shape) * (RNG.random(shape) < density)
  return inference.codebook_matrix(codes, book), codes, book


def test_measured_points_are_predicted_as_they_are():
  table = table_of(COST)
  for timing in table:
    found = predict(
      table, timing.kind, weights=timing.weights, batch=timing.batch
    )
    assert found == pytest.approx(timing.seconds)
  most = predict(table, 'dense', weights=100_000, batch=64)
  assert predict(table, 'dense', weights=200_000, batch=64) == pytest.approx(
    2 * most
  )
  assert predict(table, 'dense', weights=100_000, batch=128) == pytest.approx(
    2 * most
  )
  least = predict(table, 'dense', weights=10, batch=1)
  assert predict(table, 'dense', weights=1, batch=1) == pytest.approx(least)
  with pytest.raises(ValueError, match='table: it has no timings of uniform'):
    predict(table_of({'dense': 1.0}), 'uniform', weights=1, batch=1)


def test_the_fastest_is_kept_and_multiplies_the_same():
  whole, _, _ = made(density=1.0)
  pruned, codes, book = made(density=0.02)
  sparse = inference.sparse_matrix(codes, book)
  params = {
    'a': {'kernel': whole, 'bias': np.zeros(40)},
    'b': {'kernel': pruned},
    'c': {'kernel': sparse},
    'd': {'embedding': whole},
  }
  plan = inference.plan_inference(params, table_of(COST))
  kinds = {name: choice.kind for name, choice in plan.choices.items()}
  assert kinds == {
    'a/kernel': 'codebook4',
    'b/kernel': 'sparse',
    'c/kernel': 'sparse',
  }
  assert plan.params['d']['embedding'] is whole
  slow = {**COST, 'codebook4': 5e-9, 'sparse': 1e-7}
  dense = inference.plan_inference(params, table_of(slow))
  assert {c.kind for c in dense.choices.values()} == {'dense'}
  packed = {**COST, 'sparse': 1e-7}
  back = inference.plan_inference(params, table_of(packed))
  assert back.choices['c/kernel'].kind == 'codebook4'
  for made_plan in (plan, dense, back):
    for name, wanted in (('a', whole), ('b', pruned), ('c', sparse)):
      found = made_plan.params[name]['kernel']
      weights = inference.decode(found) if inference.is_matrix(found) else found
      np.testing.assert_array_equal(weights, inference.decode(wanted))


def test_dense_unless_something_is_gained():
  almost = 1 - planning.MARGIN + 1e-3
  found = planning.choose_form({'dense': 1.0, 'sparse': 3.0, 'uniform': almost})
  assert found.kind == 'dense'
  assert found.seconds['uniform'] == almost
  clearly = {'dense': 1.0, 'uniform': 0.5, 'sparse': 0.4}
  assert planning.choose_form(clearly).kind == 'sparse'


def test_forms_of_a_matrix_are_measured_once(monkeypatch):
  """Without a table products of the matrix itself are timed."""
  pruned, codes, book = made(density=0.1)
  other = inference.codebook_matrix(codes[::-1], book)
  sparse = inference.sparse_matrix(codes, book)
  grouped = inference.codebook_matrix(
    RNG.integers(0, 4, (4, 8)), np.ones((2, 1, 4))
  )
  params = {'a': {'kernel': pruned}, 'b': {'kernel': sparse}, 'c': grouped}
  plan = inference.plan_inference(params, batch=3, backend='xla')
  kinds = {name: set(choice.seconds) for name, choice in plan.choices.items()}
  assert kinds == {
    'a/kernel': {'dense', 'codebook4', 'sparse'},
    'b/kernel': {'dense', 'codebook4', 'sparse'},
    'c': {'dense', 'codebook2'},
  }
  for choice in plan.choices.values():
    assert choice == planning.choose_form(choice.seconds)

  def fail(*_arguments, **_options):
    raise AssertionError

  monkeypatch.setattr(planning, 'fastest', fail)
  again = inference.plan_inference(
    {'a': {'kernel': other}}, batch=3, backend='xla'
  )
  assert again.choices['a/kernel'] == plan.choices['a/kernel']
  with pytest.raises(AssertionError):
    inference.plan_inference({'a': other}, batch=4, backend='xla')


def test_a_table_of_the_matrices_themselves():
  whole, codes, book = made(density=1.0)
  wide = inference.codebook_matrix(codes.reshape(20, 100), book)
  params = {'a': {'kernel': whole}, 'b': {'kernel': wide}, 'c': whole}
  rows = {'a/kernel': 2, 'b/kernel': 7}
  table = inference.measure_matrices(params, rows, backend='xla', repeats=2)
  assert {(t.kind, t.shape, t.batch) for t in table} == {
    (kind, shape, batch)
    for shape, batch in (((50, 40), 2), ((100, 20), 7))
    for kind in ('dense', 'codebook4')
  }
  plan = inference.plan_inference(params, table, batch=rows)
  for name, matrix in (('a/kernel', whole), ('b/kernel', wide)):
    found = plan.choices[name].seconds
    assert found == pytest.approx(
      {t.kind: t.seconds for t in table if t.shape == matrix.shape}
    )
  # It is multiplied by nothing.
  assert plan.choices['c'] == planning.Choice(kind='dense', seconds={})
  np.testing.assert_array_equal(plan.params['c'], inference.decode(whole))
  with pytest.raises(ValueError, match='a/kernel=0 is not positive'):
    inference.measure_matrices(params, {'a/kernel': 0})
  with pytest.raises(ValueError, match='batch=0 is not positive a/kernel'):
    inference.plan_inference(params, table, batch={'a/kernel': 0})


def test_what_cannot_be_converted():
  grouped = inference.codebook_matrix(
    RNG.integers(0, 4, (4, 8)), np.ones((2, 1, 4))
  )
  with pytest.raises(
    ValueError, match="kind='sparse': the matrix is codebook2"
  ):
    planning.converted(grouped, 'sparse')
  with pytest.raises(ValueError, match='batch=0 is not positive'):
    inference.plan_inference({}, [], batch=0)


def test_a_measured_table_has_all_that_a_plan_needs():
  table = inference.measure_forms(sizes=(16, 32), batches=(1, 2), repeats=1)
  assert {t.kind for t in table} == set(planning.KINDS)
  assert all(t.seconds > 0 for t in table)
  matrix, _, _ = made(density=0.5)
  plan = inference.plan_inference({'kernel': matrix}, table)
  (choice,) = plan.choices.values()
  least = min(choice.seconds.values())
  assert least in (
    choice.seconds[choice.kind],
    pytest.approx(choice.seconds['dense'], rel=planning.MARGIN + 1e-9),
  )
  x = jnp.ones((2, 50))
  y = jax.jit(inference.matmul)(x, plan.params['kernel'])
  wanted = x @ inference.decode(matrix)
  np.testing.assert_allclose(y, wanted, rtol=1e-5)
  with pytest.raises(ValueError, match=r'sizes=\(0,\) are not positive'):
    inference.measure_forms(sizes=(0,))
  with pytest.raises(ValueError, match="kinds='csr' is unknown"):
    inference.measure_forms(kinds=('csr',))
