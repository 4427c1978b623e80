"""Latencies: tables by hand and by brute force, and the fitted phone."""

import json
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toy import group

from bandwidth.search.problem.cost import (
  cost_model,
  cost_of,
  exact_cost,
  macs,
  tabulate,
)
from bandwidth.search.problem.latency import (
  fitted_latency,
  kernel_inputs,
  latency_table,
  operation_of,
  read_table,
)
from bandwidth.search.problem.space import LayerShape, make_space
from experiments.models.geometry import layer_shapes
from experiments.models.mobilenet import MobileNetV1

CONV = LayerShape('c', 'conv', 3, 32, 9, positions=64, pixels=256, stride=2)
DEEP = LayerShape('d', 'depthwise', 32, 32, 9, positions=64, pixels=64)
FLAT = LayerShape('f', 'dense', 32, 10, taps=64, pixels=64, bias=True)


def row(kind, inputs, outputs, seconds, **fields):
  ones = dict.fromkeys(
    ('taps', 'stride', 'positions', 'pixels', 'multiplier'), 1
  )
  widths = {'inputs': inputs, 'outputs': outputs, 'seconds': seconds}
  return {'kind': kind, **ones, 'bias': False, **fields, **widths}


CONV_ROW = row(
  *('conv', [3], [8, 16, 32], [[1e-6, 4e-6, 6e-6]]),
  taps=9,
  stride=2,
  positions=64,
  pixels=256,
)
# Slower with 16 channels than with 32.
DEEP_ROW = row(
  *('depthwise', [1], [8, 16, 32], [[2e-6, 9e-6, 5e-6]]),
  taps=9,
  positions=64,
  pixels=64,
)
FLAT_ROW = row(
  *('dense', [512, 2048], [2, 10], [[1e-6, 3e-6], [2e-6, 8e-6]]), bias=True
)


def write(path, rows, **fields):
  content = {'name': 'latency_table', 'format': 1, 'rows': rows}
  path.write_text(json.dumps({**content, **fields}))
  return path


@pytest.fixture(name='table')
def make_table(tmp_path):
  rows = [CONV_ROW, DEEP_ROW, FLAT_ROW]
  return latency_table(write(tmp_path / 'table.json', rows))


def at(model, layer, inputs, outputs):
  return float(model(layer, np.array(inputs), np.array(outputs)))


@pytest.mark.parametrize(
  ('layer', 'inputs', 'outputs', 'microseconds'),
  [
    # As measured.
    (CONV, 3, 8, 1.0),
    (CONV, 3, 16, 4.0),
    (CONV, 3, 32, 6.0),
    # Between two: a quarter of the way from 16 to 32.
    (CONV, 3, 20, 4.5),
    (DEEP, 8, 8, 2.0),
    (DEEP, 12, 12, 5.5),
    (DEEP, 24, 24, 7.0),
    (DEEP, 32, 32, 5.0),
    # Rows are channels by 64 pixels: 8 and 32 were measured.
    (FLAT, 8, 2, 1.0),
    (FLAT, 32, 10, 8.0),
    (FLAT, 20, 10, 5.5),
    # Halfway along both: the mean of the four.
    (FLAT, 20, 6, 3.5),
  ],
)
def test_lookups_by_hand(table, layer, inputs, outputs, microseconds):
  found = at(table, layer, inputs, outputs)
  assert found == pytest.approx(1e-6 * microseconds, rel=1e-12)


def hats(widths, value):
  """Weights of measured widths: 1 at its own, straight down to 0 at others."""
  return [np.interp(value, widths, row) for row in np.eye(len(widths))]


def bilinear(measured, inputs, outputs):
  return sum(
    a * b * measured['seconds'][i][j]
    for i, a in enumerate(hats(measured['inputs'], inputs))
    for j, b in enumerate(hats(measured['outputs'], outputs))
  )


def test_interpolation_against_hat_functions(tmp_path):
  rng = np.random.default_rng(0)
  inputs, outputs = [4, 5, 11, 16], [2, 3, 24]
  measured = row('conv', inputs, outputs, rng.random((4, 3)).tolist())
  table = latency_table(write(tmp_path / 'F.json', [measured]))
  layer = LayerShape('c', 'conv', 16, 24)
  x, y = np.arange(4, 17)[:, None], np.arange(2, 25)[None]
  found = table(layer, x, y)
  assert found.shape == (13, 23)
  assert found.dtype == np.float64
  expected = [[bilinear(measured, a, b) for b in y[0]] for a in x[:, 0]]
  np.testing.assert_allclose(found, expected, rtol=1e-12)
  # What was measured comes back to the last bit.
  corners = found[np.ix_(np.array(inputs) - 4, np.array(outputs) - 2)]
  np.testing.assert_array_equal(corners, measured['seconds'])


