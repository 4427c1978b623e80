"""What the TPU compiler makes of the training step on a pod, without a TPU.

    python -m experiments.benchmark tpu [--model resnet20] [--output F.json]

The step is the one that `experiments.train` runs, compiled for one slice, with
the workers along one axis, and for several slices joined by the data-center
network (DCN), with the axes ('dcn', 'ici'). A row says, for one chip and one
step: how many bytes it sends to chips of its slice (ICI) and to other slices
(DCN), its memory, the cycles that the compiler estimates for computation, and
operations. Nothing is run, so nothing is timed but the compiler.
"""

import argparse
import importlib.metadata
import importlib.util
import math
import os
import pathlib
import re
import sys
from collections.abc import Sequence
from fractions import Fraction
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import AxisType, Mesh

from bandwidth.collectives.dense import WIRE_DTYPES
from bandwidth.collectives.traffic import hlo
from bandwidth.collectives.traffic.accounting import dense_wire_bytes
from bandwidth.collectives.traffic.hlo_text import Instruction, parse
from experiments.benchmark.measuring.shapes import NETWORKS
from experiments.models import MODELS, make_model
from experiments.runtime import table
from experiments.training.loop import CompiledStage, Job, compile_stage
from experiments.training.objectives import (
  make_augment,
  make_classification_loss,
  make_preprocess,
)
from experiments.training.optimizers import make_optimizer
from experiments.training.reducers import make_reducer
from experiments.training.stages import Stage
from experiments.training.step import TrainState, empty_window
from experiments.training.workers import PER_WORKER, REPLICATED, Workers

NAME = 'tpu'
_CYCLES = re.compile(r'"estimated_cycles":"(\d+)"')
_OPTIMIZER = {'name': 'sgd', 'learning_rate': 0.1, 'momentum': 0.9}
_SMALL_IMAGES = ('lenet300', 'lenet5')


class Pod(NamedTuple):
  """Chips to compile for.

  Attributes:
    topology: of a slice, 'v5e:16x16'.
    slices: joined by the data-center network.
    workers: one chip each.
  """

  topology: str
  slices: int
  workers: Workers


def make_pod(topology: str, *, slices: int = 1) -> Pod:
  """Describes chips to the compiler.

  Args:
    topology: of a slice, 'v5e:16x16'.
    slices: 1: workers along one axis 'data'; more: along ('dcn', 'ici').

  Raises:
    ValueError: the compiler knows no such topology.
  """
  from jax.experimental import topologies

  several = {'num_slices': slices} if slices > 1 else {}
  try:
    devices = topologies.get_topology_desc(
      platform='tpu', topology_name=topology, **several
    ).devices
  except Exception as error:
    # The compiler's plugin has no narrower type for what it refuses.
    reason = str(error).strip().splitlines()[0]
    raise ValueError(f'topology={topology!r}: {reason}') from None
  in_order = sorted(devices, key=lambda d: (_slice(d), d.id))
  chips = len(in_order) // slices
  axes = {'dcn': slices, 'ici': chips} if slices > 1 else {'data': chips}
  mesh = Mesh(
    np.array(in_order).reshape(list(axes.values())),
    tuple(axes),
    axis_types=(AxisType.Auto,) * len(axes),
  )
  workers = Workers(mapping='shard_map', axes=axes, mesh=mesh)
  return Pod(topology, slices, workers)


def _slice(device: Any) -> int:
  # Devices of a single slice don't have the attribute.
  return getattr(device, 'slice_index', 0)


class _AbstractInput(NamedTuple):
  """Batches that have shapes only."""

  batch: Any
  kinds: str = PER_WORKER

  def feed(self, step: int) -> Any:
    del step
    return self.batch

  def select(self, feed: Any, step: jax.Array) -> Any:
    del step
    return feed


def build_step(
  model: str, workers: Workers, *, dtype: str, batch_size: int
) -> CompiledStage:
  """Compiles the step of a training run with a dense reducer.

  Args:
    model: a name in `experiments.models`.
    workers: and their chips, which need not exist.
    dtype: of gradients on the wire.
    batch_size: of a worker.
  """
  network, image, variables = _network(model)
  params = variables.pop('params')
  stage = Stage(
    name=model,
    first=0,
    last=1,
    reducer=make_reducer(
      {'name': 'dense_all_reduce', 'dtype': dtype},
      axis_name=workers.axis_name,
      workers=tuple(workers.axes.values()),
    ),
    optimizer=optax.named_chain(
      ('optimizer', make_optimizer(_OPTIMIZER, span=(0, 1)))
    ),
  )
  loss = make_classification_loss(
    network, make_preprocess({}), make_augment({})
  )
  batch = {
    'image': jax.ShapeDtypeStruct((batch_size, *image), jnp.uint8),
    'label': jax.ShapeDtypeStruct((batch_size,), jnp.int32),
  }
  # Compiling needs no more of the two than this.
  data: Any = _AbstractInput(abstract_state(batch, workers, PER_WORKER))
  evaluator: Any = None
  job = Job(
    workers=workers,
    stages=[stage],
    data=data,
    loss=loss,
    evaluator=evaluator,
    seed=0,
    log_every=100,
    eval_every=0,
    checkpoint_every=0,
  )
  return compile_stage(job, stage, _state(stage, params, variables, workers))


