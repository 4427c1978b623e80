"""Decisions on bits of weights and of activations, as HAQ makes them.

Wang et al., HAQ, CVPR 2019 (arXiv 1811.08886). In linear mode a budget is a
fraction of what the network costs with 8 bits everywhere, in k-means mode with
32.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bandwidth.search.decisions.bit_options import (
  BIT_COSTS,
  BitModel,
  authors_pins,
  bit_cost_model,
  equal_bit_cost,
  exact_bit_cost,
  make_bit_space,
  tabulate_bits,
)
from bandwidth.search.problem.space import LayerShape, Space
from experiments.models.geometry import layer_shapes
from experiments.policy.candidates.bits import (
  QuantizedCandidates,
  export_tensors,
  make_measure,
  make_objective,
  make_quantized,
  rounding_inputs,
  score_data,
  with_bits,
)
from experiments.policy.candidates.channels import with_statistics
from experiments.policy.kinds.kind import (
  Kind,
  Network,
  Priced,
  Subject,
  arrays_of,
  named,
  options_of,
)
from experiments.training.tasks import Task

_BUDGETED = {'linear': 8, 'kmeans': 32}


class Options(NamedTuple):
  """Options of the decisions.

  Attributes:
    mode: linear or kmeans.
    bits: to choose among.
    pins: whether first and last layer have HAQ's bits, in linear mode.
  """

  mode: str = 'linear'
  bits: tuple[int, ...] = tuple(range(2, 9))
  pins: bool = True


def _options(
  given: Mapping[str, Any], task: Task
) -> tuple[tuple[LayerShape, ...], dict[str, Any]]:
  """Layers of the network, and arguments of `make_bit_space`."""
  options = options_of(given, Options)
  layers = tuple(layer_shapes(task.model, task.example))
  pins = options.pop('pins') and options['mode'] == 'linear'
  options['bits'] = tuple(options['bits'])
  return layers, {**options, 'pins': authors_pins(layers) if pins else None}


def _price(config: Mapping[str, Any], task: Task, variables: Any) -> Priced:
  del variables  # a kernel has the shape that its layer says
  given = config['search']
  layers, options = _options(given, task)
  space = make_bit_space(layers, **options)
  model = bit_cost_model(**named(given, 'cost'))
  return _priced(space, model, options['mode'])


def _priced(space: Space, model: BitModel, mode: str) -> Priced:
  bits = _BUDGETED[mode]
  return Priced(
    space=space,
    costs=tabulate_bits(space, model),
    whole=equal_bit_cost(space, model, weight_bits=bits, activation_bits=bits),
    exact=lambda candidate: exact_bit_cost(space, model, candidate),
  )


def _make(
  config: Mapping[str, Any],
  task: Task,
  variables: Any,
  batches: jax.Array,
  key: jax.Array,
) -> Subject:
  del key  # all pixels are looked at
  given = config['search']
  _, options = _options(given, task)
  quantized = make_quantized(task.model, variables, batches, **options)

  def in_bits(candidate: np.ndarray, images: jax.Array | None) -> Any:
    levels = jnp.asarray(candidate, jnp.int32)
    data = score_data(quantized, None)
    chosen = jax.jit(lambda x: with_bits(quantized, data, x))(levels)
    if images is None:
      return chosen
    with rounding_inputs(quantized, data, levels):
      return with_statistics(quantized.model, chosen, images)

  def network(candidate: np.ndarray, images: jax.Array | None) -> Network:
    arrays = arrays_of(in_bits(candidate, images))
    return Network(task.model, arrays, export_tensors(quantized, candidate))

  return Subject(
    priced=_price(config, task, variables),
    errors=quantized.errors,
    objective=make_objective(quantized, given['score']),
    measure=make_measure(quantized),
    arrays=lambda examples: score_data(quantized, examples),
    variables=in_bits,
    network=network,
    policy=lambda candidate: _policy(quantized, candidate),
  )


def _policy(
  quantized: QuantizedCandidates, candidate: np.ndarray
) -> list[dict[str, Any]]:
  space = quantized.space
  rows = []
  for group, levels, level in zip(
    space.groups, space.levels, np.asarray(candidate).tolist(), strict=True
  ):
    bits = levels[level]
    rows.append(
      {
        'name': group.name,
        'fraction': min(bits / 8, 1.0),
        'label': f'{bits}',
        'bits': bits,
      }
    )
  return rows


KIND = Kind(_price, _make, 'bits', Options, BIT_COSTS)
