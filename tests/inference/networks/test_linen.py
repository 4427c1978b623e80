"""Networks from codes, beside the same networks with decoded weights."""

import itertools
import pathlib
import subprocess
import sys
import warnings

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from bandwidth import coding, inference, tree
from bandwidth.inference.loading import executable
from bandwidth.inference.networks.joined_products import Part

KEY = jax.random.key(0)
IMAGES = jax.random.normal(KEY, (2, 6, 6, 4))
ROWS = jax.random.normal(KEY, (2, 5, 8))
WORDS = jax.random.randint(KEY, (2, 5), 0, 20)
ENTRIES = 4


def compress(model, *inputs, form='codebook'):
  """Variables of a network with matrices, and what they stand for."""
  rng = np.random.default_rng(0)
  shapes = jax.eval_shape(
    lambda: nn.unbox(model.init({'params': KEY, 'dropout': KEY}, *inputs))
  )
  pairs = {}
  for name, like in tree.named_leaves(shapes):
    last = name.rpartition('/')[2]
    if len(like.shape) < 2 or last not in ('kernel', 'embedding'):
      pairs[name] = (rng.uniform(0.5, 1.5, like.shape).astype(np.float32),) * 2
    else:
      pairs[name] = matrix(rng, last, like.shape, form)
  return [
    tree.map_named(lambda name, _, i=i: pairs[name][i], shapes) for i in (0, 1)
  ]


def matrix(rng, leaf, shape, form):
  if form == 'uniform':
    levels = rng.integers(-99, 99, shape)
    by_output = levels if leaf == 'embedding' else levels.T
    array = levels * np.float32(0.01)
    return inference.uniform_matrix(by_output, 0.01), array
  codes = rng.integers(1, ENTRIES, shape)
  if form == 'sparse':
    codes *= rng.random(shape) < 0.2
  book = np.concatenate([[0], rng.normal(size=ENTRIES - 1)])
  tensor = coding.CodebookTensor(codes, book)
  chosen = 'smallest' if leaf == 'embedding' else form
  return executable(leaf, tensor, form=chosen), tensor.to_array()


def check(model, *inputs, form='codebook', init=None, **given):
  """Compares; returns names of what is decoded."""
  packed, dense = compress(model, *(init or inputs), form=form)
  network = inference.CompressedNetwork(model)
  with warnings.catch_warnings(record=True) as said:
    warnings.simplefilter('always')
    # In one program, which is compiled once.
    found, wanted = jax.jit(
      lambda packed, dense: (
        network.apply(packed, *inputs, **given),
        model.apply(dense, *inputs, **given),
      )
    )(packed, dense)
  compare(found, wanted)
  return [str(each.message).split(' ')[0] for each in said]


def compare(found, wanted):
  assert jax.tree.structure(found) == jax.tree.structure(wanted)
  for one, other in zip(*map(jax.tree.leaves, (found, wanted)), strict=True):
    assert (one.dtype, one.shape) == (other.dtype, other.shape)
    # Of 16 bits, XLA rounds some sums later than Flax says.
    bound = max(2e-5, float(jnp.finfo(one.dtype).eps))
    one, other = (np.asarray(each, np.float32) for each in (one, other))
    largest = np.abs(other).max(initial=1, where=~np.isnan(other))
    np.testing.assert_allclose(one, other, rtol=bound, atol=bound * largest)


def network(layers):
  class Network(nn.Module):
    @nn.compact
    def __call__(self, *inputs, **options):
      return layers(self, *inputs, **options)

  return Network()


def of(make, *args, **options):
  return network(lambda module, x: make(*args, **options)(x))


def tied(**options):
  def layers(module, x):
    embed = nn.Embed(20, 8, **options)
    return embed.attend(nn.Dense(8, **options)(embed(x)))

  return network(layers)


class Block(nn.Module):
  @nn.compact
  def __call__(self, x):
    return nn.Dense(8)(nn.relu(nn.Dense(6)(x))) + nn.Dense(8, name='other')(x)


class Step(nn.Module):
  @nn.compact
  def __call__(self, x, _):
    return Block()(x), None


