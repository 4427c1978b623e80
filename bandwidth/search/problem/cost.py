"""The cost of a candidate, from tables over the levels of each layer's sides.

A cost model gives the cost of a layer for the channels that it reads and
writes. Tables hold it for all levels as integers, rounded up, so that sums in a
compiled search are exact, and a candidate within the budget in integers is
within the budget itself. Their unit is a power of two: dividing by it does not
round, and costs that are multiples of it stay exact.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bandwidth.base import make_named
from bandwidth.search.problem.counts import (
  CostModel,
  activations,
  check_finite,
  check_positive,
  macs,
  parameters,
)
from bandwidth.search.problem.energy import energy
from bandwidth.search.problem.latency import fitted_latency, latency_table
from bandwidth.search.problem.space import FIXED, LayerShape, Space, extended

# Units of all layers at their largest cost: sums stay below 2^31.
_UNITS = 2**28


def memory(
  *, weight_bits: float = 32, activation_bits: float = 32
) -> CostModel:
  """Cost model: bytes of the weights and of one example's activations.

  Args:
    weight_bits: bits a weight; 0 leaves weights out.
    activation_bits: bits an activation; 0 leaves activations out.

  Raises:
    ValueError: bits are negative or not finite.
  """
  check_finite(weight_bits=weight_bits, activation_bits=activation_bits)

  def model(
    layer: LayerShape, inputs: np.ndarray, outputs: np.ndarray
  ) -> np.ndarray:
    weights = parameters(layer, inputs, outputs) * weight_bits
    moved = activations(layer, inputs, outputs) * activation_bits
    return (weights + moved) / 8

  return model


def roofline(
  *,
  macs_per_second: float,
  bytes_per_second: float,
  overhead: float = 0.0,
  weight_bits: float = 32,
  activation_bits: float = 32,
) -> CostModel:
  r"""Cost model: seconds on a device that computes while it loads.

  Each layer takes

  .. math:: t = \max(\mathrm{MACs} / p, \mathrm{bytes} / b) + o

  Args:
    macs_per_second: p, multiply-adds a second.
    bytes_per_second: b, bandwidth of the memory.
    overhead: o, seconds that each layer takes in addition.
    weight_bits: number of bits of a weight.
    activation_bits: number of bits of an activation.

  Raises:
    ValueError: a rate is not positive, or the overhead or bits are negative or
      not finite.

  References:
    Williams et al., Roofline, CACM 2009.
  """
  check_positive(
    macs_per_second=macs_per_second, bytes_per_second=bytes_per_second
  )
  check_finite(overhead=overhead)
  moved = memory(weight_bits=weight_bits, activation_bits=activation_bits)

  def model(
    layer: LayerShape, inputs: np.ndarray, outputs: np.ndarray
  ) -> np.ndarray:
    computing = macs(layer, inputs, outputs) / macs_per_second
    loading = moved(layer, inputs, outputs) / bytes_per_second
    return np.maximum(computing, loading) + overhead

  return model


class Costs(NamedTuple):
  """A cost model tabulated over the levels of a space.

  Attributes:
    units: cost of a layer by the levels of the decisions that it reads and
      writes, rounded up, int32 [layers, M, M]; `FIXED` sides have level 0.
    reads: decision that each layer reads, as `Space.reads`, int32 [layers].
    writes: decision that each layer writes, as `Space.writes`, int32 [layers].
    unit: size of one unit, in the unit of the cost model; a power of two.
  """

  units: jax.Array
  reads: jax.Array
  writes: jax.Array
  unit: float

  def budget(self, amount: float) -> int:
    """Returns an amount in whole units, rounded down."""
    return int(min(amount / self.unit, 2**31 - 2))


def tabulate(space: Space, model: CostModel) -> Costs:
  """Evaluates a cost model at all levels of all layers.

  Raises:
    ValueError: a cost is negative or not finite.
  """
  widths, most = space.widths(), space.most_levels

  def side(decision: int, all_channels: int) -> np.ndarray:
    if decision == FIXED:
      return np.full(most, all_channels)
    return widths[decision]

  tables = []
  sides = zip(space.layers, space.reads, space.writes, strict=True)
  for layer, reads, writes in sides:
    inputs, outputs = side(reads, layer.inputs), side(writes, layer.outputs)
    if layer.kind == 'depthwise' and reads != FIXED:
      outputs = widths[reads] * (layer.outputs // layer.inputs)
    table = np.asarray(model(layer, inputs[:, None], outputs[None]), np.float64)
    if not np.isfinite(table).all() or table.min() < 0:
      raise ValueError(f'{layer.name}: its cost is negative or not finite')
    tables.append(np.broadcast_to(table, (most, most)))
  dearest = math.fsum(table.max() for table in tables)
  unit = 2.0 ** math.ceil(math.log2(dearest / _UNITS)) if dearest else 1.0
  return Costs(
    units=jnp.asarray([np.ceil(table / unit) for table in tables], jnp.int32),
    reads=jnp.asarray(space.reads, jnp.int32),
    writes=jnp.asarray(space.writes, jnp.int32),
    unit=unit,
  )


def layer_costs(costs: Costs, candidate: jax.Array) -> jax.Array:
  """Returns the cost of each layer of a candidate, in units.

  Args:
    costs: tables of the space, of `tabulate`.
    candidate: level of each decision, int32 [G].

  Returns:
    int32 [layers].
  """
  levels = extended(candidate)
  layer = jnp.arange(costs.units.shape[0])
  return costs.units[layer, levels[costs.reads], levels[costs.writes]]


def cost_of(costs: Costs, candidate: jax.Array) -> jax.Array:
  """Returns the cost of a candidate in units: int32 []; as `layer_costs`."""
  return jnp.sum(layer_costs(costs, candidate), dtype=jnp.int32)


def costs_by_level(
  costs: Costs, candidate: jax.Array, decision: jax.Array
) -> jax.Array:
  """Returns the cost of a candidate with one decision at each of its levels.

  Args:
    costs: tables of the space, of `tabulate`.
    candidate: level of each decision, int32 [G].
    decision: index of the decision that varies, int32 [].

  Returns:
    int32 [M]; beyond the decision's last level, the last cost is repeated.
  """
  levels = jnp.arange(costs.units.shape[1])
  return jax.vmap(
    lambda level: cost_of(costs, candidate.at[decision].set(level))
  )(levels)


def exact_cost(space: Space, model: CostModel, candidate: np.ndarray) -> float:
  """Returns the cost of a candidate in the unit of the model, on the host."""
  candidate = np.asarray(candidate)
  widths = space.widths()
  costs = []
  sides = zip(space.layers, space.reads, space.writes, strict=True)
  for layer, reads, writes in sides:
    inputs = layer.inputs
    if reads != FIXED:
      inputs = widths[reads, candidate[reads]]
    outputs = layer.outputs
    if writes != FIXED:
      outputs = widths[writes, candidate[writes]]
      if layer.kind == 'depthwise':
        outputs *= layer.outputs // layer.inputs
    costs.append(float(model(layer, np.array(inputs), np.array(outputs))))
  return math.fsum(costs)


COSTS: Mapping[str, Callable[..., CostModel]] = {
  'macs': lambda: macs,
  'parameters': lambda: parameters,
  'memory': memory,
  'roofline': roofline,
  'energy': energy,
  'latency_table': latency_table,
  'fitted_latency': fitted_latency,
}
"""Factories of cost models, by name."""


def cost_model(name: str, **arguments: Any) -> CostModel:
  """Returns a cost model by name.

  Args:
    name: a key of `COSTS`.
    **arguments: passed to its factory.

  Raises:
    ValueError: the name or an argument is unknown.
  """
  return make_named('cost', name, COSTS, arguments)
