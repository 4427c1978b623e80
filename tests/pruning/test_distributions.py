import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bandwidth import pruning
from bandwidth.pruning import structures

SHAPES = {
  'conv1': (5, 5, 1, 20),
  'conv2': (5, 5, 20, 50),
  'fc1': (800, 500),
  'fc2': (500, 10),
}
NET = {k: jax.ShapeDtypeStruct(v, jnp.float32) for k, v in SHAPES.items()}


def ragged(seed=0):
  rng = np.random.default_rng(seed)
  return {
    'a': {'kernel': rng.normal(size=(6, 8)), 'bias': rng.normal(size=8)},
    'b': {'kernel': rng.normal(size=(8, 5)) * 3, 'bias': rng.normal(size=5)},
  }


def rigl_loop(shapes, sparsity, kernel):
  """Layers become dense one by one until no probability exceeds one."""
  dense = set()
  while True:
    keep, divisor, raw = 0.0, 0.0, {}
    for name, shape in shapes.items():
      n = np.prod(shape)
      if name in dense:
        keep -= sparsity * n
        continue
      keep += (1 - sparsity) * n
      axes = shape if kernel else shape[-2:]
      raw[name] = np.sum(axes) / np.prod(axes)
      divisor += raw[name] * n
    if not raw:
      return dict.fromkeys(shapes, 0.0)
    scale = keep / divisor
    worst = max(raw, key=lambda name: raw[name])
    if raw[worst] * scale <= 1:
      break
    dense.add(worst)
  return {k: 0.0 if k in dense else 1 - scale * raw[k] for k in shapes}


@pytest.mark.parametrize('kernel', [True, False])
@pytest.mark.parametrize('sparsity', [0.0, 0.2, 0.5, 0.8, 0.9, 0.99, 1.0])
def test_erdos_renyi_equals_the_loop(kernel, sparsity):
  fn = pruning.erdos_renyi_kernel if kernel else pruning.erdos_renyi
  expected = rigl_loop(SHAPES, sparsity, kernel)
  got = fn(NET, sparsity)
  assert got.keys() == expected.keys()
  for name, shape in SHAPES.items():
    assert abs(got[name] - expected[name]) <= 1 / np.prod(shape)
  traced = jax.jit(lambda s: fn(NET, s))(sparsity)
  for name in SHAPES:
    np.testing.assert_allclose(traced[name], expected[name], atol=2e-6)


@settings(max_examples=40, deadline=None)
@given(
  st.lists(
    st.lists(st.integers(1, 12), min_size=2, max_size=4),
    min_size=1,
    max_size=6,
  ),
  st.floats(0, 1),
)
def test_erdos_renyi_kernel_total_is_exact(shapes, sparsity):
  net = {str(i): np.zeros(s, np.float32) for i, s in enumerate(shapes)}
  got = pruning.erdos_renyi_kernel(net, sparsity)
  assert all(0 <= s <= 1 for s in got.values())
  kept = sum(structures.kept_count(net[k].size, s) for k, s in got.items())
  assert kept == structures.kept_count(
    sum(x.size for x in net.values()), sparsity
  )


def test_erdos_renyi_lenet_300_by_hand():
  net = {'a': np.zeros((784, 300)), 'b': np.zeros((300, 100))}
  # Σ ε (n_in + n_out) = 0.1 (235200 + 30000): ε = 26520 / 1484.
  scale = 26520 / (1084 + 400)
  got = pruning.erdos_renyi(net, 0.9)
  assert abs(got['a'] - (1 - scale * 1084 / 235200)) <= 1 / 235200
  assert abs(got['b'] - (1 - scale * 400 / 30000)) <= 1 / 30000


def test_erdos_renyi_scalar_and_empty_leaves():
  net = {'s': jnp.ones(()), 'e': jnp.ones((0, 3)), 'k': jnp.ones((40, 30))}
  got = pruning.erdos_renyi_kernel(net, 0.9, rules=[('.*', True)])
  assert got['s'] == 0.0
  assert got['e'] == 0.0
  assert structures.kept_count(1200, got['k']) + 1 == 120
  with pytest.raises(ValueError, match='s: erdos_renyi needs two axes'):
    pruning.erdos_renyi(net, 0.9, rules=[('.*', True)])
  assert pruning.erdos_renyi_kernel({'b': jnp.ones(3)}, 0.5) == {}


