"""What a search refuses, before it trains anything, in one line.

Names, groups and numbers of the config itself are in `test_search_program`.
"""

import functools
import json
import math
import pathlib
import subprocess
import sys

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest

from bandwidth import pruning
from bandwidth.search.problem.latency import FORMAT
from experiments import datasets
from experiments.config import named_config, resolve
from experiments.policy.candidates.channels import network_space
from experiments.policy.run import run
from experiments.runtime.startup import InputError

ROOT = pathlib.Path(__file__).parents[3]
REPEATS = functools.cache(datasets.load)
TABLE = {'name': 'latency_table', 'format': FORMAT}
# LeNet-5's first layer as `make_config` has it, at all of its widths.
FIRST = {
  'kind': 'conv',
  'taps': 25,
  'stride': 1,
  'positions': 576,
  'pixels': 784,
  'multiplier': 1,
  'bias': True,
  'inputs': [1],
  'outputs': [1, 6],
  'seconds': [[1.0, 2.0]],
}


@pytest.fixture(scope='module', autouse=True)
def one_data_set():
  """Reads each data set once."""
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(datasets, 'load', REPEATS)
    yield


def make_config(model=None, **search):
  """The quickstart's config, of a small network; `a__b` is `search.a.b`."""
  config = named_config('quickstart_search', 'runlocal').to_dict()
  small = {'convolution': 'xla', 'channels': (6, 8), 'features': 20}
  config['model'] = model or {'name': 'lenet5', **small}
  config['search']['images'] = 100
  for field, value in search.items():
    *parents, leaf = field.split('__')
    group = config['search']
    for name in parents:
      group = group[name]
    group[leaf] = value
  return config


def cost(name, **arguments):
  return {'cost': {'name': name, **arguments}}


def searcher(name, **options):
  return {'searcher': {'name': name, **options}}


NOT_A_FRACTION = r'is not in \(0, 1\]'
BAD = {
  'budget 0': ({'budget': 0.0}, f'search.budget=0.0 {NOT_A_FRACTION}'),
  'budget nan': ({'budget': math.nan}, f'search.budget=nan {NOT_A_FRACTION}'),
  'budget inf': ({'budget': math.inf}, f'search.budget=inf {NOT_A_FRACTION}'),
  'frontier 1.5': (
    {'frontier': (0.5, 1.5)},
    f'search.frontier=1.5 {NOT_A_FRACTION}',
  ),
  'frontier nan': (
    {'frontier': (math.nan,)},
    f'search.frontier=nan {NOT_A_FRACTION}',
  ),
  'divisor 0': ({'divisor': 0}, 'divisor=0 is not positive'),
  'smallest 0': ({'smallest': 0.0}, f'smallest=0.0 {NOT_A_FRACTION}'),
  'smallest nan': ({'smallest': math.nan}, f'smallest=nan {NOT_A_FRACTION}'),
  'one level': ({'most_levels': 1}, 'most_levels=1 is less than 2'),
  'seeds': ({'seeds': 0}, 'search.seeds=0 is not positive'),
  'finalists': ({'finalists': 0}, 'search.finalists=0 is not positive'),
  'no images': ({'images': -3}, 'search.images=-3 is not positive'),
  'statistics': (
    {'statistics': 60_000},
    'search.statistics=60000 are more than the .* training examples',
  ),
  'ridge': ({'refit__ridge': -1.0}, 'search.refit.ridge=-1.0 is negative'),
  'refit': ({'refit': 3}, 'search.refit=3 is not a group of fields'),
  'misspelled': (
    {'budgett': 0.5},
    r'there is no field search.budgett; did you mean search.budget\?',
  ),
  'misspelled in a group': (
    {'refit__point': 5},
    r'no field search.refit.point; did you mean search.refit.points\?',
  ),
  'no name of a searcher': (
    searcher(''),
    "searcher.name='' is unknown; known: amc",
  ),
  'no name of a cost': (cost(''), "cost.name='' is unknown; known: energy"),
  'searcher for bits': (searcher('haq'), 'its decisions are no bits'),
  'option of another searcher': (
    searcher('random', population=8),
    "searcher.population is no argument of 'random'",
  ),
  'option of one candidate': (
    searcher('uniform', buckets=8),
    "searcher.buckets is no argument of 'uniform'",
  ),
  'population': (searcher('cma_es', population=3), 'population=3 is '),
  'no rates': (cost('roofline'), "cost: 'roofline' needs macs_per_second"),
  'rate nan': (
    cost('roofline', macs_per_second=math.nan, bytes_per_second=1.0),
    'macs_per_second=nan is not positive',
  ),
  'overhead': (
    cost('roofline', macs_per_second=1.0, bytes_per_second=1.0, overhead=-1.0),
    'overhead=-1.0 is negative or not finite',
  ),
  'bits': (
    cost('memory', weight_bits=-8),
    'weight_bits=-8 is negative or not finite',
  ),
  'place': (
    cost('energy', weights_in='flash'),
    "weights_in='flash' is unknown; known: dram, sram",
  ),
  'coefficient': (
    cost('fitted_latency', memory=-1.0),
    'memory=-1.0 is negative or not finite',
  ),
  'no table': (cost('latency_table'), "cost: 'latency_table' needs path"),
  'network without channels to remove': (
    {'model': {'name': 'resnet50'}},
    r'ResNetImagenet has no layers\(\)',
  ),
  'nothing is added': (
    {'decisions__residual': 'group'},
    "search.decisions.residual='group': channels of LeNet5 are not added",
  ),
  'residual': (
    {
      'model': {'name': 'mobilenet_v2_cifar'},
      'decisions__residual': 'grouped',
    },
    "residual='grouped' is unknown; known: fixed, group",
  ),
  'argument of the network': (
    {'model': {'name': 'lenet5', 'channel': (3, 4)}},
    "model.channel is no argument of 'lenet5'; known: channels",
  ),
}


