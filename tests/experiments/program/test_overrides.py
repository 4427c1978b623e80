"""Fields by flags, of programs that take a config."""

import pathlib

import ml_collections
import pytest
from absl import flags

from bandwidth.search import searchers
from configs import default
from experiments import models
from experiments.config import resolve
from experiments.program import flags as program_flags
from experiments.training.optimizers import OPTIMIZERS, make_optimizer
from experiments.training.reducers import REDUCERS, make_reducer

# ml_collections loads the file of a config in a way that Python is leaving.
pytestmark = pytest.mark.filterwarnings(
  'ignore:the load_module:DeprecationWarning'
)

CONFIGS = pathlib.Path(__file__).parents[3] / 'configs'
# Of reducers and methods, what has no default.
NEEDED = {
  'deep_gradient_compression': {'density': 0.1},
  'top_k': {'density': 0.1},
  'random_k': {'density': 0.1},
  'shared_mask': {'density': 0.1},
  'power_sgd': {'rank': 2},
}


def read(config, *fields):
  """The config of a file as flags leave it."""
  path, _, mode = config.partition(':')
  suffix = f':{mode}' if mode else ''
  argv = ['x', f'--config={CONFIGS / path}.py{suffix}']
  argv += [f'--config.{field}' for field in fields]
  values = flags.FlagValues()
  program_flags.define_flags(values, argv)
  values(argv)
  return values.config


def resolved(config, *fields):
  return resolve(read(config, *fields))


def leaves(group, path=''):
  """Fields that are no arguments of what is named."""
  for name, value in group.items():
    if not isinstance(value, ml_collections.ConfigDict):
      yield f'{path}{name}'
    elif name not in default.OPEN:
      yield from leaves(value, f'{path}{name}.')


def another(value):
  """A value of the same type, and how a flag spells it."""
  if isinstance(value, bool):
    return not value, str(not value)
  if isinstance(value, tuple):
    return ('a', 'b'), "('a', 'b')"
  found = value + '_' if isinstance(value, str) else value + 3
  return found, str(found)


def value_at(config, path):
  for part in path.split('.'):
    config = config[part]
  return config


@pytest.mark.parametrize('path', list(leaves(default.get_config())))
def test_every_field_is_a_flag(path):
  value, text = another(value_at(default.get_config(), path))
  found = read('quickstart', f'{path}={text}')
  assert value_at(found, path) == value
  expected = read('quickstart')
  expected.update_from_flattened_dict({path: value})
  assert found.to_dict() == expected.to_dict()


@pytest.mark.parametrize(
  ('field', 'text', 'value'),
  [
    ('epochs', '2', 2.0),
    ('steps', '3', 3),
    ('flush', 'True', True),
    ('files', "(('model', 'auto'),)", (('model', 'auto'),)),
    ('optimizer', "{'decay': 0.5}", {'decay': 0.5}),
    ('reducer', "{'name': 'qsgd'}", {'name': 'qsgd'}),
    ('method', "{'name': 'keep'}", {'name': 'keep'}),
  ],
)
def test_every_field_of_a_stage_is_a_flag(field, text, value):
  assert field in default.STAGE
  found = read('mnist_lenet5', f'stages.train.{field}={text}').to_dict()
  assert found['stages']['train'] == {'epochs': 12.0, field: value}


@pytest.mark.parametrize(
  ('field', 'message'),
  [
    ('augment.pda=2', 'no field augment.pda; did you mean augment.pad?'),
    ('bach_size=2', 'no field bach_size; did you mean batch_size?'),
    ('datset.name=x', 'no field datset; did you mean dataset?'),
    ('seed.x=1', 'seed has no fields'),
    ('stages.dnese.epochs=1', 'did you mean stages.dense?'),
    ('stages.dense.epoch=1', 'did you mean stages.dense.epochs?'),
    (
      'stages.dense.optimizer.learning_rat=1',
      'did you mean stages.dense.optimizer.learning_rate?',
    ),
    (
      'reducer.densty=1',
      "reducer.densty is no argument of 'deep_gradient_compression'",
    ),
    (
      'reducer.dtype=float32',
      "reducer.dtype is no argument of 'deep_gradient_compression'",
    ),
    ('reducer.name=dtyp', "reducer.name='dtyp' is unknown; known: deep"),
    ('model.name=lenet6', "model.name='lenet6' is unknown"),
    ('model.chanels=3', "model.chanels is no argument of 'lenet300'"),
    ('model.num_classes=3', "num_classes is no argument of 'lenet300'"),
    ('search.searcher.name=cma', "search.searcher.name='cma' is unknown"),
    ('search.cost.name=file_bytes', "search.cost.name='file_bytes' is unk"),
    ('search.decisions.bits=3', "bits is no argument of 'channels'"),
    (
      'stages.prune.method.sparsty=1',
      "stages.prune.method.sparsty is no argument of 'prune'",
    ),
    ('search.budget=abc', 'search.budget=abc'),
    ('reducer.density=abc', 'reducer.density=abc'),
  ],
)
def test_bad_flags(field, message):
  with pytest.raises(flags.Error) as error:
    read('quickstart', field)
  assert message in str(error.value)
  assert '\n' not in str(error.value)


