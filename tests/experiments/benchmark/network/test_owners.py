"""The ablation of owner-sharded exchange: its configs and its arithmetic."""

import pytest

from experiments.benchmark.network import owners
from experiments.config import resolve


def test_configs_differ_in_the_exchange_alone():
  gathered = owners.make_config(8, 0.0, 1, 3.0)
  sharded = owners.make_config(8, 2.0, 1, 3.0)
  assert gathered['reducer'].pop('exchange') == 'all_gather'
  assert sharded['reducer'].pop('exchange') == 'owner_sharded'
  assert sharded['reducer'].pop('forward') == 2.0
  del gathered['reducer']['forward']
  assert resolve(gathered)['workers'] == 8
  for config in (gathered, sharded):
    del config['stages']['warm_up']['reducer']
  assert gathered == sharded


def test_differences_are_paired():
  errors = {
    'all_gather': {0: 0.02, 1: 0.04},
    'owner_sharded c=1': {0: 0.03, 1: 0.06},
  }
  first, second = owners.summarized(errors, workers=4)
  assert (first['error_percent'], first['minus_all_gather']) == (3.0, 0.0)
  assert (second['error_percent'], second['minus_all_gather']) == (4.5, 1.5)
  assert second['paired_error'] == 0.5
  assert second['errors_percent'] == [3.0, 6.0]


@pytest.mark.parametrize(
  ('arguments', 'message'),
  [
    (['--workers', '1'], 'workers=1 is less than 2'),
    (['--epochs', '0.2'], 'epochs=0.2 is not more than the warm-up'),
    (['--forward', '0'], 'forward=0.0 is not positive'),
  ],
)
def test_bad_arguments_are_one_line(arguments, message, capsys):
  assert owners.main(arguments) == 2
  assert f'benchmark owners: error: {message}' in capsys.readouterr().err
