"""Budgets: ten thousand random actions, all cost models, no violation."""

import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toy import chain, costs_in_numpy, group, random_costs
from traces import Counted

from bandwidth.search.problem.budget import (
  check_budget,
  fill,
  fit,
  levels_of,
  wall,
)
from bandwidth.search.problem.cost import (
  Costs,
  cost_of,
  exact_cost,
  macs,
  memory,
  parameters,
  roofline,
  tabulate,
)
from bandwidth.search.problem.energy import energy
from bandwidth.search.problem.latency import (
  fitted_latency,
  latency_table,
  operation_of,
)
from bandwidth.search.problem.space import FIXED, LayerShape, make_space

COUNT = 10_000

LAYERS = (
  LayerShape('stem', 'conv', 3, 32, 9, 256, 1024, stride=2),
  LayerShape('deep', 'depthwise', 32, 32, 9, 64, 256, stride=2),
  LayerShape('point', 'conv', 32, 48, positions=64, pixels=64),
  LayerShape('trunk', 'conv', 48, 64, 9, 16, 64, stride=2),
  LayerShape('expand', 'conv', 64, 96, positions=16, pixels=16),
  LayerShape('middle', 'depthwise', 96, 96, 9, 16, 16),
  LayerShape('project', 'conv', 96, 64, positions=16, pixels=16),
  LayerShape('hidden', 'dense', 16 * 64, 100, bias=True),
  LayerShape('logits', 'dense', 100, 10, bias=True),
)
GROUPS = (
  group('stem', 32, writers=['stem', 'deep'], readers=['point']),
  group('point', 48, writers=['point'], readers=['trunk']),
  # Added to what comes in: one decision for both.
  group(
    'trunk', 64, writers=['trunk', 'project'], readers=['expand', 'hidden']
  ),
  group('expand', 96, writers=['expand', 'middle'], readers=['project']),
  group('hidden', 100, writers=['hidden'], readers=['logits']),
)
SPACE = make_space(LAYERS, GROUPS)


def random_table(path):
  """A measured table as bad as can be: neither smooth nor monotonic."""
  rng = np.random.default_rng(5)
  rows = []
  for layer in SPACE.layers:
    rows_of_channel = layer.taps if layer.kind == 'dense' else 1
    sides = []
    for channels in (layer.inputs, layer.outputs):
      inner = np.linspace(1, channels, 5).round().astype(int)
      sides.append(sorted(set(inner.tolist())))
    inputs = [rows_of_channel * width for width in sides[0]]
    inputs = [1] if layer.kind == 'depthwise' else inputs
    seconds = rng.uniform(1e-6, 1e-3, (len(inputs), len(sides[1])))
    rows.append(
      {
        **operation_of(layer)._asdict(),
        'inputs': inputs,
        'outputs': sides[1],
        'seconds': seconds.tolist(),
      }
    )
  content = {'name': 'latency_table', 'format': 1, 'rows': rows}
  path.write_text(json.dumps(content))
  return path


MODELS = {
  'macs': lambda path: macs,
  'parameters': lambda path: parameters,
  'memory': lambda path: memory(),
  'memory 8 4': lambda path: memory(weight_bits=8, activation_bits=4),
  'memory of weights': lambda path: memory(weight_bits=2.3, activation_bits=0),
  'memory of activations': lambda path: memory(weight_bits=0),
  'roofline': lambda path: roofline(
    macs_per_second=3e9, bytes_per_second=7e8, overhead=1e-6
  ),
  'energy': lambda path: energy(),
  'energy of 8 bits': lambda path: energy(
    weights_in='sram', arithmetic='int8', weight_bits=8, activation_bits=8
  ),
  'fitted latency': lambda path: fitted_latency(),
  'latency table': lambda path: latency_table(random_table(path / 'F.json')),
}


WIDTHS, COUNTS = SPACE.widths(), SPACE.counts()


@Counted
def choices(costs, actions, orders, budgets):
  """Candidates by `fit`, by a sequence of `wall`s, and those `fill`ed."""
  widths, counts = jnp.asarray(WIDTHS), jnp.asarray(COUNTS)

  def one(action, order, budget):
    wanted = levels_of(widths, counts, action)

    def decide(candidate, decision):
      level = wall(costs, counts, candidate, decision, wanted[decision], budget)
      return candidate.at[decision].set(level), None

    walled = jax.lax.scan(decide, jnp.zeros_like(wanted), order)[0]
    fitted = fit(costs, widths, counts, action, budget)
    return fitted, walled, fill(costs, counts, walled, budget)

  return jax.vmap(one)(actions, orders, budgets)


choose = jax.jit(choices)


