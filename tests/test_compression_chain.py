"""Prune, share, code, reload: the packages of model compression together."""

import jax
import numpy as np
import pytest

from bandwidth import coding, pruning, quantization, tree


@pytest.fixture(scope='module')
def chain():
  rng = np.random.default_rng(0)
  shapes = {'Dense_0': (784, 300), 'Dense_1': (300, 100), 'Dense_2': (100, 10)}
  params = {
    name: {
      'kernel': rng.laplace(size=shape).astype(np.float32) * 0.05,
      'bias': rng.normal(size=shape[1:]).astype(np.float32),
    }
    for name, shape in shapes.items()
  }
  pruned = pruning.prune_params(params, 0.92)
  shared = quantization.share_params(
    pruned.params, [('.*/kernel', 5), ('.*', None)], masks=pruned.masks
  )
  return params, pruned, shared


@pytest.mark.parametrize('coder', ['fixed', 'huffman', 'ans', 'auto'])
def test_file_holds_the_very_values_and_its_ledger_the_file(
  chain, tmp_path, coder
):
  _, _, shared = chain
  path = tmp_path / 'model.bwz'
  ledger = coding.save_tree(path, shared.params, shared.codebooks, coder=coder)
  assert path.stat().st_size == ledger.total
  restored = coding.load_tree(path)
  jax.tree.map(np.testing.assert_array_equal, restored, shared.params)


def test_every_step_makes_the_file_smaller(chain, tmp_path):
  params, pruned, shared = chain
  dense = tree.nbytes(params)
  sizes = {
    'P': coding.save_tree(
      tmp_path / 'p.bwz', pruned.params, coder='fixed'
    ).total,
  }
  for name, coder in (('P+Q', 'fixed'), ('P+Q+H', 'huffman')):
    path = tmp_path / 'q.bwz'
    sizes[name] = coding.save_tree(
      path, shared.params, shared.codebooks, coder=coder
    ).total
  assert dense > sizes['P'] > sizes['P+Q'] > sizes['P+Q+H']
  # 8 % of weights with 5-bit codes and gaps: the paper's 40x is near.
  assert dense / sizes['P+Q+H'] > 30


def test_shared_values_are_few_and_zeros_stay(chain):
  _, pruned, shared = chain
  for name, mask in tree.named_leaves(pruned.masks):
    if name.endswith('kernel'):
      leaf = dict(tree.named_leaves(shared.params))[name]
      assert not np.asarray(leaf)[~np.asarray(mask)].any()
      assert len(np.unique(leaf)) <= 32
