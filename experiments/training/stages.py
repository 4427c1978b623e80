"""A run is a list of stages; a stage is what is static in a compiled step."""

import contextlib
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
import optax

from bandwidth import tree
from bandwidth.base import AxisName, GradientReducer, Params
from bandwidth.collectives import check_momentum, stack_states
from experiments.compression.files import check_files
from experiments.compression.methods import Method, make_method
from experiments.training.optimizers import make_optimizer
from experiments.training.reducers import make_reducer
from experiments.training.step import TrainState, empty_window
from experiments.training.workers import PER_WORKER, REPLICATED, Workers


class Stage(NamedTuple):
  """Steps `first + 1` to `last` of a run, all by one compiled step."""

  name: str  # as in the config
  first: int  # steps done before the stage
  last: int  # steps done after it
  reducer: GradientReducer  # averages gradients over the workers
  # A named chain: a state goes on into the next stage by its names.
  optimizer: optax.GradientTransformation
  method: Method = Method()  # what the stage does to the parameters
  # What is written when the stage is done: pairs (name, coder), see
  # `compression.files`.
  files: tuple[tuple[str, str], ...] = ()
  reducer_config: Mapping[str, Any] = {}  # what the reducer was built from
  # Whether what is still pending in the residuals is applied when the stage is
  # done, in one update more.
  flush: bool = False


def make_stages(
  config: Mapping[str, Any],
  *,
  steps_per_epoch: int,
  axis_name: AxisName,
  workers: Sequence[int],
) -> list[Stage]:
  """Builds the stages of a config.

  A stage that has no optimizer of its own shares that of the run, whose
  learning rate spans all steps of the run; the schedule of an own one spans the
  stage.

  Raises:
    ValueError: a stage is missing, unknown, or has no length, or one of its
      parts can't be built.
  """
  order, given = list(config['stage_order']), config['stages']
  if sorted(order) != sorted(given):
    raise ValueError(
      f'stage_order={order} does not name the stages {sorted(given)} once each'
    )
  lengths = {
    name: _length(name, given[name], steps_per_epoch) for name in order
  }
  total, first, stages = sum(lengths.values()), 0, []
  for name in order:
    stage, last = given[name], first + lengths[name]
    span = (first, last) if 'optimizer' in stage else (0, total)
    optimizer = {**config['optimizer'], **stage.get('optimizer', {})}
    chosen = stage.get('reducer', config['reducer'])
    with _naming(f'stages.{name}'):
      method = make_method(
        stage.get('method', {'name': 'none'}), steps=last - first
      )
      files = check_files(stage.get('files', ()))
    reducer = _reducer(name, chosen, axis_name, workers)
    stages.append(
      Stage(
        name=name,
        first=first,
        last=last,
        reducer=reducer,
        optimizer=_chain(_behind(name, reducer, optimizer, span), method),
        method=method,
        files=files,
        reducer_config=chosen,
        flush=bool(stage.get('flush', False)),
      )
    )
    first = last
  _check_names_of_files(stages)
  return stages


def _reducer(
  stage: str,
  config: Mapping[str, Any],
  axis_name: AxisName,
  workers: Sequence[int],
) -> GradientReducer:
  try:
    return make_reducer(config, axis_name=axis_name, workers=workers)
  except ValueError as error:
    if 'reducer' in str(error):
      raise
    raise ValueError(f'stages.{stage}.reducer.{error}') from None


def _behind(
  stage: str,
  reducer: GradientReducer,
  config: Mapping[str, Any],
  span: tuple[int, int],
) -> optax.GradientTransformation:
  """Builds the optimizer of what a reducer returns."""
  momentum = config.get('momentum', 0.0) if config['name'] == 'sgd' else 0.0
  if reducer.momentum and momentum:
    raise ValueError(
      f'stages.{stage}: reducer.momentum={reducer.momentum} and '
      f'optimizer.momentum={momentum} would be applied one after the other: '
      'set one of them to 0'
    )
  optimizer = make_optimizer(config, span=span)
  check_momentum(reducer, optimizer.init(()))
  return optimizer


def _chain(
  optimizer: optax.GradientTransformation, method: Method
) -> optax.GradientTransformation:
  # State goes on by its name: another name, and it begins anew.
  name = 'optimizer' if method.keeps_slots else f'{method.name}_optimizer'
  return optax.named_chain(*method.before, (name, optimizer), *method.after)


def _check_names_of_files(stages: list[Stage]) -> None:
  names = [name for stage in stages for name, _ in stage.files]
  twice = {name for name in names if names.count(name) > 1}
  if twice:
    raise ValueError(f'files: {", ".join(sorted(twice))} is written twice')


@contextlib.contextmanager
def _naming(where: str) -> Iterator[None]:
  try:
    yield
  except ValueError as error:
    raise ValueError(f'{where}.{error}') from None


