"""Two steps of every config: their losses, to the digits that rounding leaves.

A difference means that what a run computes has changed: initialization, data
order, preprocessing, optimizer or reducer. If that was meant, record the new
numbers and say so in the commit; every number in results/ is then out of date.
"""

import importlib.util
import json
import pathlib

import numpy as np
import pytest

from experiments.training.run import run

ROOT = pathlib.Path(__file__).parents[3]
GOLDEN = {
  'quickstart': [
    2.425302,
    2.25289,
    1.991612,
    1.86835,
    1.79959,
    1.679315,
    1.579002,
    1.473377,
    1.533905,
    1.462168,
    1.406636,
    1.280988,
    1.245545,
    1.359056,
  ],
  'mnist_lenet300_rate': [
    2.456528,
    1.963495,
    2.209353,
    2.102746,
    2.423805,
    2.423805,
  ],
  'mnist_lenet5': [2.94455, 4.00446],
  'mnist_lenet5_dgc': [2.809398, 2.767341],
  'mnist_mlp_dgc': [2.411367, 2.451492],
  'quickstart_search': [3.197335, 5.078436],
}
# A program for each density, or for all of a network, takes long to compile.
STAGES = {
  'mnist_lenet5_dgc': 1,
  'mnist_mlp_dgc': 1,
}


def losses(name, workdir, **fields):
  path = ROOT / 'configs' / f'{name}.py'
  spec = importlib.util.spec_from_file_location(name, path)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  config = module.get_config('runlocal')
  config.stage_order = config.stage_order[-STAGES.get(name, 99) :]
  if config.model.name == 'resnet20':
    config.model.depth = 8
  config.log_every = 1
  with config.unlocked():
    for stage in list(config.stages):
      if stage not in config.stage_order:
        del config.stages[stage]
    for stage in config.stages.values():
      stage.update({'epochs': 0.0, 'steps': 2})
    config.eval_batch_size = 500
    config.baselines = False
  for field, value in fields.items():
    config.dataset[field] = value
  report = run(config, str(workdir))
  lines = (workdir / 'metrics.jsonl').read_text().splitlines()
  records = [json.loads(line) for line in lines]
  return [r['loss'] for r in records if 'loss' in r], report


@pytest.mark.parametrize(
  'name',
  [
    name
    if name in ('mnist_lenet5', 'mnist_mlp_dgc')
    else pytest.param(name, marks=pytest.mark.slow)
    for name in sorted(GOLDEN)
  ],
)
def test_golden_losses(name, tmp_path):
  found, _ = losses(name, tmp_path / 'w', validation=500)
  np.testing.assert_allclose(found, GOLDEN[name], rtol=2e-3)


@pytest.mark.slow
def test_cifar10_config_runs_on_a_set_of_its_format(tmp_path, monkeypatch):
  monkeypatch.syspath_prepend(ROOT / 'tests' / 'experiments' / 'datasets')
  from toy_sets import image_features, write_set

  rng = np.random.default_rng(0)

  def made(count):
    images = rng.integers(0, 256, (count, 32, 32, 3)).astype(np.uint8)
    labels = rng.integers(0, 10, count)
    return [
      {'image': image, 'label': int(label)}
      for image, label in zip(images, labels, strict=True)
    ]

  from PIL import Image

  splits = {
    split: [{**e, 'image': Image.fromarray(e['image'])} for e in made(count)]
    for split, count in (('train', 64), ('test', 32))
  }
  write_set(
    tmp_path,
    name='cifar10',
    version='3.0.2',
    splits=splits,
    features=image_features((32, 32, 3), 10),
  )
  found, report = losses(
    'cifar10_resnet20', tmp_path / 'w', data_dir=str(tmp_path), validation=0
  )
  assert np.isfinite(found).all()
  assert report.details['parameters'] == 75_290
  assert report.details['eval_examples'] == 32


@pytest.mark.slow
def test_streamed_and_resident_sets_train_alike(tmp_path, monkeypatch):
  monkeypatch.syspath_prepend(ROOT / 'tests' / 'experiments' / 'datasets')
  from toy_sets import examples, write_set

  _, _, train = examples(40)
  _, _, test = examples(12, seed=1)
  write_set(tmp_path, name='toy', splits={'train': train, 'test': test})
  reports = []
  for limit in (2**28, 0):
    config = {
      'workers': 2,
      'batch_size': 8,
      'eval_batch_size': 5,
      'dataset': {
        'name': 'toy',
        'source': 'tfds',
        'data_dir': str(tmp_path),
        'memory_limit': limit,
      },
      'model': {'name': 'lenet300', 'features': (8,)},
      'stages': {'train': {'epochs': 2.0}},
      'log_every': 1,
    }
    workdir = tmp_path / f'w{limit}'
    reports.append(run(config, str(workdir)))
  assert reports[0].accuracy == reports[1].accuracy
  assert reports[0].details['eval_loss'] == reports[1].details['eval_loss']