JitBlock = nn.jit(Block)
SHARED = {'variable_axes': {'params': None}, 'split_rngs': {'params': False}}

FROM_CODES = {
  'dense': (of(nn.Dense, 6), ROWS),
  'one axis': (of(nn.Dense, 6), ROWS[0, 0]),
  'no rows': (of(nn.Dense, 6), ROWS[:0]),
  'integers': (of(nn.Dense, 6), WORDS),
  'NumPy': (of(nn.Dense, 6), np.asarray(ROWS)),
  'bfloat16': (of(nn.Dense, 6, dtype=jnp.bfloat16), ROWS),
  'bfloat16 in': (of(nn.Dense, 6, use_bias=False), ROWS.astype(jnp.bfloat16)),
  'float16': (of(nn.Dense, 6, dtype=jnp.float16, use_bias=False), ROWS),
  'keyword': (network(lambda _, x: nn.Dense(6)(inputs=x)), ROWS),
  'the layer itself': (nn.Dense(6), ROWS),
  'strided': (of(nn.Conv, 5, (3, 3), strides=2), IMAGES),
  'lists': (of(nn.Conv, 5, [3, 2], strides=[2, 1], padding=[1, (0, 1)]),
            IMAGES),
  'padded by integers': (of(nn.Conv, 5, (3, 3), padding=(1, 2)), IMAGES),
  'lower': (of(nn.Conv, 5, (3, 3), strides=2, padding='SAME_LOWER'), IMAGES),
  'pointwise': (of(nn.Conv, 5, (1, 1), strides=(2, 1), padding=0), IMAGES),
  'pointwise padded': (of(nn.Conv, 5, (1, 1), padding=1), IMAGES),
  'input dilation': (
    of(nn.Conv, 5, (1, 1), input_dilation=2, padding=0), IMAGES),
  'kernel dilation': (of(nn.Conv, 5, (2, 2), kernel_dilation=(1, 2)), IMAGES),
  'bfloat16 convolution': (of(nn.Conv, 5, (3, 3), dtype=jnp.bfloat16), IMAGES),
  'no image': (of(nn.Conv, 5, (3, 3)), IMAGES[:0]),
  'an image': (of(nn.Conv, 5, (3, 3)), IMAGES[0]),
  'images of images': (of(nn.Conv, 5, (3, 3)), IMAGES[None]),
  'one dimension': (of(nn.Conv, 5, 3), ROWS),
  'three dimensions': (of(nn.Conv, 5, (2, 3, 2)), IMAGES[..., None]),
  'normalized': (
    network(lambda _, x: nn.GroupNorm(5)(nn.Conv(5, (3, 3))(x))), IMAGES),
  'embedding': (of(nn.Embed, 20, 8), WORDS),
  'out of range': (
    of(nn.Embed, 20, 8), jnp.array([-1, -20, -21, 20, 19, 10**9])),
  'unsigned': (of(nn.Embed, 20, 8), jnp.array([2**32 - 1, 3], jnp.uint32)),
  'no word': (of(nn.Embed, 20, 8), WORDS[:0]),
  'one vector': (of(nn.Embed, 1, 8), WORDS),
  'bfloat16 embedding': (of(nn.Embed, 20, 8, dtype=jnp.bfloat16), WORDS),
  'tied': (tied(), WORDS),
  'tied bfloat16': (tied(dtype=jnp.bfloat16), WORDS),
  'called twice': (
    network(lambda _, x: (lambda layer: layer(nn.relu(layer(x))))(nn.Dense(8))),
    ROWS),
  'partitioned': (
    of(nn.Dense, 6, kernel_init=nn.with_partitioning(
      nn.initializers.normal(), ('a', 'b'))), ROWS),
  'rematerialized': (of(nn.remat(Block)), ROWS),
  'jitted': (network(lambda _, x: JitBlock()(JitBlock()(x))), ROWS),
  'jitted embedding': (
    network(lambda _, x: (lambda embed: embed.attend(embed(x)))(
      nn.jit(nn.Embed, methods=['__call__', 'attend'])(20, 8))), WORDS),
  'mapped': (of(nn.vmap(Block, **SHARED)), ROWS),
  'scanned with one kernel': (
    network(lambda _, x: nn.scan(
      Step, variable_broadcast='params', split_rngs={'params': False},
      length=2)()(x, None)[0]), ROWS),
  'recurrent': (network(lambda _, x: nn.RNN(nn.GRUCell(4))(x)), ROWS),
  'a branch': (
    network(lambda module, x: nn.cond(
      x.sum() > 0, lambda m, x: m(x), lambda m, x: -m(x), nn.Dense(6), x)
      if not module.is_initializing() else nn.Dense(6)(x)), ROWS),
  'unread': (
    network(lambda module, x: (
      module.param('kernel', nn.initializers.normal(), (3, 4)),
      nn.Dense(6)(x))[1]), ROWS),
}  # fmt: skip


