"""Gradient reducers by name, each with its closed form of bytes on the wire."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from bandwidth.base import AxisName, GradientReducer, Params, unknown_name
from bandwidth.collectives import accounting, dense_all_reduce


class _Entry(NamedTuple):
  factory: Callable[..., GradientReducer]
  wire_bytes: Callable[..., int]
  arguments: tuple[str, ...]


REDUCERS = {
  'dense_all_reduce': _Entry(
    dense_all_reduce, accounting.dense_wire_bytes, ('dtype',)
  ),
}


class ChosenReducer(NamedTuple):
  """A reducer and what it costs.

  Attributes:
    reducer: the pair of functions.
    wire_bytes: `(params, workers=sizes of the axes) -> int`, bytes that a
      worker sends a step.
  """

  reducer: GradientReducer
  wire_bytes: Callable[..., int]


def make_reducer(
  config: Mapping[str, Any], *, axis_name: AxisName
) -> ChosenReducer:
  """Builds a reducer from its name and its arguments.

  Raises:
    ValueError: the name or an argument is unknown, or out of range.
  """
  arguments = dict(config)
  name = arguments.pop('name')
  if name not in REDUCERS:
    raise ValueError(unknown_name('reducer.name', name, REDUCERS))
  entry = REDUCERS[name]
  for argument in arguments:
    if argument not in entry.arguments:
      raise ValueError(unknown_name('reducer', argument, entry.arguments))

  def wire_bytes(params: Params, *, workers: tuple[int, ...]) -> int:
    return entry.wire_bytes(params, workers=workers, **arguments)

  return ChosenReducer(entry.factory(axis_name, **arguments), wire_bytes)
