"""A small network: three decisions, five layers to visit, one read twice.

The block wide, narrow is added to what point makes, so that narrow writes what
point writes, and head reads what wide reads.
"""

import jax
import jax.numpy as jnp
from traces import Counted

from bandwidth.pruning import ChannelAxis, ChannelGroup
from bandwidth.search.problem.cost import macs, tabulate
from bandwidth.search.problem.interface import Problem, make_data
from bandwidth.search.problem.space import LayerShape, make_space

LAYERS = (
  LayerShape('stem', 'conv', 3, 16, 9, 64, 256, stride=2),
  LayerShape('depth', 'depthwise', 16, 16, 9, 16, 64, stride=2),
  LayerShape('point', 'conv', 16, 24, 1, 16, 16),
  LayerShape('wide', 'conv', 24, 32, 9, 16, 16),
  LayerShape('narrow', 'conv', 32, 24, 1, 16, 16),
  LayerShape('head', 'dense', 24 * 16, 10, bias=True),
)

WIDTHS = ((4, 8, 12, 16), (8, 12, 16, 20, 24), (8, 12, 16, 20, 24, 28, 32))

FIRST_VISITS = (1, 2, 3)
"""Where among the five layers each decision is made."""


def group(name, channels, outputs, inputs):
  return ChannelGroup(
    name=name,
    channels=channels,
    outputs=tuple(ChannelAxis(name=f'{x}/kernel', axis=-1) for x in outputs),
    inputs=tuple(ChannelAxis(name=f'{x}/kernel', axis=-2) for x in inputs),
  )


def toy_space():
  groups = (
    group('a', 16, ['stem', 'depth'], ['point']),
    group('b', 24, ['point', 'narrow'], ['wide', 'head']),
    group('c', 32, ['wide'], ['narrow']),
  )
  return make_space(LAYERS, groups, divisor=4)


def layer_macs(a, b, c):
  """Multiply-adds of the six layers for kept channels a, b, c."""
  return [
    27 * a * 64,
    9 * a * 16,
    a * b * 16,
    9 * b * c * 16,
    c * b * 16,
    b * 16 * 10,
  ]


def toy_problem(*, model=macs):
  """A problem whose best candidate is near the middle; counts its traces."""
  space = toy_space()

  def objective(middle, candidate):
    return -jnp.mean((candidate - middle) ** 2)

  costs = tabulate(space, model)
  middle = jnp.array([2.0, 2.0, 3.0])
  problem = Problem(space, Counted(objective))
  return problem, make_data(space, costs, objective=middle)


def play(environment, data, budget, actions):
  """Plays the actions [T]; returns all states, observations, done [T]."""

  def step(at, action):
    at, seen, done = environment.step(data, budget, at, action)
    return at, (at, seen, done)

  start, _ = environment.reset(data, budget)
  return jax.lax.scan(step, start, actions)[1]
