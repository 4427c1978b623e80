import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bandwidth import pruning, tree
from bandwidth.search.problem import cost
from bandwidth.search.problem.space import LayerShape, make_space
from experiments.models import make_language_model, make_model
from experiments.models.geometry import layer_shapes, macs
from experiments.models.lenet import LeNet5
from experiments.models.mobilenet import MobileNetV1, MobileNetV2
from experiments.models.plain import PlainCifar
from experiments.models.prunable import Prunable
from experiments.models.resnet import ResNetCifar

# The two published lists of AMC, and MobileNet at its own widths.
V1 = {
  568_740_352: (32, 64, 128, 128, 256, 256, *(512,) * 6, 1024, 1024),
  325_400_448: (24, 48, 96, 96, 192, 192, *(384,) * 6, 768, 768),
  293_870_000: (
    *(24, 48, 96, 80, 192, 200, 328),
    *(352, 368, 360, 328, 400, 736, 752),
  ),
  273_976_912: (
    *(16, 48, 88, 80, 192, 168, 336),
    *(360, 360, 352, 352, 368, 768, 680),
  ),
}
V2_70_INNER = (
  *(72, 104, 104, 136, 136, 136, 272, 272, 272, 272),
  *(408, 400, 400, 712, 720, 712),
)
V2_70 = {
  'stem_conv': 24,
  'blocks_16/project': 248,
  'head_conv': 848,
  **{f'blocks_{i + 1}/expand': width for i, width in enumerate(V2_70_INNER)},
}

IMAGENET = (224, 224, 3)
V1_GROUPS = ['stem', *(f'pointwise_{i}' for i in range(13))]


def inverted_groups(firsts, blocks, *, trunk):
  """Names of the groups; `firsts` are the blocks that begin a stage."""
  names = ['stem_conv']
  for i in range(blocks):
    if i:
      names.append(f'blocks_{i}/expand')
    if i in trunk and i in firsts:
      names.append(f'blocks_{i}/project')
  return [*names, 'head_conv']


V2_FIRSTS = (0, 1, 3, 6, 10, 13, 16)
LITE_FIRSTS = (0, 1, 3, 5, 8, 11, 15)
GROUP = {'residual': 'group'}

# Name, image, arguments of `layers`, names of the groups.
NETWORKS = [
  ('lenet300', (28, 28, 1), {}, ['Dense_0', 'Dense_1']),
  ('lenet5', (28, 28, 1), {}, ['Conv_0', 'Conv_1', 'Dense_0']),
  ('plain20', (32, 32, 3), {}, [f'Conv_{i}' for i in range(19)]),
  ('resnet20', (32, 32, 3), {}, [f'Conv_{i}' for i in range(1, 19, 2)]),
  ('mobilenet_v1', IMAGENET, {}, V1_GROUPS),
  ('mobilenet_v1_cifar', (32, 32, 3), {}, V1_GROUPS),
  (
    'mobilenet_v2',
    IMAGENET,
    {},
    # Only the first and the last stage have one block, that adds nothing.
    inverted_groups(V2_FIRSTS, 17, trunk=(0, 16)),
  ),
  (
    'mobilenet_v2_cifar',
    (32, 32, 3),
    GROUP,
    inverted_groups(V2_FIRSTS, 17, trunk=range(17)),
  ),
  (
    'efficientnet_lite0',
    IMAGENET,
    {},
    inverted_groups(LITE_FIRSTS, 16, trunk=(0, 15)),
  ),
]
IDS = [name + '-group' * bool(how) for name, _, how, _ in NETWORKS]


@functools.cache
def network(name, shape, num_classes=10):
  model = make_model({'name': name}, num_classes=num_classes)
  return model, abstract(model, shape), layer_shapes(model, images(shape))


def images(shape, count=1):
  return jax.ShapeDtypeStruct((count, *shape), jnp.float32)


def abstract(model, shape):
  return jax.eval_shape(model.init, jax.random.key(0), images(shape))


def shapes_of(variables):
  return {k: v.shape for k, v in tree.named_leaves(variables)}


@pytest.mark.parametrize('count', V1)
def test_macs_of_mobilenet_v1(count):
  model = MobileNetV1(channels=V1[count])
  assert macs(layer_shapes(model, images(IMAGENET))) == count


