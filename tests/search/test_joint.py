"""Choices of channels and steps: bits and errors in NumPy, and the frontier."""

import jax.numpy as jnp
import numpy as np
import pytest

from bandwidth.search import joint, options

CHANNELS, TAPS, OUTPUTS = 4, 2, 3


@pytest.fixture(name='made', scope='module')
def make_choices():
  rng = np.random.default_rng(0)
  rows = rng.normal(size=(200, CHANNELS * TAPS)).astype('f4')
  kernel = rng.normal(size=(2, CHANNELS, OUTPUTS)).astype('f4')
  moments = options.moments(jnp.asarray(rows))
  factor = options.factorize(
    jnp.asarray(kernel), jnp.arange(8), moments, intercept=False
  )
  steps = [0.0, 0.25, 1.5]
  found = joint.choices_of(
    factor, moments.gram, channels=[2, 4], all_channels=4, steps=steps
  )
  return rows, factor, found


def entropy_in_numpy(codes):
  _, counts = np.unique(codes, return_counts=True)
  shares = counts / counts.sum()
  return -(shares * np.log2(shares)).sum()


def test_bits_and_errors_are_those_of_numpy(made):
  rows, factor, found = made
  target = rows @ np.asarray(factor.kernel)
  for choice in found:
    count = choice.kept * TAPS
    fitted = np.asarray(
      options.option(
        factor._replace(order=jnp.arange(8)), count, (8, OUTPUTS)
      ).kernel
    )
    bits = 32.0 * count * OUTPUTS
    if choice.step:
      codes = np.round(fitted / choice.step)
      bits = entropy_in_numpy(codes[:count]) * count * OUTPUTS
      fitted = codes * choice.step
    error = np.sum((rows @ fitted - target) ** 2) / np.sum(target**2)
    assert choice.bits == pytest.approx(bits, rel=1e-4)
    assert choice.error == pytest.approx(error, rel=1e-3, abs=1e-6)
    density = np.mean(fitted[:count] != 0)
    assert choice.density == pytest.approx(density, rel=1e-5)


def test_coarse_steps_prune_and_whole_kernels_lose_nothing(made):
  _, _, found = made
  by_place = {(c.kept, c.step): c for c in found}
  assert by_place[4, 0.0].error == pytest.approx(0, abs=1e-6)
  assert by_place[4, 1.5].density < by_place[4, 0.25].density <= 1
  assert by_place[4, 1.5].bits < by_place[4, 0.25].bits


def test_steps_give_about_the_bits_that_are_wanted():
  kernel = np.random.default_rng(0).normal(size=200_000) * 0.05
  for bits, step in zip((3, 5), joint.steps_for(kernel, (3, 5)), strict=True):
    assert entropy_in_numpy(np.round(kernel / step)) == pytest.approx(
      bits, abs=0.05
    )


def test_frontier():
  errors, sizes = [0.9, 0.5, 0.6, 0.5, 0.1], [1, 4, 5, 6, 9]
  choices = [joint.Choice(1, 0, 0, 1, error) for error in errors]
  assert joint.pareto(choices, sizes) == [0, 1, 4]
  assert joint.thin([0, 1, 2, 3, 4], [1, 2, 4, 8, 16], 3) == [0, 2, 4]
  assert joint.thin([0, 1], [1, 2], 3) == [0, 1]
