"""The table of latencies: what is timed, and that a search can read it."""

import json

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bandwidth import pruning
from bandwidth.inference import LayerCall
from bandwidth.search.problem.cost import exact_cost, tabulate
from bandwidth.search.problem.latency import FORMAT
from bandwidth.search.problem.latency import latency_table as read
from bandwidth.search.problem.space import LayerShape
from experiments.benchmark.engineer import latency_table
from experiments.measuring import repeated
from experiments.measuring.repeated import compile_repeated
from experiments.models import make_model
from experiments.policy.candidates.channels import network_space
from experiments.runtime import table


class Tiny(nn.Module):
  """A layer of each kind, and one that is there twice."""

  channels: tuple[int, int, int] = (12, 12, 12)

  @nn.compact
  def __call__(self, x, *, train=False):
    for i, channels in enumerate(self.channels):
      options = {'strides': 2, 'padding': 0} if i == 0 else {}
      x = nn.Conv(channels, (3, 3), use_bias=False, **options)(x)
    groups = x.shape[-1]
    x = nn.Conv(groups, (3, 3), feature_group_count=groups, name='deep')(x)
    x = nn.BatchNorm(not train)(x)
    return nn.Dense(5)(x.reshape(x.shape[0], -1))

  def layers(self):
    return (
      pruning.Conv('Conv_0', 'input'),
      pruning.Conv('Conv_1', 'Conv_0'),
      pruning.Conv('Conv_2', 'Conv_1'),
      pruning.Depthwise('deep', 'Conv_2'),
      pruning.Norm('BatchNorm_0', 'deep'),
      pruning.Dense('Dense_0', 'BatchNorm_0'),
    )

  def with_channels(self, kept):
    return self.clone(channels=tuple(kept.values()))


@pytest.fixture(autouse=True)
def _rates(monkeypatch):
  monkeypatch.setattr(latency_table, 'matmul_rate', lambda: 2e9)
  monkeypatch.setattr(latency_table, 'stream_rate', lambda: 1e9)
  monkeypatch.setattr(repeated, '_SPAN', 1e-4)


@pytest.mark.slow
def test_each_operation_is_timed_at_its_widths(tmp_path):
  example = jax.ShapeDtypeStruct((2, 7, 7, 3), jnp.float32)
  measured = latency_table.measure(
    Tiny(), example, divisor=4, widths=2, repeats=1
  )
  # 4 to 12 channels, in images of 3 by 3.
  fields = ('layers', 'kind', 'stride', 'positions', 'inputs', 'outputs')
  found = [tuple(row[field] for field in fields) for row in measured.rows]
  assert found == [
    (['Conv_0'], 'conv', 2, 9, [3], [4, 12]),
    (['Conv_1', 'Conv_2'], 'conv', 1, 9, [4, 12], [4, 12]),
    (['deep'], 'depthwise', 1, 9, [1], [4, 12]),
    (['Dense_0'], 'dense', 1, 1, [36, 108], [5]),
  ]
  for row in measured.rows:
    seconds = np.array(row['seconds'])
    assert seconds.shape == (len(row['inputs']), len(row['outputs']))
    assert (seconds > 0).all()
    assert row['us'] == 1e6 * seconds[-1, -1]
  # Two images; a multiply-add is two operations. Then four bytes of weights and
  # of activations.
  assert measured.rows[1]['limit_us'] == pytest.approx(
    1e6 * 2 * (2 * 9 * 9 * 12 * 12) / 2e9
  )
  assert measured.rows[3]['limit_us'] == pytest.approx(
    1e6 * 4 * (108 * 5 + 5 + 2 * (108 + 5)) / 1e9
  )
  path = tmp_path / 'made' / 'F.json'
  table.write(path, 'latency_table', measured.rows, {'format': FORMAT})
  # What the whole network costs by the table is the sum that was printed.
  variables = jax.eval_shape(Tiny().init, jax.random.key(0), example)
  space = network_space(Tiny(), variables, example, divisor=4)
  model = read(path)
  total = exact_cost(space, model, space.full())
  network = measured.network
  assert 1e6 * total == pytest.approx(network['sum_of_layers_us'])
  assert network['by_sum'] == network['us'] / network['sum_of_layers_us']
  assert tabulate(space, model).units.shape == (5, 3, 3)
  finer = network_space(Tiny(), variables, example, divisor=1)
  with pytest.raises(ValueError, match='measured were 4 to 12'):
    tabulate(finer, model)


def test_repetitions_wait_for_each_other():
  def apply(variables, x):
    return variables * x - 0.5

  x = jax.ShapeDtypeStruct((2, 3), jnp.float32)
  program = compile_repeated(apply, jnp.float32(0.0), x)
  start = jnp.arange(6.0).reshape(2, 3)
  for repetitions in (1, 2, 5):
    expected, first = np.arange(6.0).reshape(2, 3), 0.0
    for _ in range(repetitions):
      expected[0, 0] = np.clip(first, -1, 1)
      y = 1.5 * expected - 0.5
      first = y[0, 0]
    found = program.run(jnp.float32(1.5), start, jnp.int32(repetitions))
    np.testing.assert_allclose(found, y, rtol=1e-6)


