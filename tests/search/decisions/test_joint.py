"""Choices of channels and steps: bits and errors in NumPy, and the frontier."""

import jax.numpy as jnp
import numpy as np
import pytest

from bandwidth.search.decisions import joint, options

CHANNELS, TAPS, OUTPUTS = 40, 2, 3
STEPS = np.array([0.0, 0.25, 1.5], np.float32)


def make_kernel(*, intercept=False, seed=0):
  """Inputs that are alike, so that one can make up for another."""
  rng = np.random.default_rng(seed)
  count = CHANNELS * TAPS
  mixing = rng.normal(size=(count, count)) / 9 + 0.5 * np.eye(count)
  rows = (rng.normal(size=(600, count)) @ mixing + 0.3).astype('f4')
  kernel = rng.normal(size=(TAPS, CHANNELS, OUTPUTS)).astype('f4')
  moments = options.moments(jnp.asarray(rows))
  order = jnp.asarray(rng.permutation(count))
  factor = options.factorize(
    jnp.asarray(kernel), order, moments, intercept=intercept
  )
  return rows[:, np.asarray(order)], joint.make_kernel(factor, moments)


@pytest.fixture(name='made', scope='module')
def make_choices():
  rows, kernel = make_kernel()
  both = joint.choices_of(
    kernel, channels=[20, CHANNELS], all_channels=CHANNELS, steps=STEPS
  )
  found = {
    compensate: [x for x in both if x.compensated == compensate or not x.step]
    for compensate in (False, True)
  }
  return rows, kernel.factor, found


def entropy_in_numpy(codes):
  _, counts = np.unique(codes, return_counts=True)
  shares = counts / counts.sum()
  return -(shares * np.log2(shares)).sum()


def by_importance(factor):
  return factor._replace(order=jnp.arange(CHANNELS * TAPS))


@pytest.mark.parametrize('compensate', [False, True])
def test_bits_and_errors_are_those_of_numpy(made, compensate):
  rows, factor, found = made
  target = rows @ np.asarray(factor.kernel)
  for choice in found[compensate]:
    count = choice.kept * TAPS
    weights = np.asarray(
      joint.compressed(factor, count, choice.step, choice.compensated)
    )
    bits = 32.0 * count * OUTPUTS
    if choice.step:
      codes = np.round(weights / choice.step)
      np.testing.assert_array_equal(weights, codes * np.float32(choice.step))
      bits = entropy_in_numpy(codes[:count]) * count * OUTPUTS
    error = np.sum((rows @ weights - target) ** 2) / np.sum(target**2)
    assert not weights[count:].any()
    assert choice.bits == pytest.approx(bits, rel=1e-4)
    assert choice.error == pytest.approx(error, rel=1e-3, abs=1e-6)
    density = np.mean(weights[:count] != 0)
    assert choice.density == pytest.approx(density, rel=1e-5)


def test_weights_are_rounded_to_the_nearest_multiples(made):
  _, factor, found = made
  for choice in found[False]:
    count = choice.kept * TAPS
    fitted = np.asarray(
      options.option(
        by_importance(factor), count, (CHANNELS * TAPS, OUTPUTS)
      ).kernel
    )
    weights = joint.compressed(factor, count, choice.step)
    if choice.step:
      fitted = np.round(fitted / choice.step) * np.float32(choice.step)
    np.testing.assert_array_equal(weights, fitted)


@pytest.mark.parametrize('count', [CHANNELS * TAPS, 30])
def test_rows_make_up_for_those_before(made, count):
  _, factor, _ = made
  step = 0.5
  fitted = np.asarray(
    options.option(
      by_importance(factor), count, (CHANNELS * TAPS, OUTPUTS)
    ).kernel,
    np.float64,
  )
  gram = np.asarray(factor.lower, np.float64)
  gram = gram @ gram.T
  gram += 1e-3 * np.trace(gram) / len(gram) * np.eye(len(gram))
  # GPTQ, row by row: what is lost goes to all later rows at once.
  inverse = np.linalg.inv(gram[:count, :count])
  upper = np.linalg.cholesky(inverse).T
  left, expected = fitted[:count].copy(), np.zeros((count, OUTPUTS))
  for i in range(count):
    expected[i] = np.round(left[i] / step) * step
    lost = (left[i] - expected[i]) / upper[i, i]
    left[i:] -= np.outer(upper[i, i:], lost)
  found = np.asarray(joint.compressed(factor, count, step, True))
  # Weights halfway between two multiples may fall to the other side.
  assert np.mean(np.abs(found[:count] - expected) > 1e-4) < 0.02


def test_making_up_lowers_errors(made):
  _, _, found = made
  for plain, better in zip(found[False], found[True], strict=True):
    if plain.step:
      assert better.error < plain.error
    else:
      assert better == plain


def test_coarse_steps_prune_and_whole_kernels_lose_nothing(made):
  _, _, found = made
  for choices in found.values():
    by_place = {(c.kept, c.step): c for c in choices}
    whole, fine, coarse = (by_place[CHANNELS, float(step)] for step in STEPS)
    assert whole.error == pytest.approx(0, abs=1e-6)
    assert coarse.density < fine.density <= 1
    assert coarse.bits < fine.bits


def test_tables_are_what_was_measured():
  rows, kernel = make_kernel(intercept=True)
  factor = kernel.factor
  found = joint.choices_of(
    kernel, channels=[30], all_channels=CHANNELS, steps=STEPS[1:]
  )
  shape = (TAPS, CHANNELS, OUTPUTS)
  table = joint.table_of(kernel, found, shape, all_channels=CHANNELS)
  assert table.kernel.shape == (4, *shape)
  back = np.argsort(np.asarray(factor.order))
  target = rows @ np.asarray(factor.kernel)
  for level, choice in enumerate(found):
    matrix = np.asarray(options.to_matrix(table.kernel[level]))
    made = rows[:, back] @ matrix + np.asarray(table.shift[level])
    np.testing.assert_allclose(made.mean(0), target.mean(0), atol=1e-3)
    error = np.sum((made - target) ** 2)
    error /= np.sum((target - target.mean(0)) ** 2)
    assert choice.error == pytest.approx(error, rel=1e-3)
    assert table.error[level] == pytest.approx(choice.error)


def test_steps_give_about_the_bits_that_are_wanted():
  kernel = np.random.default_rng(0).normal(size=200_000) * 0.05
  wanted = (0.3, 1, 3, 5, 32)
  steps = joint.steps_for(kernel, wanted)
  assert steps[-1] == 0
  for bits, step in zip(wanted[:-1], steps, strict=False):
    assert entropy_in_numpy(np.round(kernel / step)) == pytest.approx(
      bits, abs=0.05
    )


def test_frontier():
  errors, sizes = [0.9, 0.5, 0.6, 0.5, 0.1], [1, 4, 5, 6, 9]
  choices = [joint.KernelChoice(1, 0, 0, 1, error) for error in errors]
  assert joint.pareto(choices, sizes) == [0, 1, 4]
  assert joint.thin([0, 1, 2, 3, 4], [1, 2, 4, 8, 16], 3) == [0, 2, 4]
  assert joint.thin([0, 1], [1, 2], 3) == [0, 1]
