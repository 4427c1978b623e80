"""Channels and steps of a Flax network: options, searches, files."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bandwidth import coding, pruning, tree
from bandwidth.pruning.connections import INPUT
from bandwidth.search.decisions import joint_space
from bandwidth.search.dynamic import check_chain
from bandwidth.search.problem.budget import check_budget
from bandwidth.search.problem.interface import Problem, make_data
from bandwidth.search.searchers import make_searcher
from experiments.compression.files import read_file, write_file
from experiments.models.geometry import layer_shapes, macs
from experiments.models.lenet import LeNet5
from experiments.models.plain import PlainCifar
from experiments.policy.candidates.channels import (
  Refit,
  make_candidates,
  masked,
  with_statistics,
)
from experiments.policy.candidates.joint import (
  export_joint,
  make_joint,
  policy_rows,
)
from experiments.policy.candidates.scores import (
  make_examples,
  make_objective,
  score_data,
)


class Separable(nn.Module):
  """A convolution, a depthwise one, one of 1x1 and a classifier."""

  widths: tuple[int, int] = (6, 8)
  norm_momentum: float = 0.9

  @nn.compact
  def __call__(self, images, *, train=False):
    first, second = self.widths
    norm = functools.partial(
      nn.BatchNorm, use_running_average=not train, momentum=self.norm_momentum
    )
    x = nn.Conv(first, (3, 3), use_bias=False, name='stem')(images)
    x = nn.relu(norm(name='stem_norm')(x))
    x = nn.Conv(
      first, (3, 3), feature_group_count=first, use_bias=False, name='deep'
    )(x)
    x = nn.relu(norm(name='deep_norm')(x))
    x = nn.relu(nn.Conv(second, (1, 1), name='point')(x))
    return nn.Dense(10, name='logits')(x.mean((1, 2)))

  def layers(self):
    return (
      pruning.Conv('stem', INPUT),
      pruning.Norm('stem_norm', 'stem'),
      pruning.Depthwise('deep', 'stem_norm'),
      pruning.Norm('deep_norm', 'deep'),
      pruning.Conv('point', 'deep_norm'),
      pruning.Dense('logits', 'point'),
    )

  def with_channels(self, kept):
    return self.clone(widths=(kept['stem'], kept['point']))


NETWORKS = {
  'lenet5': (LeNet5(channels=(4, 6), features=8), (16, 16, 1)),
  'plain': (PlainCifar(8, 10, (6,) * 7), (8, 8, 3)),
  'separable': (Separable(), (6, 6, 3)),
}
BITS = (1, 2, 4, 6)
POINT = 'params/point/kernel'


def draw_images(count, shape, seed=2):
  rng = np.random.default_rng(seed)
  return rng.normal(size=(count, *shape)).astype('f4')


@functools.cache
def network(name):
  """Weights, scales and statistics as after training, and images."""
  model, shape = NETWORKS[name]
  rng = np.random.default_rng(1)
  images = jnp.asarray(draw_images(32, shape))
  abstract = jax.eval_shape(model.init, jax.random.key(0), images[:1])

  def draw(name, leaf):
    if name.endswith(('scale', 'var')):
      return rng.uniform(0.5, 1.5, leaf.shape).astype('f4')
    deviation = 0.3
    if name.endswith('kernel'):
      deviation = (2 * leaf.shape[-1] / leaf.size) ** 0.5
    return rng.normal(0, deviation, leaf.shape).astype('f4')

  variables = jax.jit(lambda v, x: with_statistics(model, v, x))(
    tree.map_named(draw, abstract), images
  )
  return model, variables, images.reshape(2, 16, *shape)


def prepare(name, *, points=3, **options):
  model, variables, batches = network(name)
  how = {'divisor': 2, 'smallest': 0.3, 'bits': BITS, 'most_levels': 12}
  refit = Refit(points=points)
  return make_joint(
    model,
    variables,
    batches,
    refit=refit,
    key=jax.random.key(0),
    **{**how, **options},
  )


@functools.cache
def prepared(name):
  return prepare(name)


def draw_candidate(joint, seed=0):
  rng = np.random.default_rng(seed)
  return rng.integers(0, joint.space.counts()).astype(np.int32)


@pytest.mark.parametrize(
  'name',
  [
    pytest.param('lenet5', marks=pytest.mark.slow),
    pytest.param('plain', marks=pytest.mark.slow),
    'separable',
  ],
)
def test_files_compute_what_the_masked_network_does(name, tmp_path):
  joint = prepared(name)
  model, shape = NETWORKS[name]
  candidate = draw_candidate(joint)
  images = jnp.asarray(draw_images(9, shape, 3))
  small, arrays, tensors = export_joint(joint, candidate, images)
  assert len(tensors) == joint.space.decisions
  path = tmp_path / 'model.bwz'
  write_file(path, 'auto', arrays, tensors, {})
  params, state = read_file(path)
  whole = masked(joint.candidates, candidate, images)
  expected = jax.jit(model.apply)(whole, images)
  found = jax.jit(small.apply)({'params': params, **state}, images)
  # Coarse steps leave some outputs constant.
  assert np.ptp(expected, axis=0).max() > 0.1
  scale = np.abs(expected).max()
  np.testing.assert_allclose(found / scale, expected / scale, atol=1e-5)
  # The file holds what was evaluated, and costs what the candidate does.
  for kernel, tensor in tensors.items():
    np.testing.assert_array_equal(tensor.to_array(), arrays[f'params/{kernel}'])
  check_costs(joint, candidate, small, arrays, tensors, images)
  model_cost = joint_space.joint_cost_model('file_bytes')
  predicted = joint_space.exact_joint_cost(
    joint.space, joint.choices, model_cost, candidate
  )
  assert 0.8 * predicted < path.stat().st_size < 1.2 * predicted + 1000


def check_costs(joint, candidate, small, arrays, tensors, images):
  space, choices = joint.space, joint.choices
  exact = joint_space.exact_joint_cost(
    space, choices, joint_space.joint_cost_model('macs'), candidate
  )
  assert exact == macs(layer_shapes(small, images))
  coded = {f'params/{kernel}' for kernel in tensors}
  floats = sum(x.size for kernel, x in arrays.items() if kernel not in coded)
  free = [tuple(x._replace(bits=0.0) for x in own) for own in choices]
  exact = joint_space.exact_joint_cost(
    space, free, joint_space.file_bytes, candidate
  )
  assert exact == 4 * floats


def test_bits_are_the_entropy_of_what_is_exported():
  joint = prepared('plain')
  # All outputs of the first layer stay: all channels of the second.
  second = [c.kept == 6 for c in joint.choices[1]].index(True)
  for level, choice in enumerate(joint.choices[0]):
    candidate = draw_candidate(joint)
    candidate[:2] = level, second
    levels = export_joint(joint, candidate)[2]['Conv_0/kernel'].levels
    _, counts = np.unique(levels, return_counts=True)
    shares = counts / counts.sum()
    bits = -(shares * np.log2(shares)).sum() * levels.size
    assert choice.bits == pytest.approx(bits, rel=1e-4, abs=1e-3)
    assert choice.density == pytest.approx(np.mean(levels != 0))


@pytest.mark.parametrize('name', NETWORKS)
def test_decisions_are_a_chain_of_falling_errors(name):
  joint = prepared(name)
  check_chain(joint.space)
  errors = np.asarray(joint.errors)
  assert errors.shape == (joint.space.decisions, joint.space.most_levels)
  for row, own in zip(errors, joint.choices, strict=True):
    assert own[0].kept == min(choice.kept for choice in own)
    expected = [choice.error - own[-1].error for choice in own]
    np.testing.assert_allclose(row[: len(own)], expected, atol=1e-6)
    assert row[0] == row.max() > 0
    assert (row >= 0).all()
    assert not row[len(own) - 1 :].any()


@pytest.mark.slow
def test_searches_stay_within_their_budget():
  joint = prepared('lenet5')
  space = joint.space
  images = jnp.asarray(draw_images(32, (16, 16, 1), 5))
  labels = jnp.argmax(
    NETWORKS['lenet5'][0].apply(joint.candidates.variables, images), -1
  )
  data = make_data(
    space,
    joint_space.tabulate_joint(space, joint.choices, joint_space.file_bytes),
    errors=joint.errors,
    objective=score_data(joint.candidates, make_examples(images, labels)),
  )
  whole = joint_space.exact_joint_cost(
    space, joint.choices, joint_space.file_bytes, space.full()
  )
  budget = check_budget(space, data.costs, 0.6 * whole)
  problem = Problem(space, make_objective(joint.candidates, 'loss'))
  for name, options in (
    ('dynamic', {}),
    ('cma_es', {'evaluations': 8, 'population': 4}),
  ):
    options = {'evaluations': 1, **options}
    search = jax.jit(make_searcher(name, problem, **options))
    history = search(jax.random.key(0), data, jnp.int32(budget))
    assert history.scores.shape == (options['evaluations'],)
    assert np.isfinite(history.scores).all()
    for candidate in np.asarray(history.candidates):
      exact = joint_space.exact_joint_cost(
        space, joint.choices, joint_space.file_bytes, candidate
      )
      assert exact <= 0.6 * whole


def test_all_channels_leave_steps_alone():
  joint = prepare('separable', kept='all')
  for group, own in zip(joint.space.groups, joint.choices, strict=True):
    inputs = joint.space.layers[group.layer].inputs
    assert {choice.kept for choice in own} == {inputs}
    assert 2 <= len({choice.step for choice in own}) == len(own)
  small, _, _ = export_joint(joint, np.zeros(3, np.int32))
  assert small == Separable()


def test_channels_that_are_given():
  joint = prepare('separable', kept={POINT: 3})
  kept = [{choice.kept for choice in own} for own in joint.choices]
  assert kept == [{3}, {3}, {8}]
  rows = policy_rows(joint, joint.space.full())
  assert [row['kept'] for row in rows] == [3, 3, 8]
  small, arrays, _ = export_joint(joint, joint.space.full())
  assert small.widths == (3, 8)
  assert arrays['batch_stats/deep_norm/mean'].shape == (3,)


@pytest.mark.slow
def test_channels_alone_are_those_of_candidates():
  """32 bits: nothing is rounded, and options are those of channels."""
  # All points, as layers that are looked at with others draw others.
  joint = prepare('separable', points=36, bits=(32,), most_levels=48)
  model, variables, batches = network('separable')
  plain = make_candidates(
    model,
    variables,
    batches,
    divisor=2,
    smallest=0.3,
    refit=Refit(points=36),
    key=jax.random.key(0),
  )
  assert [choice.kept for choice in joint.choices[0]] == [3]
  for decision, (own, levels) in enumerate(
    zip(joint.choices[1:], plain.space.levels, strict=True)
  ):
    assert tuple(choice.kept for choice in own) == levels
    found = joint.candidates.tables[decision + 1]
    expected = plain.tables[decision]
    for name in ('kernel', 'shift'):
      np.testing.assert_allclose(
        getattr(found, name), getattr(expected, name), rtol=1e-3, atol=2e-4
      )
  _, _, tensors = export_joint(joint, joint.space.full())
  assert tensors == {}


def test_policies_are_data():
  joint = prepared('separable')
  candidate = draw_candidate(joint, 4)
  rows = policy_rows(joint, candidate)
  _, arrays, tensors = export_joint(joint, candidate)
  names = ['params/stem/kernel', POINT, 'params/logits/kernel']
  assert [row['kernel'] for row in rows] == names
  for row, own, level in zip(rows, joint.choices, candidate, strict=True):
    kernel = arrays[row['kernel']]
    assert row['kept'] == own[level].kept == kernel.shape[-2]
    assert row['step'] == own[level].step
    tensor = tensors[row['kernel'].removeprefix('params/')]
    assert isinstance(tensor, coding.UniformTensor)
    assert tensor.step == np.float32(row['step'])
    assert 0 <= row['density'] <= 1
    assert 0 < row['bits_per_weight'] < 9
  assert [row['channels'] for row in rows] == [3, 6, 8]


@pytest.mark.parametrize(
  ('options', 'message'),
  [
    ({'bits': ()}, r'bits=\[\] are not all in \(0, 12\], or 32'),
    ({'bits': (2, 16)}, r'bits=\[2, 16\] are not all'),
    ({'bits': (0, 2)}, r'bits=\[0, 2\] are not all'),
    ({'bits': (4, 2)}, r'bits=\[4, 2\] do not ascend'),
    ({'most_levels': 1}, 'most_levels=1 is less than 2'),
    ({'kept': 'none'}, "kept='none' is neither channels by kernel nor all"),
    ({'kept': {'point': 3}}, "kept='point' is unknown; known: params/log"),
    ({'kept': {POINT: 7}}, r'kept: params/point/kernel=7 is not in \[1, 6\]'),
    ({'kept': {'params/stem/kernel': 2}}, 'stem/kernel=2, but nobody may rem'),
    ({'divisor': 9}, 'divisor=9 is larger than the 6 channels of stem'),
  ],
)
def test_bad_arguments(options, message):
  with pytest.raises(ValueError, match=message):
    prepare('separable', **options)


def test_levels_that_there_are_not():
  joint = prepared('separable')
  with pytest.raises(ValueError, match=r'shape \(2,\) is not \(3,\)'):
    export_joint(joint, np.zeros(2, np.int32))
  with pytest.raises(ValueError, match='point: level 99 is none of'):
    policy_rows(joint, np.array([0, 99, 0]))
