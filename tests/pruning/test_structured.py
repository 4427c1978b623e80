import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bandwidth import pruning
from bandwidth.pruning import ChannelAxis, ChannelGroup

RNG = np.random.default_rng(0)


def conv(x, p, *, groups=1, layout=('NHWC', 'HWIO', 'NHWC')):
  y = jax.lax.conv_general_dilated(
    x,
    p['kernel'],
    (1, 1),
    'SAME',
    dimension_numbers=layout,
    feature_group_count=groups,
  )
  return y + p['bias'][None, None, None] if 'bias' in p else y


def norm(x, p, s):
  def wide(v):
    return v[None, None, None]

  scaled = (x - wide(s['mean'])) / jnp.sqrt(wide(s['var']) + 1e-5)
  return scaled * wide(p['scale']) + wide(p['bias'])


def pool(x):
  return x.reshape(x.shape[0], x.shape[1] // 2, 2, -1, 2, x.shape[3]).mean(
    (2, 4)
  )


def weights(*shape):
  return jnp.asarray(RNG.normal(size=shape), jnp.float32)


def conv_params(*shape):
  return {'kernel': weights(*shape), 'bias': weights(shape[-1])}


def norm_params(channels):
  params = {'scale': weights(channels), 'bias': weights(channels)}
  stats = {'mean': weights(channels), 'var': weights(channels) ** 2 + 0.1}
  return params, stats


# Each network: the tree, its layers, the function, the input.


def plain():
  tree = {
    'conv1': conv_params(3, 3, 2, 6),
    'conv2': conv_params(3, 3, 6, 8),
    'fc1': conv_params(2 * 3 * 8, 10),
    'fc2': conv_params(10, 4),
  }
  layers = [
    pruning.Conv('conv1', 'input'),
    pruning.Conv('conv2', 'conv1'),
    pruning.Dense('fc1', 'conv2'),
    pruning.Dense('fc2', 'fc1'),
  ]

  def fn(t, x):
    x = pool(jax.nn.relu(conv(x, t['conv1'])))
    x = jax.nn.sigmoid(conv(x, t['conv2']))
    x = x.reshape(x.shape[0], -1)
    x = jax.nn.relu(x @ t['fc1']['kernel'] + t['fc1']['bias'][None])
    return x @ t['fc2']['kernel'] + t['fc2']['bias'][None]

  return tree, layers, fn, weights(2, 4, 6, 2)


def residual():
  tree = {'params': {}, 'batch_stats': {}}
  shapes = [(2, 8), (8, 8), (8, 8), (8, 12), (12, 12), (8, 12)]
  for i, (m, n) in enumerate(shapes):
    side = 1 if i == 5 else 3
    tree['params'][f'conv{i}'] = {'kernel': weights(side, side, m, n)}
    p, s = norm_params(n)
    tree['params'][f'bn{i}'], tree['batch_stats'][f'bn{i}'] = p, s
  tree['params']['fc'] = conv_params(12, 3)
  sources = ['input', 'bn0', 'bn1', 'add1', 'bn3', 'add1']
  layers = []
  for i, source in enumerate(sources):
    layers.append(pruning.Conv(f'conv{i}', source))
    layers.append(pruning.Norm(f'bn{i}', f'conv{i}'))
    if i == 2:
      layers.append(pruning.Add('add1', ('bn0', 'bn2')))
  layers.append(pruning.Add('add2', ('bn4', 'bn5')))
  layers.append(pruning.Dense('fc', 'add2'))

  def fn(t, x):
    p, s = t['params'], t['batch_stats']

    def unit(i, x):
      return norm(conv(x, p[f'conv{i}']), p[f'bn{i}'], s[f'bn{i}'])

    a = jax.nn.relu(unit(0, x))
    x = jax.nn.relu(a + unit(2, jax.nn.relu(unit(1, a))))
    x = jax.nn.relu(unit(5, x) + unit(4, jax.nn.relu(unit(3, x))))
    return x.mean((1, 2)) @ p['fc']['kernel'] + p['fc']['bias'][None]

  return tree, layers, fn, weights(2, 4, 4, 2)


