"""Searches of bits, and of channels and precision together, to the file."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bandwidth import tree
from experiments.compression.weights import read_weights, write_safetensors
from experiments.config import named_config, resolve
from experiments.models import make_model
from experiments.policy.kinds import KINDS
from experiments.policy.plan import make_plan
from experiments.policy.run import run
from experiments.runtime.startup import InputError

KINDS_OF = {
  'linear': {
    'decisions': {'name': 'bits', 'bits': (2, 4, 8)},
    'searcher': {'name': 'haq'},
    'cost': {'name': 'weight_bytes'},
    'budget': 0.6,
  },
  'kmeans': {
    'decisions': {'name': 'bits', 'mode': 'kmeans', 'bits': (1, 2, 4)},
    'cost': {'name': 'weight_bytes', 'mode': 'kmeans'},
    'budget': 0.1,
  },
  'joint': {
    'decisions': {'name': 'joint', 'bits': (2.0, 4.0, 6.0)},
    'cost': {'name': 'file_bytes'},
    'budget': 0.25,
  },
  'joint_macs': {
    'decisions': {'name': 'joint', 'bits': (3.0, 6.0)},
    'cost': {'name': 'macs'},
    'budget': 0.5,
  },
}


def make_config(network, **search):
  config = named_config('quickstart_search', 'runlocal').to_dict()
  config['model'] = {'name': 'lenet5', 'channels': (6, 8), 'features': 20}
  config['dataset'] = {**config['dataset'], 'validation': 150}
  config['search'] = {
    **config['search'],
    'searcher': {'name': 'random'},
    'network': str(network),
    'evaluations': 12,
    'images': 64,
    'finalists': 3,
    'divisor': 2,
    'smallest': 0.3,
    'most_levels': 8,
    'budget': 0.5,
    'frontier': (0.7,),
    'refit': {'batches': 2, 'batch_size': 20},
    **search,
  }
  return config


@pytest.fixture(scope='module')
def network(tmp_path_factory):
  path = tmp_path_factory.mktemp('network') / 'model.safetensors'
  config = make_config('')
  model = make_model(config['model'], num_classes=10)
  variables = jax.jit(model.init)(jax.random.key(1), jnp.zeros((1, 28, 28, 1)))
  arrays = {name: np.asarray(x) for name, x in tree.named_leaves(variables)}
  write_safetensors(path, arrays)
  return path


@pytest.fixture(
  scope='module',
  params=[
    kind if kind == 'kmeans' else pytest.param(kind, marks=pytest.mark.slow)
    for kind in KINDS_OF
  ],
)
def searched(request, network, tmp_path_factory):
  workdir = tmp_path_factory.mktemp(request.param)
  config = make_config(network, **KINDS_OF[request.param])
  return request.param, workdir, run(config, str(workdir))


def test_what_is_found_is_within_the_budget(searched):
  kind, workdir, outcome = searched
  cost = outcome['cost']
  assert cost['found'] <= cost['budget'] * (1 + 1e-9)
  assert max(map(max, outcome['history']['costs'])) <= outcome['budget']
  if kind == 'joint':
    assert (workdir / 'model.bwz').stat().st_size <= cost['budget']


def test_the_file_computes_what_was_searched(searched):
  _, workdir, outcome = searched
  assert outcome['score']['masked_minus_exported'] < 1e-5
  assert outcome['score']['test']['file_bytes'] == (
    (workdir / 'model.bwz').stat().st_size
  )
  assert (workdir / 'policy.png').exists()
  assert '## Policy' in (workdir / 'search.md').read_text()


def test_kernels_have_no_more_values_than_their_bits_allow(searched):
  kind, workdir, outcome = searched
  arrays = read_weights(workdir / 'model.bwz')
  for row in outcome['policy']:
    if 'bits' not in row or row['name'].endswith('activations'):
      continue
    layer = row['name'].removesuffix('/weights')
    kernel = arrays[f'params/{layer}/kernel']
    assert len(np.unique(kernel)) <= 2 ** row['bits']
  assert outcome['config']['search']['decisions']['name'] in KINDS
  if kind == 'linear':
    assert [r['bits'] for r in outcome['policy']][-2:] == [8, 8]


@pytest.mark.parametrize(
  ('search', 'message'),
  [
    ({'decisions': {'name': 'channel'}}, 'channel'),
    ({'decisions': {'name': 'channels', 'bits': (1,)}}, 'decisions.bits'),
    ({'decisions': {}}, 'decisions.name is missing'),
    (
      {'decisions': {'name': 'bits', 'mode': 'log'}, 'cost': {'name': 'bytes'}},
      "mode='log'",
    ),
    (
      {
        'decisions': {'name': 'bits'},
        'cost': {'name': 'bytes'},
        'searcher': {'name': 'amc'},
      },
      'its decisions are bits, not channels',
    ),
    (
      {
        'decisions': {'name': 'joint'},
        'cost': {'name': 'file_bytes'},
        'searcher': {'name': 'cma'},
      },
      "searcher.name='cma'",
    ),
    (
      {'decisions': {'name': 'joint'}, 'cost': {'name': 'file_byte'}},
      "cost.name='file_byte'",
    ),
    pytest.param(
      {
        'decisions': {'name': 'joint'},
        'cost': {'name': 'file_bytes'},
        'budget': 0.001,
      },
      'the smallest network costs',
      marks=pytest.mark.slow,
    ),
  ],
)
def test_bad_input(network, tmp_path, search, message):
  with pytest.raises(InputError, match=message):
    run(make_config(network, **search), str(tmp_path / 'run'))
  assert not (tmp_path / 'run' / 'search.json').exists()


def test_policy_names_a_network(tmp_path):
  config = make_config('')
  with pytest.raises(ValueError, match='cannot be read'):
    resolve({**config, 'policy': str(tmp_path / 'none.json')})
  path = tmp_path / 'search.json'
  path.write_text('[1]')
  with pytest.raises(ValueError, match='model is missing'):
    resolve({**config, 'policy': str(path)})
  path.write_text('{')
  with pytest.raises(ValueError, match='is no JSON'):
    resolve({**config, 'policy': str(path)})
  path.write_text('{"model": {"name": "lenet300"}, "weights": "model.bwz"}')
  found = resolve({**config, 'policy': str(path)})
  assert found['model'] == {'name': 'lenet300'}
  assert found['initial'] == str(tmp_path / 'model.bwz')


def test_channels_are_priced_before_training(network):
  plan = make_plan(resolve(make_config(network)))
  priced = plan.kind.price(plan.config, plan.task, plan.variables)
  assert priced.whole == priced.exact(priced.space.full())


@pytest.mark.slow
def test_channels_of_residual_connections_are_decisions_where_asked_for():
  config = named_config('quickstart_search', 'runlocal').to_dict()
  config['model'] = {'name': 'mobilenet_v2_cifar'}

  def decided(**options):
    search = {**config['search'], 'images': 100, 'budget': 0.5}
    # They are no chain, which dynamic programming needs.
    search['searcher'] = {'name': 'cma_es'}
    search['decisions'] = {'name': 'channels', **options}
    plan = make_plan(resolve({**config, 'search': search}))
    space = plan.kind.price(plan.config, plan.task, plan.variables).space
    return {group.name: group.channels for group in space.groups}

  fixed, grouped = decided(), decided(residual='group')
  # Channels between blocks, beside those inside of them.
  assert fixed.items() < grouped.items()
  assert set(grouped.values()) - set(fixed.values())
