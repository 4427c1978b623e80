"""Cost models by hand, and their tables of integers against the models."""

import functools
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toy import group
from toy_amc import LAYERS, layer_macs, toy_space

from bandwidth.search.problem import cost
from bandwidth.search.problem.cost import (
  COSTS,
  cost_model,
  cost_of,
  costs_by_level,
  exact_cost,
  layer_costs,
  macs,
  memory,
  parameters,
  roofline,
  tabulate,
)
from bandwidth.search.problem.energy import energy
from bandwidth.search.problem.latency import fitted_latency
from bandwidth.search.problem.space import LayerShape, make_space

MODELS = {
  'macs': macs,
  'parameters': parameters,
  'memory': memory(),
  'memory_8_4': memory(weight_bits=8, activation_bits=4),
  'memory_weights': memory(weight_bits=2.3, activation_bits=0),
  'memory_activations': memory(weight_bits=0),
  'roofline': roofline(
    macs_per_second=3e9, bytes_per_second=7e8, overhead=1e-6
  ),
  'energy': energy(),
  'fitted_latency': fitted_latency(),
}

CONV = LayerShape('c', 'conv', 3, 8, 9, positions=16, pixels=64, bias=True)
DEEP = LayerShape('d', 'depthwise', 8, 16, 9, positions=4, pixels=16)
FLAT = LayerShape('f', 'dense', 8, 10, 25, positions=1, pixels=25, bias=True)


def at(model, layer, inputs=None, outputs=None):
  inputs = layer.inputs if inputs is None else inputs
  outputs = layer.outputs if outputs is None else outputs
  return float(model(layer, np.array(inputs), np.array(outputs)))


@pytest.mark.parametrize(
  ('layer', 'expected'),
  [
    # Multiply-adds, weights and biases, activations read and made.
    (CONV, (9 * 3 * 8 * 16, 9 * 3 * 8 + 8, 3 * 64 + 8 * 16)),
    (DEEP, (9 * 16 * 4, 9 * 16, 8 * 16 + 16 * 4)),
    (FLAT, (25 * 8 * 10, 25 * 8 * 10 + 10, 25 * 8 + 10)),
  ],
)
def test_models_by_hand(layer, expected):
  computed, weights, moved = expected
  assert at(macs, layer) == computed
  assert at(parameters, layer) == weights
  assert at(cost.activations, layer) == moved
  assert at(memory(), layer) == 4 * (weights + moved)
  low = memory(weight_bits=4, activation_bits=8)
  assert at(low, layer) == weights / 2 + moved
  # So many operations that one of the two is the limit, then the other.
  fast = roofline(macs_per_second=1e12, bytes_per_second=100.0, overhead=3.0)
  assert at(fast, layer) == pytest.approx(4 * (weights + moved) / 100 + 3)
  slow = roofline(macs_per_second=10.0, bytes_per_second=1e12)
  assert at(slow, layer) == pytest.approx(computed / 10)


def test_models_broadcast_channels():
  inputs, outputs = np.array([[2], [3]], np.int32), np.array([[4, 8]], np.int32)
  for name, model in MODELS.items():
    for layer in (CONV, DEEP, FLAT):
      table = model(layer, inputs, outputs)
      assert table.dtype == np.float64
      for i, j in itertools.product(range(2), range(2)):
        one = at(model, layer, inputs[i, 0], outputs[0, j])
        assert table[i, j] == one, (name, layer.name)


@pytest.mark.parametrize('model', MODELS.values(), ids=MODELS)
def test_counts_beyond_32_bits(model):
  # As wide as a vocabulary, over an image of a camera.
  wide = np.array(2**17, np.int32)
  layer = LayerShape('w', 'conv', 2**17, 2**17, 9, 2**22, 2**22, bias=True)
  large = model(layer, wide, wide)
  assert large == model(layer, wide.astype('f8'), wide.astype('f8'))
  assert large > 0