def _network(model: str) -> tuple[Any, tuple[int, ...], dict[str, Any]]:
  """A network, the shape of its images, and its abstract variables."""
  network = make_model({'name': model}, num_classes=10)
  image = (28, 28, 1) if model in _SMALL_IMAGES else (32, 32, 3)
  variables = jax.eval_shape(
    network.init, jax.random.key(0), jnp.zeros((1, *image), jnp.float32)
  )
  return network, image, dict(variables)


def _state(
  stage: Stage, params: Any, model_state: Any, workers: Workers
) -> TrainState:
  def everywhere(tree: Any) -> Any:
    return abstract_state(tree, workers, REPLICATED)

  def each(tree: Any) -> Any:
    return abstract_state(tree, workers, PER_WORKER)

  return TrainState(
    step=everywhere(jax.ShapeDtypeStruct((), jnp.int32)),
    params=everywhere(params),
    opt_state=everywhere(jax.eval_shape(stage.optimizer.init, params)),
    reducer_state=each(jax.eval_shape(stage.reducer.init, params)),
    model_state=each(model_state),
    window=each(jax.eval_shape(lambda: empty_window(['loss', 'accuracy']))),
  )


def abstract_state(tree: Any, workers: Workers, kind: str) -> Any:
  """Returns shapes of arrays of a kind, of all workers and where they lie."""
  axis = () if kind == REPLICATED else (workers.count,)
  return jax.tree.map(
    lambda leaf: jax.ShapeDtypeStruct(
      axis + leaf.shape, leaf.dtype, sharding=workers.sharding(kind)
    ),
    tree,
  )


def share_between_slices(collective: hlo.Collective, mesh: Mesh) -> Fraction:
  """Returns the fraction of the bytes sent that goes to other slices.

  In a group of n chips, m of them in one slice, `(n-m)/(n-1)`: each chip sends
  as much to one of the others as to another.
  """
  if collective.between_slices:
    slices = {device.id: _slice(device) for device in mesh.devices.flat}
  else:
    slices = dict(enumerate(map(_slice, mesh.devices.flat)))
  if collective.pairs:
    crosses = any(slices[a] != slices[b] for a, b in collective.pairs)
    return Fraction(int(crosses))
  where = [slices[chip] for chip in max(collective.groups, key=len)]
  together = max(where.count(index) for index in where)
  return Fraction(len(where) - together, max(len(where) - 1, 1))


def estimated_cycles(compiled: Any) -> int:
  """Returns the cycles that the compiler estimates for a run of a program.

  Loops count as often as they run, or once if that depends on data. Collectives
  and copies between memories have no estimate, and are not in it.
  """

  def cycles(computation: str, instruction: Instruction) -> int | None:
    del computation
    match = _CYCLES.search(instruction.tail)
    return int(match[1]) if match else None

  found = hlo.executed(
    parse(compiled), cycles, weigh=lambda item: item, unknown_trips=1
  )
  return sum(item * count for item, count in found)


def measure(model: str, pod: Pod, *, dtype: str, batch_size: int) -> table.Row:
  """Compiles one step, and returns what there is to say about it.

  Args:
    model: a name in `experiments.models`.
    pod: chips.
    dtype: of gradients on the wire.
    batch_size: of a chip.
  """
  workers = pod.workers
  program = build_step(model, workers, dtype=dtype, batch_size=batch_size)
  compiled = program.call
  memory: Any = compiled.memory_analysis()
  costs: Any = compiled.cost_analysis()
  sent = sent_by(compiled, workers.mesh)
  closed_form = dense_wire_bytes(
    _network(model)[2]['params'],
    workers=tuple(workers.axes.values()),
    dtype=dtype,
  )
  return {
    'model': model,
    'pod': f'{pod.slices} x {pod.topology}',
    'chips': workers.count,
    'batch': batch_size,
    'wire_dtype': dtype,
    'collectives': sum(row['count'] for row in sent),
    'ici_bytes': math.ceil(sum(row['ici_bytes'] for row in sent)),
    'dcn_bytes': math.ceil(sum(row['dcn_bytes'] for row in sent)),
    'closed_form': closed_form,
    'argument_bytes': memory.argument_size_in_bytes,
    'output_bytes': memory.output_size_in_bytes,
    'reused_bytes': memory.alias_size_in_bytes,
    'temporary_bytes': memory.temp_size_in_bytes,
    'code_bytes': memory.generated_code_size_in_bytes,
    'estimated_cycles': estimated_cycles(compiled),
    'operations': int(costs['flops']),
    'compile_seconds': round(program.seconds, 1),
    'libtpu': importlib.metadata.version('libtpu'),
    'sent': sent,
  }