def exact_costs(model, candidates):
  """`exact_cost` of many candidates: Python floats."""

  def side(decision, channels):
    if decision == FIXED:
      return np.full(len(candidates), channels)
    return WIDTHS[decision, candidates[:, decision]]

  sides = zip(SPACE.layers, SPACE.reads, SPACE.writes, strict=True)
  layers = [
    model(layer, side(reads, layer.inputs), side(writes, layer.outputs))
    for layer, reads, writes in sides
  ]
  return [math.fsum(each) for each in np.array(layers).T.tolist()]


def random_amounts(rng, model, costs):
  """Between the smallest network and all, exactly some network, the least."""
  candidates = rng.integers(0, COUNTS, (COUNT, SPACE.decisions))
  exact = np.array(exact_costs(model, candidates))
  least = int(cost_of(costs, jnp.zeros(SPACE.decisions, jnp.int32)))
  least = least * costs.unit
  between = rng.uniform(least, 1.05 * exact.max(), COUNT)
  kind = rng.integers(0, 10, COUNT)
  amounts = np.where(kind < 6, between, exact)
  # Where `check_budget` would refuse a budget, the least that it accepts.
  return np.maximum(np.where(kind == 9, least, amounts), least).tolist()


@pytest.mark.parametrize('name', MODELS)
def test_no_violations(name, tmp_path):
  model = MODELS[name](tmp_path)
  rng = np.random.default_rng(3)
  costs = tabulate(SPACE, model)
  actions = rng.random((COUNT, SPACE.decisions), np.float32)
  # A tenth of the actions are at the ends.
  actions = np.where(rng.random(actions.shape) < 0.1, actions.round(), actions)
  orders = rng.permuted(
    np.tile(np.arange(SPACE.decisions, dtype=np.int32), (COUNT, 1)), axis=1
  )
  amounts = random_amounts(rng, model, costs)
  budgets = np.array([costs.budget(x) for x in amounts], np.int32)
  found = [np.asarray(x) for x in choose(costs, actions, orders, budgets)]
  used = []
  for candidates in found:
    assert candidates.shape == (COUNT, SPACE.decisions)
    assert (candidates >= 0).all()
    assert (candidates < COUNTS[None]).all()
    assert (costs_in_numpy(costs, candidates) <= budgets).all()
    exact = exact_costs(model, candidates)
    violations = sum(x > y for x, y in zip(exact, amounts, strict=True))
    assert violations == 0
    used.append(np.array(exact) / np.array(amounts))
    for i in np.argsort(-used[-1])[:20]:
      assert exact_cost(SPACE, model, candidates[i]) == exact[i] <= amounts[i]
  # One program serves all cost models.
  assert choices.traces == 1
  # Budgets are used, not only kept.
  fitted, walled, filled = found
  assert (filled >= walled).all()
  if name != 'latency table':
    assert np.median(used[0]) > 0.9
    assert len(np.unique(fitted, axis=0)) > 1_000


def test_wall_against_all_levels():
  space = chain(32, 32, 32, divisor=4)
  counts, rng = space.counts(), np.random.default_rng(0)
  decide = jax.jit(wall)
  for seed in range(60):
    costs = random_costs(space, seed % 3, highest=100)
    candidate = rng.integers(0, counts)
    decision, level = rng.integers(0, 3), rng.integers(0, 7)
    budget = costs_in_numpy(costs, candidate[None])[0] + rng.integers(0, 60)
    found = int(
      decide(costs, counts, candidate, decision, level, np.int32(budget))
    )
    tried = np.tile(candidate, (level + 1, 1))
    tried[:, decision] = np.arange(level + 1)
    fits = np.flatnonzero(costs_in_numpy(costs, tried) <= budget)
    assert found == (fits[-1] if fits.size else candidate[decision])


def test_fill_step_by_step():
  """Costs of few integers: what is one unit too dear is met often."""
  space = chain(32, 32, 32, divisor=4)
  counts, rng = space.counts(), np.random.default_rng(0)
  filled = jax.jit(fill)
  for seed in range(60):
    costs = random_costs(space, seed % 3, highest=6)
    expected = rng.integers(0, counts)
    start = expected.copy()
    budget = costs_in_numpy(costs, expected[None])[0] + rng.integers(0, 4)
    for decision in range(len(counts)):
      higher = expected.copy()
      higher[decision] = min(higher[decision] + 1, counts[decision] - 1)
      if costs_in_numpy(costs, higher[None])[0] <= budget:
        expected = higher
    found = filled(costs, counts, start, np.int32(budget))
    np.testing.assert_array_equal(found, expected)


def test_levels_of():
  widths = jnp.array([[8, 16, 24, 32], [16, 20, 20, 20]])
  rounded = jax.jit(levels_of)
  for ratios, expected in (
    ([0.0, 0.0], [0, 0]),
    ([0.25, 0.8], [0, 0]),
    ([0.5, 1.0], [1, 1]),
    ([0.499, 0.999], [0, 0]),
    ([2.0, -1.0], [3, 0]),
  ):
    found = rounded(widths, jnp.array([4, 2]), jnp.array(ratios))
    assert found.tolist() == expected
    assert found.dtype == jnp.int32


