"""The search program in this process: what it leaves, and what it refuses."""

import functools
import importlib.util
import json
import pathlib
import shutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from bandwidth import coding, tree
from experiments import datasets
from experiments.compression.files import read_file
from experiments.compression.weights import write_safetensors
from experiments.config import resolve
from experiments.inference.evaluation import config_of, evaluate
from experiments.models import make_model
from experiments.models.geometry import layer_shapes, macs
from experiments.policy.outcome import to_markdown
from experiments.policy.plan import make_plan, network_variables
from experiments.policy.run import run
from experiments.policy.setup import prepare
from experiments.runtime.startup import InputError
from experiments.training.run import run as train

ROOT = pathlib.Path(__file__).parents[3]
FIELDS = {
  *('config', 'command', 'commit', 'device', 'searcher', 'evaluations'),
  *('seeds', 'traces', 'budget', 'cost', 'policy', 'score', 'frontier'),
  *('history', 'model', 'weights', 'seconds'),
}
FILES = {
  *('search.json', 'search.md', 'frontier.png', 'policy.png', 'model.bwz'),
  'network',
}
SMALL = {
  'evaluations': 16,
  'seeds': 2,
  'images': 100,
  'finalists': 3,
  'refit.batches': 2,
  'refit.batch_size': 20,
}
REPEATS = functools.cache(datasets.load)


@pytest.fixture(scope='module', autouse=True)
def one_data_set():
  """Reads each data set once."""
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(datasets, 'load', REPEATS)
    yield


def config_file(mode):
  path = ROOT / 'configs' / 'quickstart_search.py'
  spec = importlib.util.spec_from_file_location(path.stem, path)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module.get_config(mode)


def make_config(mode='runlocal', model=None, dataset=None, **search):
  """The config of the quickstart, of a small network."""
  config = config_file(mode)
  with config.unlocked():
    # Compiles faster than products of matrices.
    lenet5 = {'convolution': 'xla', 'channels': (6, 8), 'features': 20}
    config.model = model or {**config.model, **lenet5}
    config.dataset.update(dataset or {'validation': 150})
    config.search.searcher.buckets = 200
    for field, value in {**SMALL, **search}.items():
      *parents, leaf = field.split('.')
      group = config.search
      for name in parents:
        if name not in group:
          group[name] = {}
        group = group[name]
      group[leaf] = value
  return config


def network_of(config, num_classes=10):
  model = make_model(config, num_classes=num_classes)
  image = jnp.zeros((1, 28, 28, 1))
  return model, image


def random_weights(path, config, seed=0):
  """Writes a network of random weights, as after training."""
  model, image = network_of(config)
  variables = jax.jit(model.init)(jax.random.key(seed), image)
  arrays = {name: np.asarray(x) for name, x in tree.named_leaves(variables)}
  write_safetensors(path, arrays)
  return str(path)


@pytest.fixture(scope='module')
def searched(tmp_path_factory):
  workdir = tmp_path_factory.mktemp('searched')
  config = make_config()
  return config, workdir, run(config, str(workdir))


def test_files(searched):
  _, workdir, outcome = searched
  assert {path.name for path in workdir.iterdir()} == FILES
  assert json.loads((workdir / 'search.json').read_text()) == outcome
  assert set(outcome) == FIELDS
  for name in ('frontier', 'policy'):
    assert (workdir / f'{name}.png').read_bytes().startswith(b'\x89PNG')
  assert (workdir / 'search.md').read_text() == to_markdown(outcome)


def test_costs_are_those_of_the_file(searched):
  config, workdir, outcome = searched
  whole, image = network_of(config.model.to_dict())
  small, _ = network_of(config_of(workdir / 'model.bwz', None)['model'])
  whole, small = (macs(layer_shapes(x, image)) for x in (whole, small))
  assert outcome['cost'] == {
    'name': 'macs',
    'whole': whole,
    'budget': pytest.approx(whole / 5),
    'found': small,
    'fraction': small / whole,
  }
  assert outcome['budget'] == 0.2
  assert 5 * small <= whole
  history = outcome['history']
  assert np.shape(history['scores']) == np.shape(history['costs']) == (2, 16)
  assert np.max(history['costs']) <= 0.2
  assert outcome['evaluations'] == 32
  assert outcome['traces'] == 1