def refused(config, directory, message):
  with pytest.raises(InputError, match=message) as error:
    run(config, str(directory / 'w'))
  assert '\n' not in str(error.value)
  assert not (directory / 'w').exists()


@pytest.mark.parametrize('name', BAD)
def test_nothing_is_left_behind(name, tmp_path):
  fields, message = BAD[name]
  refused(make_config(**fields), tmp_path, message)


TABLES = {
  'missing': (None, 'cannot be read: No such file'),
  'malformed': ('{"rows": [', 'is no JSON'),
  'of something else': ('{"name": "loop", "rows": []}', 'is no table of lat'),
  'a malformed row': (
    json.dumps({**TABLE, 'rows': [{**FIRST, 'seconds': [[1.0]]}]}),
    'a row is malformed',
  ),
  'without an entry': (
    json.dumps({**TABLE, 'rows': [FIRST]}),
    'Conv_1: no measurement reaches 6 x 8 channels of kind=conv, taps=25',
  ),
  'of wider layers': (
    json.dumps({**TABLE, 'rows': [{**FIRST, 'outputs': [4, 6]}]}),
    'Conv_0: outputs of 1 channels, measured were 4 to 6',
  ),
}


@pytest.mark.parametrize('name', TABLES)
def test_tables_of_latencies(name, tmp_path):
  text, message = TABLES[name]
  path = tmp_path / 'table.json'
  if text is not None:
    path.write_text(text)
  config = make_config(**cost('latency_table', path=str(path)))
  refused(config, tmp_path, message)


def test_networks_that_are_not_there(tmp_path):
  for network, message in (
    (tmp_path / 'none', "input='.*none' "),
    (tmp_path / 'none.safetensors', "input='.*none.safetensors' is not there"),
    (ROOT / 'README.md', 'has none of the suffixes'),
  ):
    refused(make_config(network=str(network)), tmp_path, message)


