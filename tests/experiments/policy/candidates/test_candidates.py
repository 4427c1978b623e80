import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from traces import Counted

from bandwidth import tree
from bandwidth.search.problem import cost
from bandwidth.search.problem.interface import Problem, evaluate, make_data
from experiments.models.geometry import layer_shapes, macs
from experiments.models.lenet import LeNet5, LeNet300
from experiments.models.mobilenet import MobileNetV1
from experiments.models.resnet import ResNetCifar
from experiments.models.resnet_imagenet import ResNetImagenet
from experiments.policy.candidates.channels import (
  Refit,
  export,
  make_candidates,
  masked,
  network_space,
  shift_arrays,
  with_statistics,
)
from experiments.policy.candidates.scores import (
  better_first,
  make_examples,
  make_measure,
  make_objective,
  score_data,
)

LENET = LeNet5(channels=(4, 6), features=8, convolution='matrix')
V1 = MobileNetV1(10, (4,) * 13 + (6,), 'cifar')
NETWORKS = {
  'lenet5': (LENET, (20, 20, 1)),
  'resnet': (ResNetCifar(8, 10, (4, 6, 6)), (8, 8, 3)),
  'mobilenet_v1': (V1, (8, 8, 3)),
}
SHAPES = {type(model): shape for model, shape in NETWORKS.values()}


def random_variables(model, shape, seed=1):
  """As after training: statistics, scales and shifts that matter."""
  rng = np.random.default_rng(seed)
  images = jax.ShapeDtypeStruct((1, *shape), jnp.float32)
  abstract = jax.eval_shape(model.init, jax.random.key(0), images)

  def draw(name, leaf):
    if name.endswith(('scale', 'var')):
      return rng.uniform(0.5, 1.5, leaf.shape).astype('f4')
    deviation = 0.3
    if name.endswith('kernel'):
      deviation = (2 * leaf.shape[-1] / leaf.size) ** 0.5
    return rng.normal(0, deviation, leaf.shape).astype('f4')

  return tree.map_named(draw, abstract)


def draw_images(count, shape, seed=2):
  rng = np.random.default_rng(seed)
  return rng.normal(size=(count, *shape)).astype('f4')


@functools.cache
def prepare(name, *, enabled=True):
  """With statistics that are right, as after training."""
  model, shape = NETWORKS[name]
  images = jnp.asarray(draw_images(32, shape))
  variables = jax.jit(lambda v, x: with_statistics(model, v, x))(
    random_variables(model, shape), images
  )
  return make_candidates(
    model,
    variables,
    images.reshape(2, 16, *shape),
    divisor=1,
    smallest=0.25,
    refit=Refit(enabled=enabled, points=3, ridge=1e-6),
    key=jax.random.key(0),
  )


@pytest.fixture(scope='module')
def lenet5():
  return prepare('lenet5')


@pytest.fixture(
  scope='module',
  params=[
    name if name == 'lenet5' else pytest.param(name, marks=pytest.mark.slow)
    for name in NETWORKS
  ],
)
def network(request):
  candidates = prepare(request.param)
  return candidates, jax.jit(candidates.model.apply)


@pytest.mark.parametrize('recalibrated', [False, True])
def test_smaller_network_computes_what_the_masked_one_does(
  network, recalibrated
):
  candidates, apply = network
  space = candidates.space
  candidate = space.full() - 1
  candidate[1] -= 1
  images = draw_images(9, SHAPES[type(candidates.model)], 3)
  statistics = jnp.asarray(images[::2]) if recalibrated else None
  whole = masked(candidates, candidate, statistics)
  small_model, small = export(candidates, candidate, whole)
  expected = apply(whole, images)
  found = jax.jit(small_model.apply)(small, images)
  assert np.ptp(expected, axis=0).min() > 1e-3
  scale = np.abs(expected).max()
  np.testing.assert_allclose(found / scale, expected / scale, atol=1e-5)
  # It costs what the candidate is said to cost.
  example = jax.ShapeDtypeStruct(images[:1].shape, jnp.float32)
  exact = cost.exact_cost(space, cost.macs, candidate)
  assert macs(layer_shapes(small_model, example)) == exact