def call_of(module, shape):
  return LayerCall(module, shape, jnp.float32)


def test_kernels_of_equal_taps_are_told_apart():
  flat = nn.Conv(8, (1, 9), use_bias=False)
  square = nn.Conv(8, (3, 3), use_bias=False)
  layers = [LayerShape(x, 'conv', 4, 8, 9, 81, 81) for x in 'ab']
  shape = (1, 9, 9, 4)
  same = {'a': call_of(square, shape), 'b': call_of(square, (1, 9, 9, 16))}
  latency_table.check_told_apart(layers, same)
  other = {'a': call_of(square, shape), 'b': call_of(flat, shape)}
  with pytest.raises(ValueError, match='a and b: they differ in the shape'):
    latency_table.check_told_apart(layers, other)
  # A tall image of as many pixels.
  other = {'a': call_of(square, shape), 'b': call_of(square, (1, 3, 27, 4))}
  with pytest.raises(ValueError, match='a and b: they differ in the shape'):
    latency_table.check_told_apart(layers, other)


def test_widths_spread_over_the_levels():
  model = make_model({'name': 'mobilenet_v1'}, num_classes=1000)
  example = jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32)
  variables = jax.eval_shape(model.init, jax.random.key(0), example)
  space = network_space(model, variables, example, most_levels=1000)
  grids = latency_table.find_grids(space, 4)
  by_name = {name: grid for grid in grids for name in grid.names}
  # Five blocks of 512 channels are one.
  repeated = by_name['pointwise_6']
  assert repeated.names == tuple(f'pointwise_{i}' for i in range(6, 11))
  assert repeated.inputs == repeated.outputs == (104, 240, 376, 512)
  assert by_name['stem'].inputs == (3,)
  assert by_name['stem'].outputs == (8, 16, 24, 32)
  assert by_name['classifier'].outputs == (1000,)
  assert by_name['depthwise_12'].inputs == (1,)
  # Of 28 layers four pairs are repetitions.
  assert len(grids) == 28 - 2 * 4


def test_the_command(tmp_path, capsys):
  output = tmp_path / 'F.json'
  arguments = ['--model', 'lenet300', '--image', '28', '--colors', '1']
  arguments += ['--widths', '2', '--repeats', '1', '--output', str(output)]
  assert latency_table.main(arguments) == 0
  said = capsys.readouterr().out.splitlines()
  assert [line.split()[0] for line in said[1:4]] == [
    *('Dense_0', 'Dense_1', 'Dense_2'),
  ]
  content = json.loads(output.read_text())
  assert 'by sum' in said[4]
  assert (content['name'], content['format']) == ('latency_table', 1)
  assert (content['model'], content['batch']) == ('lenet300', 1)
  assert content['network']['us'] > 0
  assert {'device', 'versions', 'commit', 'command'} <= set(content)
  assert (content['seed'], 'unfinished' in content) == (0, False)
  assert content['seconds'] >= 0
  assert [row['inputs'] for row in content['rows']] == [
    *([784], [64, 300], [24, 100]),
  ]
  layer = LayerShape('fc', 'dense', 300, 100, bias=True)
  seconds = float(read(output)(layer, np.array(182), np.array(100)))
  (low,), (high,) = (x[-1:] for x in content['rows'][1]['seconds'])
  assert seconds == pytest.approx((low + high) / 2)


@pytest.mark.parametrize(
  ('arguments', 'message'),
  [
    (['--batch', '0'], 'batch=0 is not positive'),
    (['--repeats', '-1'], 'repeats=-1 is not positive'),
    (['--widths', '1'], 'widths=1 is less than 2'),
    (['--divisor', '200'], 'divisor=200 is larger than the 100 channels of De'),
  ],
)
def test_bad_arguments_are_one_line(arguments, message, capsys):
  given = ['--model', 'lenet300', '--image', '28', '--colors', '1', *arguments]
  assert latency_table.main(given) == 2
  said = capsys.readouterr().err
  assert said.startswith(f'benchmark latency_table: error: {message}')
  assert said.count('\n') == 1


def test_networks_that_cannot_be_shrunk(capsys):
  assert latency_table.main(['--model', 'resnet50', '--image', '32']) == 2
  assert 'cannot be shrunk' in capsys.readouterr().err


def test_output_that_cannot_be_written(tmp_path, capsys):
  (tmp_path / 'file').write_text('')
  arguments = ['--model', 'lenet300', '--image', '28', '--colors', '1']
  arguments += ['--widths', '2', '--repeats', '1']
  output = str(tmp_path / 'file' / 'F.json')
  assert latency_table.main([*arguments, '--output', output]) == 2
  assert 'error: output=' in capsys.readouterr().err
