"""Gradient reducers by name."""

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from bandwidth import collectives
from bandwidth.base import AxisName, GradientReducer, unknown_name

REDUCERS: dict[str, Callable[..., GradientReducer]] = {
  'dense_all_reduce': collectives.dense_all_reduce,
}


def make_reducer(
  config: Mapping[str, Any], *, axis_name: AxisName, workers: Sequence[int]
) -> GradientReducer:
  """Builds a reducer from its name and its arguments.

  Args:
    config: `name`, and arguments of the reducer's factory.
    axis_name: of the workers.
    workers: sizes of the axes. Given to factories that ask for them, because
      shapes of their states depend on it.

  Raises:
    ValueError: the name or an argument is unknown, missing or out of range.
  """
  arguments = dict(config)
  name = arguments.pop('name')
  if name not in REDUCERS:
    raise ValueError(unknown_name('reducer.name', name, REDUCERS))
  factory = REDUCERS[name]
  parameters = inspect.signature(factory).parameters
  known = [key for key in parameters if key not in ('axis_name', 'workers')]
  for argument in arguments:
    if argument not in known:
      raise ValueError(unknown_name('reducer', argument, known))
  for key in known:
    required = parameters[key].default is inspect.Parameter.empty
    if required and key not in arguments:
      raise ValueError(f'reducer: {name!r} needs {key}')
  if 'workers' in parameters:
    sizes = tuple(workers)
    arguments['workers'] = sizes if len(sizes) > 1 else math.prod(sizes)
  return factory(axis_name, **arguments)
