"""HAQ: an agent chooses bits layer by layer, and learns from the result.

An episode makes the decisions of `bit_options` in order: the bits of a layer's
weights, then, in linear mode, those of its input activations. The budget is
applied at the end of the episode. Learning is that of `amc`.
"""

import math
from collections.abc import Callable
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np

from bandwidth.base import unknown_name
from bandwidth.search.agents.ddpg import Agent
from bandwidth.search.agents.environment import (
  Environment,
  EnvironmentState,
  normalize_columns,
)
from bandwidth.search.agents.replay import Transition
from bandwidth.search.amc import (
  AGENTS,
  AMCRun,
  make_learning_run,
  split_options,
)
from bandwidth.search.decisions.bit_options import BitGroup
from bandwidth.search.problem.cost import Costs, cost_of
from bandwidth.search.problem.interface import Data, History, Problem, Searcher
from bandwidth.search.problem.space import LayerShape, Space

_DEFAULTS = {'warmup': 20, 'decay': 0.99}
_EPISODES_KEPT = 128

# Options of AMC that concern channels.
_OF_CHANNELS = ('state', 'rounding', 'store')

# Bits observed before the first action in k-means mode.
_NO_ACTION = 4


def level_of_action(
  bits: jax.Array, count: jax.Array, action: jax.Array
) -> jax.Array:
  r"""Rounds an action to a level; uniform actions make all equally likely.

  .. math:: \mathrm{round}((b_{max} - b_{min} + 1) a + b_{min} - 1/2)

  are the bits in the authors' code, with halves rounded to even. For a = 0 that
  is one less than b_min if b_min is odd, and so 0 bits if it is 1; for a = 1 it
  is one more than b_max if b_max is odd. Here the result is clipped. Where
  levels skip numbers of bits, the index of the level is rounded instead.

  Args:
    bits: bits at each level of the decision, ascending, int32 [M].
    count: number of levels of the decision, int32 [].
    action: float32 [], clipped to [0, 1].

  Returns:
    int32 [].

  >>> bits = jnp.arange(1, 9)
  >>> [int(bits[level_of_action(bits, jnp.int32(8), jnp.float32(a))])
  ...  for a in (0.0, 0.2, 0.5, 1.0)]
  [1, 2, 4, 8]
  """
  action = jnp.clip(action, 0.0, 1.0)
  rounded = jnp.round(count * action + bits[0] - 0.5).astype(jnp.int32)
  return jnp.clip(rounded - bits[0], 0, count - 1)


def decrement(
  costs: Costs, candidate: jax.Array, budget: jax.Array
) -> jax.Array:
  """Lowers levels one after another until a candidate fits its budget.

  It goes from the last decision to the first, activations before the weights of
  a layer, lowers each by one level if possible, and starts over as often as
  needed. Decisions with one level stay, and always count towards the cost.

  In the authors' code the smallest cost ignores pinned layers, so that the loop
  never ends for a budget between the two; here it ends when no level can be
  lowered, see `budget.check_budget`. Their code also leaves layers unpinned in
  a candidate that fits at once.

  Args:
    costs: tables of the space, of `tabulate_bits`.
    candidate: level of each decision, int32 [G].
    budget: in units of `costs`, int32 [].

  Returns:
    int32 [G], within the budget if the smallest candidate is.
  """
  decisions = candidate.shape[0]

  def too_dear(state: tuple) -> jax.Array:
    candidate, _ = state
    return (cost_of(costs, candidate) > budget) & jnp.any(candidate > 0)

  def lower(state: tuple) -> tuple:
    candidate, turn = state
    decision = decisions - 1 - turn % decisions
    level = jnp.maximum(candidate[decision] - 1, 0)
    return candidate.at[decision].set(level), turn + 1

  start = (candidate, jnp.zeros((), jnp.int32))
  return jax.lax.while_loop(too_dear, lower, start)[0]


def bit_features(space: Space) -> np.ndarray:
  """Returns the features of the layers, before normalization.

  Args:
    space: the network's layers; its decisions are not used.

  Returns:
    float64 [T, 8]: whether it is depthwise, input channels, output channels,
    stride, kernel, weights, elements of an input feature map, index, as in the
    authors' code. A dense layer has stride 0 and kernel 1, and its inputs count
    as channels and as elements of the map. Kernels are assumed to be square.
  """
  rows = [_row(i, layer) for i, layer in enumerate(space.layers)]
  return np.array(rows, np.float64)