@pytest.mark.slow
def test_macs_of_mobilenet_v2():
  full, _, shapes = network('mobilenet_v2', IMAGENET, 1000)
  assert macs(shapes) == 300_774_272
  small = MobileNetV2(
    stem=24,
    channels=(16, 24, 32, 64, 96, 160, 248),
    inner_channels=(24, *V2_70_INNER),
    head=848,
  )
  # Of one example, whatever their number.
  assert macs(layer_shapes(small, images(IMAGENET, 3))) == 210_620_528
  assert full.with_channels(V2_70) == small


@pytest.mark.parametrize(
  ('name', 'shape', 'classes', 'parameters'),
  [
    ('mobilenet_v1', IMAGENET, 1000, 4_231_976),
    ('mobilenet_v2', IMAGENET, 1000, 3_504_872),
    # Shortcuts have no parameters.
    ('plain20', (32, 32, 3), 10, 269_722),
    ('resnet20', (32, 32, 3), 10, 269_722),
  ],
)
def test_parameters(name, shape, classes, parameters):
  _, variables, _ = network(name, shape, classes)
  assert tree.size(variables['params']) == parameters


@pytest.mark.parametrize('name', ['plain20', 'resnet20'])
def test_macs_of_layers_of_3x3(name):
  # Of 32x32, 16x16 and 8x8 pixels; the first of a group reads half as much.
  groups = 1024 * 6 * 144 * 16, 256 * (144 + 5 * 288) * 32
  expected = 1024 * 27 * 16 + sum(groups) + 64 * (288 + 5 * 576) * 64 + 640
  *_, shapes = network(name, (32, 32, 3))
  assert macs(shapes) == expected == 40_551_040


def separable(inputs, outputs, positions):
  return positions * inputs * (9 + outputs)


@pytest.mark.parametrize(
  ('arguments', 'expected'),
  [
    ({'name': 'mobilenet_v1', 'variant': 'cifar'}, 175_556_608),
    ({'name': 'mobilenet_v1_cifar'}, 12_038_656),
  ],
)
def test_macs_of_mobilenet_v1_on_small_images(arguments, expected):
  model = make_model(arguments, num_classes=10)
  c = model.channels
  # Three halvings: 32 to the fourth layer, 16, 8, 4.
  sides = [32] * 3 + [16] * 2 + [8] * 6 + [4] * 2
  # A strided depthwise convolution makes as many numbers as what reads them.
  count = 1024 * 27 * c[0] + c[-1] * 10
  for i, side in enumerate(sides):
    count += separable(c[i], c[i + 1], side**2)
  assert count == expected
  assert macs(layer_shapes(model, images((32, 32, 3)))) == expected


@pytest.mark.parametrize(
  ('arguments', 'expected'),
  [
    ({'name': 'mobilenet_v2', 'variant': 'cifar'}, 87_976_448),
    ({'name': 'mobilenet_v2_cifar'}, 26_324_224),
  ],
)
def test_macs_of_mobilenet_v2_on_small_images(arguments, expected):
  model = make_model(arguments, num_classes=10)
  stages = [
    *((1, model.channels[0], 1, 1), (6, model.channels[1], 2, 1)),
    *((6, model.channels[2], 3, 2), (6, model.channels[3], 4, 2)),
    *((6, model.channels[4], 3, 1), (6, model.channels[5], 3, 2)),
    (6, model.channels[6], 1, 1),
  ]
  count, before, side = 1024 * 27 * model.stem, model.stem, 32
  for expansion, channels, blocks, stride in stages:
    for i in range(blocks):
      inner = before * expansion
      count += (expansion > 1) * side**2 * before * inner
      side //= 1 if i else stride
      count += separable(inner, channels, side**2)
      before = channels
  count += 16 * before * model.head + model.head * 10
  assert side == 4
  assert count == expected
  assert macs(layer_shapes(model, images((32, 32, 3)))) == expected


@pytest.mark.parametrize(('name', 'shape', 'how', 'names'), NETWORKS, ids=IDS)
def test_decisions(name, shape, how, names):
  model, variables, shapes = network(name, shape)
  assert isinstance(model, Prunable)
  groups = pruning.channel_groups(variables, model.layers(**how))
  assert [group.name for group in groups] == names
  space = make_space(shapes, groups, divisor=2 if 'lenet' in name else 8)
  assert [group.name for group in space.groups] == names
  assert cost.exact_cost(space, cost.macs, space.full()) == macs(shapes)


