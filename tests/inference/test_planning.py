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
  assert choice.seconds[choice.kind] == min(choice.seconds.values())
  x = jnp.ones((2, 50))
  y = jax.jit(inference.matmul)(x, plan.params['kernel'])
  wanted = x @ inference.decode(matrix)
  np.testing.assert_allclose(y, wanted, rtol=1e-5)
  with pytest.raises(ValueError, match=r'sizes=\(0,\) are not positive'):
    inference.measure_forms(sizes=(0,))
  with pytest.raises(ValueError, match="kinds='csr' is unknown"):
    inference.measure_forms(kinds=('csr',))


def test_batches_by_name():
  matrix, _, _ = made(1.0)
  params = {
    'few': {'kernel': matrix},
    'many': {'kernel': matrix},
    'unread': {'kernel': matrix},
    'words': {'embedding': matrix},
  }
  slow = {'dense': 1e-9, 'codebook4': 3e-10, 'sparse': 2e-9}
  table = [
    Timing(kind, 2000, batch, cost if batch == 1 else 100 / cost)
    for kind, cost in slow.items()
    for batch in (1, 64)
  ]
  plan = inference.plan_inference(
    params, table, batch={'few/kernel': 1, 'many/kernel': 64}
  )
  kinds = {name: choice.kind for name, choice in plan.choices.items()}
  assert kinds['few/kernel'] == 'codebook4'
  assert kinds['many/kernel'] == 'sparse'
  assert kinds['unread/kernel'] == 'dense'
  np.testing.assert_array_equal(
    plan.params['unread']['kernel'], inference.decode(matrix)
  )
  assert plan.params['words']['embedding'] is matrix
  with pytest.raises(ValueError, match='batch=0 is not positive few/kernel'):
    inference.plan_inference(params, table, batch={'few/kernel': 0})


def test_matrices_of_a_network_are_timed_once_for_each_shape():
  matrix, codes, book = made(1.0)
  wide = inference.codebook_matrix(codes.T, book)
  params = {
    'a': {'kernel': matrix},
    'b': {'kernel': matrix},
    'c': {'kernel': wide},
    'd': {'kernel': matrix},
    'e': {'kernel': jnp.ones((3, 3))},
  }
  rows = {'a/kernel': 2, 'b/kernel': 2, 'c/kernel': 2, 'e/kernel': 2}
  table = inference.measure_matrices(params, rows, backend='xla', repeats=1)
  assert [(t.kind, t.weights, t.batch) for t in table] == 2 * [
    ('dense', 2000, 2),
    ('codebook4', 2000, 2),
    ('sparse', 2000, 2),
  ]
  assert all(timing.seconds > 0 for timing in table)
  mean = (table[0].seconds + table[3].seconds) / 2
  assert predict(table, 'dense', weights=2000, batch=2) == pytest.approx(mean)
  plan = inference.plan_inference(params, table, batch=rows)
  assert set(plan.choices) == {'a/kernel', 'b/kernel', 'c/kernel', 'd/kernel'}
  with pytest.raises(ValueError, match='a/kernel=0 is not positive'):
    inference.measure_matrices(params, {'a/kernel': 0})
