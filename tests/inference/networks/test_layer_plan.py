"""Layers in the forms that are fastest, by what was measured of them."""

import json

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bandwidth import coding, inference, tree
from bandwidth.inference import planning
from bandwidth.inference.networks import layer_plan
from bandwidth.inference.networks.layer_plan import (
  layer_calls,
  plan_cache_path,
  plan_layers,
  read_cache,
)

RNG = np.random.default_rng(5)
KINDS = {'dense', 'codebook4', 'sparse'}


class Network(nn.Module):
  """A convolution, a product, and one of the same shape."""

  @nn.compact
  def __call__(self, images):
    x = nn.relu(nn.Conv(4, (3, 3), strides=2, name='conv')(images))
    x = x.reshape(len(x), -1)
    x = nn.relu(nn.Dense(64, name='first')(x))
    return nn.Dense(64, use_bias=False, name='second')(x)


@pytest.fixture(scope='module')
def written(tmp_path_factory):
  """A network, its file of pruned weights, and what it computes of images."""
  model, images = Network(), jnp.asarray(RNG.normal(size=(2, 8, 8, 3)))
  images = images.astype(jnp.float32)
  variables = model.init(jax.random.key(0), images)
  arrays = {}
  for name, leaf in tree.named_leaves(variables):
    codes = RNG.integers(0, 9, leaf.shape) * (RNG.random(leaf.shape) < 0.3)
    book = np.linspace(0, 1, 9)
    shared = coding.CodebookTensor(codes, book)
    arrays[name] = np.asarray(leaf) if name.endswith('bias') else shared
  path = tmp_path_factory.mktemp('plan') / 'model.bwz'
  coding.write(path, arrays)
  wanted = model.apply(coding.load_tree(path), images)
  return model, path, images, wanted


def plan_of(written, cache=None, **options):
  model, path, images, _ = written
  dense = coding.load_tree(path)
  calls = layer_calls(model, dense, images)
  with coding.open_file(path) as reader:
    return plan_layers(
      calls, inference.load_compressed(path), reader.array, cache=cache,
      backend='xla', **options,
    )  # fmt: skip


def check_outputs(written, plan):
  model, _, images, wanted = written
  network = inference.CompressedNetwork(model, backend='xla')
  y = network.apply(plan.params, images)
  np.testing.assert_allclose(y, wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_layers_are_timed_with_their_inputs(written):
  model, path, images, _ = written
  calls = layer_calls(model, coding.load_tree(path), images)
  assert {name: call.shape for name, call in calls.items()} == {
    'params/conv/kernel': (2, 8, 8, 3),
    'params/first/kernel': (2, 64),
    'params/second/kernel': (2, 64),
  }
  plan = plan_of(written)
  assert set(plan.choices) == set(calls)
  for choice in plan.choices.values():
    assert set(choice.seconds) == KINDS
    assert choice == planning.choose_form(choice.seconds)
  check_outputs(written, plan)


@pytest.mark.slow
def test_measured_once_for_a_device(written, tmp_path, monkeypatch):
  cache = tmp_path / 'deep' / 'plan.json'
  first = plan_of(written, cache)
  stored = read_cache(cache)
  # The two products differ: one has a bias.
  assert len(stored) == 3
  measured = layer_plan.measure_layer

  def fail(*_arguments, **_options):
    raise AssertionError

  monkeypatch.setattr(layer_plan, 'measure_layer', fail)
  assert plan_of(written, cache).choices == first.choices
  # What the file says decides, and a dense kernel is that of the network.
  for fastest, kind in (
    ('dense', np.ndarray),
    ('codebook4', inference.CodebookMatrix),
    ('sparse', inference.SparseMatrix),
  ):
    made_up = {
      layer: {each: 1.0 if each == fastest else 2.0 for each in seconds}
      for layer, seconds in stored.items()
    }
    cache.write_text(json.dumps(made_up))
    plan = plan_of(written, cache)
    for name in ('conv', 'first', 'second'):
      assert isinstance(plan.params['params'][name]['kernel'], kind)
    check_outputs(written, plan)
  monkeypatch.setattr(layer_plan, 'measure_layer', measured)
  for damaged in ('{', '[]', '{"a": {"dense": "x"}}', '{"a": {"dense": -1}}',
                  '{"a": {"sparse": 1}}', '{"a": 1}'):  # fmt: skip
    cache.write_text(damaged)
    assert read_cache(cache) == {}
  plan_of(written, cache)
  assert set(read_cache(cache)) == set(stored)


def test_files_of_what_was_measured(tmp_path, monkeypatch):
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
  paths = {
    plan_cache_path(backend=backend, mode=mode)
    for backend in ('xla', 'native')
    for mode in inference.MODES
  }
  assert len(paths) == 6
  assert {path.parent for path in paths} == {tmp_path / 'bandwidth' / 'plans'}
  monkeypatch.setattr(layer_plan.report, 'device', lambda: 'another')
  assert plan_cache_path(backend='xla', mode='exact') not in paths