def test_config_that_cannot_be_read():
  with pytest.raises(flags.Error, match=r'^config: .*No such file'):
    read('none', 'seed=3')


@pytest.mark.parametrize('file', ['mnist_lenet5', 'quickstart'])
@pytest.mark.parametrize('name', sorted(REDUCERS))
def test_reducers_are_swapped_by_name(file, name):
  needed = NEEDED.get(name, {})
  fields = [f'reducer.{key}={value}' for key, value in needed.items()]
  found = resolved(file, f'reducer.name={name}', *fields)
  assert found['reducer'].items() >= {'name': name, **needed}.items()
  parts = [found['reducer']]
  parts += [s['reducer'] for s in found['stages'].values() if 'reducer' in s]
  for part in parts:
    make_reducer(part, axis_name='data', workers=(4,))
    assert part['name'] == name


def test_arguments_of_the_old_reducer_are_dropped_and_shared_ones_stay():
  found = resolved('quickstart', 'reducer.name=top_k')['reducer']
  assert found == {
    'name': 'top_k',
    'density': 1e-3,
    'values': 'float8',
    'exchange': 'all_gather',
  }
  # What a flag asks for is not dropped.
  with pytest.raises(flags.Error, match='momentum is no argument of'):
    read('quickstart', 'reducer.name=top_k', 'reducer.momentum=0.9')
  stages = resolved('quickstart', 'reducer.name=qsgd')['stages']
  assert stages['warm_up_1']['reducer'] == stages['share']['reducer']


@pytest.mark.parametrize('order', [1, -1])
def test_arguments_of_what_a_flag_names(order):
  fields = [
    'reducer.name=deep_gradient_compression',
    'reducer.density=0.01',
    'reducer.clip_norm=1',
  ]
  found = resolved('mnist_lenet5', *fields[::order])['reducer']
  assert found == {
    'name': 'deep_gradient_compression',
    'density': 0.01,
    'clip_norm': 1,
  }


def test_a_flag_of_the_run_s_reducer_reaches_its_stages():
  stages = resolved('quickstart', 'reducer.values=float32')['stages']
  assert stages['warm_up_2']['reducer']['values'] == 'float32'
  stages = resolved('quickstart', 'stages.share.reducer.density=1')['stages']
  assert stages['share']['reducer']['density'] == 1


@pytest.mark.parametrize('name', OPTIMIZERS)
def test_optimizers_are_swapped_by_name(name):
  found = resolved('mnist_lenet5', f'optimizer.name={name}')['optimizer']
  assert found['name'] == name
  make_optimizer(found, span=(0, 4))


@pytest.mark.parametrize('name', sorted(models.MODELS))
def test_models_are_swapped_by_name(name):
  found = resolved('mnist_lenet5_dgc', f'model.name={name}')['model']
  kept = {'convolution': 'matrix'} if name == 'lenet5' else {}
  assert found == {'name': name, **kept}
  models.make_model(found, num_classes=10)


def test_arguments_of_another_model():
  found = resolved('quickstart', 'model.name=resnet20', 'model.channels=(4,8)')
  assert found['model'] == {'name': 'resnet20', 'channels': (4, 8)}


@pytest.mark.parametrize('name', sorted(searchers.ALL))
def test_searchers_are_swapped_by_name(name):
  found = resolved('quickstart_search', f'search.searcher.name={name}')
  assert found['search']['searcher'] == {'name': name}


def test_options_of_searchers_costs_and_decisions():
  found = resolved(
    'quickstart_search',
    'search.decisions.name=bits',
    'search.decisions.mode=kmeans',
    'search.cost.name=weight_bytes',
    'search.searcher.name=haq',
    'search.searcher.scale=3',
    'search.searcher.warmup=5',
  )['search']
  assert found['decisions'] == {'name': 'bits', 'mode': 'kmeans'}
  assert found['cost'] == {'name': 'weight_bytes'}
  assert found['searcher'] == {'name': 'haq', 'scale': 3.0, 'warmup': 5}


def test_methods_and_stages_by_flags():
  found = resolved(
    'mnist_lenet5',
    "stage_order=('train', 'small')",
    'stages.small.steps=30',
    'stages.small.method.name=prune',
    'stages.small.method.sparsity=0.9',
    'stages.small.optimizer.learning_rate=0.5',
  )
  assert found['stages']['small'] == {
    'steps': 30,
    'method': {'name': 'prune', 'sparsity': 0.9},
    'optimizer': {'learning_rate': 0.5},
  }
  found = resolved('quickstart', 'stages.prune.method.name=keep')
  assert found['stages']['prune']['method'] == {'name': 'keep'}


def test_booleans_as_absl_spells_them():
  path = CONFIGS / 'quickstart.py'
  argv = ['x', f'--config={path}', '--noconfig.metadata', '--config.baselines']
  values = flags.FlagValues()
  program_flags.define_flags(values, argv)
  values(argv)
  assert not values.config.metadata
  assert values.config.baselines


def test_help_lists_the_flags_of_a_program():
  values = flags.FlagValues()
  program_flags.define_flags(values, ['x'])
  shown = values.main_module_help()
  assert '--config:' in shown
  assert '--workdir:' in shown