def sent_by(compiled: Any, mesh: Mesh) -> list[dict[str, Any]]:
  """A row for each collective; bytes are those of one chip and one step."""
  rows = []
  for c in hlo.collectives(compiled):
    total, outside = c.sent_bytes * c.count, share_between_slices(c, mesh)
    rows.append(
      {
        'kind': c.kind,
        'dtype': c.dtype,
        'shape': ' '.join(str(list(shape)) for shape in c.shapes[:3])
        + (' ...' if len(c.shapes) > 3 else ''),
        'group': c.group_size,
        'count': c.count,
        'ici_bytes': float(total * (1 - outside)),
        'dcn_bytes': float(total * outside),
      }
    )
  return rows


_NETWORK = (
  'wire_dtype',
  'collectives',
  'ici_bytes',
  'dcn_bytes',
  'closed_form',
  'estimated_cycles',
  'operations',
  'compile_seconds',
)
_MEMORY = (
  'argument_bytes',
  'output_bytes',
  'reused_bytes',
  'temporary_bytes',
  'code_bytes',
)


def show(rows: Sequence[table.Row]) -> None:
  """Prints rows of `measure`, and below them what each is made of."""
  for title, columns in (
    ('One step on one chip: bytes that it sends', _NETWORK),
    ('Its memory', ('wire_dtype', *_MEMORY)),
  ):
    print(f'\n{title}')
    keys = ('model', 'pod', *columns)
    table.show([{key: row[key] for key in keys} for row in rows])
  for row in rows:
    print(f'\n{row["model"]}, {row["pod"]}, {row["wire_dtype"]}')
    table.show(row['sent'])


def main(argv: list[str]) -> int:
  """Compiles what the arguments say; returns the exit status."""
  arguments = _parser().parse_args(argv)
  if importlib.util.find_spec('libtpu') is None:
    return _fail("the TPU compiler is missing: pip install '.[tpu]'")
  # The compiler needs no TPU, and JAX must not look for one.
  jax.config.update('jax_platforms', 'cpu')
  _allow_parallel_compilers()
  try:
    pods = [] if arguments.slices_only else [make_pod(arguments.topology)]
    if arguments.slices > 1:
      pods.append(make_pod(arguments.slice_topology, slices=arguments.slices))
    if arguments.exchanges:
      rows = _exchange_rows(arguments.exchanges, pods, arguments.reducers)
    else:
      rows = [
        measure(model, pod, dtype=dtype, batch_size=arguments.batch)
        for model in arguments.model
        for pod in pods
        for dtype in arguments.dtype
      ]
      show(rows)
    if arguments.output:
      table.write(arguments.output, NAME, rows)
  except ValueError as error:
    return _fail(str(error))
  return 0


def _exchange_rows(
  networks: Sequence[str], pods: Sequence[Pod], reducers: Sequence[str]
) -> list[table.Row]:
  from experiments.benchmark.network import tpu_exchange

  rows: list[dict[str, Any]] = []
  for network in networks:
    for pod in pods:
      several = pod.slices > 1
      names = tpu_exchange.ON_SLICES if several else tpu_exchange.EXCHANGES
      names = [name for name in names if not reducers or name in reducers]
      for name in names:
        row = tpu_exchange.measure_exchange(name, network, pod)
        rows.append(dict(row))
  rows = tpu_exchange.with_ratios(rows)
  table.show(rows)
  for row in rows:
    print(f'\n{row["network"]}, {row["pod"]}, {row["reducer"]}')
    table.show(row['sent'])
  return list(rows)


def _allow_parallel_compilers() -> None:
  """Lets processes share the compiler where it guards no chips.

  The library of the compiler is also the driver of the chips, and lets only one
  process of a machine load it.
  """
  devices = pathlib.Path('/dev')
  if not any(devices.glob('accel*')) and not (devices / 'vfio').exists():
    os.environ.setdefault('ALLOW_MULTIPLE_LIBTPU_LOAD', '1')
    os.environ.setdefault('TPU_SKIP_MDS_QUERY', '1')


def _fail(message: str) -> int:
  print(f'benchmark {NAME}: error: {message}', file=sys.stderr)
  return 2


def _parser() -> argparse.ArgumentParser:
  parser = argparse.ArgumentParser(
    prog='python -m experiments.benchmark tpu',
    description='What the TPU compiler makes of the training step on a pod.',
  )
  add = parser.add_argument
  add('--topology', default='v5e:16x16', help='of the single slice')
  add('--slices', type=_positive, default=2, help='1: the single slice only')
  add('--slices_only', action='store_true', help='no single slice')
  add('--slice_topology', default='v5e:16x16', help='of several slices, each')
  add('--model', nargs='+', choices=sorted(MODELS), default=['lenet300'])
  add('--dtype', nargs='+', choices=WIRE_DTYPES, default=list(WIRE_DTYPES))
  add('--batch', type=_positive, default=64, help='examples of a chip')
  add(
    '--exchanges',
    nargs='+',
    choices=sorted(NETWORKS),
    help='reducers alone, at the shapes of these networks',
  )
  add('--reducers', nargs='+', default=(), help='some of --exchanges alone')
  add('--output', help='JSON file')
  return parser


def _positive(text: str) -> int:
  value = int(text)
  if value < 1:
    raise argparse.ArgumentTypeError(f'{value} is not positive')
  return value
