"""Training runs whose gradients are compressed."""

import json

import jax
import numpy as np
import pytest

from experiments.runtime.startup import InputError
from experiments.training import exchange_choice
from experiments.training.run import run
from experiments.training.workers import make_workers

DGC = {'name': 'deep_gradient_compression', 'density': 0.01}


def config(steps=8, **fields):
  return {
    'workers': 4,
    'batch_size': 64,
    'model': {'name': 'lenet300', 'features': (32, 16)},
    'optimizer': {'momentum': 0.0, 'learning_rate': 0.05},
    'reducer': {**DGC, 'exchange': 'owner_sharded'},
    'stages': {'train': {'steps': steps}},
    'checkpoint_every_epochs': 4 / 937,
    'eval_every_epochs': 0.0,
    'log_every': 4,
    **fields,
  }


@pytest.mark.parametrize(
  'workers', [pytest.param(2, marks=pytest.mark.slow), 4]
)
def test_resumes_with_other_workers(tmp_path, workers):
  whole = config(8)
  with pytest.MonkeyPatch.context() as patch:
    # Stopped after the checkpoint of step 4.
    patch.setattr(
      'experiments.training.report.make_report', _stop, raising=True
    )
    patch.setattr('experiments.training.run.make_report', _stop, raising=False)
    with pytest.raises(KeyboardInterrupt):
      run(whole, str(tmp_path / 'w'))
  (tmp_path / 'w' / 'checkpoints' / '8').rename(tmp_path / 'gone')
  report = run({**whole, 'workers': workers}, str(tmp_path / 'w'))
  assert report.network.workers == workers
  assert report.network.ratio_steady > 10
  assert report.network.hlo_bytes_per_step == report.network.sent_bytes_per_step
  assert np.isfinite(report.details['eval_loss'])


def _stop(*args, **kwargs):
  del args, kwargs
  raise KeyboardInterrupt


@pytest.mark.slow
def test_warm_up_and_flush(tmp_path):
  stages = {
    'warm_up': {'steps': 3, 'reducer': {**DGC, 'density': 0.25}},
    'train': {'steps': 3, 'flush': True},
  }
  report = run(
    config(reducer=DGC, stages=stages, stage_order=('warm_up', 'train')),
    str(tmp_path / 'w'),
  )
  network = report.network
  # Three steps of each, in bytes.
  dense = network.dense_bytes_per_step
  assert 1 < network.ratio_run < network.ratio_steady
  assert network.ratio_steady == pytest.approx(
    dense / network.sent_bytes_per_step
  )


@pytest.mark.slow
def test_open_exchange_is_settled_once(tmp_path):
  given = config(4, reducer={**DGC, 'exchange': 'auto'})
  run(given, str(tmp_path / 'w'))
  kept = json.loads((tmp_path / 'w' / 'exchanges.json').read_text())
  assert set(kept) == {'4'}
  assert kept['4']['run'] in ('dense', 'all_gather', 'owner_sharded')
  # As many workers go on with it, whatever is faster now.
  workers = make_workers('pmap', {'data': 4})
  settled = exchange_choice.settle_exchanges(
    {'reducer': given['reducer'], 'stages': {}},
    workers,
    None,
    directory=tmp_path / 'w',
  )
  assert settled.config['reducer']['exchange'] == kept['4']['run']
  assert not settled.lines


def test_simulated_workers_choose_by_bytes():
  params = {'w': jax.ShapeDtypeStruct((1000, 1000), np.float32)}
  for count, expected in ((2, 'owner_sharded'), (16, 'owner_sharded')):
    workers = make_workers('vmap', {'data': count})
    choice = exchange_choice.choose(
      {**DGC, 'exchange': 'auto'}, workers, params
    )
    assert choice.seconds[choice.exchange] <= choice.seconds['dense']
    assert choice.exchange == expected or count == 2


def test_bad_reducer_names_its_stage(tmp_path):
  with pytest.raises(InputError, match=r'density=2\.0 is not in'):
    run(config(reducer={**DGC, 'density': 2.0}), str(tmp_path / 'w'))
  assert not (tmp_path / 'w').exists()