def make_bit_environment(space: Space) -> Environment:
  r"""Builds the environment of a network's bits.

  An observation is the layer's row of `bit_features`, normalized, then the bits
  of the previous decision, and in linear mode a flag, 1 if the next decision is
  on weights and 0 if it is on activations. In linear mode the bits are divided
  by the largest number of bits, and are 1 before the first action; in k-means
  mode they are not divided, and are 4 before the first action. This follows the
  authors' code, https://github.com/mit-han-lab/haq, except that:

  * No action means 0 bits; see `level_of_action`.
  * Pinned decisions have, and are observed with, their own bits from the start.
    In their code pins replace the chosen bits when levels are lowered.
  * The flag describes the next decision. In their code it is constant on the
    first layer and inverted afterwards.
  * Every episode begins with the same observation. In their code the first
    layer's is left as the previous episode changed it.

  Args:
    space: decisions on bits, of `make_bit_space`.

  Returns:
    An environment. The `layer` of its state is the next decision, and `ratio`
    the bits of the last one divided by the largest number of bits. Its last
    step applies the budget, see `decrement`.

  Raises:
    ValueError: the decisions are not on bits.

  References:
    Wang et al., HAQ: Hardware-Aware Automated Quantization with Mixed
    Precision, CVPR 2019, section 3, https://arxiv.org/abs/1811.08886
  """
  groups = _bit_groups(space)
  linear = any(group.side == 'activations' for group in groups)
  most, last = _most_bits(space), len(groups) - 1
  observe = _make_observe(space, groups, most if not linear else None)

  def reset(
    data: Data, budget: jax.Array
  ) -> tuple[EnvironmentState, jax.Array]:
    del data, budget
    start = EnvironmentState(
      layer=jnp.zeros((), jnp.int32),
      candidate=jnp.zeros(len(groups), jnp.int32),
      ratio=jnp.float32(1.0 if linear else _NO_ACTION / most),
    )
    return start, observe(start)

  def step(
    data: Data, budget: jax.Array, state: EnvironmentState, action: jax.Array
  ) -> tuple[EnvironmentState, jax.Array, jax.Array]:
    bits = data.widths[state.layer]
    level = level_of_action(bits, data.counts[state.layer], action)
    done = state.layer == last
    candidate = jax.lax.cond(
      done,
      lambda chosen: decrement(data.costs, chosen, budget),
      lambda chosen: chosen,
      state.candidate.at[state.layer].set(level),
    )
    ratio = jnp.minimum(bits[level] / most, 1.0)
    following = EnvironmentState(state.layer + 1, candidate, ratio)
    seen = jax.tree.map(lambda a, b: jnp.where(done, a, b), state, following)
    return following, observe(seen), done

  return Environment(len(groups), 10 if linear else 9, reset, step)


def with_rewards(agent: Agent, *, scale: float, offset: float) -> Agent:
  """Returns an agent that learns from scale * (reward - offset)."""

  def update(state: Any, batch: Transition, key: jax.Array) -> Any:
    reward = scale * (batch.reward - offset)
    return agent.update(state, batch._replace(reward=reward), key)

  return agent._replace(update=update)


