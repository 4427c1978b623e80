"""HAQ against its own rules in plain Python, and bits as decisions."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from traces import Counted

from bandwidth.search.agents.ddpg import Agent
from bandwidth.search.agents.replay import Transition
from bandwidth.search.baselines import make_random, make_uniform
from bandwidth.search.cma_es import make_cma_es
from bandwidth.search.decisions import bit_options
from bandwidth.search.decisions.bit_options import (
  UNQUANTIZED,
  authors_pins,
  bit_cost_model,
  equal_bit_cost,
  exact_bit_cost,
  lookup,
  make_bit_space,
  tabulate_bits,
)
from bandwidth.search.dynamic import check_chain, make_dynamic, solve
from bandwidth.search.genetic import make_genetic
from bandwidth.search.haq import (
  bit_features,
  decrement,
  level_of_action,
  make_bit_environment,
  make_haq,
  make_haq_run,
  with_rewards,
)
from bandwidth.search.problem.budget import check_budget
from bandwidth.search.problem.cost import cost_of
from bandwidth.search.problem.interface import Problem, make_data
from bandwidth.search.problem.space import FIXED, LayerShape
from bandwidth.search.spdy import make_spdy

LAYERS = (
  LayerShape('stem', 'conv', 3, 16, 9, 64, 256, stride=2),
  LayerShape('depth', 'depthwise', 16, 16, 9, 16, 64, stride=2),
  LayerShape('point', 'conv', 16, 24, 1, 16, 16),
  LayerShape('head', 'dense', 24 * 16, 10, bias=True),
)
WEIGHTS = (432, 144, 384, 3840)
INPUTS = (768, 1024, 256, 384)
MACS = (432 * 64, 144 * 16, 384 * 16, 3840)

PINS = authors_pins(LAYERS)
SMALL = {'hidden': 8, 'actor_rate': 0.01, 'critic_rate': 0.01, 'batch': 4}


def problem_of(space, model=bit_options.bit_operations):
  """A problem whose best candidate has the most bits in odd decisions."""
  weight = jnp.asarray(np.arange(space.decisions) % 2 + 0.5, jnp.float32)

  def objective(arrays, candidate):
    widths, weight = arrays
    bits = widths[jnp.arange(widths.shape[0]), candidate]
    return -jnp.sum(weight * 4.0**-bits)

  bits = space.widths()
  errors = np.asarray(weight)[:, None] * 4.0**-bits
  data = make_data(
    space,
    tabulate_bits(space, model),
    errors=jnp.asarray(errors - errors[:, -1:], jnp.float32),
    objective=(jnp.asarray(bits), weight),
  )
  return Problem(space, Counted(objective)), data


def bits_of(space, candidate):
  levels = zip(space.levels, np.asarray(candidate).tolist(), strict=True)
  return [bits[level] for bits, level in levels]


# Bits as decisions.


def test_a_space_of_bits():
  space = make_bit_space(LAYERS, bits=(2, 3, 4), pins=PINS)
  assert space.levels == (
    *((8,), (32,)),
    *((2, 3, 4), (2, 3, 4), (2, 3, 4), (2, 3, 4)),
    *((8,), (8,)),
  )
  assert space.reads == (0, 2, 4, 6)
  assert space.writes == (1, 3, 5, 7)
  check_chain(space)
  least = dict.fromkeys(PINS, 0)
  kept = space.kept([0, 0, 0, 1, 2, 2, 0, 0])
  assert kept == {
    **least,
    **PINS,
    'depth/weights': 2,
    'depth/activations': 3,
    'point/weights': 4,
    'point/activations': 4,
  }
  shared = make_bit_space(LAYERS, mode='kmeans', bits=range(1, 9))
  assert shared.reads == (0, 1, 2, 3)
  assert shared.writes == (FIXED,) * 4
  assert [group.name for group in shared.groups] == [
    f'{layer.name}/weights' for layer in LAYERS
  ]


@pytest.mark.parametrize(
  ('arguments', 'message'),
  [
    ({'mode': 'cubic'}, 'mode=.*cubic'),
    ({'bits': (0, 1)}, r'bits=\[0, 1\]'),
    ({'bits': ()}, r'bits=\[\]'),
    ({'bits': (17,)}, 'from 1 to 16, or 32'),
    ({'bits': (4, 2)}, 'do not ascend'),
    ({'pins': {'stem/weigths': 8}}, 'stem/weights'),
    ({'pins': {'stem/weights': 0}}, r"pins\['stem/weights'\]"),
  ],
)
def test_bad_spaces(arguments, message):
  with pytest.raises(ValueError, match=message):
    make_bit_space(LAYERS, **arguments)


def by_hand(name, weight_bits, activation_bits):
  """The cost of a network, from lists of bits."""
  rows = zip(WEIGHTS, INPUTS, MACS, weight_bits, activation_bits, strict=True)
  total = 0.0
  for weights, inputs, macs, w, a in rows:
    books = {'weight_bytes': 4, 'bytes': 4, 'kmeans': 4 * min(2**w, weights)}
    stored = weights * w / 8 + (0 if w == 32 else books.get(name, 0))
    read = inputs * a / 8
    total += {
      'weight_bytes': stored,
      'kmeans': stored,
      'activation_bytes': read,
      'bytes': stored + read,
      'bit_operations': macs * w * a,
      'roofline': max(
        macs * w * a / 1e6, (stored + (4 if w < 32 else 0) + read) / 1e3
      )
      + 0.25,
    }[name]
  return total


@pytest.mark.parametrize(
  'name',
  ['weight_bytes', 'activation_bytes', 'bytes', 'bit_operations', 'roofline'],
)
def test_costs_by_hand(name):
  arguments = {}
  if name == 'roofline':
    arguments = {
      'operations_per_second': 1e6,
      'bytes_per_second': 1e3,
      'overhead': 0.25,
    }
  model = bit_cost_model(name, **arguments)
  space = make_bit_space(LAYERS, bits=(2, 5, 8), pins=PINS)
  costs = tabulate_bits(space, model)
  rng = np.random.default_rng(0)
  for _ in range(10):
    candidate = rng.integers(0, space.counts())
    bits = bits_of(space, candidate)
    expected = by_hand(name, bits[0::2], bits[1::2])
    np.testing.assert_allclose(
      exact_bit_cost(space, model, candidate), expected, rtol=1e-12
    )
    units = int(cost_of(costs, jnp.asarray(candidate, jnp.int32)))
    # Rounded up, once a layer at most.
    assert 0 <= units - expected / costs.unit < len(LAYERS)
  equal = equal_bit_cost(space, model, weight_bits=4, activation_bits=6)
  np.testing.assert_allclose(equal, by_hand(name, [4] * 4, [6] * 4))


def test_codebooks_count():
  space = make_bit_space(LAYERS, mode='kmeans', bits=range(1, 9))
  model = bit_cost_model('weight_bytes', mode='kmeans')
  candidate = np.array([0, 7, 3, 2])
  # The second layer has 144 weights and 256 entries at most.
  expected = (
    (432 / 8 + 8) + (144 + 4 * 144) + (384 / 2 + 64) + (3840 * 3 / 8 + 32)
  )
  assert exact_bit_cost(space, model, candidate) == expected
  # Sums of whole bits are exact in the program too.
  costs = tabulate_bits(space, model)
  units = int(cost_of(costs, jnp.asarray(candidate, jnp.int32)))
  assert units * costs.unit == expected


def test_large_layers():
  layer = LayerShape('a', 'dense', 2**16, 2**13, pixels=2**16)
  space = make_bit_space([layer], bits=(8, 16))
  for name, expected in (
    ('weight_bytes', 2.0**30 + 4),
    ('activation_bytes', 2.0**33),
    ('bit_operations', 2.0**37),
  ):
    model = bit_cost_model(name)
    assert exact_bit_cost(space, model, [1, 1]) == expected
    assert tabulate_bits(space, model).units.min() > 0


def test_a_measured_table():
  rng = np.random.default_rng(1)
  table = rng.integers(1, 1_000, (4, 8, 8))
  space = make_bit_space(LAYERS, bits=range(2, 9), pins=PINS)
  model = lookup(table, LAYERS)
  candidate = rng.integers(0, space.counts())
  bits = bits_of(space, candidate)
  expected = sum(
    # Images are read as they are: the last column, not the one before it.
    table[i, w - 1, min(a, 8) - 1]
    for i, (w, a) in enumerate(zip(bits[0::2], bits[1::2], strict=True))
  )
  assert exact_bit_cost(space, model, candidate) == expected
  assert equal_bit_cost(space, model) == table[:, 7, 7].sum()
  costs = tabulate_bits(space, model)
  units = cost_of(costs, jnp.asarray(candidate, jnp.int32))
  assert float(units) * costs.unit == expected
  # Of weights alone the last column counts.
  shared = make_bit_space(LAYERS, mode='kmeans', bits=range(1, 9))
  assert exact_bit_cost(shared, model, [0] * 4) == table[:, 0, 7].sum()


def test_bad_costs():
  with pytest.raises(ValueError, match=r'table: shape \(3, 8, 8\)'):
    lookup(np.ones((3, 8, 8)), LAYERS)
  space = make_bit_space(LAYERS, bits=(2, 9))
  with pytest.raises(ValueError, match='9 bits are more than its 8'):
    tabulate_bits(space, lookup(np.ones((4, 8, 8)), LAYERS))
  with pytest.raises(ValueError, match='negative or not finite'):
    tabulate_bits(space, lookup(-np.ones((4, 9, 9)), LAYERS))
  with pytest.raises(ValueError, match='bytes_per_second=0'):
    bit_cost_model('roofline', operations_per_second=1, bytes_per_second=0)
  with pytest.raises(ValueError, match='weight_bytes'):
    bit_cost_model('weight_byte')
  with pytest.raises(ValueError, match=r"cost.modes is no argument of 'bytes'"):
    bit_cost_model('bytes', modes='linear')


# What an action means.


def numpy_bits(action, least, most):
  """As the authors' code has it."""
  low, high = least - 0.5, most + 0.5
  return int(np.round((high - low) * action + low, 0))