@pytest.mark.parametrize('name', FROM_CODES)
def test_from_codes(name):
  assert check(*FROM_CODES[name]) == []


@pytest.mark.parametrize(
  ('form', 'name'),
  [
    *itertools.product(['sparse', 'uniform'], ['dense', 'tied', 'recurrent']),
    ('uniform', 'embedding'),
    ('sparse', 'strided'),
    ('sparse', 'three dimensions'),
  ],
)
def test_other_forms(form, name):
  assert check(*FROM_CODES[name], form=form) == []


def test_forms_that_are_decoded():
  bfloat16 = of(nn.Dense, 6, dtype=jnp.bfloat16)
  assert check(bfloat16, ROWS, form='uniform') == ['params/Dense_0/kernel']
  general = of(nn.DenseGeneral, 6, name='d')
  for form in ('sparse', 'uniform'):
    assert check(general, ROWS, form=form) == ['params/d/kernel']


def twice(*operands, **options):
  return 2 * jax.lax.dot_general(*operands, **options)


def hand_read(module, x):
  layer = nn.Dense(8, name='d')
  return layer(x) + x @ module.variables['params']['d']['kernel']


def transposed_by_hand(_, x):
  embed = nn.Embed(20, 8, name='e')
  return nn.Dense(8)(embed(x)) @ embed.embedding.T


def changed(function):
  def layers(module, x):
    layer = nn.map_variables(
      nn.Dense, 'params', lambda tree: jax.tree.map(function, tree),
      init=module.is_initializing(), mutable=False,
    )  # fmt: skip
    return layer(8, name='d')(x)

  return network(layers)


def gradient_norms(_, x):
  layer = nn.Dense(8, name='d')
  layer(x)
  norm = nn.vjp(lambda m, x: (m(x) ** 2).sum(), layer, x)[1](1.0)
  return jax.tree.map(lambda g: (g**2).sum(), norm)


class Own(nn.Dense):
  pass


MASK = jnp.ones((3, 3, 4, 5)).at[0].set(0)
EXPERTS = {'variable_axes': {'params': 0}, 'split_rngs': {'params': True}}
STACKED = nn.scan(Step, length=3, **EXPERTS)

DECODED = {
  'masked': (of(nn.Conv, 5, (3, 3), mask=MASK, name='d'), IMAGES),
  'groups': (of(nn.Conv, 8, (3, 3), feature_group_count=2, name='d'), IMAGES),
  'depthwise': (of(nn.Conv, 8, (3, 3), feature_group_count=4, name='d'),
                IMAGES),
  'circular': (of(nn.Conv, 5, (3, 3), padding='CIRCULAR', name='d'), IMAGES),
  'causal': (of(nn.Conv, 5, (3,), padding='CAUSAL', name='d'), ROWS),
  'transposed': (of(nn.ConvTranspose, 5, (3, 3), name='d'), IMAGES),
  'local': (of(nn.ConvLocal, 3, (2, 2), name='d'), IMAGES),
  'own product': (of(nn.Dense, 6, dot_general=twice, name='d'), ROWS),
  'general': (of(nn.DenseGeneral, (3, 2), name='d'), ROWS),
  'general axes': (of(nn.DenseGeneral, 6, axis=(-2, -1), name='d'), ROWS),
  'einsum': (of(nn.Einsum, (8, 3, 2), 'btd,dhk->bthk', name='d'), ROWS),
  'subclass': (of(Own, 6, name='d'), ROWS),
  'read by hand': (network(hand_read), ROWS),
  'doubled': (changed(lambda leaf: 2 * leaf), ROWS),
  'reversed': (changed(lambda leaf: leaf[::-1]), ROWS),
  'experts': (of(nn.vmap(nn.Dense, **EXPERTS), 6, name='d'), ROWS),
  'spectral': (
    network(lambda _, x: nn.SpectralNorm(nn.Dense(6, name='d'))(
      x, update_stats=False)), ROWS),
  'gradients': (network(gradient_norms), ROWS),
}  # fmt: skip


