"""Spaces: levels of groups, and which decision each side of a layer follows."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bandwidth import pruning
from bandwidth.pruning import ChannelAxis, ChannelGroup
from bandwidth.search.problem.space import (
  FIXED,
  LayerShape,
  Space,
  extended,
  make_space,
)


def group(name, channels, *, writers, readers, period=None, start=0):
  return ChannelGroup(
    name=name,
    channels=channels,
    outputs=tuple(ChannelAxis(name=f'{x}/kernel', axis=-1) for x in writers),
    inputs=tuple(
      ChannelAxis(name=f'{x}/kernel', axis=-2, period=period, start=start)
      for x in readers
    ),
  )


def pair(channels, **options):
  """Two layers with one decision between them."""
  layers = [
    LayerShape('a', 'conv', 3, channels, taps=9, positions=64, pixels=64),
    LayerShape('b', 'conv', channels, 5, taps=9, positions=64, pixels=64),
  ]
  groups = [group('g', channels, writers=['a'], readers=['b'])]
  return make_space(layers, groups, **options)


@settings(max_examples=300, deadline=None)
@given(
  channels=st.integers(1, 2048),
  divisor=st.integers(1, 64),
  smallest=st.one_of(st.floats(1e-3, 1.0), st.sampled_from([0.1, 0.2, 0.5])),
  most_levels=st.integers(2, 200),
)
def test_levels(channels, divisor, smallest, most_levels):
  divisor = min(divisor, channels)
  options = {'divisor': divisor, 'smallest': smallest}
  space = pair(channels, **options, most_levels=most_levels)
  (levels,) = space.levels
  assert levels[-1] == channels
  assert levels[0] >= smallest * channels - 1e-9
  assert len(levels) <= most_levels
  # The finest multiples of a multiple of the divisor that are few enough.
  for step in range(divisor, channels + divisor, divisor):
    multiples = range(step, channels, step)
    kept = [x for x in multiples if x >= smallest * channels - 1e-9]
    if len(kept) < most_levels:
      break
  assert levels == (*kept, channels)


def test_levels_by_hand():
  assert pair(32).levels == ((8, 16, 24, 32),)
  assert pair(50).levels == ((16, 24, 32, 40, 48, 50),)
  assert pair(8).levels == ((8,),)
  assert pair(40, smallest=0.2).levels == ((8, 16, 24, 32, 40),)
  assert pair(64, smallest=1.0).levels == ((64,),)
  # 0.1 * 30 is 3.0000000000000004 of floats, and 3 channels of people.
  assert pair(30, divisor=1, smallest=0.1).levels[0][0] == 3
  assert pair(64, divisor=4, smallest=0.01, most_levels=5).levels == (
    (16, 32, 48, 64),
  )
  assert pair(4096, divisor=1, smallest=0.2, most_levels=2).levels[0][1] == 4096


CHAIN = (
  LayerShape('L0', 'dense', 4, 32),
  LayerShape('L1', 'dense', 32, 16),
  LayerShape('L2', 'dense', 16, 10),
)
GROUPS = (
  group('g0', 32, writers=['L0'], readers=['L1']),
  group('g1', 16, writers=['L1'], readers=['L2']),
)


def test_sizes_and_padding():
  space = make_space(CHAIN, GROUPS, divisor=8)
  assert space.decisions == 2
  assert space.most_levels == 4
  np.testing.assert_array_equal(space.counts(), [4, 2])
  np.testing.assert_array_equal(
    space.widths(), [[8, 16, 24, 32], [8, 16, 16, 16]]
  )
  np.testing.assert_array_equal(space.full(), [3, 1])
  assert space.counts().dtype == space.widths().dtype == np.int32
  assert space.kept([2, 0]) == {'g0': 24, 'g1': 8}
  for candidate, message in (
    ([0], r'candidate: shape \(1,\) is not \(2,\)'),
    ([0, 2], 'g1: level 2 is none of 2'),
    ([-1, 0], 'g0: level -1 is none of 4'),
  ):
    with pytest.raises(ValueError, match=message):
      space.kept(candidate)


def test_decisions_come_in_the_order_of_their_first_readers():
  space = make_space(CHAIN, GROUPS[::-1])
  assert [each.name for each in space.groups] == ['g0', 'g1']
  assert space.reads == (FIXED, 0, 1)
  assert space.writes == (0, 1, FIXED)


def test_depthwise_layers_follow_what_they_read():
  layers = [
    LayerShape('stem', 'conv', 3, 16, taps=9),
    LayerShape('deep', 'depthwise', 16, 16, taps=9),
    LayerShape('point', 'conv', 16, 24),
    LayerShape('last', 'depthwise', 24, 24, taps=9),
  ]
  groups = [
    group('stem', 16, writers=['stem', 'deep'], readers=['point']),
    # Nobody but a depthwise layer reads them: no decision.
    group('point', 24, writers=['point', 'last'], readers=[]),
  ]
  space = make_space(layers, groups)
  assert space.reads == (FIXED, 0, 0, FIXED)
  assert space.writes == (0, 0, FIXED, FIXED)
  assert [each.name for each in space.groups] == ['stem']


def test_flattened_pixels_are_taps():
  layers = [
    LayerShape('conv', 'conv', 3, 16, taps=9, positions=64, pixels=64),
    LayerShape('fc', 'dense', 16 * 64, 10, bias=True),
  ]
  groups = [group('g', 16, writers=['conv'], readers=['fc'])]
  space = make_space(layers, groups)
  assert space.layers[0] == layers[0]
  assert space.layers[1] == LayerShape(
    'fc', 'dense', 16, 10, taps=64, pixels=64, bias=True
  )
  assert space.layers[1].weights == layers[1].weights


def test_rows_of_a_depthwise_multiplier_are_taps():
  layers = [
    LayerShape('conv', 'conv', 3, 16, positions=4, pixels=4),
    LayerShape('deep', 'depthwise', 16, 48, taps=9, positions=4, pixels=4),
    LayerShape('fc', 'dense', 48, 10, positions=4, pixels=4),
  ]
  groups = [group('g', 16, writers=['conv', 'deep'], readers=['fc'])]
  space = make_space(layers, groups)
  # Three numbers of each channel at each of four positions.
  assert space.layers[2] == LayerShape(
    'fc', 'dense', 16, 10, taps=3, positions=4, pixels=12
  )


def test_layers_of_a_tree_with_collections():
  layers = [
    LayerShape('block/a', 'dense', 4, 16),
    LayerShape('block/b', 'dense', 16, 8),
  ]
  groups = [
    ChannelGroup(
      name='g',
      channels=16,
      outputs=(
        ChannelAxis(name='params/block/a/kernel', axis=-1),
        ChannelAxis(name='params/block/a/bias', axis=-1),
        ChannelAxis(name='params/norm/scale', axis=-1),
      ),
      inputs=(ChannelAxis(name='params/block/b/kernel', axis=-2),),
      statistics=(ChannelAxis(name='batch_stats/norm/mean', axis=-1),),
    )
  ]
  space = make_space(layers, groups)
  assert (space.reads, space.writes) == ((FIXED, 0), (0, FIXED))


def test_a_network_without_decisions():
  layers = [LayerShape('a', 'dense', 4, 16), LayerShape('b', 'dense', 16, 8)]
  space = make_space(layers, [])
  assert (space.decisions, space.most_levels) == (0, 1)
  assert space.widths().shape == (0, 1)
  assert space.counts().shape == space.full().shape == (0,)
  assert space.kept([]) == {}


def concatenation(kind, fixed):
  """Two layers side by side, read by one; the first perhaps an output too."""
  net = {
    'a': {'kernel': np.ones((3, 8))},
    'b': {'kernel': np.ones((3, 8))},
    'c': {'kernel': np.ones((16, 4))},
    'out': {'scale': np.ones(8)},
  }
  described = [
    pruning.Conv('a', 'input'),
    pruning.Conv('b', 'input'),
    pruning.Concat('ab', ('a', 'b')),
    pruning.Dense('c', 'ab') if kind == 'dense' else pruning.Conv('c', 'ab'),
    *([pruning.Norm('out', 'a')] if fixed else []),
  ]
  layers = [
    LayerShape('a', 'conv', 3, 8),
    LayerShape('b', 'conv', 3, 8),
    LayerShape('c', kind, 16, 4),
  ]
  return layers, pruning.channel_groups(net, described)


@pytest.mark.parametrize(
  ('fixed', 'message'),
  [
    (False, 'c: its inputs are channels of several groups, a and b'),
    (True, 'c: its inputs are not the 8 channels of b alone'),
  ],
)
@pytest.mark.parametrize('kind', ['conv', 'dense'])
def test_layers_that_read_several_groups(kind, fixed, message):
  layers, groups = concatenation(kind, fixed)
  with pytest.raises(ValueError, match=message):
    make_space(layers, groups, divisor=1)


@pytest.mark.parametrize(
  ('layers', 'message'),
  [
    (
      [LayerShape('a', 'dense', 4, 16), LayerShape('b', 'conv', 24, 8)],
      'b: its inputs are not the 16 channels of g alone',
    ),
    (
      [LayerShape('a', 'dense', 4, 16), LayerShape('b', 'dense', 24, 8)],
      'b: its inputs are not the 16 channels of g alone',
    ),
    (
      [LayerShape('a', 'dense', 4, 32), LayerShape('b', 'dense', 16, 8)],
      'a: its outputs are not the 16 channels of g alone',
    ),
  ],
)
def test_layers_of_other_widths_than_their_group(layers, message):
  groups = [group('g', 16, writers=['a'], readers=['b'])]
  with pytest.raises(ValueError, match=message):
    make_space(layers, groups)


@pytest.mark.parametrize(
  ('options', 'message'),
  [
    ({'divisor': 0}, 'divisor=0 is not positive'),
    ({'divisor': 33}, 'divisor=33 is larger than the 32 channels of g'),
    ({'smallest': 0.0}, r'smallest=0.0 is not in \(0, 1\]'),
    ({'smallest': 1.1}, r'smallest=1.1 is not in \(0, 1\]'),
    ({'smallest': math.nan}, r'smallest=nan is not in \(0, 1\]'),
    ({'most_levels': 1}, 'most_levels=1 is less than 2'),
  ],
)
def test_bad_arguments(options, message):
  with pytest.raises(ValueError, match=message):
    pair(32, **options)


def test_fixed_sides_have_level_0():
  levels = np.asarray(extended(np.array([3, 1], np.int32)))
  assert levels.dtype == np.int32
  assert levels[np.array([FIXED, 0, 1])].tolist() == [0, 3, 1]


def test_weights_of_layers():
  assert LayerShape('a', 'conv', 3, 8, taps=9).weights == 216
  assert LayerShape('a', 'depthwise', 8, 16, taps=9).weights == 144
  assert LayerShape('a', 'dense', 50, 500, taps=16).weights == 400_000
  assert isinstance(pair(32), Space)