def test_fractions_of_levels_are_their_levels():
  # Also of widths whose quotients are no floats.
  channels = np.arange(1, 1025, dtype=np.int32)
  widths = jnp.asarray(np.tile(channels, (len(channels), 1)))
  ratios = jnp.asarray(channels / np.float32(1024), jnp.float32)
  counts = jnp.full(len(channels), 1024)
  found = levels_of(widths, counts, ratios)
  np.testing.assert_array_equal(found, np.arange(1024))
  odd = jnp.asarray(np.tile(channels[:997], (997, 1)))
  ratios = jnp.asarray(channels[:997] / np.float32(997))
  found = levels_of(odd, jnp.full(997, 997), ratios)
  np.testing.assert_array_equal(found, np.arange(997))


def test_fit_at_the_ends():
  costs = tabulate(SPACE, macs)
  rng = np.random.default_rng(1)
  actions = rng.random((50, SPACE.decisions), np.float32)
  fitted = jax.jit(jax.vmap(fit, (None, None, None, 0, None)))
  zeros = jnp.zeros(SPACE.decisions, jnp.int32)
  for candidate in (zeros, jnp.asarray(SPACE.full())):
    budget = cost_of(costs, candidate)
    found = fitted(costs, WIDTHS, COUNTS, actions, budget)
    np.testing.assert_array_equal(found, np.tile(candidate, (50, 1)))


def test_fit_keeps_the_order_of_fractions():
  space = chain(64, 64, 64, divisor=1, smallest=0.02)
  costs = tabulate(space, macs)
  budget = jnp.int32(costs.budget(0.3 * exact_cost(space, macs, space.full())))
  ratios = jnp.array([0.2, 0.6, 0.4])
  found = jax.jit(fit)(costs, space.widths(), space.counts(), ratios, budget)
  kept = np.array(list(space.kept(found).values()))
  # One shift for all, and one more channel where there was room.
  shifts = kept / 64 - np.asarray(ratios)
  assert np.ptp(shifts) < 2.1 / 64
  assert exact_cost(space, macs, found) > 0.29 * exact_cost(
    space, macs, space.full()
  )


def test_fill_raises_in_order():
  space = chain(16, 16, divisor=8)
  # 8 or 16 channels: 4 a + a b + 10 b.
  costs = tabulate(space, macs)
  filled = jax.jit(fill)
  prices = {(0, 0): 176, (1, 0): 272, (0, 1): 320, (1, 1): 480}
  for amount, expected in (
    *((176, (0, 0)), (271, (0, 0)), (272, (1, 0)), (320, (1, 0))),
    *((479, (1, 0)), (480, (1, 1))),
  ):
    start = jnp.zeros(2, jnp.int32)
    found = filled(costs, space.counts(), start, costs.budget(amount))
    assert tuple(found.tolist()) == expected
    assert exact_cost(space, macs, found) == prices[expected]


@pytest.mark.parametrize('name', ['macs', 'roofline', 'energy'])
def test_the_smallest_reachable_budget_is_named(name):
  model = MODELS[name](None)
  costs = tabulate(SPACE, model)
  smallest = exact_cost(SPACE, model, np.zeros(SPACE.decisions, int))
  with pytest.raises(ValueError, match='the smallest network costs') as caught:
    check_budget(SPACE, costs, 0.9 * smallest)
  named = float(str(caught.value).split()[-1])
  assert named == pytest.approx(smallest, rel=1e-5)
  # What the message names can be reached.
  budget = check_budget(SPACE, costs, named)
  assert budget * costs.unit <= named
  with pytest.raises(ValueError, match='cannot be reached'):
    check_budget(SPACE, costs, math.nextafter(smallest, 0))


def test_budgets_in_units():
  costs = tabulate(SPACE, macs)
  full = exact_cost(SPACE, macs, SPACE.full())
  whole = int(cost_of(costs, jnp.asarray(SPACE.full())))
  assert check_budget(SPACE, costs, full) == whole
  assert check_budget(SPACE, costs, math.inf) == 2**31 - 2


@pytest.mark.parametrize('amount', [0.0, -1.0, -math.inf, math.nan])
def test_budgets_that_are_none(amount):
  costs = tabulate(SPACE, macs)
  with pytest.raises(ValueError, match=f'budget={amount} cannot be reached'):
    check_budget(SPACE, costs, amount)


def test_a_budget_of_nothing_is_refused():
  costs = Costs(
    units=jnp.zeros((9, 1, 1), jnp.int32),
    reads=jnp.full(9, FIXED),
    writes=jnp.full(9, FIXED),
    unit=1.0,
  )
  with pytest.raises(ValueError, match=r'budget=0\.0 cannot'):
    check_budget(SPACE, costs, 0.0)