@pytest.mark.parametrize('name', DECODED)
def test_decoded_and_said_so(name):
  options = {'rngs': {'params': KEY}} if name == 'spectral' else {}
  assert check(*DECODED[name], **options) == ['params/d/kernel']


def test_tied_by_hand():
  said = check(network(transposed_by_hand), WORDS)
  assert said == ['params/e/embedding']


def test_layers_of_layers():
  model = of(nn.MultiHeadDotProductAttention, 2, name='attention')
  said = check(model, ROWS)
  names = ('key', 'out', 'query', 'value')
  assert said == [f'params/attention/{name}/kernel' for name in names]
  scanned = network(lambda _, x: STACKED(name='scan')(x, None)[0])
  names = ('Dense_0', 'Dense_1', 'other')
  said = check(scanned, ROWS)
  assert said == [f'params/scan/Block_0/{name}/kernel' for name in names]


def test_own_parameters():
  def layers(module, x):
    normal = nn.initializers.normal()
    kernel = module.param('kernel', normal, (3, 3, 4, 5))
    x = jax.lax.conv_general_dilated(
      x, kernel, (1, 1), 'SAME', dimension_numbers=('NHWC', 'HWIO', 'NHWC')
    )
    return x @ module.param('embedding', normal, (7, 5)).T

  said = check(network(layers), IMAGES)
  assert said == ['params/embedding', 'params/kernel']


def test_collections_that_change():
  def layers(module, x):
    x = nn.BatchNorm(use_running_average=False)(nn.Conv(5, (3, 3))(x))
    return nn.Dropout(0.5, deterministic=False)(nn.Dense(3)(x))

  given = {'rngs': {'dropout': KEY}, 'capture_intermediates': True}
  changes = ['batch_stats', 'intermediates']
  assert check(network(layers), IMAGES, mutable=changes, **given) == []
  said = check(of(nn.Dense, 3, name='d'), ROWS, mutable=['params'])
  assert said == ['params/d/kernel']


class Methods(nn.Module):
  def setup(self):
    self.embed, self.layer = nn.Embed(20, 8), nn.Dense(8)

  def __call__(self, x, *, hand=False):
    x = self.embed(x)
    return self.encode(x) if hand else self.embed.attend(self.layer(x))

  def encode(self, x):
    return self.layer(x)

  def decode(self, x):
    return self.embed.attend(x)

  def by_hand(self, x):
    return x @ self.layer.variables['params']['kernel'].T


def test_methods():
  model, method = Methods(), Methods.decode
  assert check(model, WORDS, hand=False) == []
  assert check(model, ROWS, init=[WORDS], method='encode') == []
  assert check(model, ROWS, init=[WORDS], method=method) == []
  packed, _ = compress(model, WORDS)
  network = inference.CompressedNetwork(model)
  with pytest.raises(ValueError, match='params/layer/kernel is read by hand'):
    network.apply(packed, ROWS, method='by_hand')


def test_outside_of_jit_and_once():
  model = network(hand_read)
  packed, dense = compress(model, ROWS)
  compressed = inference.CompressedNetwork(model)
  with pytest.warns(UserWarning, match="forms={'params/d/kernel': 'dense'}"):
    found = compressed.apply(packed, ROWS)
  compare(found, model.apply(dense, ROWS))
  # Warnings are errors here.
  compare(compressed.apply(packed, ROWS[:1]), model.apply(dense, ROWS[:1]))