def lenet5():
  """As Caffe has it, on 28x28; two groups by hand."""
  layers = [
    LayerShape('c0', 'conv', 1, 20, 25, positions=576, pixels=784, bias=True),
    LayerShape('c1', 'conv', 20, 50, 25, positions=64, pixels=144, bias=True),
    LayerShape('f0', 'dense', 800, 500, bias=True),
    LayerShape('f1', 'dense', 500, 10, bias=True),
  ]
  groups = [
    group('c0', 20, writers=['c0'], readers=['c1']),
    group('c1', 50, writers=['c1'], readers=['f0']),
    group('f0', 500, writers=['f0'], readers=['f1']),
  ]
  return make_space(layers, groups)


def test_lenet5():
  space = lenet5()
  full = space.full()
  assert exact_cost(space, macs, full) == 2_293_000
  assert exact_cost(space, parameters, full) == 431_080
  costs = tabulate(space, macs)
  assert int(cost_of(costs, jnp.asarray(full))) * costs.unit == 2_293_000
  assert (np.asarray(layer_costs(costs, full)) * costs.unit).tolist() == [
    *(288_000, 1_600_000, 400_000, 5_000)
  ]
  # 8, 24 and 200 channels remain.
  small = np.array([0, 1, space.levels[2].index(200)])
  assert space.kept(small) == {'c0': 8, 'c1': 24, 'f0': 200}
  left = 576 * 25 * 8 + 64 * 25 * 8 * 24 + 16 * 24 * 200 + 200 * 10
  assert exact_cost(space, macs, small) == left


def random_candidates(space, count, seed):
  rng = np.random.default_rng(seed)
  return rng.integers(0, space.counts(), (count, space.decisions), np.int32)


priced = jax.jit(jax.vmap(cost_of, (None, 0)))


@pytest.mark.parametrize('model', MODELS.values(), ids=MODELS)
def test_units_round_up(model):
  space = toy_space()
  costs = tabulate(space, model)
  assert math.frexp(costs.unit)[0] == 0.5, 'a power of two'
  candidates = random_candidates(space, 200, seed=0)
  units = np.asarray(priced(costs, candidates)).tolist()
  for candidate, count in zip(candidates, units, strict=True):
    exact = exact_cost(space, model, candidate)
    assert exact <= count * costs.unit < exact + len(space.layers) * costs.unit
    # So a budget that the units fit is one that the cost fits.
    assert costs.budget(count * costs.unit) == count
    assert costs.budget(math.nextafter(count * costs.unit, 0)) == count - 1


@pytest.mark.parametrize('name', ['macs', 'parameters', 'memory'])
def test_whole_numbers_are_exact(name):
  space, model = toy_space(), MODELS[name]
  costs = tabulate(space, model)
  for candidate in random_candidates(space, 20, seed=1):
    exact = exact_cost(space, model, candidate)
    assert int(cost_of(costs, jnp.asarray(candidate))) * costs.unit == exact
    # A network is within a budget of its own cost.
    assert int(cost_of(costs, jnp.asarray(candidate))) <= costs.budget(exact)


def test_layers_against_a_hand_written_network():
  space = toy_space()
  costs = tabulate(space, macs)
  for candidate in itertools.product(*map(range, space.counts())):
    kept = space.kept(candidate)
    expected = layer_macs(*(kept[name] for name in 'abc'))
    assert exact_cost(space, macs, candidate) == sum(expected)
    units = np.asarray(costs.units)
    levels = [*candidate, 0]
    found = [
      units[i, levels[reads], levels[writes]] * costs.unit
      for i, (reads, writes) in enumerate(
        zip(space.reads, space.writes, strict=True)
      )
    ]
    assert found == expected
  assert costs.units.dtype == jnp.int32
  assert costs.units.shape == (len(LAYERS), 7, 7)


