"""Latencies of a network's layers at several widths, on this device.

    python -m experiments.benchmark latency_table --model mobilenet_v1_cifar
      [--image 32] [--batch 1] [--divisor 8] [--widths 4] --output F.json

The file is what the cost model 'latency_table' of a search reads, see
`bandwidth.search.problem.latency`. Each distinct operation of the network is
timed alone, as Flax runs it in float32: a convolution or dense layer, with its
bias if it has one. Where a search may choose the channels of a side, so many
widths of it are measured, from the fewest channels to all, in all pairs of both
sides.
Searches with the same divisor and smallest fraction need no others.

A program repeats its operation, and each repetition waits for the one before,
so that calling it takes no time in comparison; what it reads lies where it lay
before, in caches if it fits. All are compiled first, then run in turn; medians
of so many rounds. The whole network is timed in the same way and rounds. It
also does what is in no table, normalization and activation functions and
pooling, but a compiler may fuse that: its time by the sum of its layers is the
last line.

The limit is that of products at the rate of a large one, or of loading and
storing at the rate of the memory, both measured in the same run: the larger of
the two. What stays in caches may beat the second.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from bandwidth.inference import LayerCall, layer_calls
from bandwidth.search.problem import latency
from bandwidth.search.problem.counts import activations, macs, parameters
from bandwidth.search.problem.latency import Operation
from bandwidth.search.problem.space import FIXED, LayerShape, Space
from experiments.benchmark.harness import Benchmark
from experiments.measuring import repeated
from experiments.measuring.limits import matmul_rate, stream_rate
from experiments.models import MODELS, make_model
from experiments.models.geometry import in_plain_layers
from experiments.policy.candidates.channels import network_space
from experiments.runtime import options, table

Point = tuple[Operation, int, int]
"""An operation, and the lengths of its kernel's two axes of channels."""


class Grid(NamedTuple):
  """A distinct operation of a network."""

  layer: LayerShape  # the first that does it
  names: tuple[str, ...]  # of all layers that do it, with these widths
  operation: Operation  # of theirs
  # widths to measure, see `bandwidth.search.problem.latency.Entry`
  inputs: tuple[int, ...]
  outputs: tuple[int, ...]  # likewise

  def points(self) -> Iterator[Point]:
    """Yields what is to be measured."""
    for inputs in self.inputs:
      for outputs in self.outputs:
        yield self.operation, inputs, outputs


class Table(NamedTuple):
  """What was measured."""

  # one for each distinct operation, as they are written
  rows: list[dict[str, Any]]
  network: dict[str, Any]  # the whole network beside the sum of its layers


def find_grids(space: Space, widths: int) -> tuple[Grid, ...]:
  """Lists the distinct operations of a network, with the widths to measure.

  Args:
    space: of its decisions, all levels.
    widths: to measure of a side whose channels are a decision, at most.
  """
  found: dict[Any, list[LayerShape]] = {}
  sides = zip(space.layers, space.reads, space.writes, strict=True)
  for layer, reads, writes in sides:
    inputs = _spread(space, reads, layer.inputs, widths)
    outputs = _spread(space, writes, layer.outputs, widths)
    operation = latency.operation_of(layer)
    if layer.kind == 'depthwise':
      outputs = tuple(operation.multiplier * width for width in inputs)
    rows = dict.fromkeys(int(latency.kernel_inputs(layer, x)) for x in inputs)
    key = operation, tuple(rows), outputs
    found.setdefault(key, []).append(layer)
  return tuple(
    Grid(layers[0], tuple(layer.name for layer in layers), *key)
    for key, layers in found.items()
  )


def _spread(
  space: Space, decision: int, channels: int, count: int
) -> tuple[int, ...]:
  if decision == FIXED:
    return (channels,)
  levels = space.levels[decision]
  places = np.linspace(0, len(levels) - 1, min(count, len(levels)))
  return tuple(levels[i] for i in places.round().astype(int))


def measure(
  model: nn.Module,
  example: jax.Array | jax.ShapeDtypeStruct,
  *,
  divisor: int = 8,
  smallest: float = 0.2,
  widths: int = 4,
  repeats: int = 9,
) -> Table:
  """Times the layers of a network, and the network.

  Args:
    model: whose channels may be removed, see `experiments.models.prunable`.
    example: a batch of inputs; only its shape matters.
    divisor: of kept channels, see `bandwidth.search.problem.space.make_space`.
    smallest: likewise.
    widths: see `find_grids`.
    repeats: rounds of which medians are taken.

  Raises:
    ValueError: the network cannot be shrunk, or the divisor is larger than one
      of its layers; two layers differ in what a table does not tell apart.
  """
  model = in_plain_layers(model)
  example = jax.ShapeDtypeStruct(example.shape, jnp.float32)
  space = network_space(
    model,
    _abstract(model, example),
    example,
    divisor=divisor,
    smallest=smallest,
    most_levels=2**20,
  )
  grids = find_grids(space, widths)
  found = layer_calls(model, _abstract(model, example), example)
  calls = {
    name.removeprefix('params/').removesuffix('/kernel'): call
    for name, call in found.items()
  }
  check_told_apart(space.layers, calls)
  programs = _programs(grids, calls)
  variables = jax.jit(model.init)(jax.random.key(0), jnp.zeros(example.shape))
  programs[None] = repeated.compile_repeated(model.apply, variables, example)
  seconds = repeated.median_seconds(programs, repeats)
  limits = _limits(grids, example.shape[0])
  pairs = zip(grids, limits, strict=True)
  rows = [_row(grid, seconds, limit) for grid, limit in pairs]
  total = sum(len(row['layers']) * row['us'] for row in rows)
  whole = 1e6 * seconds[None]
  network = {'us': whole, 'sum_of_layers_us': total, 'by_sum': whole / total}
  return Table(rows, network)


