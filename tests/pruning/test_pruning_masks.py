import jax
import jax.numpy as jnp
import numpy as np
import pytest
from traces import Counted

from bandwidth import pruning
from bandwidth.pruning import structures


def network(dtype=jnp.float32):
  rng = np.random.default_rng(0)
  leaves = {
    'conv': {
      'kernel': rng.normal(size=(3, 3, 4, 8)),
      'bias': rng.normal(size=8),
    },
    'dense': {'kernel': rng.normal(size=(32, 10))},
    'scale': np.float64(2.0),
    'empty': np.zeros((0, 4)),
  }
  return jax.tree.map(lambda x: jnp.asarray(x, dtype), leaves)


@pytest.mark.parametrize('dtype', [jnp.float32, jnp.bfloat16])
def test_prune_params_keeps_the_largest(dtype):
  net = network(dtype)
  pruned = pruning.prune_params(net, 0.75)
  assert jax.tree.structure(pruned.params) == jax.tree.structure(net)
  for name in ('conv', 'dense'):
    before = np.abs(np.asarray(net[name]['kernel'], np.float32))
    after = np.asarray(pruned.params[name]['kernel'], np.float32)
    mask = np.asarray(pruned.masks[name]['kernel'])
    assert mask.sum() == round(before.size / 4)
    assert np.array_equal(after != 0, mask)
    assert before[mask].min() >= before[~mask].max()
    assert pruned.params[name]['kernel'].dtype == dtype
  for mask in (pruned.masks['conv']['bias'], pruned.masks['scale']):
    assert mask.shape == ()
    assert bool(mask)
  np.testing.assert_array_equal(
    pruned.params['conv']['bias'], net['conv']['bias']
  )


def test_jit_equals_no_jit():
  net = network()
  counted = Counted(pruning.prune_params)
  traced = jax.jit(counted)
  jax.tree.map(
    np.testing.assert_array_equal,
    tuple(pruning.prune_params(net, 0.6)),
    tuple(traced(net, 0.6)),
  )
  traced(net, 0.5)
  assert counted.traces == 1


def test_abstract_shapes():
  shapes = jax.eval_shape(lambda p: pruning.prune_params(p, 0.5), network())
  assert shapes.masks['conv']['kernel'].shape == (3, 3, 4, 8)
  assert shapes.masks['conv']['bias'].shape == ()


def test_scores_distributions_and_structures_combine():
  net = network()
  grads = jax.tree.map(lambda x: 1 / (1 + jnp.abs(x)) ** 3, net)
  pruned = pruning.prune_params(
    net,
    0.5,
    score=pruning.gradient,
    grads=grads,
    structure=pruning.n_m(2, 4),
  )
  kernel = np.asarray(pruned.masks['dense']['kernel']).reshape(8, 4, 10)
  assert (kernel.sum(1) == 2).all()
  masks = pruning.make_masks(
    net,
    0.9,
    score=pruning.random,
    key=jax.random.key(0),
    distribution=pruning.erdos_renyi_kernel,
  )
  kept = sum(int(masks[k]['kernel'].sum()) for k in ('conv', 'dense'))
  assert kept == structures.kept_count(288 + 320, 0.9)


def test_apply_masks_never_multiplies():
  params = {'a': jnp.array([jnp.nan, jnp.inf, 3.0]), 'b': jnp.array(2.0)}
  masks = {'a': jnp.array([False, False, True]), 'b': jnp.array(True)}
  out = pruning.apply_masks(params, masks)
  assert out['a'].tolist() == [0.0, 0.0, 3.0]
  assert out['b'] == 2.0


def test_report_adds_up():
  net = network()
  masks = pruning.magnitude_masks(net, 0.75)
  rows = pruning.sparsity_report(net, masks)
  assert [row.name for row in rows] == [
    'conv/bias',
    'conv/kernel',
    'dense/kernel',
    'empty',
    'scale',
    'total',
  ]
  assert rows[-1].size == sum(row.size for row in rows[:-1]) == 8 + 608 + 1
  assert rows[-1].kept == sum(row.kept for row in rows[:-1]) == 8 + 152 + 1
  assert rows[1].sparsity == 0.75
  assert rows[3].sparsity == 0.0


@pytest.mark.parametrize('bad', [np.nan, np.inf, -np.inf])
def test_weights_without_a_rank_are_named(bad):
  net = network()
  net['dense']['kernel'] = net['dense']['kernel'].at[3, 2].set(bad)
  with pytest.raises(ValueError, match='dense/kernel: 1 of 320 weights'):
    pruning.prune_params(net, 0.5)


@pytest.mark.parametrize('sparsity', [-0.1, 1.1, np.nan, None, jnp.float32(2)])
def test_impossible_sparsity(sparsity):
  with pytest.raises(ValueError, match='sparsity='):
    pruning.prune_params(network(), sparsity)


def test_structure_errors_name_the_parameter():
  net = {'odd': {'kernel': jnp.ones((3, 4))}}
  with pytest.raises(ValueError, match='odd/kernel: axis -2'):
    pruning.prune_params(net, 0.5, structure=pruning.n_m(2, 4))
  with pytest.raises(ValueError, match='no rule matches'):
    pruning.prune_params(net, 0.5, rules=[('other', True)])


def test_masks_that_do_not_fit():
  params = {'a': jnp.ones((2, 2)), 'b': jnp.ones(2)}
  true = jnp.array(True)
  for masks, match in (
    ({'a': true}, 'only in one of them: b'),
    ({'a': true, 'b': None}, 'only in one of them: b'),
    ({'a': jnp.ones((2, 1), bool), 'b': true}, r'a: the mask has shape'),
    ({'a': jnp.ones((2, 2)), 'b': true}, 'a: the mask is float32'),
  ):
    with pytest.raises(ValueError, match=match):
      pruning.apply_masks(params, masks)