def test_costs_by_level():
  space = toy_space()
  costs = tabulate(space, memory())
  by_level = jax.jit(costs_by_level)
  for candidate in random_candidates(space, 10, seed=2):
    for decision, count in enumerate(space.counts()):
      found = by_level(costs, candidate, decision)
      for level in range(space.most_levels):
        changed = candidate.copy()
        changed[decision] = min(level, count - 1)
        assert found[level] == cost_of(costs, jnp.asarray(changed))


def test_depthwise_layers_with_a_multiplier():
  layers = [
    LayerShape('a', 'conv', 3, 16, 9, positions=4, pixels=4),
    LayerShape('d', 'depthwise', 16, 48, 9, positions=4, pixels=4),
    LayerShape('b', 'dense', 48, 10, positions=4, pixels=4),
  ]
  groups = [group('a', 16, writers=['a', 'd'], readers=['b'])]
  space = make_space(layers, groups)
  assert space.levels == ((8, 16),)
  # 8 channels in, 24 out.
  expected = 4 * (27 * 8 + 9 * 24 + 24 * 10)
  assert exact_cost(space, macs, [0]) == expected
  costs = tabulate(space, macs)
  assert int(cost_of(costs, jnp.zeros(1, jnp.int32))) * costs.unit == expected


def test_networks_without_decisions():
  space = make_space([CONV, DEEP], [])
  costs = tabulate(space, macs)
  nothing = np.zeros(0, np.int32)
  expected = at(macs, CONV) + at(macs, DEEP)
  assert exact_cost(space, macs, nothing) == expected
  assert int(cost_of(costs, jnp.asarray(nothing))) * costs.unit == expected


def test_costs_of_nothing():
  costs = tabulate(toy_space(), memory(weight_bits=0, activation_bits=0))
  assert not costs.units.any()
  assert costs.budget(1.0) == 1


@pytest.mark.parametrize('scale', [1e-30, 1.0, 1e30])
def test_sums_stay_in_int32(scale):
  space = toy_space()
  costs = tabulate(space, lambda *arguments: scale * macs(*arguments))
  full = int(cost_of(costs, jnp.asarray(space.full())))
  assert 2**27 < full < 2**29
  assert costs.budget(math.inf) == costs.budget(1e300) == 2**31 - 2


@pytest.mark.parametrize('bad', [-1.0, math.nan, math.inf])
def test_bad_costs_name_the_layer(bad):
  def model(layer, inputs, outputs):
    return np.where(layer.name == 'wide', bad, macs(layer, inputs, outputs))

  with pytest.raises(ValueError, match='wide: its cost is negative or not fin'):
    tabulate(toy_space(), model)


def test_models_by_name():
  assert cost_model('macs') is macs
  assert cost_model('parameters') is parameters
  found = cost_model('memory', weight_bits=8, activation_bits=0)
  assert at(found, FLAT) == 2010
  found = cost_model('roofline', macs_per_second=1.0, bytes_per_second=1e9)
  assert at(found, FLAT) == 2000
  assert {'energy', 'latency_table', 'fitted_latency'} <= set(COSTS)


@pytest.mark.parametrize(
  ('build', 'message'),
  [
    (
      functools.partial(cost_model, 'flops'),
      "cost.name='flops' is unknown; known: energy, fitted_latency, latency",
    ),
    (
      functools.partial(cost_model, 'macs', bits=8),
      "cost.bits is no argument of 'macs'; known: none",
    ),
    (functools.partial(cost_model, 'roofline'), "cost: 'roofline' needs macs_"),
    (
      functools.partial(roofline, macs_per_second=0.0, bytes_per_second=1.0),
      'macs_per_second=0.0 is not positive',
    ),
    (
      functools.partial(roofline, macs_per_second=1.0, bytes_per_second=-1.0),
      'bytes_per_second=-1.0 is not positive',
    ),
  ],
)
def test_bad_arguments(build, message):
  with pytest.raises(ValueError, match=message):
    build()
