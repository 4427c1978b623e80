"""AMC's environment: prunes a network layer by layer, always within its budget.

An episode visits, in order, the T layers whose inputs can be pruned: dense
layers and convolutions that are not depthwise. The action at a layer is the
fraction of its input channels to keep. A layer that reads `FIXED` channels, as
the first one does, keeps all of them whatever the action; a layer whose
channels were decided at an earlier layer keeps those.

This follows the authors' code, https://github.com/mit-han-lab/amc, except that:

* The cost of every level of a decision is computed, and the largest that fits
  is taken, so that no candidate exceeds the budget. Their code rounds channels
  up to the divisor after the budget has clipped the action, and the smallest
  fraction may exceed the budget too.
* Costs are those of the budget, from `Data.costs`, not always multiply-adds.
* The `rest` in an observation covers the layers after the current one. Their
  code always includes all depthwise layers, and before the first action its
  `rest` is a fraction of the weights, not of the cost.
* The cost of all layers that share channels is counted when the first of them
  decides.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bandwidth.base import unknown_name
from bandwidth.search.decisions.bit_options import BitGroup
from bandwidth.search.problem.budget import levels_of, wall
from bandwidth.search.problem.cost import cost_of, layer_costs
from bandwidth.search.problem.interface import Data
from bandwidth.search.problem.space import FIXED, LayerShape, Space


class EnvironmentState(NamedTuple):
  """The state of an episode.

  Attributes:
    layer: t, place of the next layer among the prunable ones, int32 [].
    candidate: levels, int32 [G]; 0, the smallest, where nothing is decided yet.
    ratio: fraction of its channels that layer t - 1 reads within the budget,
      float32 []; 1 before the first action.
  """

  layer: jax.Array
  candidate: jax.Array
  ratio: jax.Array


class Environment(NamedTuple):
  """Pure functions that play an episode.

  Attributes:
    layers: T, actions in an episode.
    features: F, length of an observation.
    reset: `(data, budget) -> (state, observation)`. The budget is int32 [], in
      units, at least the cost of the smallest candidate; the observation is
      float32 [F].
    step: `(data, budget, state, action) -> (state, observation, done)`. The
      action is float32 [], clipped to [0, 1]; done is bool []. When done, the
      state holds the candidate, the observation repeats the one before, and no
      step may follow.
  """

  layers: int
  features: int
  reset: Callable[[Data, jax.Array], tuple[EnvironmentState, jax.Array]]
  step: Callable[
    [Data, jax.Array, EnvironmentState, jax.Array],
    tuple[EnvironmentState, jax.Array, jax.Array],
  ]


def prunable_layers(space: Space) -> tuple[int, ...]:
  """Returns the positions of the layers that an episode visits."""
  kinds = enumerate(layer.kind for layer in space.layers)
  return tuple(i for i, kind in kinds if kind != 'depthwise')


def layer_features(space: Space, *, state: str = 'code') -> np.ndarray:
  """Returns the features of the prunable layers, before normalization.

  Args:
    space: the network's layers; its decisions are not used.
    state: 'code': index, type (0 convolution, 1 dense), input channels, output
      channels, stride, kernel, weights, as the authors' code has it; or
      'paper': index, output channels, input channels, height, width, stride,
      kernel, multiply-adds, equation 1 of the paper. A dense layer has stride 0
      and kernel 1, and each flattened entry counts as one input channel.
      Kernels and feature maps are assumed to be square.

  Returns:
    float64 [T, 7] or [T, 8].

  Raises:
    ValueError: `state` is unknown.
  """
  if state not in STATES:
    raise ValueError(unknown_name('state', state, STATES))
  layers = [space.layers[i] for i in prunable_layers(space)]
  rows = [STATES[state](i, layer) for i, layer in enumerate(layers)]
  return np.array(rows, np.float64)


def normalize_columns(table: np.ndarray) -> np.ndarray:
  """Scales each column linearly so that its entries span [0, 1].

  Constant columns are left alone, as in the authors' code.

  Args:
    table: one row of features a layer, float64 [T, F].

  Returns:
    float32 [T, F].

  >>> normalize_columns(np.array([[1.0, 5.0], [2.0, 5.0], [5.0, 5.0]]))
  array([[0.  , 5.  ],
         [0.25, 5.  ],
         [1.  , 5.  ]], dtype=float32)
  """
  low, high = table.min(axis=0), table.max(axis=0)
  spread = high - low
  scaled = (table - low) / np.where(spread > 0, spread, 1.0)
  return np.where(spread > 0, scaled, table).astype(np.float32)


def levels_above(
  widths: jax.Array, counts: jax.Array, ratios: jax.Array
) -> jax.Array:
  """Rounds kept fractions to whole channels, then up to levels.

  This is the rounding of the authors' code, by which many actions keep all
  channels; with `budget.levels_of` only the action 1 does.

  Args:
    widths: channels by decision and level, int32 [G, M].
    counts: levels of each decision, int32 [G].
    ratios: kept fractions, float32 [G], clipped to [0, 1].

  Returns:
    int32 [G].

  >>> widths = jnp.array([[8, 16, 24, 32]])
  >>> [levels_above(widths, jnp.array([4]), jnp.array([x])).item()
  ...  for x in (0.0, 0.5, 0.53, 0.8)]
  [0, 1, 2, 3]
  """
  channels = jnp.round(jnp.clip(ratios, 0.0, 1.0)[:, None] * widths[:, -1:])
  level = jnp.sum(widths < channels, axis=1, dtype=jnp.int32)
  return jnp.clip(level, 0, counts - 1)


def make_environment(
  space: Space, *, state: str = 'code', rounding: str = 'up'
) -> Environment:
  r"""Builds the environment of a network.

  An observation is the layer's row of `layer_features`, normalized, then

  .. math::
    \frac{F_{org} - F_{cur}}{F_{org}}, \quad
    \frac{1}{F_{org}} \sum_{l > t} F_l, \quad a_{t-1}

  where F are costs, F_cur counts decisions not made yet at their smallest
  level, and a is the fraction kept within the budget. Before the first action,
  these three are 0, the sum, and 1.

  Args:
    space: decisions that are not on bits alone, such as those of `make_space`.
    state: 'code', F = 10, or 'paper', F = 11; see `layer_features`.
    rounding: of an action: 'up' to the next level, as in the authors' code, or
      'down'; the budget is applied afterwards and always rounds down.

  Raises:
    ValueError: a name is unknown; decisions are on bits, for which there is
      `haq.make_bit_environment`.

  References:
    He et al., AMC: AutoML for Model Compression, 2018, section 3,
    https://arxiv.org/abs/1802.03494
  """
  if rounding not in ROUNDINGS:
    raise ValueError(unknown_name('rounding', rounding, ROUNDINGS))
  if any(isinstance(group, BitGroup) for group in space.groups):
    raise ValueError(
      'space: its decisions are bits, not channels; haq is for those'
    )
  table = normalize_columns(layer_features(space, state=state))
  observe = _make_observe(space, table)
  decide = _make_decide(space, ROUNDINGS[rounding])

  def reset(
    data: Data, budget: jax.Array
  ) -> tuple[EnvironmentState, jax.Array]:
    del budget
    start = _start(space.decisions)
    return start, observe(data, start)

  def step(
    data: Data, budget: jax.Array, state: EnvironmentState, action: jax.Array
  ) -> tuple[EnvironmentState, jax.Array, jax.Array]:
    candidate, ratio = decide(data, budget, state, action)
    following = EnvironmentState(state.layer + 1, candidate, ratio)
    done = following.layer == len(table)
    seen = jax.tree.map(lambda a, b: jnp.where(done, a, b), state, following)
    return following, observe(data, seen), done

  return Environment(len(table), table.shape[1] + 3, reset, step)


def _start(decisions: int) -> EnvironmentState:
  return EnvironmentState(
    layer=jnp.zeros((), jnp.int32),
    candidate=jnp.zeros(decisions, jnp.int32),
    ratio=jnp.ones((), jnp.float32),
  )


def _make_observe(
  space: Space, table: np.ndarray
) -> Callable[[Data, EnvironmentState], jax.Array]:
  positions = np.array(prunable_layers(space), np.int32)

  def observe(data: Data, state: EnvironmentState) -> jax.Array:
    each = layer_costs(data.costs, data.counts - 1)
    whole = jnp.maximum(jnp.sum(each), 1)
    reduced = whole - cost_of(data.costs, state.candidate)
    # Nothing was reduced before the first action.
    reduced = jnp.where(state.layer == 0, 0, reduced)
    later = jnp.arange(each.size) > jnp.asarray(positions)[state.layer]
    rest = jnp.sum(jnp.where(later, each, 0))
    costs = jnp.stack([reduced, rest]) / whole
    row = jnp.asarray(table)[state.layer]
    return jnp.concatenate([row, costs, state.ratio[None]])

  return observe


def _make_decide(
  space: Space, round_ratios: Callable[..., jax.Array]
) -> Callable[..., tuple[jax.Array, jax.Array]]:
  reads = np.array([space.reads[i] for i in prunable_layers(space)], np.int32)
  first = [x != FIXED and x not in reads[:i] for i, x in enumerate(reads)]

  def decide(
    data: Data, budget: jax.Array, state: EnvironmentState, action: jax.Array
  ) -> tuple[jax.Array, jax.Array]:
    decision = jnp.asarray(reads)[state.layer]
    widths, count = data.widths[decision], data.counts[decision]
    wanted = round_ratios(widths[None], count[None], action[None])[0]
    level = wall(
      data.costs, data.counts, state.candidate, decision, wanted, budget
    )
    chosen = state.candidate.at[decision].set(level)
    candidate = jnp.where(
      jnp.asarray(first)[state.layer], chosen, state.candidate
    )
    ratio = widths[candidate[decision]] / widths[-1]
    return candidate, jnp.where(decision == FIXED, 1.0, ratio)

  return decide


def _code_row(index: int, layer: LayerShape) -> list[float]:
  dense = layer.kind == 'dense'
  return [
    index,
    1 if dense else 0,
    _inputs(layer),
    layer.outputs,
    0 if dense else layer.stride,
    _kernel(layer),
    layer.weights,
  ]


def _paper_row(index: int, layer: LayerShape) -> list[float]:
  dense = layer.kind == 'dense'
  side = 1 if dense else math.sqrt(layer.pixels)
  return [
    index,
    layer.outputs,
    _inputs(layer),
    side,
    side,
    0 if dense else layer.stride,
    _kernel(layer),
    layer.weights * layer.positions,
  ]


def _inputs(layer: LayerShape) -> int:
  return layer.inputs * (layer.taps if layer.kind == 'dense' else 1)


def _kernel(layer: LayerShape) -> float:
  return 1 if layer.kind == 'dense' else math.sqrt(layer.taps)


STATES = {'code': _code_row, 'paper': _paper_row}
"""Rows of `layer_features`, by name."""

ROUNDINGS = {'up': levels_above, 'down': levels_of}
"""How an action becomes a level before the budget is applied, by name."""
