"""Latency, measured on a device or fitted to measurements.

A latency table is a JSON file, written by `python -m experiments.benchmark
latency_table`:

    {"name": "latency_table", "format": 1, "device": …, "versions": …,
     "batch": 1, "rows": [
       {"kind": "conv", "taps": 9, "stride": 1, "positions": 1024,
        "pixels": 1024, "multiplier": 1, "bias": false,
        "inputs": [8, 16], "outputs": [8, 16, 32],
        "seconds": [[1e-5, 2e-5, 3e-5], [2e-5, 3e-5, 5e-5]]},
       …]}

A row is an `Operation` with its seconds for a whole batch at all pairs of
measured widths: the lengths of the kernel's input and output axes. Other fields
of a row or of the file are informative and not read.
"""

import json
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from bandwidth.search.problem.counts import (
  CostModel,
  activations,
  check_finite,
  macs,
  parameters,
)
from bandwidth.search.problem.space import KINDS, LayerShape

FORMAT = 1
"""Version of the file format."""


class Operation(NamedTuple):
  """A layer's operation, without its widths.

  Attributes:
    kind: kind of the layer, one of `KINDS`.
    taps: weights for each pair of channels; 1 for a dense layer.
    stride: stride of the convolution; 1 for a dense layer.
    positions: elements written per output channel and example.
    pixels: elements read per input channel and example; `positions` for a dense
      layer.
    multiplier: outputs per input of a depthwise convolution; 1 for others.
    bias: whether a bias is added.
  """

  kind: str
  taps: int
  stride: int
  positions: int
  pixels: int
  multiplier: int
  bias: bool


class Entry(NamedTuple):
  """Measurements of an operation.

  Attributes:
    operation: the operation that was measured.
    inputs: lengths of the kernel's input axis, ascending: channels that a
      convolution reads; all rows of a dense layer, flattened pixels included; 1
      for a depthwise convolution.
    outputs: numbers of output channels, ascending.
    seconds: time at each pair of them, float64 [inputs, outputs].
  """

  operation: Operation
  inputs: tuple[int, ...]
  outputs: tuple[int, ...]
  seconds: np.ndarray


def operation_of(layer: LayerShape) -> Operation:
  """Returns the operation of a layer, without its widths.

  >>> operation_of(LayerShape('fc', 'dense', 50, 500, taps=16, pixels=16))
  Operation(kind='dense', taps=1, stride=1, positions=1, pixels=1, multiplier=1,
            bias=False)
  """
  if layer.kind == 'dense':
    positions = layer.positions
    return Operation('dense', 1, 1, positions, positions, 1, layer.bias)
  depthwise = layer.kind == 'depthwise'
  return Operation(
    kind=layer.kind,
    taps=layer.taps,
    stride=layer.stride,
    positions=layer.positions,
    pixels=layer.pixels,
    multiplier=layer.outputs // layer.inputs if depthwise else 1,
    bias=layer.bias,
  )


def kernel_inputs(layer: LayerShape, inputs: np.ndarray | int) -> np.ndarray:
  """Returns the length of the kernel's input axis, given the channels read."""
  inputs = np.asarray(inputs)
  if layer.kind == 'depthwise':
    return np.ones_like(inputs)
  return inputs * (layer.taps if layer.kind == 'dense' else 1)


def latency_table(path: str | os.PathLike[str]) -> CostModel:
  """Cost model: seconds of a batch as measured on a device, layer by layer.

  Seconds are interpolated bilinearly between measured widths; widths outside of
  them are an error. If an operation was measured several times, a layer uses
  the measurement that covers its channels with the fewest to spare.

  The table includes neither what a network does between its convolutions and
  dense layers, nor what a compiler saves by fusing the two.

  Args:
    path: JSON file in the format of this module.

  Returns:
    A cost model. It raises ValueError if a layer's operation or widths were not
    measured.

  Raises:
    ValueError: the file cannot be read, or is not a latency table.
  """
  entries = read_table(path)

  def model(
    layer: LayerShape, inputs: np.ndarray, outputs: np.ndarray
  ) -> np.ndarray:
    entry = _find(entries, layer)
    rows = _place(layer, 'inputs', entry.inputs, kernel_inputs(layer, inputs))
    columns = _place(layer, 'outputs', entry.outputs, np.asarray(outputs))
    return _interpolate(entry.seconds, rows, columns)

  return model


