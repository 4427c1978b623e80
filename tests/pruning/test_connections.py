import numpy as np
import pytest

from bandwidth import pruning


def kernel(*shape):
  return {'kernel': np.ones(shape), 'bias': np.ones(shape[-1])}


TREE = {
  'params': {
    'a': kernel(3, 3, 2, 4),
    'b': kernel(3, 3, 4, 4),
    'c': kernel(3, 3, 4, 2),
    'block': {'d': kernel(3, 3, 4, 8)},
    'e': kernel(16, 5),
  },
}


def names(layers):
  return [group.name for group in pruning.channel_groups(TREE, layers)]


def test_outputs_of_the_network_stay():
  layers = [pruning.Conv('a', 'input'), pruning.Conv('b', 'a')]
  assert names(layers) == ['a']
  assert names(layers[:1]) == []
  # Added to an output, the first layer's channels are the output's.
  assert names([*layers, pruning.Add('sum', ('a', 'b'))]) == []


def test_channels_added_to_the_input_stay():
  layers = [
    pruning.Conv('a', 'input'),
    pruning.Conv('c', 'a'),
    pruning.Add('sum', ('input', 'c')),
  ]
  assert names(layers) == ['a']


def test_nested_modules_and_identical_branches():
  layers = [
    pruning.Conv('a', 'input'),
    pruning.Conv('block/d', 'a'),
    pruning.Dense('e', 'block/d'),
  ]
  groups = pruning.channel_groups(TREE, layers)
  assert [g.name for g in groups] == ['a', 'block/d']
  assert groups[1].outputs[0].name == 'params/block/d/kernel'
  assert groups[1].inputs[0].period == 8


def test_chains_of_sums_are_one_group():
  layers = [
    pruning.Conv('a', 'input'),
    pruning.Conv('b', 'a'),
    pruning.Add('one', ('b', 'a')),
    pruning.Add('two', ('one', 'b')),
    pruning.Conv('c', 'two'),
  ]
  (group,) = pruning.channel_groups(TREE, layers)
  assert group.name == 'a'
  assert [part.name for part in group.outputs] == [
    'params/a/kernel',
    'params/a/bias',
    'params/b/kernel',
    'params/b/bias',
  ]
  assert {part.name for part in group.inputs} == {
    'params/b/kernel',
    'params/c/kernel',
  }


@pytest.mark.parametrize(
  ('layers', 'match'),
  [
    ([pruning.Conv('z', 'input')], "z: the tree has no 'kernel'"),
    ([pruning.Norm('z', 'input')], 'z: the tree has no arrays'),
    ([pruning.Conv('a', 'b')], "a: 'b' is not listed before it"),
    ([pruning.Conv('a', 'input')] * 2, "'a' is listed twice"),
    (
      [
        pruning.Conv('a', 'input'),
        pruning.Conv('c', 'a'),
        pruning.Conv('b', 'c'),
      ],
      '4 inputs, 2 channels come in',
    ),
    (
      [pruning.Conv('a', 'input'), pruning.Depthwise('b', 'a')],
      'not of a depthwise kernel',
    ),
    (
      [
        pruning.Conv('a', 'input'),
        pruning.Conv('c', 'a'),
        pruning.Add('s', ('a', 'c')),
      ],
      r'widths \[2, 4\] do not add',
    ),
  ],
)
def test_layers_that_do_not_fit(layers, match):
  with pytest.raises(ValueError, match=match):
    pruning.channel_groups(TREE, layers)