@pytest.mark.parametrize('least', [1, 2, 3])
@pytest.mark.parametrize('most', [7, 8])
def test_rounding(least, most):
  count = most - least + 1
  # Away from halves, where float32 may fall to the other side.
  actions = (np.arange(64 * count) + 0.5) / (64 * count)
  ends = np.array([0.0, 1.0, -0.5, 1.5])
  bits = jnp.arange(least, most + 1)
  levels = jax.vmap(lambda a: level_of_action(bits, jnp.int32(count), a))(
    jnp.asarray(np.concatenate([actions, ends]), jnp.float32)
  )
  found = np.asarray(bits)[np.asarray(levels)]
  assert found.tolist() == [
    *(numpy_bits(a, least, most) for a in actions),
    *(least, most, least, most),
  ]
  # Equally likely.
  assert (np.bincount(found[: len(actions)])[least:] == 64).all()


def test_the_quirk_of_no_bits():
  assert [numpy_bits(0.0, least, 8) for least in (1, 2, 3)] == [0, 2, 2]
  assert [numpy_bits(1.0, 1, most) for most in (7, 8)] == [8, 8]
  level = level_of_action(jnp.arange(1, 9), jnp.int32(8), jnp.float32(0))
  assert int(level) == 0


def test_rounding_where_bits_leave_numbers_out():
  bits = jnp.array([2, 4, 8, 8])
  levels = [
    int(level_of_action(bits, jnp.int32(3), jnp.float32(a)))
    for a in (0.0, 0.3, 0.4, 0.6, 0.7, 1.0)
  ]
  assert levels == [0, 0, 1, 1, 2, 2]
  # A decision that is pinned.
  assert int(level_of_action(bits + 30, jnp.int32(1), jnp.float32(1))) == 0


