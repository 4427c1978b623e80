"""Joint decisions: couplings, costs in NumPy, budgets, order of levels."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toy import all_candidates, costs_in_numpy, group

from bandwidth.search.decisions import joint, joint_space
from bandwidth.search.decisions.joint import KernelChoice
from bandwidth.search.decisions.joint_space import (
  JOINT_COSTS,
  exact_joint_cost,
  joint_cost_model,
  make_joint_space,
  order_choices,
  tabulate_joint,
)
from bandwidth.search.dynamic import check_chain, frontier
from bandwidth.search.problem.budget import (
  check_budget,
  fill,
  fit,
  levels_of,
  wall,
)
from bandwidth.search.problem.interface import Problem, make_data
from bandwidth.search.problem.latency import operation_of
from bandwidth.search.problem.space import FIXED, LayerShape, make_space
from bandwidth.search.searchers import SEARCHERS, SINGLE, make_searcher

LAYERS = (
  LayerShape('first', 'depthwise', 3, 6, 9, 1024, 1024),
  LayerShape('stem', 'conv', 6, 16, 9, 256, 1024, stride=2),
  LayerShape('deep', 'depthwise', 16, 32, 9, 64, 256, stride=2),
  LayerShape('point', 'conv', 32, 24, positions=64, pixels=64),
  LayerShape('side', 'conv', 24, 12, positions=64, pixels=64),
  LayerShape('hidden', 'dense', 12 * 64, 20, bias=True),
  LayerShape('logits', 'dense', 20, 10, bias=True),
)
# Each channel of the stem has two of what follows it.
CHANNELS = make_space(
  (*LAYERS[:3], LAYERS[3]._replace(inputs=32), *LAYERS[4:]),
  (
    group('point', 24, writers=['point'], readers=['side']),
    group('side', 12, writers=['side'], readers=['hidden']),
    group('hidden', 20, writers=['hidden'], readers=['logits']),
  ),
  divisor=4,
)
FLOATS = {'point': 2, 'side': 4, 'hidden': 1}
FIXED_FLOATS = 37
RATES = (1.0, 3.0, 6.0)


def draw_choices(channels, seed=0):
  """Of about the bits and errors that kernels have, by decision."""
  rng = np.random.default_rng(seed)
  found = []
  for place in joint_space.kernel_layers(channels):
    layer, source = channels.layers[place], channels.reads[place]
    widths = (layer.inputs,) if source == FIXED else channels.levels[source]
    own = []
    for kept in widths:
      for rate in (1.0, 2.0, 3.0, 5.0, 8.0):
        share = kept / layer.inputs
        bits = layer.weights * share * rate * rng.uniform(0.9, 1.1)
        error = (1 - share) ** 2 + 4.0**-rate * rng.uniform(0.5, 1.5)
        step = 4.0 * 2**-rate
        own.append(KernelChoice(kept, step, bits, 0.5, error))
    found.append(own)
  return found


def make(channels=CHANNELS, floats=FLOATS, most_levels=12, seed=0):
  every = draw_choices(channels, seed)
  choices = [
    order_choices(
      channels,
      place,
      own,
      floats=floats.get(joint_source(channels, place), 0),
      rates=RATES,
      most_levels=most_levels,
    )
    for place, own in zip(
      joint_space.kernel_layers(channels), every, strict=True
    )
  ]
  space = make_joint_space(
    channels, choices, floats=floats, fixed=FIXED_FLOATS, rate=RATES[1]
  )
  return space, choices, every


def joint_source(channels, place):
  source = channels.reads[place]
  return None if source == FIXED else channels.groups[source].name


SPACE, CHOICES, EVERY = make()


def test_decisions_are_kernels_and_their_readers():
  names = ['stem', 'point', 'side', 'hidden', 'logits']
  assert [g.name for g in SPACE.groups] == names
  sources = [None, None, 'point', 'side', 'hidden']
  assert [g.source for g in SPACE.groups] == sources
  assert SPACE.reads == (FIXED, 0, FIXED, 1, 2, 3, 4)
  assert SPACE.writes == (FIXED, FIXED, FIXED, 2, 3, 4, FIXED)
  assert [g.floats for g in SPACE.groups] == [0, 0, 2, 4, 1]
  assert [g.fixed for g in SPACE.groups] == [FIXED_FLOATS, 0, 0, 0, 0]
  check_chain(SPACE)


SEPARABLE = make_space(
  (
    LayerShape('stem', 'conv', 3, 16, 9, 256, 256),
    LayerShape('deep', 'depthwise', 16, 16, 9, 256, 256),
    LayerShape('point', 'conv', 16, 24, positions=256, pixels=256),
    LayerShape('logits', 'dense', 24, 10, bias=True),
  ),
  (
    group('stem', 16, writers=['stem', 'deep'], readers=['point']),
    group('point', 24, writers=['point'], readers=['logits']),
  ),
  divisor=4,
)


def test_channels_run_through_depthwise_kernels():
  space, choices, _ = make(SEPARABLE, {'stem': 13, 'point': 4})
  assert space.reads == (0, 1, 1, 2)
  assert space.writes == (1, 1, 2, FIXED)
  check_chain(space)
  costs = tabulate_joint(space, choices, joint_cost_model('macs'))
  rng = np.random.default_rng(0)
  candidates = rng.integers(0, space.counts(), (20, 3)).astype(np.int32)
  units = costs_in_numpy(costs, candidates)
  for candidate, found in zip(candidates, units, strict=True):
    point, logits = (choices[i][candidate[i]].kept for i in (1, 2))
    expected = 256 * (27 * point + 9 * point + point * logits) + logits * 10
    assert found * costs.unit == expected


def bytes_in_numpy(candidate):
  """File bytes of the network above, term by term."""
  picked = [own[i] for own, i in zip(CHOICES, candidate, strict=True)]
  stem, point, side, hidden, logits = picked
  bits = stem.bits
  bits += point.bits * side.kept / 24
  bits += side.bits * hidden.kept / 12
  bits += hidden.bits * logits.kept / 20
  bits += logits.bits
  floats = FIXED_FLOATS + 2 * side.kept + 4 * hidden.kept + logits.kept
  return bits / 8 + 4 * floats


def test_bytes_are_those_of_numpy():
  model = joint_cost_model('file_bytes')
  costs = tabulate_joint(SPACE, CHOICES, model)
  rng = np.random.default_rng(1)
  candidates = rng.integers(0, SPACE.counts(), (200, SPACE.decisions))
  units = costs_in_numpy(costs, candidates)
  for candidate, found in zip(candidates, units, strict=True):
    exact = exact_joint_cost(SPACE, CHOICES, model, candidate)
    assert exact == pytest.approx(bytes_in_numpy(candidate), rel=1e-12)
    # Each layer is rounded up.
    assert 0 <= found * costs.unit - exact <= len(SPACE.layers) * costs.unit


def table_of(path):
  rows = []
  rng = np.random.default_rng(5)
  for layer in SPACE.layers:
    flat = layer.taps if layer.kind == 'dense' else 1
    inputs = sorted({1, layer.inputs})
    inputs = [1] if layer.kind == 'depthwise' else [flat * x for x in inputs]
    outputs = sorted({1, layer.outputs})
    seconds = rng.uniform(1e-6, 1e-3, (len(inputs), len(outputs)))
    rows.append(
      {
        **operation_of(layer)._asdict(),
        'inputs': inputs,
        'outputs': outputs,
        'seconds': seconds.tolist(),
      }
    )
  content = {'name': 'latency_table', 'format': 1, 'rows': rows}
  path.write_text(json.dumps(content))
  return path


ARGUMENTS = {'roofline': {'macs_per_second': 3e9, 'bytes_per_second': 7e8}}


@jax.jit
def choose(costs, actions, orders, budgets):
  """Candidates by `fit`, by a sequence of `wall`s, and those `fill`ed."""
  widths, counts = jnp.asarray(SPACE.widths()), jnp.asarray(SPACE.counts())

  def one(action, order, budget):
    wanted = levels_of(widths, counts, action)

    def decide(candidate, decision):
      level = wall(costs, counts, candidate, decision, wanted[decision], budget)
      return candidate.at[decision].set(level), None

    walled = jax.lax.scan(decide, jnp.zeros_like(wanted), order)[0]
    fitted = fit(costs, widths, counts, action, budget)
    return fitted, walled, fill(costs, counts, walled, budget)

  return jax.vmap(one)(actions, orders, budgets)


@pytest.mark.parametrize('name', JOINT_COSTS)
def test_no_violations(name, tmp_path):
  arguments = ARGUMENTS.get(name, {})
  if name == 'latency_table':
    arguments = {'path': table_of(tmp_path / 'F.json')}
  model = joint_cost_model(name, **arguments)
  costs = tabulate_joint(SPACE, CHOICES, model)
  rng, count = np.random.default_rng(3), 300
  actions = rng.random((count, SPACE.decisions), np.float32)
  orders = rng.permuted(
    np.tile(np.arange(SPACE.decisions, dtype=np.int32), (count, 1)), axis=1
  )
  least = costs_in_numpy(costs, np.zeros((1, SPACE.decisions), int))[0]
  whole = exact_joint_cost(SPACE, CHOICES, model, SPACE.full())
  # Of a random table the first levels are not the cheapest.
  least *= costs.unit
  amounts = rng.uniform(least, max(1.05 * whole, 2 * least), count)
  budgets = np.array([check_budget(SPACE, costs, x) for x in amounts], np.int32)
  for candidates in choose(costs, actions, orders, budgets):
    for candidate, amount in zip(np.asarray(candidates), amounts, strict=True):
      assert SPACE.kept(candidate)
      exact = exact_joint_cost(SPACE, CHOICES, model, candidate)
      assert exact <= amount


def test_no_candidate_is_cheaper_than_the_first_levels():
  costs = tabulate_joint(SPACE, CHOICES, joint_cost_model('file_bytes'))
  units = np.asarray(costs.units)
  assert (units.min(axis=(1, 2)) == units[:, 0, 0]).all()


def test_sizes_come_back_from_fractions():
  widths, counts = SPACE.widths(), SPACE.counts()
  back = jax.jit(levels_of)
  for level in range(SPACE.most_levels):
    wanted = np.minimum(level, counts - 1)
    kept = widths[np.arange(len(counts)), wanted].astype(np.float32)
    found = back(widths, counts, kept / widths[:, -1].astype(np.float32))
    np.testing.assert_array_equal(found, wanted)
  for levels in SPACE.levels:
    assert list(levels) == sorted(set(levels))
    assert levels[-1] == joint_space.LARGEST


def test_levels_that_nothing_beats():
  for place, own, every in zip(
    joint_space.kernel_layers(CHANNELS), CHOICES, EVERY, strict=True
  ):
    assert len(own) <= 12
    assert own[0] == min(every, key=lambda x: (x.kept, -x.step))
    assert own[-1].error == min(x.error for x in every)
    assert set(own) <= set(every)
    for choice in own[1:]:
      assert not any(
        x.kept <= choice.kept
        and x.bits < choice.bits
        and x.error < choice.error
        for x in every
        if x.bits > own[0].bits
      )
    sizes = joint_space.sizes_of(CHANNELS, place, own, rate=RATES[1])
    assert (np.diff(sizes) > 0).all() or CHANNELS.reads[place] != FIXED


def test_all_levels_stay_where_there_is_room():
  # Bits and errors of one kernel: a third of them is beaten.
  own = [KernelChoice(24, 1.0, 10.0 * x, 1.0, 1 / x) for x in range(1, 6)]
  worse = [x._replace(error=x.error + 0.3, bits=x.bits + 1) for x in own]
  found = order_choices(CHANNELS, 3, own + worse, rates=(1.0,))
  assert found == tuple(own)
  assert len(order_choices(CHANNELS, 3, own, rates=(1,), most_levels=2)) == 2


def test_choices_of_less_bits_than_the_first_are_left_out():
  own = [
    KernelChoice(4, 2.0, 50.0, 1.0, 0.9),
    KernelChoice(24, 2.0, 10.0, 1.0, 0.8),
    KernelChoice(24, 1.0, 90.0, 1.0, 0.1),
  ]
  assert order_choices(CHANNELS, 4, own, rates=(1.0,)) == (own[0], own[2])


def test_frontier_is_that_of_all_candidates():
  space, choices, _ = make(SEPARABLE, {}, most_levels=8)
  costs = tabulate_joint(space, choices, joint_cost_model('file_bytes'))
  errors = np.zeros((space.decisions, space.most_levels), np.float32)
  for row, own in zip(errors, choices, strict=True):
    row[: len(own)] = [x.error - own[-1].error for x in own]
  data = make_data(space, costs, errors=jnp.asarray(errors))
  candidates = all_candidates(space)
  prices = costs_in_numpy(costs, candidates)
  sums = errors[np.arange(space.decisions), candidates].sum(1)
  solve = jax.jit(lambda data: frontier(space, data, buckets=400))
  found = jax.tree.map(np.asarray, solve(data))
  bucket = found.budgets[1] - found.budgets[0]
  used = costs_in_numpy(costs, found.candidates)
  assert (used <= found.budgets).all()
  for budget, error in zip(found.budgets, found.errors, strict=True):
    # Costs are rounded up to buckets, once a decision.
    roomy = prices <= budget - space.decisions * bucket
    if roomy.any():
      assert error <= sums[roomy].min() + 1e-6
    assert error >= sums[prices <= budget].min() - 1e-6


SEVERAL = make_space(
  (*LAYERS[3:5], LAYERS[4]._replace(name='other')),
  (group('point', 24, writers=['point'], readers=['side', 'other']),),
)
FIRST = CHOICES[2][0]


def with_choices(decision, own):
  return [own if i == decision else x for i, x in enumerate(CHOICES)]


@pytest.mark.parametrize(
  ('run', 'message'),
  [
    (
      lambda: joint_space.kernel_layers(SEVERAL),
      'point: its channels are read by side, other; they can be chosen',
    ),
    (
      lambda: make_joint_space(CHANNELS, CHOICES[1:]),
      'choices: those of 4 kernels, there are 5',
    ),
    (
      lambda: make_joint_space(CHANNELS, with_choices(1, ())),
      'point: it has no choices',
    ),
    (
      lambda: make_joint_space(CHANNELS, with_choices(0, [FIRST])),
      'stem: a choice keeps .* of 6 channels that nobody|stem: kept channels',
    ),
    (
      lambda: make_joint_space(
        CHANNELS, with_choices(2, [FIRST._replace(kept=25)])
      ),
      r'side: kept channels from 25 to 25 are not in \[1, 24\]',
    ),
    (
      lambda: make_joint_space(
        CHANNELS, with_choices(2, [FIRST, FIRST._replace(bits=1.0)])
      ),
      'side: its first choice, of .* channels and .* bits, is not the cheapest',
    ),
    (
      lambda: make_joint_space(
        CHANNELS, with_choices(2, [FIRST, FIRST._replace(error=9.0)])
      ),
      'side: its last choice has not the least error',
    ),
    (
      lambda: make_joint_space(
        CHANNELS, with_choices(2, [CHOICES[2][0], *CHOICES[2][:0:-1]])
      ),
      'side: its last choice has not|side: .* choices do not ascend in size',
    ),
    (
      lambda: order_choices(CHANNELS, 4, CHOICES[2], rates=()),
      r'rates=\[\] are none',
    ),
    (
      lambda: order_choices(CHANNELS, 4, CHOICES[2], rates=(1,), most_levels=1),
      'most_levels=1 is less than 2',
    ),
    (
      lambda: tabulate_joint(SPACE, CHOICES[:-1], joint_space.file_bytes),
      'choices: .* by decision are not the levels of the space',
    ),
    (
      lambda: joint_cost_model('file_byte'),
      "cost.name='file_byte' is unknown; .*Did you mean 'file_bytes'",
    ),
    (
      lambda: joint_cost_model('memory', bits=3),
      "cost.bits is no argument of 'memory'",
    ),
  ],
)
def test_bad_arguments(run, message):
  with pytest.raises(ValueError, match=message):
    run()


def test_costs_of_channels_do_not_see_bits():
  costs = tabulate_joint(SPACE, CHOICES, joint_cost_model('parameters'))
  finest = [own[-1]._replace(bits=1e9) for own in CHOICES]
  other = [(*own[:-1], last) for own, last in zip(CHOICES, finest, strict=True)]
  same = tabulate_joint(SPACE, other, joint_cost_model('parameters'))
  np.testing.assert_array_equal(costs.units, same.units)
  assert joint.FLOAT_BITS == 32


SMALL = {
  'amc': {'warmup': 4, 'batch': 4},
  'td3': {'warmup': 4, 'batch': 4},
  'genetic': {'population': 8},
  'cma_es': {'population': 4},
  'cma_es_dynamic': {'population': 4, 'buckets': 100},
  'dynamic': {'buckets': 100},
}


@pytest.mark.parametrize(
  'name',
  [
    pytest.param(name, marks=pytest.mark.slow)
    if name in ('amc', 'td3')
    else name
    for name in (*SEARCHERS, *SINGLE)
  ],
)
def test_every_searcher_works(name):
  costs = tabulate_joint(SPACE, CHOICES, joint_space.file_bytes)
  errors = np.zeros((SPACE.decisions, SPACE.most_levels), np.float32)
  for row, own in zip(errors, CHOICES, strict=True):
    row[: len(own)] = [x.error - own[-1].error for x in own]

  def objective(errors, candidate):
    return -jnp.sum(errors[jnp.arange(errors.shape[0]), candidate])

  data = make_data(
    SPACE, costs, errors=jnp.asarray(errors), objective=jnp.asarray(errors)
  )
  whole = exact_joint_cost(SPACE, CHOICES, joint_space.file_bytes, SPACE.full())
  budget = check_budget(SPACE, costs, 0.4 * whole)
  options = SMALL.get(name, {})
  search = make_searcher(
    name, Problem(SPACE, objective), evaluations=16, **options
  )
  history = jax.jit(search)(jax.random.key(0), data, jnp.int32(budget))
  candidates = np.asarray(history.candidates)
  assert candidates.shape == (1 if name in SINGLE else 16, SPACE.decisions)
  used = costs_in_numpy(costs, candidates)
  np.testing.assert_array_equal(history.costs, used)
  assert used.max() <= budget
  sums = errors[np.arange(SPACE.decisions), candidates].sum(1)
  np.testing.assert_allclose(history.scores, -sums, rtol=1e-5)