def fitted_latency(
  *,
  convolution: float = 0.168,
  depthwise: float = 0.24,
  memory: float = 0.47,
) -> CostModel:
  r"""Cost model: seconds of an inference on a phone, by a fitted formula.

  Each layer takes

  .. math:: t = a \, \mathrm{MMAC} + m \, \mathrm{MB}

  milliseconds, where MMAC are its million multiply-adds, and MB the million
  bytes of its weights and of the activations that it reads and writes, in
  float32.

  The defaults were fitted to the per-layer logs, published with AMC, of four
  MobileNet-V1 networks on a Pixel 1, in float32 with one image of 224x224. The
  model gives 123.9, 74.9, 68.7 and 64.0 ms for the whole network, the one with
  0.75 of the channels, "50% FLOPs" and "50% time"; the logs average 123.9,
  72.5, 68.9 and 63.2. For a network left out of the fit, the total is off by
  0.3 to 4.1 %, but single layers by 21 to 30 %: only totals are meaningful.

  Args:
    convolution: a of convolutions and dense layers, ms per million
      multiply-adds.
    depthwise: a of depthwise convolutions, ms per million multiply-adds.
    memory: m, ms per million bytes.

  Raises:
    ValueError: a coefficient is negative or not finite.

  References:
    The logs: https://github.com/mit-han-lab/amc-models
  """
  check_finite(convolution=convolution, depthwise=depthwise, memory=memory)

  def model(
    layer: LayerShape, inputs: np.ndarray, outputs: np.ndarray
  ) -> np.ndarray:
    rate = depthwise if layer.kind == 'depthwise' else convolution
    numbers = parameters(layer, inputs, outputs)
    numbers = numbers + activations(layer, inputs, outputs)
    milliseconds = rate * macs(layer, inputs, outputs) + memory * 4 * numbers
    return 1e-9 * milliseconds

  return model


def read_table(path: str | os.PathLike[str]) -> tuple[Entry, ...]:
  """Reads a latency table.

  Args:
    path: JSON file in the format of this module.

  Raises:
    ValueError: the file cannot be read, or is not a latency table.
  """
  prefix = f'path={os.fspath(path)!r}'
  try:
    content = json.loads(pathlib.Path(path).read_text('utf-8'))
  except OSError as error:
    raise ValueError(f'{prefix} cannot be read: {error.strerror}') from None
  except (ValueError, RecursionError) as error:
    raise ValueError(f'{prefix} is no JSON: {error}') from None
  rows = content.get('rows') if isinstance(content, dict) else None
  if not isinstance(rows, list) or content.get('name') != 'latency_table':
    raise ValueError(f'{prefix} is no table of latencies')
  if content.get('format') != FORMAT:
    raise ValueError(
      f'{prefix}: format={content.get("format")!r} is not {FORMAT}'
    )
  try:
    return tuple(_entry(row) for row in rows)
  except (KeyError, TypeError, ValueError) as error:
    raise ValueError(f'{prefix}: a row is malformed: {error!r}') from None


def _entry(row: Mapping[str, Any]) -> Entry:
  entry = Entry(
    operation=Operation(**{name: row[name] for name in Operation._fields}),
    inputs=_widths(row['inputs']),
    outputs=_widths(row['outputs']),
    seconds=np.array(row['seconds'], np.float64),
  )
  if entry.operation.kind not in KINDS:
    raise ValueError(f'kind={entry.operation.kind!r}')
  if entry.seconds.shape != (len(entry.inputs), len(entry.outputs)):
    raise ValueError(f'seconds of shape {entry.seconds.shape}')
  if not np.all((entry.seconds >= 0) & (entry.seconds < np.inf)):
    raise ValueError('seconds that are negative or not finite')
  return entry


def _widths(values: Sequence[int]) -> tuple[int, ...]:
  widths = tuple(values)
  whole = all(isinstance(width, int) and width > 0 for width in widths)
  if not widths or not whole or sorted(set(widths)) != list(widths):
    raise ValueError(f'widths {list(widths)} do not ascend')
  return widths


def _find(entries: Sequence[Entry], layer: LayerShape) -> Entry:
  """Depends on the layer only, so that all its widths use one measurement."""
  wanted = operation_of(layer)
  inputs = int(kernel_inputs(layer, layer.inputs))
  reach = [
    entry
    for entry in entries
    if entry.operation == wanted
    and entry.inputs[-1] >= inputs
    and entry.outputs[-1] >= layer.outputs
  ]
  if not reach:
    raise ValueError(
      f'{layer.name}: no measurement reaches {inputs} x {layer.outputs} '
      f'channels of {_words(wanted)}'
    )
  return min(reach, key=lambda entry: (entry.inputs[-1], entry.outputs[-1]))


def _words(operation: Operation) -> str:
  return ', '.join(f'{k}={v}' for k, v in operation._asdict().items())


class _Place(NamedTuple):
  """Widths as indices of two measured ones and a fraction between them."""

  below: np.ndarray
  above: np.ndarray
  fraction: np.ndarray


def _place(
  layer: LayerShape, side: str, measured: Sequence[int], wanted: np.ndarray
) -> _Place:
  least, most = measured[0], measured[-1]
  outside = wanted[(wanted < least) | (wanted > most)]
  if outside.size:
    raise ValueError(
      f'{layer.name}: {side} of {outside.flat[0]} channels, measured were '
      f'{least} to {most}'
    )
  widths = np.array(measured, np.float64)
  below = np.searchsorted(widths, wanted, side='right') - 1
  above = np.minimum(below + 1, widths.size - 1)
  span = np.maximum(widths[above] - widths[below], 1.0)
  return _Place(below, above, (wanted - widths[below]) / span)


def _interpolate(
  seconds: np.ndarray, rows: _Place, columns: _Place
) -> np.ndarray:
  def along_columns(row: np.ndarray) -> np.ndarray:
    below, above = seconds[row, columns.below], seconds[row, columns.above]
    return below + columns.fraction * (above - below)

  below, above = along_columns(rows.below), along_columns(rows.above)
  return below + rows.fraction * (above - below)