def test_tables_are_costs_of_a_space(table, tmp_path):
  layers = [CONV, DEEP, FLAT._replace(inputs=32 * 64, taps=1, pixels=1)]
  groups = [group('c', 32, writers=['c', 'd'], readers=['f'])]
  space = make_space(layers, groups)
  assert space.layers[2] == FLAT
  costs = tabulate(space, table)
  # 8, 16, 24 and 32 channels; the dense layer makes 10 numbers.
  expected = [1 + 2 + 3, 4 + 9 + 3 + 5 / 3, 5 + 7 + 3 + 10 / 3, 6 + 5 + 8]
  for level, microseconds in enumerate(expected):
    exact = exact_cost(space, table, [level])
    assert exact == pytest.approx(1e-6 * microseconds, rel=1e-12)
    units = int(cost_of(costs, jnp.array([level])))
    assert exact <= units * costs.unit < exact + 3 * costs.unit
  by_name = cost_model('latency_table', path=tmp_path / 'table.json')
  assert exact_cost(space, by_name, [2]) == exact_cost(space, table, [2])


def test_the_closest_measurement_is_taken(tmp_path):
  rows = [
    row('conv', [8, 64], [8, 64], [[1.0, 1.0], [1.0, 1.0]]),
    row('conv', [8, 32], [8, 32], [[2.0, 2.0], [2.0, 2.0]]),
    row('conv', [8, 16], [8, 32], [[3.0, 3.0], [3.0, 3.0]]),
  ]
  table = latency_table(write(tmp_path / 'F.json', rows))
  for channels, expected in (
    *(((64, 64), 1.0), ((33, 8), 1.0), ((32, 32), 2.0)),
    *(((16, 32), 3.0), ((16, 33), 1.0)),
  ):
    layer = LayerShape('a', 'conv', *channels)
    # By all channels of the layer, however few a candidate keeps.
    assert at(table, layer, 8, 8) == expected


@pytest.mark.parametrize(
  ('layer', 'inputs', 'outputs', 'message'),
  [
    (CONV, 3, 4, 'c: outputs of 4 channels, measured were 8 to 32'),
    (DEEP, 4, 4, 'd: outputs of 4 channels, measured were 8 to 32'),
    (FLAT, 7, 10, 'f: inputs of 448 channels, measured were 512 to 2048'),
    (FLAT, 8, 11, 'f: outputs of 11 channels, measured were 2 to 10'),
    (
      CONV._replace(outputs=40),
      *(3, 8, 'c: no measurement reaches 3 x 40 channels of kind=conv, taps=9'),
    ),
    (
      CONV._replace(stride=1),
      *(3, 8, 'c: no measurement reaches 3 x 32 channels .*stride=1'),
    ),
    (CONV._replace(inputs=4), 4, 8, 'c: no measurement reaches 4 x 32'),
    (FLAT._replace(bias=False), 8, 2, 'f: no measurement .*bias=False'),
    (
      DEEP._replace(outputs=64),
      *(8, 16, 'd: no measurement .*multiplier=2'),
    ),
  ],
)
def test_what_was_not_measured(table, layer, inputs, outputs, message):
  with pytest.raises(ValueError, match=message):
    at(table, layer, inputs, outputs)
  # In a whole table of levels too.
  with pytest.raises(ValueError, match=message):
    table(layer, np.array([[inputs]]), np.array([[outputs, layer.outputs]]))


def test_operations():
  assert operation_of(DEEP._replace(outputs=64)).multiplier == 2
  # A dense layer is a product of matrices, whatever was flattened before.
  flattened = FLAT._replace(inputs=2048, taps=1, pixels=1)
  assert operation_of(FLAT) == operation_of(flattened)
  assert kernel_inputs(FLAT, 5) == 320
  assert kernel_inputs(CONV, 3) == 3
  assert kernel_inputs(DEEP, np.array([8, 16])).tolist() == [1, 1]


def test_tables_are_read_whole(tmp_path):
  path = write(
    tmp_path / 'F.json', [{**CONV_ROW, 'layer': 'stem'}], device='a phone'
  )
  (entry,) = read_table(str(path))
  assert entry.operation == operation_of(CONV)
  assert (entry.inputs, entry.outputs) == ((3,), (8, 16, 32))
  assert entry.seconds.dtype == np.float64