def test_policy_is_that_of_the_file(searched):
  _, workdir, outcome = searched
  policy = {row['name']: row for row in outcome['policy']}
  assert list(policy) == ['Conv_0', 'Conv_1', 'Dense_0']
  kept = [row['kept'] for row in policy.values()]
  assert outcome['model'] == {
    'name': 'lenet5',
    'convolution': 'xla',
    'channels': kept[:2],
    'features': kept[2],
  }
  assert [row['channels'] for row in policy.values()] == [6, 8, 20]
  for row in policy.values():
    chosen = row['channel_indices']
    assert sorted(set(chosen)) == chosen
    assert len(chosen) == row['kept']
    assert max(chosen) < row['channels']
  shapes = {
    name: array.shape
    for name, array in coding.read_arrays(workdir / 'model.bwz').items()
  }
  assert shapes['params/Conv_1/kernel'] == (5, 5, kept[0], kept[1])
  assert shapes['params/Dense_0/kernel'] == (16 * kept[1], kept[2])


def test_scores_are_those_of_the_file(searched):
  _, workdir, outcome = searched
  path, score = workdir / outcome['weights'], outcome['score']
  assert evaluate(path, config_of(path, None)) == score['test']
  assert score['of'] == 'loss'
  best = [max(scores) for scores in outcome['history']['scores']]
  assert score['by_seed'] == best
  assert score['finalists'] == 3
  assert score['examples'] == {'search': 100, 'check': 50}
  params, model_state = read_file(path)
  model, _ = network_of(outcome['model'])
  held = REPEATS(name='mnist', validation=150).validation
  images = jnp.asarray(held.image, jnp.float32) / 255 / 0.3081
  logits = model.apply({'params': params, **model_state}, images)
  scale = float(jnp.abs(logits).max())
  assert score['masked_minus_exported'] <= 1e-5 * scale


def test_frontier(searched):
  _, _, outcome = searched
  rows = outcome['frontier']
  names = [row['searcher'] for row in rows]
  assert names == [
    *('whole', 'searched'),
    *('uniform',) * 3,
    *('dynamic programming',) * 3,
  ]
  assert rows[0]['cost'] == 1
  assert rows[1] == outcome['score']['check']
  assert rows[1]['cost'] == outcome['cost']['fraction']
  for found in (rows[2:5], rows[5:]):
    # Of 10, 20 and 30 % of the network.
    costs = [row['cost'] for row in found]
    assert costs == sorted(costs)
    assert (np.array(costs) <= [0.1, 0.2, 0.3]).all()
  # The accuracy of fifty examples.
  for row in rows:
    assert row['accuracy'] * 50 == pytest.approx(round(row['accuracy'] * 50))


def test_tables_say_which_examples_they_are_of(searched):
  _, _, outcome = searched
  text = to_markdown(outcome)
  assert 'of the 10,000 test examples' in text
  assert 'are of 50 training examples that were held out' in text
  assert 'by their loss on 100 others' in text
  assert 'the best of 3 on these' in text
  assert 'statistics' not in text
  lines = [line for line in text.splitlines() if line.startswith('| ')]
  named = [line.split(' | ')[0].strip('| ') for line in lines]
  assert named[named.index('whole') :][:3] == ['whole', 'searched', 'uniform']


@pytest.mark.slow
def test_another_search_of_the_same_network(searched, tmp_path):
  _, workdir, before = searched
  shutil.copytree(workdir, tmp_path / 'w')
  config = make_config(
    searcher={'name': 'uniform'},
    score='accuracy',
    cost={'name': 'parameters'},
    budget=0.3,
    frontier=(0.001,),
  )
  after = run(config, str(tmp_path / 'w'))
  # It was not trained again.
  metrics = pathlib.Path('network', 'metrics.jsonl')
  assert (tmp_path / 'w' / metrics).read_text() == (
    workdir / metrics
  ).read_text()
  assert json.loads((tmp_path / 'w' / 'search.json').read_text()) == after
  whole = 'accuracy', 'loss', 'levels'
  for name in whole:
    assert after['frontier'][0][name] == before['frontier'][0][name]
  arrays = coding.read_arrays(tmp_path / 'w' / 'model.bwz')
  parameters = sum(array.size for array in arrays.values())
  assert parameters == after['cost']['found'] <= 0.3 * after['cost']['whole']
  # One candidate a seed. A thousandth is no point of the frontier.
  assert after['evaluations'] == 2
  names = [row['searcher'] for row in after['frontier']]
  assert names == ['whole', 'searched', 'uniform', 'dynamic programming']
  for name in ('cost', 'accuracy', 'loss', 'levels'):
    assert after['frontier'][1][name] == after['frontier'][2][name]


