import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from traces import Counted

from bandwidth import pruning
from bandwidth.pruning import structures

FAST = settings(max_examples=25, deadline=None)
TRACED = jax.jit(pruning.unstructured)
ALL = {
  'unstructured': pruning.unstructured,
  'n_m': pruning.n_m(2, 4),
  'block': pruning.block(2, 3),
  'channel': pruning.channel(),
}


def top_k(scores, count):
  """Selection by a stable sort in descending order: ties by index."""
  flat = np.asarray(scores).reshape(-1)
  mask = np.zeros(flat.size, bool)
  mask[np.argsort(-flat, kind='stable')[:count]] = True
  return mask.reshape(np.shape(scores))


def array(draw_ints, shape, dtype):
  return np.resize(np.array(draw_ints, np.float32), shape).astype(dtype)


@FAST
@given(
  st.lists(st.integers(-3, 3), min_size=1, max_size=8),
  st.integers(0, 24),
  st.sampled_from([jnp.float32, jnp.bfloat16, jnp.float16, jnp.int32]),
)
def test_top_k_equals_a_stable_sort(values, count, dtype):
  scores = jnp.asarray(array(values, (4, 6), np.float32), dtype)
  mask = structures.top_k_mask(scores, count)
  np.testing.assert_array_equal(
    mask, top_k(np.asarray(scores, np.float32), count)
  )


@FAST
@given(st.integers(0, 2**32 - 1), st.floats(0, 1))
def test_count_is_exact_and_jit_agrees(seed, sparsity):
  scores = np.random.default_rng(seed).normal(size=(7, 11)).astype(np.float32)
  # A multiple of 1/77 or so: not within float32 error of a rounding border.
  sparsity = round(sparsity * 77) / 77
  mask = pruning.unstructured(jnp.asarray(scores), sparsity)
  assert int(mask.sum()) == round(77 * (1 - sparsity))
  np.testing.assert_array_equal(mask, TRACED(scores, sparsity))


@FAST
@given(st.integers(0, 2**32 - 1), st.floats(0, 1), st.floats(0, 1))
def test_masks_are_nested(seed, one, other):
  scores = np.random.default_rng(seed).integers(0, 9, (5, 8)).astype(np.float32)
  low, high = sorted((one, other))
  more, less = TRACED(scores, low), TRACED(scores, high)
  assert not np.any(np.asarray(less) & ~np.asarray(more))


@pytest.mark.parametrize('size', [1, 5, 15, 25, 35, 75, 1005])
@pytest.mark.parametrize('percent', [0, 10, 30, 50, 70, 90, 95, 99, 100])
def test_kept_count_rounds_the_decimal_product(size, percent):
  hundredths = size * (100 - percent)
  kept, rest = divmod(hundredths, 100)
  kept += rest > 50 or (rest == 50 and kept % 2 == 1)
  sparsity = percent / 100
  assert structures.kept_count(size, sparsity) == kept
  assert int(structures.kept_count(size, jnp.float32(sparsity))) == kept


def test_kept_count_of_a_large_layer():
  size = 25088 * 4096
  assert structures.kept_count(size, 0.96) == round(size * 0.04)
  traced = int(structures.kept_count(size, jnp.float32(0.96)))
  assert abs(traced - size * 0.04) <= 1e-7 * size


def test_special_scores():
  scores = jnp.array([0.0, -0.0, jnp.nan, jnp.inf, -jnp.inf, -1.0, 1e-40])
  order = np.argsort(-np.asarray(structures.sort_keys(scores)).astype(np.int64))
  # XLA on CPU flushes denormals, so the last may tie with zero.
  assert order[:2].tolist() == [2, 3]
  assert order[-2:].tolist() == [5, 4]
  keys = structures.sort_keys(scores)
  assert keys[0] == keys[1]
  assert structures.sort_keys(-jnp.array([jnp.nan]))[0] == keys[2]


def test_64_bit_scores_are_ranked_in_64_bits():
  with jax.enable_x64(True):
    scores = jnp.array([1.0, 1.0 + 1e-12, 1.0 - 1e-12], jnp.float64)
    assert structures.top_k_mask(scores, 1).tolist() == [False, True, False]


@pytest.mark.parametrize('shape', [(), (0,), (3, 0), (1, 1)])
def test_scalar_and_empty(shape):
  scores = jnp.ones(shape)
  for sparsity in (0.0, 0.5, 1.0):
    mask = pruning.unstructured(scores, sparsity)
    assert mask.shape == shape
    assert mask.dtype == bool
    kept = structures.kept_count(scores.size, sparsity)
    assert int(mask.sum()) == kept


@pytest.mark.parametrize(('n', 'm'), [(1, 2), (2, 4), (1, 4), (4, 8)])
@pytest.mark.parametrize('shape', [(16, 5), (3, 3, 8, 4)])
def test_n_m_keeps_the_best_of_every_group(n, m, shape):
  scores = np.random.default_rng(0).integers(0, 4, shape).astype(np.float32)
  mask = np.asarray(pruning.n_m(n, m)(jnp.asarray(scores), 1 - n / m))
  groups = np.moveaxis(scores, -2, -1).reshape(-1, m)
  expected = np.stack([top_k(group, n) for group in groups])
  got = np.moveaxis(mask, -2, -1).reshape(-1, m)
  np.testing.assert_array_equal(got, expected)