# The budget.


def oracle(levels, pins, cost, target):
  """The loop of the authors' code on [[weight, activation], …], repaired.

  Pins are applied before it, and the least cost knows of them.
  """
  strategy = [list(pair) for pair in levels]

  def keep():
    for (layer, side), level in pins.items():
      strategy[layer][side] = level

  keep()
  while target < cost(strategy):
    before = [list(pair) for pair in strategy]
    for i in reversed(range(len(strategy))):
      for side in (1, 0):
        if strategy[i][side] > 0:
          strategy[i][side] -= 1
        keep()
        if target >= cost(strategy):
          return strategy
    if strategy == before:
      raise ValueError('cannot be reached')
  return strategy


ORACLE_PINS = {(0, 0): 0, (0, 1): 0, (3, 0): 0, (3, 1): 0}


@pytest.mark.parametrize('pinned', [False, True])
def test_decrement_is_the_loop_of_the_authors(pinned):
  space = make_bit_space(LAYERS, bits=range(2, 9), pins=PINS if pinned else {})
  rng = np.random.default_rng(2)
  # Neither monotonic nor smooth, as measured ones are.
  units = rng.integers(50, 100, (4, 7, 7)) + 20 * np.add.outer(
    np.arange(7), np.arange(7)
  )
  units[:, 0, 0] = 10
  costs = tabulate_bits(space, bit_options.bit_operations)._replace(
    units=jnp.asarray(units, jnp.int32), unit=1.0
  )
  least = int(units[:, 0, 0].sum())
  candidates = rng.integers(0, space.counts(), (300, 8))
  budgets = rng.integers(least, 600, 300)
  found = jax.jit(jax.vmap(functools.partial(decrement, costs)))(
    jnp.asarray(candidates, jnp.int32), jnp.asarray(budgets, jnp.int32)
  )

  def cost(strategy):
    return sum(units[i, w, a] for i, (w, a) in enumerate(strategy))

  pins = ORACLE_PINS if pinned else {}
  changed = 0
  for candidate, budget, levels in zip(
    candidates, budgets, np.asarray(found), strict=True
  ):
    pairs = candidate.reshape(4, 2).tolist()
    assert levels.reshape(4, 2).tolist() == oracle(pairs, pins, cost, budget)
    assert cost(levels.reshape(4, 2)) <= budget
    changed += (levels != candidate).any()
  assert 100 < changed < 300
  with pytest.raises(ValueError, match='cannot be reached'):
    oracle(candidates[0].reshape(4, 2).tolist(), pins, cost, least - 1)
  # There the program ends, at the smallest.
  ended = decrement(
    costs, jnp.asarray(candidates[0], jnp.int32), jnp.int32(least - 1)
  )
  assert not np.asarray(ended).any()