@pytest.mark.parametrize(
  ('text', 'message'),
  [
    (None, 'cannot be read: No such file'),
    ('', 'is no JSON'),
    ('[1, 2', 'is no JSON'),
    (100_000 * '[', 'is no JSON'),
    ('\xff', 'is no JSON'),
    ('[]', 'is no table of latencies'),
    ('{}', 'is no table of latencies'),
    ({'name': 'loop'}, 'is no table of latencies'),
    ({'rows': None}, 'is no table of latencies'),
    ({'format': 2}, 'format=2 is not 1'),
    ({'format': None}, 'format=None is not 1'),
    ({'rows': [1]}, 'a row is malformed'),
    ({'rows': [{**CONV_ROW, 'seconds': [[1.0]]}]}, 'seconds of shape'),
    ({'rows': [{**CONV_ROW, 'seconds': [[1, 2, -1]]}]}, 'that are negative'),
    ({'rows': [{**CONV_ROW, 'seconds': [[1, 2, math.nan]]}]}, 'not finite'),
    ({'rows': [{**CONV_ROW, 'seconds': [[1, 2], [3]]}]}, 'is malformed'),
    ({'rows': [{**CONV_ROW, 'seconds': 'fast'}]}, 'is malformed'),
    ({'rows': [{**CONV_ROW, 'outputs': [8, 8, 16]}]}, 'do not ascend'),
    ({'rows': [{**CONV_ROW, 'outputs': [8, 1.5, 16]}]}, 'do not ascend'),
    ({'rows': [{**CONV_ROW, 'inputs': []}]}, 'do not ascend'),
    ({'rows': [{**CONV_ROW, 'inputs': 3}]}, 'is malformed'),
    ({'rows': [{**CONV_ROW, 'kind': 'pool'}]}, "kind='pool'"),
    (
      {'rows': [{k: v for k, v in CONV_ROW.items() if k != 'taps'}]},
      'a row is malformed: KeyError',
    ),
  ],
)
def test_files_that_are_no_tables(text, message, tmp_path):
  path = tmp_path / 'F.json'
  if isinstance(text, dict):
    fields = {'rows': [CONV_ROW], **text}
    write(path, fields.pop('rows'), **fields)
  elif text is not None:
    path.write_bytes(text.encode('latin-1'))
  with pytest.raises(ValueError, match=message) as caught:
    latency_table(path)
  assert str(caught.value).startswith(f'path={str(path)!r}')
  assert '\n' not in str(caught.value)


# Howard et al.: all channels, 0.75 of them; then the two that AMC published.
V1 = {
  'whole': (32, 64, 128, 128, 256, 256, *(512,) * 6, 1024, 1024),
  '0.75': (24, 48, 96, 96, 192, 192, *(384,) * 6, 768, 768),
  '50% FLOPs': (
    *(24, 48, 96, 80, 192, 200, 328),
    *(352, 368, 360, 328, 400, 736, 752),
  ),
  '50% time': (
    *(16, 48, 88, 80, 192, 168, 336),
    *(360, 360, 352, 352, 368, 768, 680),
  ),
}
FITTED = {'whole': 123.9, '0.75': 74.9, '50% FLOPs': 68.7, '50% time': 64.0}
LOGGED = {'whole': 123.9, '0.75': 72.5, '50% FLOPs': 68.9, '50% time': 63.2}


@pytest.mark.parametrize('name', V1)
def test_the_fitted_phone(name):
  image = jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32)
  layers = layer_shapes(MobileNetV1(channels=V1[name]), image)
  assert len(layers) == 28
  model = fitted_latency()
  found = sum(at(model, x, x.inputs, x.outputs) for x in layers)
  assert 1e3 * found == pytest.approx(FITTED[name], abs=0.06)
  assert 1e3 * found == pytest.approx(LOGGED[name], rel=0.035)


@pytest.mark.parametrize(('layer', 'rate'), [(CONV, 2), (DEEP, 3), (FLAT, 2)])
def test_the_formula(layer, rate):
  model = fitted_latency(convolution=2, depthwise=3, memory=5)
  weights = layer.weights + layer.bias * layer.outputs
  read = layer.pixels * layer.inputs + layer.positions * layer.outputs
  computed = float(macs(layer, np.array(layer.inputs), np.array(layer.outputs)))
  milliseconds = rate * computed / 1e6 + 5 * 4 * (weights + read) / 1e6
  found = at(model, layer, layer.inputs, layer.outputs)
  assert found == pytest.approx(1e-3 * milliseconds, rel=1e-12)


@pytest.mark.parametrize('name', ['convolution', 'depthwise', 'memory'])
@pytest.mark.parametrize('value', [-1.0, math.nan, math.inf])
def test_coefficients_are_times(name, value):
  message = re.escape(f'{name}={value} is negative or not finite')
  with pytest.raises(ValueError, match=message):
    fitted_latency(**{name: value})