def test_values_decide():
  def layers(module, x):
    layer = nn.Dense(6, name='d')
    if not module.is_initializing() and float(x.sum()) > -1e9:
      return layer(x)
    return -layer(x)

  model = network(layers)
  packed, dense = compress(model, ROWS)
  compressed = inference.CompressedNetwork(model)
  with pytest.warns(UserWarning, match='the network cannot be traced'):
    found = compressed.apply(packed, ROWS)
  compare(found, model.apply(dense, ROWS))


def test_modes_do_not_share_what_flax_has_jitted():
  packed, dense = compress(JitBlock(), ROWS)
  wanted = JitBlock().apply(dense, ROWS)
  exact = inference.CompressedNetwork(JitBlock())
  rounded = inference.CompressedNetwork(JitBlock(), mode='int8')
  compare(exact.apply(packed, ROWS), wanted)
  found = rounded.apply(packed, ROWS)
  assert not np.array_equal(found, wanted)
  np.testing.assert_allclose(found, wanted, atol=0.2)
  compare(exact.apply(packed, ROWS), wanted)
  other = jax.tree.map(
    lambda leaf: leaf * 2 if leaf.dtype == np.float32 else leaf, packed
  )
  doubled = jax.tree.map(lambda leaf: leaf * 2, dense)
  compare(exact.apply(other, ROWS), JitBlock().apply(doubled, ROWS))


def test_joined_for_other_inputs():
  def layers(module, x, other=None):
    query = nn.Dense(6, name='query')(x)
    return query * nn.Dense(6, name='key')(x if other is None else other)

  model = network(layers)
  packed, dense = compress(model, ROWS)
  compressed = inference.CompressedNetwork(model)
  joined = compressed.join(packed, ROWS)
  assert isinstance(joined['params']['key']['kernel'], Part)
  for inputs in ((ROWS,), (ROWS, ROWS + 1)):
    wanted = model.apply(dense, *inputs)
    compare(compressed.apply(joined, *inputs), wanted)


def test_parts_that_are_read_by_hand():
  def layers(module, x, hand=False):
    y = nn.Dense(6, name='query')(x) * nn.Dense(6, name='key')(x)
    return y + (x @ module.variables['params']['key']['kernel'] if hand else 0)

  model = network(layers)
  packed, dense = compress(model, ROWS)
  for variables in (packed, dense):
    compressed = inference.CompressedNetwork(model)
    joined = compressed.join(variables, ROWS)
    with pytest.warns(UserWarning, match='params/key/kernel is decoded'):
      found = compressed.apply(joined, ROWS, hand=True)
    compare(found, model.apply(dense, ROWS, hand=True))


def test_bad_input():
  with pytest.raises(ValueError, match=r'a Linear, which is no flax\.linen'):
    inference.CompressedNetwork(nnx.Linear(2, 3, rngs=nnx.Rngs(0)))
  with pytest.raises(ValueError, match="backend='cuda' is unknown"):
    inference.CompressedNetwork(nn.Dense(3), backend='cuda')
  with pytest.raises(ValueError, match="mode='int4' is unknown"):
    inference.CompressedNetwork(nn.Dense(3), mode='int4')
  packed, _ = compress(nn.Dense(3), ROWS)
  wanted = r'params/kernel is a matrix of 8 x 3; the network asks for \(8, 4\)'
  with pytest.raises(ValueError, match=wanted):
    inference.CompressedNetwork(nn.Dense(4)).apply(packed, ROWS)


@pytest.mark.parametrize('name', ['CompressedNetwork', 'plan_layers'])
def test_without_flax(name):
  code = (
    'import sys; sys.modules["flax"] = None\n'
    'from bandwidth import inference\n'
    f'try: inference.{name}\n'
    'except ImportError as error: print(error)'
  )
  said = subprocess.run(
    [sys.executable, '-c', code], capture_output=True, text=True, check=True,
    cwd=pathlib.Path(__file__).parents[2],
  ).stdout  # fmt: skip
  assert said.startswith(f'bandwidth.inference.{name} ')
  assert said.strip().endswith('pip install flax')
  assert said.count('\n') == 1
