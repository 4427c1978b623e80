import importlib.util
import json
import pathlib

import ml_collections
import pytest

from experiments.config import (
  DEFAULTS,
  check_config,
  flatten,
  keep_config,
  resolve,
)

CONFIGS = sorted((pathlib.Path(__file__).parents[2] / 'configs').glob('*.py'))


def load(path, mode=''):
  spec = importlib.util.spec_from_file_location(path.stem, path)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module.get_config(mode)


def test_silent_fields_get_their_defaults():
  resolved = resolve({'optimizer': {'learning_rate': 0.5}, 'workers': 2})
  assert resolved['optimizer']['learning_rate'] == 0.5
  assert resolved['optimizer']['momentum'] == 0.9
  assert resolved['workers'] == 2
  assert resolve({}) == DEFAULTS


@pytest.mark.parametrize(
  ('config', 'message'),
  [
    ({'bach_size': 1}, 'no field bach_size; did'),
    ({'dataset': {'nam': 'x'}}, 'no field dataset.nam; did you mean'),
    ({'dataset': 'mnist'}, "dataset='mnist' is not a group"),
  ],
)
def test_unknown_fields(config, message):
  with pytest.raises(ValueError, match=message):
    resolve(config)


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


@pytest.mark.parametrize('path', CONFIGS, ids=lambda p: p.stem)
def test_every_config_resolves_in_every_mode(path):
  for mode in ('', 'runlocal'):
    config = load(path, mode)
    assert isinstance(config, ml_collections.ConfigDict)
    resolve(config)
  with pytest.raises(ValueError, match=r'known: .*runlocal'):
    load(path, 'nonsense')