def test_unreachable_budgets():
  space = make_bit_space(LAYERS, bits=range(2, 9), pins=PINS)
  model = bit_options.bit_operations
  costs = tabulate_bits(space, model)
  least = by_hand('bit_operations', [8, 2, 2, 8], [32, 2, 2, 8])
  assert exact_bit_cost(space, model, [0] * 8) == least
  with pytest.raises(ValueError, match=r'smallest network costs 7\.357'):
    check_budget(space, costs, 0.99 * least)
  # Above what the authors' code takes for the least, without the pins.
  assert 0.99 * least > 2 * by_hand('bit_operations', [2] * 4, [2] * 4)
  assert check_budget(space, costs, 1.01 * least) * costs.unit >= least


# The environment.


def play(environment, data, budget, actions):
  def step(at, action):
    at, seen, done = environment.step(data, budget, at, action)
    return at, (at, seen, done)

  start, first = environment.reset(data, budget)
  _, (states, seen, done) = jax.lax.scan(step, start, actions)
  return states, jnp.concatenate([first[None], seen]), done


def test_features():
  expected = [
    # depthwise, inputs, outputs, stride, kernel, weights, map, index
    [0, 3, 16, 2, 3, 432, 256, 0],
    [1, 16, 16, 2, 3, 144, 64, 1],
    [0, 16, 24, 1, 1, 384, 16, 2],
    [0, 384, 10, 0, 1, 3840, 384, 3],
  ]
  space = make_bit_space(LAYERS)
  np.testing.assert_array_equal(bit_features(space), expected)