def _row(
  grid: Grid, seconds: Mapping[Any, float], limit: float
) -> dict[str, Any]:
  operation = grid.operation
  found = [
    [seconds[operation, inputs, outputs] for outputs in grid.outputs]
    for inputs in grid.inputs
  ]
  return {
    'layer': grid.layer.name,
    'layers': list(grid.names),
    **operation._asdict(),
    'inputs': list(grid.inputs),
    'outputs': list(grid.outputs),
    'seconds': found,
    'least_us': 1e6 * found[0][0],
    'us': 1e6 * found[-1][-1],
    'limit_us': 1e6 * limit,
    'by_limit': found[-1][-1] / limit,
  }


def _limits(grids: Sequence[Grid], batch: int) -> list[float]:
  """Seconds of each operation at all of its channels."""
  products, memory = matmul_rate(), stream_rate()

  def limit(layer: LayerShape) -> float:
    full = layer, np.array(layer.inputs), np.array(layer.outputs)
    computing = 2 * batch * float(macs(*full)) / products
    moved = 4 * float(parameters(*full) + batch * activations(*full))
    return max(computing, moved / memory)

  return [limit(grid.layer) for grid in grids]


def check_told_apart(
  layers: Sequence[LayerShape], calls: Mapping[str, LayerCall]
) -> None:
  """Checks that layers of one operation do the same.

  A table knows the taps of a kernel and the pixels of an image, not their
  height and width. What a layer of a single channel is traced to tells.

  Args:
    layers: of a network.
    calls: how it calls each, by name.

  Raises:
    ValueError: two differ; the message names them.
  """
  seen: dict[Operation, tuple[str, str]] = {}
  for layer in layers:
    operation = latency.operation_of(layer)
    single = operation, 1, operation.multiplier
    module, x = _at(calls[layer.name], single)
    trace = str(jax.make_jaxpr(module.apply)(_abstract(module, x), x))
    name, other = seen.setdefault(operation, (layer.name, trace))
    if trace != other:
      raise ValueError(
        f'{name} and {layer.name}: they differ in the shape of their kernel or '
        'image, or in padding, which a table of latencies does not tell apart'
      )


def _at(
  call: LayerCall, point: Point
) -> tuple[nn.Module, jax.ShapeDtypeStruct]:
  """A layer with so many channels, and its input."""
  operation, channels, outputs = point
  module: Any = call.module.clone(features=outputs)
  if operation.kind == 'depthwise':
    channels = outputs // operation.multiplier
    module = module.clone(feature_group_count=channels)
  shape = (*call.shape[:-1], channels)
  return module, jax.ShapeDtypeStruct(shape, jnp.float32)


def _abstract(module: nn.Module, x: jax.ShapeDtypeStruct) -> Any:
  return jax.eval_shape(module.init, jax.random.key(0), x)


def _programs(
  grids: Sequence[Grid], calls: Mapping[str, LayerCall]
) -> dict[Any, repeated.Program]:
  """One for each distinct point; grids may have some in common."""
  programs: dict[Any, repeated.Program] = {}
  for grid in grids:
    for point in grid.points():
      if point not in programs:
        module, x = _at(calls[grid.layer.name], point)
        programs[point] = repeated.compile_repeated(
          module.apply, _abstract(module, x), x
        )
  return programs


def _show(rows: list[dict[str, Any]], given: Any) -> None:
  """Prints all but the widths in between."""
  columns = ('layer', 'kind', 'taps', 'stride', 'positions')
  times = ('least_us', 'us', 'limit_us', 'by_limit')
  table.show(
    [
      {
        **{name: row[name] for name in columns},
        'inputs': row['inputs'][-1],
        'outputs': row['outputs'][-1],
        'widths': len(row['inputs']) * len(row['outputs']),
        'layers': len(row['layers']),
        **{name: row[name] for name in times},
      }
      for row in rows
    ]
  )
  table.show([given.facts['network']])


def _rows(given: Any) -> Iterator[list[dict[str, Any]]]:
  measured = measure(
    make_model({'name': given.model}, num_classes=given.classes),
    jnp.zeros((given.batch, given.image, given.image, given.colors)),
    divisor=given.divisor,
    smallest=given.smallest,
    widths=given.widths,
    repeats=given.repeats,
  )
  given.facts |= {
    'format': latency.FORMAT,
    **{name: getattr(given, name) for name in ('model', 'image', 'batch')},
    'network': measured.network,
  }
  yield measured.rows


main = Benchmark(
  name='latency_table',
  about=__doc__,
  options={
    'model': options.choice(MODELS, options.REQUIRED),
    'classes': options.integer(10, 'outputs of the network'),
    'image': options.integer(32, 'height and width'),
    'colors': options.integer(3, 'channels of an image'),
    'batch': options.integer(1),
    'divisor': options.integer(8, 'of kept channels'),
    'smallest': options.fraction(0.2, 'least fraction kept'),
    'widths': options.integer(4, 'measured of each side, at most', least=2),
    'repeats': options.integer(9),
  },
  measure=_rows,
  show=_show,
  seed=0,
).main