def test_statistics_are_those_of_the_masked_network():
  candidates = prepare('resnet')
  images = draw_images(9, (8, 8, 3), 3)
  candidate = np.zeros(candidates.space.decisions, np.int32)
  found = masked(candidates, candidate, jnp.asarray(images))
  own = masked(candidates, candidate)

  @jax.jit
  def outputs(found, own):
    model = candidates.model
    trained, _ = model.apply(found, images, train=True, mutable=['batch_stats'])
    return trained, model.apply(found, images), model.apply(own, images)

  # Evaluation computes what training does with the statistics of the batch.
  trained, evaluated, stale = outputs(found, own)
  np.testing.assert_allclose(evaluated, trained, rtol=1e-3, atol=1e-4)
  assert not np.allclose(stale, trained, atol=0.1)
  for name, leaf in tree.named_leaves(own['params']):
    kept = dict(tree.named_leaves(found['params']))[name]
    np.testing.assert_array_equal(kept, leaf)


def test_all_channels_are_the_network_itself(network):
  candidates, _ = network
  full = candidates.space.full()
  for variables in (masked(candidates, full), export(candidates, full)[1]):
    for name, leaf in tree.named_leaves(variables):
      expected = dict(tree.named_leaves(candidates.variables))[name]
      np.testing.assert_array_equal(leaf, expected)


def test_errors_fall_to_zero(network):
  candidates, _ = network
  errors = np.asarray(candidates.errors)
  for row, levels in zip(errors, candidates.space.levels, strict=True):
    own, beyond = row[: len(levels)], row[len(levels) :]
    assert (np.diff(own) <= 0).all()
    assert own[0] > 0
    assert own[-1] == 0
    assert not beyond.any()


def inputs_of(candidates, images, layer):
  """What a dense layer reads."""
  seen = {}

  def watch(call, args, kwargs, context):
    if '/'.join(context.module.path) == layer:
      seen[layer] = args[0]
    return call(*args, **kwargs)

  @jax.jit
  def run(variables):
    with nn.intercept_methods(watch):
      candidates.model.apply(variables, images)
    return seen[layer]

  return np.asarray(run(candidates.variables), np.float64)


def error_of(candidates, layer, level, x, y):
  """The squares that an option leaves."""
  kernel = f'params/{layer}/kernel'
  names = [reader.kernel for _, reader in candidates.readers]
  table = candidates.tables[names.index(kernel)]
  made = x @ np.asarray(table.kernel)[level] + np.asarray(table.shift)[level]
  return ((made - y) ** 2).sum()


@pytest.mark.parametrize(
  ('layer', 'decision', 'pixels'), [('Dense_0', 1, 4), ('Dense_1', 2, 1)]
)
def test_refit_is_least_squares(lenet5, layer, decision, pixels):
  x = inputs_of(lenet5, draw_images(32, (20, 20, 1)), layer)
  kernel = np.asarray(lenet5.variables['params'][layer]['kernel'], np.float64)
  y = x @ kernel
  variance = ((y - y.mean(0)) ** 2).sum()
  stays = prepare('lenet5', enabled=False)
  channels = kernel.shape[0] // pixels
  by_channel = np.abs(kernel).reshape(pixels, channels, -1).sum((0, 2))
  order = np.argsort(-by_channel, kind='stable')
  for level, kept in enumerate(lenet5.space.levels[decision]):
    # Rows of a flattened image: all channels of a pixel, then of the next.
    rows = (np.arange(pixels)[:, None] * channels + order[:kept]).ravel()
    columns = np.concatenate([x[:, rows], np.ones((len(x), 1))], axis=1)
    best = columns @ np.linalg.lstsq(columns, y, rcond=None)[0]
    least = ((best - y) ** 2).sum()
    refitted = error_of(lenet5, layer, level, x, y)
    assert refitted == pytest.approx(least, rel=0.02, abs=1e-4 * variance)
    if kept < channels:
      assert refitted < 0.99 * error_of(stays, layer, level, x, y)