def test_network_of_another_config_is_not_used(searched, tmp_path):
  _, workdir, _ = searched
  shutil.copytree(workdir, tmp_path / 'w')
  files = [p for p in (tmp_path / 'w').rglob('*') if p.is_file()]
  before = {p: p.read_bytes() for p in files}
  config = make_config()
  config.optimizer.learning_rate = 0.03
  message = r'another config: optimizer.learning_rate was 0.02, is 0.03'
  with pytest.raises(InputError, match=message):
    run(config, str(tmp_path / 'w'))
  assert {p: p.read_bytes() for p in files} == before


@pytest.mark.slow
def test_fine_tuning_begins_with_what_was_found(searched, tmp_path):
  _, workdir, outcome = searched
  config = config_file(f'policy={workdir / "search.json"}')
  config.stages.train.epochs = 0.0
  with config.unlocked():
    config.stages.train.steps = 2
  config.log_every = 1
  report = train(config, str(tmp_path))
  lines = (tmp_path / 'metrics.jsonl').read_text().splitlines()
  losses = [r['loss'] for r in map(json.loads, lines) if 'loss' in r]
  params, model_state = read_file(workdir / 'model.bwz')
  model, _ = network_of(outcome['model'])
  data = REPEATS(name='mnist').train
  first = datasets.epoch_order(0, 0, len(data))[: config.batch_size]
  images = jnp.asarray(data.image[first], jnp.float32) / 255 / 0.3081
  logits = model.apply({'params': params, **model_state}, images)
  expected = optax.softmax_cross_entropy_with_integer_labels(
    logits, data.label[first]
  ).mean()
  assert len(losses) == 2
  assert losses[0] == pytest.approx(float(expected), rel=1e-4)
  assert report.memory.dense_bytes == outcome['score']['test']['dense_bytes']


@pytest.mark.slow
def test_batch_normalization_in_the_program(tmp_path):
  model = {'name': 'resnet20', 'depth': 8, 'channels': (4, 4, 6)}
  weights = random_weights(tmp_path / 'net.safetensors', model)
  config = make_config(
    model=model,
    network=weights,
    searcher={'name': 'random'},
    evaluations=4,
    seeds=1,
    statistics=30,
    divisor=2,
    budget=0.7,
    frontier=(0.8,),
  )
  outcome = run(config, str(tmp_path / 'w'))
  assert outcome['traces'] == 1
  assert outcome['cost']['fraction'] <= 0.7
  assert outcome['score']['masked_minus_exported'] <= 1e-4
  found = outcome['score']['test']
  assert (tmp_path / 'w' / 'model.bwz').stat().st_size == found['file_bytes']
  assert 'statistics of 30 training images' in to_markdown(outcome)


BAD = {
  'searcher': (
    {'searcher.name': 'cma'},
    "searcher.name='cma' is unknown; known: ",
  ),
  'no searcher': ({'searcher': {}}, 'search.searcher.name is missing'),
  'option': (
    {'searcher.populaton': 3},
    "searcher.populaton is no argument of 'cma_es_dynamic'",
  ),
  'option value': ({'searcher.sigma': 3.0}, r'sigma=3.0 is not in \(0, 1\]'),
  'cost': ({'cost.name': 'flops'}, "cost.name='flops' is unknown; .*macs"),
  'no cost': ({'cost': {}}, 'search.cost.name is missing'),
  'cost argument': ({'cost': {'name': 'macs', 'bits': 3}}, 'cost.bits is no'),
  'score': ({'score': 'top5'}, "search.score='top5' is unknown; known: acc"),
  'divisor': (
    {'divisor': 7},
    'divisor=7 is larger than the 6 channels of Conv_0',
  ),
  'budget': (
    {'budget': 0.001},
    r'search.budget=0.001: .* cannot be reached: the smallest network costs '
    r'[\d.]+',
  ),
  'whole budget': ({'budget': 1.5}, r'search.budget=1.5 is not in \(0, 1\]'),
  'frontier': ({'frontier': (0.5, 0.0)}, r'search.frontier=0.0 is not in'),
  'images': (
    {'images': 150},
    'search.images=150 leaves none of the dataset.validation=150 examples',
  ),
  'evaluations': ({'evaluations': 0}, 'search.evaluations=0 is not positive'),
  'statistics': ({'statistics': -1}, 'search.statistics=-1 is negative'),
  'refit': ({'refit.points': 0}, 'search.refit.points=0 is not positive'),
  'training images': (
    {'refit.batches': 1200, 'refit.batch_size': 50},
    'search.refit.batches=1200 .* more than the 59850 training examples',
  ),
  'model': (
    {'model': {'name': 'resnet50'}},
    r'ResNetImagenet has no layers\(\)',
  ),
  'validation': (
    {'dataset': {'validation': 60_000}},
    'dataset.validation=60000 is not in 0 to 59999',
  ),
}