def test_n_m_along_another_axis_and_by_schedule():
  scores = jnp.arange(8.0).reshape(1, 8)
  mask = pruning.n_m(1, 4, axis=-1)(scores, 0.75)
  assert np.flatnonzero(mask).tolist() == [3, 7]
  rising = jax.jit(pruning.n_m(2, 4, axis=1))
  kept = [int(rising(scores, s).sum()) for s in (0.0, 0.25, 0.5, 0.9)]
  assert kept == [8, 6, 4, 4]


@settings(max_examples=10, deadline=None)
@given(st.integers(1, 9), st.integers(1, 9), st.integers(0, 10))
def test_block_keeps_whole_blocks_of_highest_mean(rows, columns, tenths):
  scores = np.random.default_rng(rows).normal(size=(rows, columns))
  mask = np.asarray(
    pruning.block(2, 3)(jnp.asarray(scores, jnp.float32), tenths / 10)
  )
  means, kept = [], []
  for i in range(0, rows, 2):
    for j in range(0, columns, 3):
      tile = mask[i : i + 2, j : j + 3]
      assert tile.all() or not tile.any()
      kept.append(bool(tile.all()))
      means.append(scores[i : i + 2, j : j + 3].mean())
  count = structures.kept_count(len(means), tenths / 10)
  np.testing.assert_array_equal(kept, top_k(means, count))


def test_block_of_a_convolution_works_on_each_position():
  scores = jnp.asarray(np.random.default_rng(0).random((3, 3, 4, 6)))
  mask = np.asarray(pruning.block(4, 2)(scores, 0.5))
  means = np.asarray(scores).reshape(9, 4, 3, 2).mean((1, 3))
  expected = top_k(means, 14)  # Half of 27 blocks is 13.5, and 14 is even.
  np.testing.assert_array_equal(mask[:, :, 0, ::2].reshape(9, 3), expected)


@pytest.mark.parametrize('order', [1, 2])
def test_channel_keeps_filters_of_largest_norm(order):
  w = np.random.default_rng(1).normal(size=(3, 3, 4, 10)).astype(np.float32)
  mask = np.asarray(pruning.channel(order=order)(jnp.abs(w), 0.3))
  norms = np.linalg.norm(w.reshape(-1, 10), ord=order, axis=0)
  expected = np.broadcast_to(top_k(norms, 7), w.shape)
  np.testing.assert_array_equal(mask, expected)


def test_channel_axis():
  mask = pruning.channel(axis=0)(jnp.array([[1.0, 1.0], [3.0, 0.0]]), 0.5)
  assert mask.tolist() == [[False, False], [True, True]]


@pytest.mark.parametrize('name', ALL)
def test_structures_jit_once_for_all_sparsities(name):
  scores = jnp.asarray(np.random.default_rng(2).random((8, 6)), jnp.float32)
  counted = Counted(ALL[name])
  fn = jax.jit(counted)
  np.testing.assert_array_equal(fn(scores, 0.5), ALL[name](scores, 0.5))
  fn(scores, 0.25)
  assert counted.traces == 1


@pytest.mark.parametrize('name', ALL)
def test_structures_map(name):
  scores = jnp.asarray(np.random.default_rng(3).random((3, 8, 6)), jnp.float32)
  mapped = jax.vmap(lambda s: ALL[name](s, 0.5))(scores)
  for one, mask in zip(scores, mapped, strict=True):
    np.testing.assert_array_equal(ALL[name](one, 0.5), mask)


@pytest.mark.parametrize('sparsity', [-0.1, 1.5, float('nan'), True, None, 'a'])
def test_impossible_sparsity(sparsity):
  for structure in ALL.values():
    with pytest.raises(ValueError, match='sparsity='):
      structure(jnp.ones((4, 6)), sparsity)


def test_bad_structures():
  for n, m in ((0, 4), (5, 4)):
    with pytest.raises(ValueError, match=f'n={n}, m={m}'):
      pruning.n_m(n, m)
  with pytest.raises(ValueError, match='sides must be positive'):
    pruning.block(0, 4)
  with pytest.raises(ValueError, match='order=3'):
    pruning.channel(order=3)
  with pytest.raises(ValueError, match='not a multiple of m=4'):
    pruning.n_m(2, 4)(jnp.ones((3, 4)), 0.5)
  with pytest.raises(ValueError, match=r'0\.75 is not that of 2:4'):
    pruning.n_m(2, 4)(jnp.ones((4, 4)), 0.75)
  with pytest.raises(ValueError, match='two axes'):
    pruning.block(2, 2)(jnp.ones(4), 0.5)
  with pytest.raises(ValueError, match='axis -2'):
    pruning.n_m(2, 4)(jnp.ones(4), 0.5)
