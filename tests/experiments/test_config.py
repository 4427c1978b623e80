import json
import os
import pathlib
import subprocess
import sys

import ml_collections
import pytest

from configs import default
from experiments.config import (
  check_config,
  config_names,
  flatten,
  keep_config,
  named_config,
  resolve,
)

ROOT = pathlib.Path(__file__).parents[2]


def test_silent_fields_get_their_defaults():
  resolved = resolve({'optimizer': {'learning_rate': 0.5}, 'workers': 2})
  assert resolved['optimizer']['learning_rate'] == 0.5
  assert resolved['optimizer']['momentum'] == 0.9
  assert resolved['workers'] == 2
  assert resolve({}) == default.get_config().to_dict()


@pytest.mark.parametrize(
  ('config', 'message'),
  [
    ({'bach_size': 1}, 'no field bach_size; did'),
    ({'dataset': {'nam': 'x'}}, 'no field dataset.nam; did you mean'),
    ({'dataset': 'mnist'}, "dataset='mnist' is not a group"),
    ({'stages': {'train': 3}}, 'stages.train=3 is not a group'),
    ({'stages': {'train': {'method': 3}}}, 'train.method=3 is not a group'),
    (
      {'stages': {'train': {'optimizer': {'learning_rat': 1}}}},
      'did you mean stages.train.optimizer.learning_rate',
    ),
    ({'batch_size': 1.5}, 'batch_size=1.5 is no integer'),
    ({'batch_size': True}, 'batch_size=True is no integer'),
    ({'metadata': 1}, 'metadata=1 is no boolean'),
    ({'mapping': None}, 'mapping=None is no string'),
    ({'stage_order': 'train'}, "stage_order='train' is no list"),
    ({'search': {'refit': {'ridge': 'x'}}}, "refit.ridge='x' is no number"),
    ({'stages': {'train': {'steps': 1.5}}}, 'train.steps=1.5 is no integer'),
    (
      {'stages': {'train': {'optimizer': {'decay': 'x'}}}},
      "train.optimizer.decay='x' is no number",
    ),
  ],
)
def test_bad_fields(config, message):
  with pytest.raises(ValueError, match=message) as error:
    resolve(config)
  assert '\n' not in str(error.value)


def test_integers_are_numbers_and_means_may_be_of_channels():
  resolved = resolve({'optimizer': {'learning_rate': 1}})
  assert resolved['optimizer']['learning_rate'] == 1
  for mean in (0, 0.5, (0.1, 0.2, 0.3)):
    assert resolve({'dataset': {'mean': mean}})['dataset']['mean'] == mean


def test_a_reducer_of_a_stage_without_a_name_is_that_of_the_run():
  stages = {
    'a': {'epochs': 1.0, 'reducer': {'density': 0.1}},
    'b': {'epochs': 1.0, 'reducer': {'name': 'qsgd'}},
  }
  reducer = {'name': 'top_k', 'density': 0.01, 'values': 'float8'}
  resolved = resolve({'reducer': reducer, 'stages': stages})
  assert resolved['stages']['a']['reducer'] == {**reducer, 'density': 0.1}
  assert resolved['stages']['b']['reducer'] == {'name': 'qsgd'}
  assert resolve(resolved) == resolved


def test_get_config_gives_each_caller_its_own():
  first = default.get_config()
  first.dataset.mean = (1.0, 2.0)
  first.model.features = (3, 4)
  assert default.get_config().dataset.mean == 0.0
  assert default.get_config().model.to_dict() == {'name': 'lenet300'}


def test_config_files_can_set_no_other_fields():
  config = default.get_config()
  for group, field in ((config, 'bach'), (config.optimizer, 'rate')):
    with pytest.raises(AttributeError, match='does not exist'):
      setattr(group, field, 1)
  with pytest.raises(TypeError, match='batch_size'):
    config.batch_size = 'x'


def test_arguments_of_named_parts_are_left_to_them():
  assert resolve({'model': {'name': 'lenet300', 'features': (3, 4)}})['model'][
    'features'
  ] == (3, 4)


def test_config_of_a_directory_may_change_only_where_it_is_elastic(tmp_path):
  keep_config(tmp_path, resolve({'workers': 4}))
  keep_config(tmp_path, resolve({'workers': 2, 'mapping': 'vmap'}))
  saved = json.loads((tmp_path / 'config.json').read_text())
  assert saved['workers'] == 2
  other = resolve({'optimizer': {'learning_rate': 0.2}, 'seed': 1})
  message = r'optimizer.learning_rate was 0.1, is 0.2; seed was 0, is 1'
  with pytest.raises(ValueError, match=message):
    check_config(tmp_path, other)
  with pytest.raises(ValueError, match=message):
    keep_config(tmp_path, other)
  assert json.loads((tmp_path / 'config.json').read_text()) == saved


def test_added_and_removed_fields_differ_too(tmp_path):
  keep_config(tmp_path, resolve({'model': {'name': 'lenet5', 'features': 5}}))
  with pytest.raises(ValueError, match=r"model\.features was 5, is 'absent'"):
    check_config(tmp_path, resolve({'model': {'name': 'lenet5'}}))


def test_flatten_sees_values_as_json_does():
  assert flatten({'a': {'b': (1, 2)}}) == {'a.b': [1, 2]}


@pytest.mark.parametrize('name', config_names())
def test_every_config_resolves_in_every_mode(name):
  for mode in ('', 'runlocal'):
    config = named_config(name, mode)
    assert isinstance(config, ml_collections.ConfigDict)
    resolve(config)
  with pytest.raises(ValueError, match=r'known: .*runlocal') as error:
    named_config(name, 'nonsense')
  assert str(error.value).startswith(f'{name}.py:nonsense is unknown')


def test_modes_that_end_in_a_value():
  config = named_config('cifar10_resnet20_amc', 'whole=runs/a:b')
  assert config.initial == 'runs/a:b'
  with pytest.raises(ValueError, match='policy=FILE, whole=DIR, runlocal'):
    named_config('cifar10_resnet20_amc', 'polcy=runs/a')


def test_names_of_configs():
  with pytest.raises(ValueError, match=r"config='quikstart' .*'quickstart'"):
    named_config('quikstart')
  assert 'default' not in config_names()


def test_a_config_file_can_be_anywhere(tmp_path):
  # As the flag --config loads it, from a directory that is not the tree's.
  text = (ROOT / 'configs' / 'quickstart.py').read_text()
  (tmp_path / 'mine.py').write_text(text)
  code = (
    'from absl import flags\n'
    'from experiments.program import flags as program_flags\n'
    "argv = ['x', '--config=mine.py', '--config.seed=3', '--workdir=w']\n"
    'values = flags.FlagValues(); program_flags.define_flags(values, argv)\n'
    'values(argv); print(values.config.seed, values.config.augment.pad)'
  )
  done = subprocess.run(
    [sys.executable, '-c', code],
    cwd=tmp_path,
    env={**os.environ, 'PYTHONPATH': str(ROOT)},
    capture_output=True,
    text=True,
  )
  assert done.stdout == '3 0\n', done.stderr