def _length(name: str, stage: Mapping[str, Any], steps_per_epoch: int) -> int:
  steps, epochs = stage.get('steps', 0), stage.get('epochs', 0)
  if (steps > 0) == (epochs > 0):
    raise ValueError(
      f'stages.{name}: steps={steps}, epochs={epochs}; one must be positive'
    )
  return int(steps) or max(round(epochs * steps_per_epoch), 1)


def stage_of(stages: list[Stage], step: int) -> int:
  """Returns the index of the stage that made step `step`, 1 being the first."""
  return next(i for i, stage in enumerate(stages) if step <= stage.last)


def saved_reducer_state(
  stage: Stage,
  variables: Any,
  axes: Mapping[str, int],
  exchanges: Mapping[str, str],
) -> Any:
  """Returns the shapes of a reducer's state for other workers.

  Args:
    stage: whose reducer it is.
    variables: that the stage trains; may be abstract.
    axes: names and sizes of the axes of the workers.
    exchanges: that were chosen for these workers, by stage, or for the 'run'.
  """
  chosen = exchanges.get(stage.name, exchanges.get('run'))
  config = dict(stage.reducer_config)
  if chosen and 'exchange' in config:
    config['exchange'] = chosen
  names, sizes = tuple(axes), tuple(axes.values())
  reducer = make_reducer(
    config, axis_name=names if len(names) > 1 else names[0], workers=sizes
  )
  count = math.prod(sizes)
  return jax.tree.map(
    lambda leaf: jax.ShapeDtypeStruct((count, *leaf.shape), leaf.dtype),
    jax.eval_shape(reducer.init, variables),
  )


def first_state(
  stage: Stage,
  params: Params,
  model_state: Any,
  workers: Workers,
  metrics: list[str],
) -> TrainState:
  """Returns the state before step 1, on the devices.

  Args:
    stage: the one that comes first.
    params: of the network: host arrays, the same on all processes.
    model_state: likewise; every worker begins with a copy.
    workers: where the state goes.
    metrics: that a step returns beside the loss.
  """
  params = _variables(stage, params)
  per_worker = (
    stage.reducer.init(params),
    model_state,
    empty_window(['loss', *metrics]),
  )
  reducer_state, model_state, window = stack_states(
    per_worker, workers.count, sharding=workers.sharding(PER_WORKER)
  )
  return TrainState(
    step=workers.place(np.zeros((), np.int32), REPLICATED),
    params=workers.place(params, REPLICATED),
    opt_state=workers.place(stage.optimizer.init(params), REPLICATED),
    reducer_state=reducer_state,
    model_state=model_state,
    window=window,
  )


def _variables(stage: Stage, params: Params) -> Any:
  """What a stage trains, on the host."""
  try:
    entered = stage.method.enter(params)
    return jax.device_get(jax.jit(stage.method.init)(entered))
  except ValueError as error:
    raise ValueError(f'stages.{stage.name}.method: {error}') from None


def next_state(
  stage: Stage, before: Stage, state: TrainState, workers: Workers
) -> TrainState:
  """Carries a state over from one stage into the next.

  What both train is the network's parameters, unless a method trains variables
  in their stead: then these are decoded, and the next stage begins with its
  own.

  Of the optimizer's and the reducer's state, what has the same name, shape and
  dtype in the new stage goes on (momentum, step counts, residuals), and the
  rest begins anew. Learning-rate schedules always count the steps of the run.
  """
  decode = jax.jit(
    before.method.decode, out_shardings=workers.sharding(REPLICATED)
  )
  params = _variables(stage, jax.device_get(decode(state.params)))
  reducer_state = stack_states(
    stage.reducer.init(params),
    workers.count,
    sharding=workers.sharding(PER_WORKER),
  )
  opt_state = _carry_over(
    workers.place(stage.optimizer.init(params), REPLICATED), state.opt_state
  )
  done = int(state.step)

  def set_count(node: Any) -> Any:
    if not _is_schedule(node):
      return node
    # An array of its own: one donated twice crashes the process.
    return node._replace(count=workers.place(np.int32(done), REPLICATED))

  return state._replace(
    params=workers.place(params, REPLICATED),
    opt_state=jax.tree.map(set_count, opt_state, is_leaf=_is_schedule),
    reducer_state=_carry_over(reducer_state, state.reducer_state),
  )


def _carry_over(new: Any, old: Any) -> Any:
  known = {(n, x.shape, x.dtype): x for n, x in tree.named_leaves(old)}
  return tree.map_named(lambda n, x: known.get((n, x.shape, x.dtype), x), new)


def _is_schedule(node: Any) -> bool:
  return isinstance(node, optax.ScaleByScheduleState)