NORMALIZED = np.array(
  [
    [0, 0, 6 / 14, 1, 1, 288 / 3696, 240 / 368, 0],
    [1, 13 / 381, 6 / 14, 1, 1, 0, 48 / 368, 1 / 3],
    [0, 13 / 381, 1, 0.5, 0, 240 / 3696, 0, 2 / 3],
    [0, 1, 0, 0, 0, 1, 1, 1],
  ]
)


def test_observations_of_bits_for_both():
  space = make_bit_space(LAYERS, bits=range(2, 9), pins=PINS)
  _, data = problem_of(space)
  environment = make_bit_environment(space)
  assert (environment.layers, environment.features) == (8, 10)
  # Bits 8, 32, 2, 4, 6, 8, 8, 8 whatever the first and last two actions.
  actions = jnp.array([0.1, 0.2, 0.05, 0.35, 0.6, 1.0, 0.1, 0.9])
  budget = jnp.int32(2**31 - 2)
  states, seen, done = play(environment, data, budget, actions)
  np.testing.assert_allclose(
    seen[:8, :8], np.repeat(NORMALIZED, 2, axis=0), rtol=1e-6
  )
  np.testing.assert_allclose(seen[:8, 8], [1, 1, 1, 2 / 8, 0.5, 0.75, 1, 1])
  # Weights come first, in every layer and from the first step on.
  np.testing.assert_array_equal(seen[:8, 9], [1, 0] * 4)
  np.testing.assert_array_equal(seen[8], seen[7])
  np.testing.assert_array_equal(done, [False] * 7 + [True])
  assert bits_of(space, states.candidate[-1]) == [8, 32, 2, 4, 6, 8, 8, 8]
  # An episode begins as the first did.
  again = play(environment, data, budget, actions)
  np.testing.assert_array_equal(again[1], seen)


def test_observations_of_codebooks():
  space = make_bit_space(LAYERS, mode='kmeans', bits=range(1, 9))
  _, data = problem_of(space, bit_options.weight_bytes(mode='kmeans'))
  environment = make_bit_environment(space)
  assert (environment.layers, environment.features) == (4, 9)
  actions = jnp.array([0.0, 0.3, 0.99, 0.5])
  _, seen, _ = play(environment, data, jnp.int32(2**31 - 2), actions)
  np.testing.assert_allclose(seen[:4, :8], NORMALIZED, rtol=1e-6)
  # Bits as they are.
  np.testing.assert_array_equal(seen[:4, 8], [4, 1, 3, 8])


@pytest.mark.parametrize('mode', ['linear', 'kmeans'])
def test_no_layer_has_no_bits(mode):
  space = make_bit_space(LAYERS, mode=mode, bits=range(1, 9))
  model = bit_options.weight_bytes(mode=mode)
  _, data = problem_of(space, model)
  environment = make_bit_environment(space)
  rng = np.random.default_rng(3)
  steps = environment.layers
  actions = rng.uniform(size=(2000, steps)).astype('f4')
  actions[rng.uniform(size=actions.shape) < 0.2] = 0.0
  actions[0] = 0.0
  zeros = np.zeros(steps, int)
  least = exact_bit_cost(space, model, zeros)
  most = exact_bit_cost(space, model, space.full())
  budgets = jnp.array(
    [data.costs.budget(x) for x in rng.uniform(least * 1.001, most, 2000)]
  )
  states, _, _ = jax.jit(jax.vmap(functools.partial(play, environment, data)))(
    budgets, actions
  )
  candidates = np.asarray(states.candidate[:, -1])
  widths = space.widths()
  bits = widths[np.arange(steps), candidates]
  assert bits.min() == 1
  assert bits.max() == 8
  assert (bits[0] == 1).all()
  costs = jax.vmap(functools.partial(cost_of, data.costs))(
    states.candidate[:, -1]
  )
  assert (np.asarray(costs) <= np.asarray(budgets)).all()