def separable():
  tree = {'params': {}, 'batch_stats': {}}
  tree['params'] = {
    'expand': {'kernel': weights(1, 1, 3, 6)},
    'depth': conv_params(3, 3, 1, 12),
    'project': {'kernel': weights(1, 1, 12, 5)},
    'fc': conv_params(4 * 4 * 5, 2),
  }
  for name, n in (('bn1', 6), ('bn2', 12), ('bn3', 5)):
    tree['params'][name], tree['batch_stats'][name] = norm_params(n)
  layers = [
    pruning.Conv('expand', 'input'),
    pruning.Norm('bn1', 'expand'),
    pruning.Depthwise('depth', 'bn1'),
    pruning.Norm('bn2', 'depth'),
    pruning.Conv('project', 'bn2'),
    pruning.Norm('bn3', 'project'),
    pruning.Dense('fc', 'bn3'),
  ]

  def fn(t, x):
    p, s = t['params'], t['batch_stats']
    x = jax.nn.relu6(norm(conv(x, p['expand']), p['bn1'], s['bn1']))
    x = conv(x, p['depth'], groups=x.shape[-1])
    x = jax.nn.relu6(norm(x, p['bn2'], s['bn2']))
    x = norm(conv(x, p['project']), p['bn3'], s['bn3'])
    x = x.reshape(x.shape[0], -1)
    return x @ p['fc']['kernel'] + p['fc']['bias'][None]

  return tree, layers, fn, weights(2, 4, 4, 3)


def fire():
  tree = {
    'squeeze': conv_params(1, 1, 3, 4),
    'left': conv_params(1, 1, 4, 6),
    'right': conv_params(3, 3, 4, 8),
    'head': conv_params(1, 1, 14, 5),
    'flat': conv_params(9 * 14, 3),
    'mix': conv_params(5, 2),
  }
  layers = [
    pruning.Conv('squeeze', 'input'),
    pruning.Conv('left', 'squeeze'),
    pruning.Conv('right', 'squeeze'),
    pruning.Concat('both', ('left', 'right')),
    pruning.Conv('head', 'both'),
    pruning.Dense('flat', 'both'),
    pruning.Dense('mix', 'head'),
  ]

  def fn(t, x):
    x = jax.nn.relu(conv(x, t['squeeze']))
    x = jnp.concatenate([conv(x, t['left']), conv(x, t['right'])], -1)
    x = jax.nn.relu(x)
    flat = x.reshape(x.shape[0], -1)
    head = conv(x, t['head']).mean((1, 2))
    return jnp.concatenate(
      [
        flat @ t['flat']['kernel'] + t['flat']['bias'][None],
        head @ t['mix']['kernel'] + t['mix']['bias'][None],
      ],
      -1,
    )

  return tree, layers, fn, weights(2, 3, 3, 3)


NETWORKS = {
  'plain': (plain, ['conv1', 'conv2', 'fc1']),
  'residual': (residual, ['conv0', 'conv1', 'conv3', 'conv4']),
  'separable': (separable, ['expand', 'project']),
  'fire': (fire, ['squeeze', 'left', 'right', 'head']),
}


@pytest.mark.parametrize('name', NETWORKS)
def test_removed_equals_masked(name):
  make, expected = NETWORKS[name]
  tree, layers, fn, x = make()
  fn = jax.jit(fn)
  groups = pruning.channel_groups(tree, layers)
  assert [group.name for group in groups] == expected
  keep = pruning.keep_channels(tree, groups, 0.5)
  small = pruning.remove_channels(tree, groups, keep)
  masked = pruning.apply_masks(tree, pruning.channel_masks(tree, groups, keep))
  assert jax.tree.structure(small) == jax.tree.structure(tree)
  assert sum(x.size for x in jax.tree.leaves(small)) < 0.6 * sum(
    x.size for x in jax.tree.leaves(tree)
  )
  got, want = fn(small, x), fn(masked, x)
  np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)
  assert np.abs(want - fn(tree, x)).max() > 1e-2
  # The groups fit the smaller network: it can be cut again.
  again = pruning.channel_groups(small, layers)
  assert [g.channels for g in again] == [len(keep[g.name]) for g in groups]


def test_masks_cover_shift_and_next_inputs_but_not_statistics():
  tree, layers, _, _ = residual()
  groups = pruning.channel_groups(tree, layers)
  keep = {'conv1': np.array([0, 5])}
  masks = pruning.channel_masks(tree, groups, keep)
  kept = np.isin(np.arange(8), [0, 5])
  for path in (('bn1', 'scale'), ('bn1', 'bias')):
    np.testing.assert_array_equal(masks['params'][path[0]][path[1]], kept)
  assert masks['batch_stats']['bn1']['var'].shape == ()
  assert (
    masks['params']['conv2']['kernel'][0, 0, :, 0].tolist() == kept.tolist()
  )
  assert masks['params']['conv0']['kernel'].shape == ()
  small = pruning.remove_channels(tree, groups, keep)
  assert small['batch_stats']['bn1']['mean'].shape == (2,)