@pytest.mark.parametrize(('name', 'shape', 'how', 'names'), NETWORKS, ids=IDS)
def test_smaller_networks_are_what_is_left(name, shape, how, names):
  del names
  model, variables, shapes = network(name, shape)
  groups = pruning.channel_groups(variables, model.layers(**how))
  rng = np.random.default_rng(0)
  keep = {
    # The last group stays whole.
    group.name: rng.permutation(group.channels)[: rng.integers(1, 9)]
    for group in groups[:-1]
  }
  cut = jax.eval_shape(
    lambda tree: pruning.remove_channels(tree, groups, keep), variables
  )
  kept = {name: len(channels) for name, channels in keep.items()}
  small = model.with_channels(kept)
  assert shapes_of(abstract(small, shape)) == shapes_of(cut)
  # And it costs what its candidate is said to cost.
  space = make_space(
    shapes, groups, divisor=1, smallest=1e-4, most_levels=2**20
  )
  candidate = [
    levels.index(kept.get(group.name, group.channels))
    for levels, group in zip(space.levels, space.groups, strict=True)
  ]
  found = cost.exact_cost(space, cost.macs, np.array(candidate))
  assert found == macs(layer_shapes(small, images(shape)))


@pytest.mark.parametrize('count', V1)
def test_cost_of_published_levels(count):
  model, variables, shapes = network('mobilenet_v1', IMAGENET, 1000)
  space = make_space(shapes, pruning.channel_groups(variables, model.layers()))
  levels = [
    x.index(width) for x, width in zip(space.levels, V1[count], strict=True)
  ]
  assert cost.exact_cost(space, cost.macs, np.array(levels)) == count


def test_cost_of_published_levels_of_mobilenet_v2():
  model, variables, shapes = network('mobilenet_v2', IMAGENET, 1000)
  space = make_space(shapes, pruning.channel_groups(variables, model.layers()))
  levels = [
    x.index(V2_70.get(group.name, group.channels))
    for x, group in zip(space.levels, space.groups, strict=True)
  ]
  assert cost.exact_cost(space, cost.macs, np.array(levels)) == 210_620_528


def random_variables(model, shape):
  """As after training: statistics, scales and shifts that matter."""
  rng = np.random.default_rng(1)

  def draw(name, leaf):
    if name.endswith(('scale', 'var')):
      return rng.uniform(0.5, 1.5, leaf.shape).astype('f4')
    deviation = 0.3
    if name.endswith('kernel'):
      deviation = (2 * leaf.shape[-1] / leaf.size) ** 0.5
    return rng.normal(0, deviation, leaf.shape).astype('f4')

  return tree.map_named(draw, abstract(model, shape))


TINY = [
  (ResNetCifar(8, 4, (4, 6, 6)), {}, {'Conv_3': 2}),
  # Stage one and its input, and the last and its, come to equal widths.
  (
    MobileNetV2(
      4, 8, (6, 8, 8, 8, 8, 8, 12), (8, *(12,) * 16), 20, variant='cifar'
    ),
    GROUP,
    {'stem_conv': 5, 'blocks_0/project': 5, 'blocks_16/project': 7},
  ),
]


@pytest.mark.parametrize(
  ('model', 'how', 'kept'),
  [TINY[0], pytest.param(*TINY[1], marks=pytest.mark.slow)],
  ids=['resnet', 'v2'],
)
def test_masked_and_smaller_networks_agree(model, how, kept):
  variables = random_variables(model, (8, 8, 3))
  rng = np.random.default_rng(2)
  x = rng.normal(size=(2, 8, 8, 3)).astype('f4')
  groups = pruning.channel_groups(variables, model.layers(**how))
  keep = {
    g.name: rng.permutation(g.channels)[: kept.get(g.name, g.channels - 1)]
    for g in groups
  }
  masks = pruning.channel_masks(variables, groups, keep)
  small = model.with_channels({k: len(v) for k, v in keep.items()})

  @jax.jit
  def both(variables):
    cut = pruning.remove_channels(variables, groups, keep)
    masked = pruning.apply_masks(variables, masks)
    return small.apply(cut, x), model.apply(masked, x)

  found, expected = both(variables)
  assert np.ptp(expected, axis=0).min() > 1e-3
  np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_what_adds_does_not_depend_on_widths():
  # 32 -> 16 and 160 -> 320 without strides: equal only after pruning.
  kept = {'stem_conv': 16, 'blocks_16/project': 160}
  small = MobileNetV2().with_channels(kept)
  adds = [shape.adds for shape in small.block_shapes()]
  assert [i for i, each in enumerate(adds) if not each] == list(V2_FIRSTS)