def test_uniform_and_default_rules():
  net = {**ragged(), 'table': np.zeros((4, 4), np.int32)}
  assert pruning.uniform(net, 0.3) == {'a/kernel': 0.3, 'b/kernel': 0.3}
  rules = [('b/.*', False), ('.*', True)]
  assert list(pruning.uniform(net, 0.3, rules=rules)) == [
    'a/bias',
    'a/kernel',
    'table',
  ]


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 99), st.floats(0, 1))
def test_global_equals_one_sort(seed, sparsity):
  rng = np.random.default_rng(seed)
  net = {
    'a': rng.integers(-4, 5, (3, 7)).astype(np.float32),
    'b': rng.integers(-4, 5, (6, 2)).astype(np.float32),
  }
  count = structures.kept_count(33, sparsity)
  flat = np.concatenate([np.abs(x).reshape(-1) for x in net.values()])
  expected = np.zeros(33, bool)
  expected[np.argsort(-flat, kind='stable')[:count]] = True
  masks = pruning.magnitude_masks(
    net, sparsity, distribution=pruning.global_threshold
  )
  got = np.concatenate([np.asarray(m).reshape(-1) for m in masks.values()])
  np.testing.assert_array_equal(got, expected)


def test_global_under_jit_and_with_half_precision():
  net = jax.tree.map(jnp.asarray, ragged())
  net['b']['kernel'] = net['b']['kernel'].astype(jnp.bfloat16)

  def masks(net, sparsity):
    return pruning.magnitude_masks(
      net, sparsity, distribution=pruning.global_threshold
    )

  eager, traced = masks(net, 0.7), jax.jit(masks)(net, 0.7)
  jax.tree.map(np.testing.assert_array_equal, eager, traced)
  kept = int(eager['a']['kernel'].sum() + eager['b']['kernel'].sum())
  assert kept == structures.kept_count(88, 0.7)
  assert eager['a']['bias'].shape == ()


@pytest.mark.parametrize('quality', [0.0, 0.5, 1.0, 2.0, 1e9])
def test_std_threshold_equals_han(quality):
  net = ragged()
  masks = pruning.magnitude_masks(
    net, None, distribution=pruning.std_threshold(quality)
  )
  for name, layer in net.items():
    w = layer['kernel'].astype(np.float32)
    np.testing.assert_array_equal(
      masks[name]['kernel'], np.abs(w) >= quality * np.std(w)
    )


def test_std_threshold_per_rule_and_on_the_way():
  net = ragged()
  distribution = pruning.std_threshold([('a/.*', 0.0), ('.*', 1.0)])
  full = distribution(net, None)
  assert full['a/kernel'] == 0
  assert 0 < distribution(net, 0.5)['b/kernel'] < full['b/kernel']


def test_per_rule():
  net = ragged()
  distribution = pruning.per_rule([('a/kernel', 0.25), ('.*', 0.8)])
  assert distribution(net, None) == {'a/kernel': 0.25, 'b/kernel': 0.8}
  half = distribution(net, 0.5)
  assert half == {'a/kernel': 0.125, 'b/kernel': 0.4}


def test_bad_arguments():
  net = ragged()
  for fn in (
    pruning.uniform,
    pruning.erdos_renyi,
    pruning.erdos_renyi_kernel,
    pruning.global_threshold,
  ):
    for sparsity in (-0.5, 1.01, float('nan'), None):
      with pytest.raises(ValueError, match='sparsity='):
        fn(net, sparsity)
  with pytest.raises(ValueError, match=r"rules: '\.\*'=1\.5"):
    pruning.per_rule([('.*', 1.5)])
  with pytest.raises(ValueError, match='first match of no parameter'):
    pruning.per_rule([('conv', 0.5), ('.*', 0.5)])(net, None)
  with pytest.raises(ValueError, match='quality'):
    pruning.std_threshold(-1.0)
  with pytest.raises(ValueError, match='no bool'):
    pruning.uniform(net, 0.5, rules=[('.*', 0.5)])
  with pytest.raises(ValueError, match='no rule matches'):
    pruning.uniform(net, 0.5, rules=[('a/.*', True)])