class SideBySide(nn.Module):
  """Two convolutions that a third reads one beside the other."""

  @nn.compact
  def __call__(self, x):
    both = [nn.Conv(8, (1, 1), name=name)(x) for name in 'ab']
    x = nn.Conv(8, (1, 1), name='reader')(jnp.concatenate(both, axis=-1))
    return nn.Dense(3, name='out')(x.mean((1, 2)))

  def layers(self):
    return (
      pruning.Conv('a', 'input'),
      pruning.Conv('b', 'input'),
      pruning.Concat('ab', ('a', 'b')),
      pruning.Conv('reader', 'ab'),
      pruning.Dense('out', 'reader'),
    )

  def with_channels(self, kept):
    del kept
    return self


def test_joins_that_cannot_be_refitted_name_their_layer():
  image = jax.ShapeDtypeStruct((1, 4, 4, 3), jnp.float32)
  variables = jax.eval_shape(SideBySide().init, jax.random.key(0), image)
  message = 'reader: its inputs are channels of several groups, a and b'
  with pytest.raises(ValueError, match=message):
    network_space(SideBySide(), variables, image)


POLICIES = {
  'missing': (None, 'cannot be read: No such file'),
  'no JSON': ('{', 'is no JSON: Expecting'),
  'a list': ('[]', 'is no search.json: model is missing'),
  'no model': ('{"weights": "model.bwz"}', 'json: model is missing'),
  'no weights': ('{"model": {"name": "lenet5"}}', 'json: weights is missing'),
  'no group': ('{"model": 3, "weights": "w"}', 'json: model is missing'),
  'no name': ('{"model": {}, "weights": 3}', 'json: weights is missing'),
}


@pytest.mark.parametrize('name', POLICIES)
def test_policies(name, tmp_path):
  text, message = POLICIES[name]
  path = tmp_path / 'search.json'
  if text is not None:
    path.write_text(text)
  with pytest.raises(ValueError, match=message) as error:
    resolve(named_config('quickstart_search', f'policy={path}'))
  assert str(error.value).startswith(f'policy={str(path)!r}')
  assert '\n' not in str(error.value)


TYPES = {
  'budget abc': ({'budget': 'abc'}, "search.budget='abc' is no number"),
  'two budgets': ({'budget': (0.3, 0.5)}, 'search.budget=.* is no number'),
  'frontier abc': ({'frontier': 'abc'}, "search.frontier='abc' is no list"),
  'a word in it': ({'frontier': (0.5, 'nan')}, "frontier='nan' is no number"),
  'evaluations 2.5': ({'evaluations': 2.5}, 'evaluations=2.5 is no integer'),
  'seeds true': ({'seeds': True}, 'search.seeds=True is no integer'),
  'divisor 1.5': ({'divisor': 1.5}, 'search.divisor=1.5 is no integer'),
  'images none': ({'images': None}, 'search.images=None is no integer'),
  'ridge nan': (
    {'refit__ridge': math.nan},
    'search.refit.ridge=nan is negative or not finite',
  ),
  'searcher, no group': (
    {'searcher': 'cma_es'},
    "search.searcher='cma_es' is not a group of fields",
  ),
  'cost, no group': (
    {'cost': 'macs'},
    "search.cost='macs' is not a group of fields",
  ),
}


@pytest.mark.parametrize('name', TYPES)
def test_types(name, tmp_path):
  fields, message = TYPES[name]
  refused(make_config(**fields), tmp_path, message)


@pytest.mark.slow
def test_the_program_prints_one_line(tmp_path):
  command = [sys.executable, '-m', 'experiments.search']
  config = ROOT / 'configs' / 'quickstart_search.py'
  command += ['--config', f'{config}:runlocal', '--workdir', tmp_path / 'w']
  command.append('--config.search.budget=abc')
  done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
  assert done.returncode == 2
  assert done.stdout == ''
  assert done.stderr.startswith(
    'search: error: flag --config.search.budget=abc'
  )
  assert done.stderr.count('\n') == 1
  assert not (tmp_path / 'w').exists()