@pytest.mark.parametrize('name', BAD)
def test_bad_input_leaves_nothing_behind(name, tmp_path):
  fields, message = BAD[name]
  with pytest.raises(InputError, match=message) as error:
    run(make_config(**fields), str(tmp_path / 'w'))
  assert '\n' not in str(error.value)
  assert not (tmp_path / 'w').exists()


def test_language_models_cannot_be_searched(tmp_path):
  for name in ('train', 'valid', 'test'):
    (tmp_path / f'{name}.txt').write_text('a b c d e\n' * 40)
  config = make_config(
    model={'name': 'lstm', 'hidden': 4},
    dataset={
      'name': 'mine',
      'source': 'text',
      'data_dir': str(tmp_path),
      'validation': 101,
    },
  )
  with pytest.raises(InputError, match=r'model: LSTM has no layers\(\)'):
    run(config, str(tmp_path / 'w'))
  assert not (tmp_path / 'w').exists()


def test_weights_of_another_network(tmp_path):
  other = {'name': 'lenet5', 'channels': (6, 9), 'features': 20}
  weights = random_weights(tmp_path / 'net.safetensors', other)
  for network, message in (
    (weights, r'net.safetensors.*: params/Conv_1/bias is \(9,\), the network'),
    (str(tmp_path / 'none.bwz'), "input='.*none.bwz' is not there"),
    (str(tmp_path), 'is a directory without an Orbax checkpoint'),
  ):
    with pytest.raises(InputError, match=message) as error:
      run(make_config(network=network), str(tmp_path / 'w'))
    assert '\n' not in str(error.value)
    assert not (tmp_path / 'w').exists()


@pytest.mark.slow
def test_streamed_and_resident_sets_are_searched_alike(tmp_path, monkeypatch):
  monkeypatch.syspath_prepend(ROOT / 'tests' / 'experiments' / 'datasets')
  from toy_sets import examples, write_set

  model = {'name': 'plain20', 'depth': 8, 'channels': (2,) * 7}
  splits = {'train': examples(60)[2], 'test': examples(12, seed=1)[2]}
  write_set(tmp_path, name='toy', splits=splits)
  data = []
  for limit in (2**28, 0):
    config = make_config(
      model=model,
      dataset={
        'name': 'toy',
        'source': 'tfds',
        'data_dir': str(tmp_path),
        'memory_limit': limit,
        'validation': 20,
      },
      images=12,
      statistics=3,
      **{'refit.batch_size': 15},
      divisor=1,
      budget=0.9,
    )
    plan = make_plan(resolve(config))
    variables = jax.tree.map(
      lambda leaf: np.full(leaf.shape, 0.1, 'f4'), plan.variables
    )
    arrays = dict(tree.named_leaves(variables))
    prepared = prepare(plan, network_variables(plan, arrays, 'here'))
    data.append((prepared.data.objective, prepared.check))
  first, second = (dict(tree.named_leaves(each)) for each in data)
  assert first.keys() == second.keys()
  for name in first:
    np.testing.assert_array_equal(first[name], second[name])


@pytest.mark.slow
def test_command_line(tmp_path):
  done = subprocess.run(
    [
      *(sys.executable, '-m', 'experiments.search'),
      f'--config={ROOT / "configs" / "quickstart_search.py"}:runlocal',
      '--config.search.searcher.name=evolution',
      f'--workdir={tmp_path / "w"}',
    ],
    cwd=ROOT,
    capture_output=True,
    text=True,
  )
  assert done.returncode == 2
  (line,) = done.stderr.splitlines()
  assert line.startswith("search: error: search.searcher.name='evolution' is ")
  assert not (tmp_path / 'w').exists()