def make_haq(
  problem: Problem,
  *,
  evaluations: int = 600,
  agent: str = 'ddpg',
  scale: float = 10.0,
  offset: float = 0.0,
  **options: Any,
) -> Searcher:
  """Makes a searcher that chooses bits.

  This follows the authors' code, https://github.com/mit-han-lab/haq, except for
  what `make_bit_environment`, `decrement` and `make_amc` list. Whether a
  candidate is fine-tuned first, and on which images it is scored, is up to the
  objective: theirs is the accuracy on training images after an epoch on them.

  Args:
    problem: space and objective; the space is of `make_bit_space`.
    evaluations: number of episodes, a multiple of `num_envs`.
    agent: 'ddpg', the paper's, or 'td3'.
    scale: the reward is scale * (score - offset). The paper's is 0.1 for
      accuracies in percent, which is 10 for fractions.
    offset: subtracted from the score; the paper's is the accuracy of the
      original network. The agent's baseline absorbs any offset.
    **options: attributes of `AMCOptions` that do not concern channels, and of
      `AgentOptions`. Defaults here: `warmup` 20, `decay` 0.99, `replay` 128 for
      each layer.

  Returns:
    A compiled function, see `problem.Searcher`. Check budgets with
    `budget.check_budget`, which takes pins into account.

  Raises:
    ValueError: a name is unknown, or an option out of range; the decisions are
      not on bits; `evaluations` is no multiple of `num_envs`; the replay memory
      is too small.

  References:
    Wang et al., HAQ: Hardware-Aware Automated Quantization with Mixed
    Precision, CVPR 2019, https://arxiv.org/abs/1811.08886
  """
  run = make_haq_run(
    problem,
    evaluations=evaluations,
    agent=agent,
    scale=scale,
    offset=offset,
    **options,
  )

  def search(key: jax.Array, data: Data, budget: jax.Array) -> History:
    return run(key, data, budget).history

  return jax.jit(search)


def make_haq_run(
  problem: Problem,
  *,
  evaluations: int = 600,
  agent: str = 'ddpg',
  scale: float = 10.0,
  offset: float = 0.0,
  **options: Any,
) -> Callable[[jax.Array, Data, jax.Array], AMCRun]:
  """Makes a search that also returns what it learned; it is not compiled yet.

  Args:
    problem: space to search and objective, the reward; see `make_haq`.
    evaluations: number of episodes, a multiple of `num_envs`.
    agent: 'ddpg', the paper's, or 'td3'.
    scale: factor of the reward, positive; see `make_haq`.
    offset: subtracted from the score; see `make_haq`.
    **options: see `make_haq`.

  Raises:
    ValueError: see `make_haq`.
  """
  if agent not in AGENTS:
    raise ValueError(unknown_name('agent', agent, AGENTS))
  if not scale > 0:
    raise ValueError(f'scale={scale!r} is not positive')
  for name in _OF_CHANNELS:
    if name in options:
      raise ValueError(f'{name}={options[name]!r}: bits have no such option')
  kept = _EPISODES_KEPT * len(problem.space.layers)
  search_options, agent_options = split_options(
    {**_DEFAULTS, 'replay': kept, **options}
  )
  environment = make_bit_environment(problem.space)
  learner = AGENTS[agent](environment.features, agent_options)
  return make_learning_run(
    problem,
    environment,
    with_rewards(learner, scale=scale, offset=offset),
    search_options,
    evaluations=evaluations,
  )


def _bit_groups(space: Space) -> list[BitGroup]:
  groups = cast(Any, list(space.groups))
  if not all(isinstance(group, BitGroup) for group in groups):
    raise ValueError('space: its decisions are no bits; see make_bit_space')
  return groups


def _make_observe(
  space: Space, groups: list[BitGroup], most: int | None
) -> Callable[[EnvironmentState], jax.Array]:
  """The last bits times `most`; or, if it is None, their ratio and the flag."""
  table = normalize_columns(bit_features(space))
  rows = table[[group.layer for group in groups]]
  flags = np.array([group.side == 'weights' for group in groups], np.float32)

  def observe(state: EnvironmentState) -> jax.Array:
    own = [state.ratio, jnp.asarray(flags)[state.layer]]
    if most is not None:
      own = [most * state.ratio]
    return jnp.concatenate([jnp.asarray(rows)[state.layer], jnp.stack(own)])

  return observe


def _most_bits(space: Space) -> int:
  """The largest number of decisions that are not pinned, if there are any."""
  chosen = [levels[-1] for levels in space.levels if len(levels) > 1]
  return max(chosen or [levels[-1] for levels in space.levels])


def _row(index: int, layer: LayerShape) -> list[float]:
  dense = layer.kind == 'dense'
  inputs = layer.inputs * layer.taps if dense else layer.inputs
  return [
    layer.kind == 'depthwise',
    inputs,
    layer.outputs,
    0 if dense else layer.stride,
    1 if dense else math.sqrt(layer.taps),
    layer.weights,
    inputs if dense else layer.pixels,
    index,
  ]