def test_other_spaces_have_no_environment():
  space = make_bit_space(LAYERS)
  with pytest.raises(ValueError, match='its decisions are no bits'):
    make_bit_environment(space._replace(groups=space.layers))


# The search.

EPISODES = 23
"""Of which 21 are random."""


@functools.cache
def searched():
  """Two searches in one program, with two budgets."""
  space = make_bit_space(LAYERS, bits=range(2, 9), pins=PINS)
  problem, data = problem_of(space)
  run = jax.jit(
    jax.vmap(
      make_haq_run(problem, evaluations=EPISODES, offset=-1.0, **SMALL),
      (0, None, 0),
    )
  )
  least = int(cost_of(data.costs, jnp.zeros(8, jnp.int32)))
  most = int(cost_of(data.costs, jnp.asarray(space.full())))
  budgets = jnp.array([least + (most - least) // k for k in (2, 4)])
  return problem, data, budgets, run


@functools.cache
def results():
  _, data, budgets, run = searched()
  return run(jax.random.split(jax.random.key(0), 2), data, budgets)


@pytest.mark.parametrize('seed', [0, 1])
def test_a_search(seed):
  problem, data, budgets, _ = searched()
  history, baselines, agent, replay = jax.tree.map(
    lambda leaf: leaf[seed], results()
  )
  assert history.candidates.shape == (EPISODES, 8)
  for row in range(EPISODES):
    candidate = history.candidates[row]
    assert int(cost_of(data.costs, candidate)) == history.costs[row]
    assert history.costs[row] <= budgets[seed]
    bits = bits_of(problem.space, candidate)
    assert (bits[:2], bits[-2:]) == ([8, UNQUANTIZED], [8, 8])
    weight = np.arange(8) % 2 + 0.5
    expected = -np.sum(weight * 4.0 ** -np.array(bits))
    np.testing.assert_allclose(history.scores[row], expected, rtol=1e-5)
  # Two actions a layer; each carries the score of its episode.
  assert int(replay.added) == EPISODES * 8
  stored = replay.transitions.reward[: EPISODES * 8].reshape(EPISODES, 8)
  np.testing.assert_array_equal(
    stored, np.broadcast_to(history.scores[:, None], stored.shape)
  )
  assert int(agent.updates) == 2 * 8
  # What is learned from is 10 (score + 1).
  np.testing.assert_array_equal(baselines[:21], np.zeros(21, 'f4'))
  low, high = 10 * history.scores.min() + 10, 10 * history.scores.max() + 10
  assert low <= baselines[-1] <= high


def test_one_program_for_all_keys_and_budgets():
  problem, data, budgets, run = searched()
  first = results().history
  keys = jax.random.split(jax.random.key(0), 2)
  again = run(keys, data, budgets).history
  np.testing.assert_array_equal(again.candidates, first.candidates)
  np.testing.assert_array_equal(again.scores, first.scores)
  others = run(keys[::-1], data, budgets[::-1]).history
  # Seeds do not see each other.
  np.testing.assert_array_equal(others.candidates[::-1], first.candidates)
  assert not np.array_equal(first.candidates[0], first.candidates[1])
  assert problem.objective.traces == 1


def test_the_defaults_are_those_of_the_authors():
  space = make_bit_space(LAYERS, bits=range(2, 9), pins=PINS)
  problem, data = problem_of(space)
  result = jax.eval_shape(
    make_haq_run(problem), jax.random.key(0), data, jnp.int32(0)
  )
  assert result.history.scores.shape == (600,)
  assert result.replay.transitions.observation.shape == (128 * 4, 10)
  assert result.agent.actor['second']['kernel'].shape == (300, 300)


def test_rewards_are_scaled_for_the_agent():
  seen = Agent(
    init=lambda key: 0,
    act=lambda state, observation: observation,
    update=lambda state, batch, key: batch,
  )
  nothing = jnp.zeros(2)
  batch = Transition(nothing, nothing, jnp.array([0.7, 0.2]), nothing, nothing)
  scaled = with_rewards(seen, scale=10.0, offset=0.5)
  found = scaled.update(0, batch, jax.random.key(0))
  np.testing.assert_allclose(found.reward, [2.0, -3.0], rtol=1e-6)
  assert found._replace(reward=batch.reward) == batch


@pytest.mark.parametrize(
  ('options', 'message'),
  [
    ({'agent': 'ppo'}, 'agent'),
    ({'scale': 0.0}, 'scale=0.0'),
    ({'rounding': 'up'}, "rounding='up'"),
    ({'state': 'code'}, "state='code'"),
    ({'store': 'walled'}, "store='walled'"),
    ({'evaluation': 3}, 'evaluation'),
    ({'warmup': -1}, 'warmup=-1'),
    ({'replay': 8}, 'replay=8'),
    ({'evaluations': 0}, 'evaluations=0'),
  ],
)
def test_bad_options(options, message):
  problem, _ = problem_of(make_bit_space(LAYERS))
  with pytest.raises(ValueError, match=message):
    make_haq(problem, **options)


# The other searchers, on the same space.


def brute_force(space, data, budget):
  counts = space.counts()
  grid = np.stack(
    np.meshgrid(*[np.arange(n) for n in counts], indexing='ij'), -1
  ).reshape(-1, len(counts))
  units = np.asarray(data.costs.units)
  cost = sum(
    units[layer, grid[:, reads], grid[:, writes]]
    for layer, (reads, writes) in enumerate(
      zip(space.reads, space.writes, strict=True)
    )
  )
  errors = np.asarray(data.errors)[np.arange(len(counts)), grid].sum(1)
  return errors[cost <= budget].min()


def test_dynamic_programming_finds_the_best_bits():
  space = make_bit_space(LAYERS, bits=(2, 3, 5, 8), pins=PINS)
  # Costs of so few units that a bucket is one.
  rng = np.random.default_rng(4)
  units = np.sort(rng.integers(1, 50, (4, 4, 4)), axis=1)
  units = np.sort(units, axis=2)
  _, data = problem_of(space)
  costs = data.costs._replace(units=jnp.asarray(units, jnp.int32), unit=1.0)
  data = data._replace(costs=costs)
  solved = jax.jit(lambda budget: solve(space, data, budget, buckets=300))
  for budget in (90, 110, 140):
    candidate = solved(jnp.int32(budget))
    assert int(cost_of(costs, candidate)) <= budget
    found = float(data.errors[jnp.arange(8), candidate].sum())
    np.testing.assert_allclose(
      found, brute_force(space, data, budget), rtol=1e-5
    )


SEARCHERS = {
  'random': lambda problem: make_random(problem, evaluations=20),
  'uniform': make_uniform,
  'dynamic': lambda problem: make_dynamic(problem, buckets=500),
  'genetic': lambda problem: make_genetic(
    problem, evaluations=20, population=10
  ),
  'cma_es': lambda problem: make_cma_es(
    problem, evaluations=16, population=8, start='dynamic', buckets=500
  ),
  'spdy': lambda problem: make_spdy(
    problem, evaluations=10, starts=5, buckets=100
  ),
}


@pytest.mark.parametrize('name', SEARCHERS)
def test_searchers_stay_within_a_budget_of_bits(name):
  space = make_bit_space(LAYERS, bits=range(2, 9), pins=PINS)
  model = bit_options.all_bytes()
  problem, data = problem_of(space, model)
  least = exact_bit_cost(space, model, np.zeros(8, int))
  amount = (least + exact_bit_cost(space, model, space.full())) / 2
  budget = check_budget(space, data.costs, amount)
  history = jax.jit(SEARCHERS[name](problem))(
    jax.random.key(0), data, jnp.int32(budget)
  )
  candidates = np.asarray(history.candidates)
  assert (candidates >= 0).all()
  assert (candidates < space.counts()[None]).all()
  assert (np.asarray(history.costs) <= budget).all()
  for candidate in candidates[:5]:
    assert exact_bit_cost(space, model, candidate) <= amount
