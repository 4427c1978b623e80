import numpy as np
import pytest

from bandwidth.quantization import (
  Sensitivity,
  make_rounding_plan,
  quantize_with_feedback,
)


def cost(error, hessian, rows):
  return float(np.einsum('i,ij,jk,ik->', rows, error, hessian, error))


@pytest.fixture
def problem():
  rng = np.random.default_rng(0)
  mix = rng.normal(size=(24, 24)) * np.geomspace(1, 0.05, 24)
  inputs = rng.normal(size=(4000, 24)) @ mix.T
  hessian = inputs.T @ inputs / len(inputs)
  weights = rng.normal(size=(150, 24)).astype(np.float32)
  rows = np.exp(rng.normal(size=150))
  return weights, hessian, rows


def transcription(weights, hessian, steps):
  """Frantar et al., 2210.17323: optimal brain surgery, a column at a time."""
  order = np.argsort(-np.diag(hessian), kind='stable')
  left = weights.astype(np.float64).copy()
  damped = hessian + 0.01 * np.trace(hessian) / len(hessian) * np.eye(
    len(hessian)
  )
  levels = np.zeros_like(left)
  remaining = list(order)
  while remaining:
    j = remaining[0]
    inverse = np.linalg.inv(damped[np.ix_(remaining, remaining)])
    levels[:, j] = np.rint(left[:, j] / steps[j])
    error = left[:, j] - levels[:, j] * steps[j]
    left[:, remaining] -= np.outer(error / inverse[0, 0], inverse[0])
    remaining = remaining[1:]
  return levels


def test_without_a_price_against_a_transcription(problem):
  weights, hessian, _ = problem
  plan = make_rounding_plan(Sensitivity(hessian, np.ones(150)))
  found = quantize_with_feedback(weights, plan, scale=0.1, price=0.0)
  expected = transcription(weights, hessian, found.step)
  # Ties and float32 may turn a level; what follows it then differs too.
  assert np.mean(found.levels == expected) > 0.98


@pytest.mark.parametrize('by_row', [False, True])
def test_costs_less_than_rounding_to_the_same_steps(problem, by_row):
  weights, hessian, rows = problem
  plan = make_rounding_plan(Sensitivity(hessian, rows, by_row))
  found = quantize_with_feedback(weights, plan, scale=0.1, price=0.0)
  steps = found.step[:, None] if by_row else found.step
  rounded = np.rint(weights / steps) * steps
  plain = cost(weights - rounded, hessian, rows)
  ours = cost(weights - found.decode(), hessian, rows)
  assert ours < 0.7 * plain


def test_price_buys_smaller_levels(problem):
  weights, hessian, rows = problem
  plan = make_rounding_plan(Sensitivity(hessian, rows))
  sizes = [
    np.abs(
      quantize_with_feedback(weights, plan, scale=1.0, price=price).levels
    ).sum()
    for price in (0.0, 0.1, 1.0)
  ]
  assert sizes[0] > sizes[1] > sizes[2]


def test_rows_are_quantized_alone(problem):
  weights, hessian, rows = problem
  plan = make_rounding_plan(Sensitivity(hessian, rows))
  picked = np.array([3, 70, 149])
  whole = quantize_with_feedback(weights, plan, scale=0.1, price=0.0)
  part = quantize_with_feedback(
    weights[picked], plan.of_rows(picked), scale=0.1, price=0.0
  )
  np.testing.assert_array_equal(part.step, whole.step)
  np.testing.assert_array_equal(part.levels, whole.levels[picked])


def test_steps_are_powers_of_the_root_of_two(problem):
  weights, hessian, rows = problem
  for by_row in (False, True):
    plan = make_rounding_plan(Sensitivity(hessian, rows, by_row))
    step = quantize_with_feedback(weights, plan, scale=0.1, price=0.1).step
    twice = 2 * np.log2(step)
    np.testing.assert_allclose(twice, np.rint(twice), atol=1e-2)
    # Two bytes of a float32 are zero, and coded as such.
    assert not (step.ravel().view(np.uint32) & 0xFFFF).any()


def test_bad_arguments(problem):
  weights, hessian, rows = problem
  with pytest.raises(ValueError, match='is not square'):
    make_rounding_plan(Sensitivity(hessian[:3], rows))
  with pytest.raises(ValueError, match='rows must be positive'):
    make_rounding_plan(Sensitivity(hessian, 0 * rows))
  for bad, message in (
    (np.nan * hessian, 'must be finite'),
    (np.triu(hessian), 'is not symmetric'),
    (-hessian, 'is not positive semidefinite'),
  ):
    with pytest.raises(ValueError, match=f'hessian {message}'):
      make_rounding_plan(Sensitivity(bad, rows))
  plan = make_rounding_plan(Sensitivity(hessian, rows))
  with pytest.raises(ValueError, match=r'weights.shape=\(2, 24\) must be'):
    quantize_with_feedback(weights[:2], plan, scale=0.1, price=0.1)
  with pytest.raises(ValueError, match='weights must be finite'):
    quantize_with_feedback(np.nan * weights, plan, scale=0.1, price=0.1)
  with pytest.raises(
    ValueError, match=r'scale=0\.0 must be finite and positive'
  ):
    quantize_with_feedback(weights, plan, scale=0.0, price=0.1)
  with pytest.raises(
    ValueError, match=r'price=-1\.0 must be finite and not neg'
  ):
    quantize_with_feedback(weights, plan, scale=0.1, price=-1.0)
