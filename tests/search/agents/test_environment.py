"""AMC's environment against hand-computed numbers and brute force."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toy_amc import (
  FIRST_VISITS,
  WIDTHS,
  layer_macs,
  play,
  toy_problem,
  toy_space,
)

from bandwidth.search.agents.environment import (
  layer_features,
  levels_above,
  make_environment,
  normalize_columns,
  prunable_layers,
)
from bandwidth.search.problem.budget import levels_of
from bandwidth.search.problem.cost import exact_cost, macs, memory

FULL = sum(layer_macs(16, 24, 32))
LEAST = sum(layer_macs(4, 8, 8))


def test_layers_and_levels_of_the_toy():
  space = toy_space()
  assert space.levels == WIDTHS
  assert prunable_layers(space) == (0, 2, 3, 4, 5)
  environment = make_environment(space)
  assert (environment.layers, environment.features) == (5, 10)
  assert make_environment(space, state='paper').features == 11


def test_features_of_the_code():
  expected = [
    # index, type, inputs, outputs, stride, kernel, weights
    [0, 0, 3, 16, 2, 3, 432],
    [1, 0, 16, 24, 1, 1, 384],
    [2, 0, 24, 32, 1, 3, 6912],
    [3, 0, 32, 24, 1, 1, 768],
    [4, 1, 384, 10, 0, 1, 3840],
  ]
  features = layer_features(toy_space())
  np.testing.assert_array_equal(features, expected)
  expected = [
    [0, 0, 0, 6 / 22, 1, 1, 48 / 6528],
    [0.25, 0, 13 / 381, 14 / 22, 0.5, 0, 0],
    [0.5, 0, 21 / 381, 1, 0.5, 1, 1],
    [0.75, 0, 29 / 381, 14 / 22, 0.5, 0, 384 / 6528],
    [1, 1, 1, 0, 0, 0, 3456 / 6528],
  ]
  np.testing.assert_allclose(normalize_columns(features), expected, rtol=1e-6)


def test_features_of_the_paper():
  expected = [
    # index, outputs, inputs, height, width, stride, kernel, multiply-adds
    [0, 16, 3, 16, 16, 2, 3, 27648],
    [1, 24, 16, 4, 4, 1, 1, 6144],
    [2, 32, 24, 4, 4, 1, 3, 110592],
    [3, 24, 32, 4, 4, 1, 1, 12288],
    [4, 10, 384, 1, 1, 0, 1, 3840],
  ]
  features = layer_features(toy_space(), state='paper')
  np.testing.assert_array_equal(features, expected)


def test_a_constant_column_stays():
  table = np.array([[7.0, 1.0], [7.0, 3.0]])
  np.testing.assert_array_equal(normalize_columns(table), [[7, 0], [7, 1]])


@pytest.mark.parametrize(
  'arguments', [{'state': 'papers'}, {'rounding': 'nearest'}]
)
def test_unknown_names(arguments):
  (name,) = arguments
  with pytest.raises(ValueError, match=f'{name}=.* is unknown'):
    make_environment(toy_space(), **arguments)


def test_rounding_up_is_that_of_the_reference():
  """d = max(round(c a), 1); d = ceil(d / 4) * 4; never below the first."""
  ratios = np.random.default_rng(0).uniform(size=200).astype('f4')
  ratios = np.concatenate([ratios, [0, 1, 0.5, 0.125, 0.375]]).astype('f4')
  widths, counts = jnp.array([[8, 12, 16, 20, 24, 24, 24]]), jnp.array([5])
  levels = jax.vmap(lambda r: levels_above(widths, counts, r[None])[0])(ratios)
  for ratio, level in zip(ratios, levels.tolist(), strict=True):
    channels = max(int(np.around(24 * ratio)), 1)
    expected = max(math.ceil(channels / 4) * 4, 8)
    assert WIDTHS[1][level] == expected


def cost_with(candidate):
  return sum(
    layer_macs(*[w[x] for w, x in zip(WIDTHS, candidate, strict=True)])
  )


def wanted_level(widths, action, rounding):
  if rounding == 'up':
    channels = np.around(np.float32(action) * widths[-1])
    return sum(width < channels for width in widths)
  channels = np.float32(action) * widths[-1]
  return max(sum(width <= channels + 1e-3 for width in widths) - 1, 0)


def brute_force(actions, budget, rounding):
  """The candidate after each of the five actions."""
  candidate, after = [0, 0, 0], []
  for visit, action in enumerate(actions):
    if visit in FIRST_VISITS:
      d = FIRST_VISITS.index(visit)
      fits = [0]
      for level in range(wanted_level(WIDTHS[d], action, rounding) + 1):
        tried = [*candidate[:d], level, *candidate[d + 1 :]]
        if cost_with(tried) <= budget:
          fits.append(level)
      candidate = [*candidate[:d], max(fits), *candidate[d + 1 :]]
    after.append(candidate)
  return after


@pytest.mark.parametrize('rounding', ['up', 'down'])
def test_the_wall_is_that_of_brute_force(rounding):
  problem, data = toy_problem()
  environment = make_environment(problem.space, rounding=rounding)
  rng = np.random.default_rng(1)
  actions = rng.uniform(size=(300, 5)).astype('f4')
  amounts = rng.uniform(LEAST, FULL, 300)
  # The last bit of a budget in units is not that of a budget in multiply-adds.
  amounts = np.floor(amounts) + 0.5
  budgets = jnp.array([data.costs.budget(x) for x in amounts])
  states, _, done = jax.jit(
    jax.vmap(functools.partial(play, environment, data))
  )(budgets, actions)
  expected = [
    brute_force(a, b, rounding) for a, b in zip(actions, amounts, strict=True)
  ]
  np.testing.assert_array_equal(states.candidate, expected)
  np.testing.assert_array_equal(done[0], [False] * 4 + [True])
  assert len(np.unique(states.candidate[:, -1], axis=0)) > 50


@pytest.mark.parametrize('name', ['macs', 'bytes'])
def test_no_candidate_exceeds_the_budget(name):
  model = {'macs': macs, 'bytes': memory(weight_bits=8)}[name]
  problem, data = toy_problem(model=model)
  space = problem.space
  environment = make_environment(space)

  @functools.cache
  def cost(candidate):
    return exact_cost(space, model, np.array(candidate))

  rng = np.random.default_rng(2)
  # Actions beyond [0, 1] are clipped.
  actions = rng.uniform(-0.1, 1.2, size=(5000, 5)).astype('f4')
  amounts = rng.uniform(cost((0, 0, 0)) + 1e-3, cost((3, 4, 6)), 5000)
  budgets = jnp.array([data.costs.budget(x) for x in amounts])
  states, _, _ = jax.jit(jax.vmap(functools.partial(play, environment, data)))(
    budgets, actions
  )
  found = states.candidate[:, -1].tolist()
  spent = np.array([cost(tuple(candidate)) for candidate in found])
  assert np.sum(spent > amounts) == 0
  # And budgets are used: what is left is less than the rest of the network.
  assert np.mean(spent / amounts) > 0.5


def test_observations_of_an_episode():
  problem, data = toy_problem()
  environment = make_environment(problem.space)
  budget = jnp.int32(data.costs.budget(FULL + 1))
  # 8 of 16, 12 of 24, 32 of 32; the first action is ignored, the last too.
  actions = jnp.array([0.1, 0.5, 0.5, 1.0, 0.1])
  _, first = environment.reset(data, budget)
  states, seen, _ = play(environment, data, budget, actions)
  observations = np.concatenate([first[None], seen])

  table = normalize_columns(layer_features(problem.space))
  np.testing.assert_array_equal(observations[:5, :7], table)
  each = layer_macs(16, 24, 32)
  reduced = [
    0,
    FULL - sum(layer_macs(4, 8, 8)),
    FULL - sum(layer_macs(8, 8, 8)),
    FULL - sum(layer_macs(8, 12, 8)),
    FULL - sum(layer_macs(8, 12, 32)),
  ]
  # Of layers after the prunable one, the depthwise one after the first alone.
  rest = [sum(each[i:]) for i in (1, 3, 4, 5, 6)]
  np.testing.assert_allclose(
    observations[:5, 7], np.array(reduced) / FULL, rtol=1e-5
  )
  np.testing.assert_allclose(
    observations[:5, 8], np.array(rest) / FULL, rtol=1e-5
  )
  np.testing.assert_array_equal(observations[:5, 9], [1, 1, 0.5, 0.5, 1])
  np.testing.assert_array_equal(observations[5], observations[4])
  np.testing.assert_array_equal(states.candidate[-1], [1, 1, 6])
  # The head reads what the third layer reads.
  np.testing.assert_array_equal(states.ratio, [1, 0.5, 0.5, 1, 0.5])


def test_rounding_down_is_that_of_the_budget():
  widths, counts = jnp.array([[8, 12, 16, 20, 24]]), jnp.array([5])
  for ratio in (0.49, 0.5, 0.99):
    down = levels_of(widths, counts, jnp.array([ratio]))
    up = levels_above(widths, counts, jnp.array([ratio]))
    assert down.item() <= up.item()
