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
  authors_pins,
  bit_cost_model,
  equal_bit_cost,
  exact_bit_cost,
  make_bit_space,
  tabulate_bits,
)
from bandwidth.search.problem.space import LayerShape
from experiments.models.geometry import layer_shapes
from experiments.policy.candidates.bits import (
  QuantizedCandidates,
  export_tensors,
  make_quantized,
)
from experiments.policy.candidates.channels import with_statistics
from experiments.policy.kinds.kind import (
  Kind,
  Network,
  PricedSpace,
  SearchSubject,
  arrays_of,
  named,
  options_of,
)
from experiments.training.tasks import Task

_BUDGETED = {'linear': 8, 'kmeans': 32}


class Options(NamedTuple):
  """Options of the decisions."""

  mode: str = 'linear'  # or 'kmeans'
  bits: tuple[int, ...] = tuple(range(2, 9))  # to choose among
  pins: bool = True  # linear mode: HAQ's bits in the first and last layer


def _options(
  given: Mapping[str, Any], task: Task
) -> tuple[tuple[LayerShape, ...], dict[str, Any]]:
  """Layers of the network, and arguments of `make_bit_space`."""
  options = options_of(given, Options)
  layers = tuple(layer_shapes(task.model, task.example))
  pins = options.pop('pins') and options['mode'] == 'linear'
  options['bits'] = tuple(options['bits'])
  return layers, {**options, 'pins': authors_pins(layers) if pins else None}


def _price(
  config: Mapping[str, Any], task: Task, variables: Any
) -> PricedSpace:
  del variables  # a kernel has the shape that its layer says
  given = config['search']
  layers, options = _options(given, task)
  space = make_bit_space(layers, **options)
  model = bit_cost_model(**named(given, 'cost'))
  bits = _BUDGETED[options['mode']]
  return PricedSpace(
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
) -> SearchSubject:
  del key  # all pixels are looked at
  _, options = _options(config['search'], task)
  quantized = make_quantized(task.model, variables, batches, **options)

  def in_bits(candidate: np.ndarray, images: jax.Array | None) -> Any:
    levels = jnp.asarray(candidate, jnp.int32)
    data = quantized.arrays()
    chosen = jax.jit(lambda x: quantized.chosen(data, x))(levels)
    if images is None:
      return chosen
    with quantized.rounding(data, levels):
      return with_statistics(quantized.model, chosen, images)

  def network(candidate: np.ndarray, images: jax.Array | None) -> Network:
    arrays = arrays_of(in_bits(candidate, images))
    return Network(task.model, arrays, export_tensors(quantized, candidate))

  return SearchSubject(
    priced=_price(config, task, variables),
    candidates=quantized,
    errors=quantized.errors,
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
