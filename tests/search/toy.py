"""A chain of dense layers whose best candidate NumPy finds by trying all."""

import itertools

import jax.numpy as jnp
import numpy as np

from bandwidth.pruning import ChannelAxis, ChannelGroup
from bandwidth.search.problem.cost import Costs, macs, tabulate
from bandwidth.search.problem.interface import Problem, make_data
from bandwidth.search.problem.space import LayerShape, make_space


def group(name, channels, *, writers, readers):
  return ChannelGroup(
    name=name,
    channels=channels,
    outputs=tuple(
      ChannelAxis(name=f'{layer}/kernel', axis=-1) for layer in writers
    ),
    inputs=tuple(
      ChannelAxis(name=f'{layer}/kernel', axis=-2) for layer in readers
    ),
  )


def chain(*channels, divisor=8, smallest=0.2):
  """Dense layers with so many channels between them: one decision each."""
  sizes = [4, *channels, 10]
  layers = [
    LayerShape(f'Dense_{i}', 'dense', a, b)
    for i, (a, b) in enumerate(itertools.pairwise(sizes))
  ]
  groups = [
    group(f'g{i}', c, writers=[f'Dense_{i}'], readers=[f'Dense_{i + 1}'])
    for i, c in enumerate(channels)
  ]
  return make_space(layers, groups, divisor=divisor, smallest=smallest)


def random_costs(space, seed, *, highest):
  """Costs of small integers, neither smooth nor monotonic: a unit is 1."""
  rng = np.random.default_rng(seed)
  most = space.most_levels
  units = rng.integers(0, highest, (len(space.layers), most, most))
  # The smallest candidate is the cheapest.
  units[:, 0, 0] = 0
  return Costs(
    units=jnp.asarray(units, jnp.int32),
    reads=jnp.asarray(space.reads),
    writes=jnp.asarray(space.writes),
    unit=1.0,
  )


def all_candidates(space):
  levels = [range(len(levels)) for levels in space.levels]
  return np.array(list(itertools.product(*levels)))


def costs_in_numpy(costs, candidates):
  """Integer costs of candidates [N, G]: [N]."""
  levels = np.concatenate(
    [candidates, np.zeros((len(candidates), 1), int)], axis=1
  )
  units = np.asarray(costs.units)
  return sum(
    units[layer, levels[:, reads], levels[:, writes]]
    for layer, (reads, writes) in enumerate(
      zip(np.asarray(costs.reads), np.asarray(costs.writes), strict=True)
    )
  )


def scores_in_numpy(widths, importance, candidates):
  """Concave and separable: [N]."""
  kept = widths[np.arange(len(widths)), candidates] / widths[:, -1]
  return -(importance * (1 - kept) ** 2).sum(-1)


class Toy:
  """A problem of four decisions with seven levels, and what NumPy knows."""

  def __init__(self, importance=(1.0, 4.0, 0.5, 2.0)):
    self.space = chain(32, 32, 32, 32, divisor=4)
    self.costs = tabulate(self.space, macs)
    self.importance = np.array(importance, np.float32)
    self.traces = 0
    self.problem = Problem(self.space, self._objective)
    widths = jnp.asarray(self.space.widths())
    kept = widths / widths[:, -1:]
    self.data = make_data(
      self.space,
      self.costs,
      errors=self.importance[:, None] * (1 - kept) ** 2,
      objective=(widths, jnp.asarray(self.importance)),
    )

  def _objective(self, arrays, candidate):
    self.traces += 1
    widths, importance = arrays
    kept = widths[jnp.arange(len(widths)), candidate] / widths[:, -1]
    return -jnp.sum(importance * (1 - kept) ** 2)

  def budget(self, fraction):
    """An int32 budget, by the cost of the whole network."""
    full = self.space.full()[None]
    return jnp.int32(costs_in_numpy(self.costs, full)[0] * fraction)

  def best(self, budget):
    """The best score within a budget, of all candidates."""
    candidates = all_candidates(self.space)
    fits = costs_in_numpy(self.costs, candidates) <= int(budget)
    scores = scores_in_numpy(
      self.space.widths(), self.importance, candidates[fits]
    )
    return scores.max()


def check_history(toy, history, budget, rows):
  """What holds for every searcher."""
  candidates = np.asarray(history.candidates)
  assert candidates.shape == (rows, toy.space.decisions)
  assert candidates.dtype == np.int32
  assert (candidates >= 0).all()
  assert (candidates < toy.space.counts()[None]).all()
  costs = costs_in_numpy(toy.costs, candidates)
  np.testing.assert_array_equal(history.costs, costs)
  assert costs.max() <= int(budget)
  np.testing.assert_allclose(
    history.scores,
    scores_in_numpy(toy.space.widths(), toy.importance, candidates),
    rtol=1e-5,
    atol=1e-6,
  )