def test_residual_groups_share_one_choice():
  tree, layers, _, _ = residual()
  groups = {g.name: g for g in pruning.channel_groups(tree, layers)}
  shared = {part.name for part in groups['conv0'].outputs}
  assert {'params/conv0/kernel', 'params/conv2/kernel'} <= shared
  assert 'params/bn2/bias' in shared
  readers = {part.name for part in groups['conv0'].inputs}
  assert readers == {f'params/conv{i}/kernel' for i in (1, 3, 5)}
  # By hand: the L1 norms of both kernels that write the group.
  total = sum(
    np.abs(tree['params'][c]['kernel']).sum((0, 1, 2))
    for c in ('conv0', 'conv2')
  )
  best = np.sort(np.argsort(-np.asarray(total))[:6])
  keep = pruning.keep_channels(tree, list(groups.values()), {'conv0': 0.25})
  np.testing.assert_array_equal(keep['conv0'], best)
  np.testing.assert_array_equal(keep['conv1'], np.arange(8))


def test_flatten_orders_by_hand():
  tree = {'fc': jnp.arange(12.0).reshape(12, 1), 'b': jnp.arange(3.0)}
  out = (ChannelAxis(name='b', axis=0),)
  channels_last = ChannelGroup(
    name='g',
    channels=3,
    outputs=out,
    inputs=(ChannelAxis(name='fc', axis=0),),
  )
  small = pruning.remove_channels(tree, [channels_last], {'g': [0, 2]})
  assert small['fc'][:, 0].tolist() == [0, 2, 3, 5, 6, 8, 9, 11]
  channels_first = ChannelGroup(
    name='g',
    channels=3,
    outputs=out,
    inputs=(ChannelAxis(name='fc', axis=0, inner=4),),
  )
  small = pruning.remove_channels(tree, [channels_first], {'g': [1]})
  assert small['fc'][:, 0].tolist() == [4, 5, 6, 7]


def test_channels_first_flatten_of_a_network():
  tree = {'conv': conv_params(1, 1, 2, 4), 'fc': {'kernel': weights(24, 3)}}
  layers = [
    pruning.Conv('conv', 'input'),
    pruning.Dense('fc', 'conv', inner=6),
  ]

  def fn(t, x):
    y = conv(x, t['conv']).transpose(0, 3, 1, 2)
    return y.reshape(y.shape[0], -1) @ t['fc']['kernel']

  x = weights(2, 2, 3, 2)
  groups = pruning.channel_groups(tree, layers)
  keep = {'conv': [0, 3]}
  small = pruning.remove_channels(tree, groups, keep)
  masked = pruning.apply_masks(tree, pruning.channel_masks(tree, groups, keep))
  np.testing.assert_allclose(fn(small, x), fn(masked, x), atol=1e-5)


def test_bad_groups_and_choices():
  tree, layers, _, _ = plain()
  groups = pruning.channel_groups(tree, layers)
  for keep, match in (
    ({'conv9': [0]}, "'conv9' is no group"),
    ({'conv1': []}, 'integers|empty'),
    ({'conv1': [0, 0]}, 'repeated'),
    ({'conv1': [6]}, r'not all in \[0, 6\)'),
    ({'conv1': [True, False]}, 'integers'),
  ):
    with pytest.raises(ValueError, match=match):
      pruning.remove_channels(tree, groups, keep)
  with pytest.raises(ValueError, match='leaves no channel of 6'):
    pruning.keep_channels(tree, groups, 0.99)
  with pytest.raises(ValueError, match='no group'):
    pruning.keep_channels(tree, groups, {'fc2': 0.5})
  for name, match in (
    ('none', "'none' is no array"),
    ('fc1/bias', 'fc1/bias: axis 0 has 10 entries'),
  ):
    part = ChannelAxis(name=name, axis=0)
    group = ChannelGroup(name='g', channels=3, outputs=(part,))
    with pytest.raises(ValueError, match=match):
      pruning.remove_channels(tree, [group], {'g': [0]})
  with pytest.raises(ValueError, match='needs outputs'):
    ChannelGroup(name='g', channels=3, outputs=())
  with pytest.raises(ValueError, match='inner=0'):
    ChannelAxis(name='a', axis=0, inner=0)