@pytest.mark.parametrize('convolution', ['xla', 'matrix'])
def test_shapes_of_lenet5(convolution):
  model = LeNet5(convolution=convolution)
  conv = functools.partial(LayerShape, kind='conv', taps=25, bias=True)
  dense = functools.partial(LayerShape, kind='dense', bias=True)
  assert layer_shapes(model, images((28, 28, 1), 2)) == (
    conv('Conv_0', inputs=1, outputs=20, positions=576, pixels=784),
    conv('Conv_1', inputs=20, outputs=50, positions=64, pixels=144),
    dense('Dense_0', inputs=800, outputs=500),
    dense('Dense_1', inputs=500, outputs=10),
  )
  variables = abstract(model, (28, 28, 1))
  groups = pruning.channel_groups(variables, model.layers())
  assert [group.channels for group in groups] == [20, 50, 500]
  small = model.with_channels({'Conv_1': 7})
  assert small == LeNet5(channels=(20, 7), convolution=convolution)


class Stack(nn.Module):
  layer: nn.Module
  times: int = 1

  def __call__(self, x):
    for _ in range(self.times):
      x = self.layer(x)
    return x


@pytest.mark.parametrize(
  ('layer', 'kind', 'stride', 'pixels'),
  [
    (nn.Conv(8, (3, 3), 2, feature_group_count=4), 'depthwise', 2, 64),
    (nn.Conv(8, (3, 3), (2, 2)), 'conv', 2, 64),
    (nn.Conv(8, (3, 3), feature_group_count=1, padding=0), 'conv', 1, 64),
  ],
)
def test_shapes_of_convolutions(layer, kind, stride, pixels):
  (shape,) = layer_shapes(Stack(layer), images((8, 8, 4), 3))
  positions = {1: 36, 2: 16}[stride]
  assert shape == LayerShape(
    'layer', kind, 4, 8, 9, positions, pixels, stride, bias=True
  )
  variables = abstract(Stack(layer), (8, 8, 4))
  assert shape.weights == variables['params']['layer']['kernel'].size


@pytest.mark.parametrize(
  ('model', 'message'),
  [
    (
      Stack(nn.Conv(8, (3, 3), feature_group_count=2)),
      'layer: feature_group_count=2 is neither 1 nor the 4 inputs',
    ),
    (Stack(nn.ConvTranspose(4, (3, 3))), 'layer: neither a convolution nor'),
    (Stack(nn.Dense(4), times=2), 'layer: a layer that runs twice'),
    (Stack(nn.RNN(nn.LSTMCell(3))), 'cell: a recurrence has no fixed cost'),
  ],
)
def test_layers_that_cannot_be_described(model, message):
  with pytest.raises(ValueError, match=message):
    layer_shapes(model, images((8, 4)))


def test_language_models_cannot_be_described():
  model = make_language_model({'name': 'lstm', 'hidden': 4}, vocabulary=5)
  tokens = jax.ShapeDtypeStruct((1, 3), jnp.int32)
  with pytest.raises(ValueError, match='neither a convolution nor a dense'):
    layer_shapes(model, tokens)
  assert not isinstance(model, Prunable)


@pytest.mark.parametrize(
  ('build', 'message'),
  [
    (lambda: MobileNetV1(variant='cifra'), "variant='cifra' is unknown.*cifar"),
    (lambda: MobileNetV1(channels=(8, 8)), 'channels=.* has not 14 entries'),
    (lambda: MobileNetV2(variant='mnist'), "variant='mnist' is unknown"),
    (lambda: MobileNetV2(channels=(8, 8)), 'channels=.* has not 7 entries'),
    (lambda: MobileNetV2(inner_channels=(32,) * 16), 'has not 17 entries'),
    (lambda: MobileNetV2(inner_channels=(8,) * 17), 'the first stem=32'),
    (lambda: MobileNetV2().layers(residual='free'), "residual='free' is unkn"),
    (lambda: PlainCifar(depth=21), 'depth=21 is not 6n'),
    (lambda: PlainCifar(channels=(16,) * 20), 'has not 19 entries'),
    (
      lambda: LeNet5().with_channels({'Dense_1': 3}),
      "kept='Dense_1' is unknown; known: Conv_0, Conv_1, Dense_0",
    ),
    (
      lambda: PlainCifar().with_channels({'Conv_3': 17}),
      r'kept: Conv_3=17 is not in \[1, 16\]',
    ),
    (
      lambda: MobileNetV2().with_channels({'blocks_2/project': 8}),
      "kept='blocks_2/project' is unknown",
    ),
  ],
)
def test_bad_arguments(build, message):
  with pytest.raises(ValueError, match=message):
    build()
