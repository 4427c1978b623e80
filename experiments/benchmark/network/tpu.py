"""What the TPU compiler makes of the training step on a pod, without a TPU.

    python -m experiments.benchmark tpu [--model resnet20] [--output F.json]

The step is the one that `experiments.train` runs, compiled for one slice, with
the workers along one axis, and for several slices joined by the data-center
network (DCN), with the axes ('dcn', 'ici'). A row says, for one chip and one
step: how many bytes it sends to chips of its slice (ICI) and to other slices
(DCN), its memory, the cycles that the compiler estimates for computation, and
operations. Nothing is run, so nothing is timed but the compiler.
"""

import importlib.metadata
import itertools
import re
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import optax

from bandwidth.collectives.dense import WIRE_DTYPES
from bandwidth.collectives.traffic import hlo
from bandwidth.collectives.traffic.accounting import dense_wire_bytes
from bandwidth.collectives.traffic.hlo_text import Instruction, parse
from experiments.benchmark.harness import Benchmark
from experiments.benchmark.network import pods, tpu_exchange
from experiments.benchmark.network.one_batch import OneBatch
from experiments.benchmark.network.reducers import abstract_state
from experiments.models import MODELS, make_model
from experiments.models.shapes import NETWORKS
from experiments.runtime import options, table
from experiments.training import objectives
from experiments.training.loop import CompiledStage, Job, compile_stage
from experiments.training.optimizers import make_optimizer
from experiments.training.reducers import make_reducer
from experiments.training.stages import Stage
from experiments.training.step import STATE_KINDS, TrainState, empty_window
from experiments.training.workers import PER_WORKER, Workers

_CYCLES = re.compile(r'"estimated_cycles":"(\d+)"')
_OPTIMIZER = {'name': 'sgd', 'learning_rate': 0.1, 'momentum': 0.9}
_SMALL_IMAGES = ('lenet300', 'lenet5')


def _build_step(
  model: str, workers: Workers, *, dtype: str, batch_size: int
) -> CompiledStage:
  """Compiles the step of a training run with a dense reducer."""
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
  loss = objectives.make_classification_loss(
    network, objectives.make_preprocess({}), objectives.make_augment({})
  )
  batch = {
    'image': jax.ShapeDtypeStruct((batch_size, *image), jnp.uint8),
    'label': jax.ShapeDtypeStruct((batch_size,), jnp.int32),
  }
  # Compiling needs no more of the two than this.
  data: Any = OneBatch(abstract_state(batch, workers, PER_WORKER))
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
  state = TrainState(
    step=jax.ShapeDtypeStruct((), jnp.int32),
    params=params,
    opt_state=jax.eval_shape(stage.optimizer.init, params),
    reducer_state=jax.eval_shape(stage.reducer.init, params),
    model_state=model_state,
    window=jax.eval_shape(lambda: empty_window(['loss', 'accuracy'])),
  )
  return jax.tree.map(
    lambda kind, part: abstract_state(part, workers, kind), STATE_KINDS, state
  )


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


def _measure(
  model: str, pod: pods.Pod, *, dtype: str, batch_size: int
) -> table.Row:
  """Compiles one step, and returns what there is to say about it."""
  workers = pod.workers
  program = _build_step(model, workers, dtype=dtype, batch_size=batch_size)
  compiled = program.call
  memory: Any = compiled.memory_analysis()
  costs: Any = compiled.cost_analysis()
  sent = pods.sent_by(compiled, workers.mesh)
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
    **pods.columns_of(sent),
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
_NAMED_BY = (('model', 'pod', 'wire_dtype'), ('network', 'pod', 'reducer'))
_MEMORY = (
  'argument_bytes',
  'output_bytes',
  'reused_bytes',
  'temporary_bytes',
  'code_bytes',
)


def _show(rows: list[dict[str, Any]], given: Any) -> None:
  """Prints rows, and below them what each is made of."""
  if given.exchanges:
    table.show(rows)
  else:
    for title, columns in (
      ('One step on one chip: bytes that it sends', _NETWORK),
      ('Its memory', ('wire_dtype', *_MEMORY)),
    ):
      print(f'\n{title}')
      keys = ('model', 'pod', *columns)
      table.show([{key: row[key] for key in keys} for row in rows])
  names = _NAMED_BY[bool(given.exchanges)]
  for row in rows:
    print('\n' + ', '.join(row[name] for name in names))
    table.show(row['sent'])


def _rows(given: Any) -> Iterator[list[table.Row]]:
  pods.prepare_compiler()
  chips = [] if given.slices_only else [pods.make_pod(given.topology)]
  if given.slices > 1:
    chips.append(pods.make_pod(given.slice_topology, slices=given.slices))
  if given.exchanges:
    for network, pod in itertools.product(given.exchanges, chips):
      for name in tpu_exchange.names_on(pod, given.reducers):
        yield [tpu_exchange.measure_exchange(name, network, pod)]
    return
  for model, pod, dtype in itertools.product(given.model, chips, given.dtype):
    yield [_measure(model, pod, dtype=dtype, batch_size=given.batch)]


def _finish(rows: list[dict[str, Any]], given: Any) -> list[dict[str, Any]]:
  return tpu_exchange.with_ratios(rows) if given.exchanges else rows


main = Benchmark(
  name='tpu',
  about=__doc__,
  options={
    'topology': options.text('v5e:16x16', 'of the single slice'),
    'slices': options.integer(2, '1: the single slice only'),
    'slices_only': options.flag('no single slice'),
    'slice_topology': options.text('v5e:16x16', 'of several slices, each'),
    'model': options.choice(MODELS, ['lenet300']),
    'dtype': options.choice(WIRE_DTYPES, list(WIRE_DTYPES)),
    'batch': options.integer(64, 'examples of a chip'),
    'exchanges': options.choice(
      NETWORKS, [], 'reducers alone, at the shapes of these networks'
    ),
    'reducers': options.choice(
      tpu_exchange.EXCHANGES, [], 'some of --exchanges alone'
    ),
  },
  measure=_rows,
  finish=_finish,
  show=_show,
).main