@pytest.mark.slow
def test_objective_is_that_of_the_masked_network(lenet5):
  # 300 examples: two batches of 160, twenty of them empty.
  images = draw_images(300, (20, 20, 1), 5)
  labels = np.random.default_rng(6).integers(0, 10, 300).astype(np.int32)
  examples = make_examples(jnp.asarray(images), jnp.asarray(labels))
  assert examples.labels.shape == (2, 160)
  data = score_data(lenet5, examples)
  rng = np.random.default_rng(7)
  candidates = rng.integers(0, lenet5.space.counts(), (6, 3)).astype(np.int32)
  counted = Counted(make_measure(lenet5))
  measure = jax.jit(counted)
  apply = jax.jit(LENET.apply)
  for candidate in candidates[:2]:
    logits = np.asarray(apply(masked(lenet5, candidate), images), np.float64)
    norm = np.log(np.exp(logits).sum(1))
    loss = (norm - logits[np.arange(300), labels]).mean()
    accuracy = (logits.argmax(1) == labels).mean()
    found = measure(data, candidate)
    np.testing.assert_allclose(found['loss'], loss, rtol=1e-4)
    np.testing.assert_allclose(found['accuracy'], accuracy, rtol=1e-6)
  assert counted.traces == 1
  check_scores(lenet5, data, candidates, measure)


def check_scores(lenet5, data, candidates, measure):
  """An objective is traced once for all candidates of a search."""
  signs = {'accuracy': 1, 'loss': -1}
  for score, sign in signs.items():
    objective = Counted(make_objective(lenet5, score))
    space = lenet5.space
    searched = make_data(space, cost.tabulate(space, cost.macs), objective=data)
    history = evaluate(
      Problem(space, objective), searched, jnp.asarray(candidates)
    )
    assert objective.traces == 1
    expected = [sign * measure(data, each)[score] for each in candidates]
    np.testing.assert_allclose(history.scores, expected, rtol=1e-5)


def test_unknown_score(lenet5):
  with pytest.raises(ValueError, match=r"search.score='acc' is unknown"):
    make_objective(lenet5, 'acc')
  with pytest.raises(ValueError, match='known: accuracy, loss'):
    better_first('acc', {})


def test_order_of_scores():
  measured = {
    'accuracy': np.array([0.5, np.nan, 0.9, 0.9]),
    'loss': np.array([0.3, np.nan, 0.4, 0.1]),
  }
  assert better_first('accuracy', measured).tolist() == [2, 3, 0, 1]
  assert better_first('loss', measured).tolist() == [3, 0, 2, 1]


@pytest.mark.parametrize('count', [1, 16, 17, 256, 257, 4999])
def test_examples_fill_batches(count):
  images = jnp.arange(count, dtype=jnp.float32).reshape(count, 1, 1, 1)
  examples = make_examples(images, jnp.arange(count))
  batches, size = examples.labels.shape
  assert size <= 256
  assert size % 16 == 0
  assert batches * (size - 16) < count <= batches * size
  labels = np.asarray(examples.labels).ravel()
  np.testing.assert_array_equal(labels[:count], np.arange(count))
  assert (labels[count:] == -1).all()
  values = np.asarray(examples.images).ravel()
  np.testing.assert_array_equal(values[:count], np.arange(count))


def test_constants_go_into_biases_or_means():
  found = shift_arrays(random_variables(V1, (8, 8, 3)), V1.layers())
  assert found['params/classifier/kernel'] == ('params/classifier/bias', 1.0)
  mean = 'batch_stats/pointwise_3_norm/mean'
  assert found['params/pointwise_3/kernel'] == (mean, -1.0)


def test_options_that_are_no_numbers():
  model = LeNet300(features=(8, 8))
  images = jnp.full((1, 4, 2, 2, 1), jnp.nan)
  variables = random_variables(model, (2, 2, 1))
  with pytest.raises(ValueError, match='params/Dense_1/kernel: least squares'):
    make_candidates(model, variables, images, key=jax.random.key(0))


@pytest.mark.parametrize(
  ('model', 'options', 'message'),
  [
    (ResNetImagenet(), {}, r'model: ResNetImagenet has no layers\(\)'),
    (LeNet300(features=()), {}, 'LeNet300 has no channels that may be rem'),
    (LeNet5(), {'divisor': 21}, 'divisor=21 is larger than the 20 .* Conv_0'),
  ],
)
def test_networks_that_cannot_be_shrunk(model, options, message):
  example = jax.ShapeDtypeStruct((1, 28, 28, 1), jnp.float32)
  variables = jax.eval_shape(model.init, jax.random.key(0), example)
  with pytest.raises(ValueError, match=message):
    network_space(model, variables, example, **options)
