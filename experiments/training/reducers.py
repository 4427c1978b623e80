"""Gradient reducers by name."""

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from bandwidth import collectives
from bandwidth.base import AxisName, GradientReducer, check_known, make_named

_MEMORIES = {
  'error_feedback': collectives.error_feedback,
  'momentum_correction': collectives.momentum_correction,
  'none': collectives.no_memory,
}


def _with_named_memory(
  factory: Callable[..., GradientReducer],
) -> Callable[..., GradientReducer]:
  """Lets `memory` be a name."""

  @functools.wraps(factory)
  def named(
    axis_name: AxisName, *, memory: str = 'error_feedback', **arguments: Any
  ) -> GradientReducer:
    check_known('reducer.memory', memory, _MEMORIES)
    return factory(axis_name, memory=_MEMORIES[memory](), **arguments)

  return named


REDUCERS: dict[str, Callable[..., GradientReducer]] = {
  'dense_all_reduce': collectives.dense_all_reduce,
  'deep_gradient_compression': collectives.deep_gradient_compression,
  'top_k': _with_named_memory(collectives.sparse_all_reduce),
  'random_k': _with_named_memory(collectives.random_k),
  'shared_mask': _with_named_memory(collectives.shared_mask),
  'qsgd': collectives.qsgd,
  'terngrad': collectives.terngrad,
  'two_phase_quantized': collectives.two_phase_quantized,
  'sign_error_feedback': collectives.sign_error_feedback,
  'power_sgd': collectives.power_sgd,
}


def make_reducer(
  config: Mapping[str, Any], *, axis_name: AxisName, workers: Sequence[int]
) -> GradientReducer:
  """Builds a reducer from its name and its arguments.

  Args:
    config: `name`, and arguments of the reducer's factory.
    axis_name: the workers' axis or axes.
    workers: sizes of the axes. Given to factories that ask for them, because
      shapes of their states depend on it.

  Raises:
    ValueError: the name or an argument is unknown, missing or out of range.
  """
  arguments = dict(config)
  sizes = tuple(workers)
  return make_named(
    'reducer',
    arguments.pop('name', None),
    REDUCERS,
    arguments,
    axis_name=axis_name,
    workers=sizes if len(sizes) > 1 else math.prod(sizes),
  )
