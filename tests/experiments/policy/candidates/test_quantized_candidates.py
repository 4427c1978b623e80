"""Bits of a Flax network: options, what is evaluated, and what a file holds."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from traces import Counted

from bandwidth import coding, quantization, tree
from bandwidth.search.decisions.bit_options import (
  UNQUANTIZED,
  authors_pins,
  bit_operations,
  equal_bit_cost,
  lookup,
  make_bit_space,
  tabulate_bits,
)
from bandwidth.search.decisions.grids import Grids, fit_grids, on_grid, sample
from bandwidth.search.haq import bit_features
from experiments.models.geometry import layer_shapes
from experiments.models.lenet import LeNet5, LeNet300
from experiments.models.mobilenet import MobileNetV2
from experiments.policy.candidates.bits import (
  export_tensors,
  make_quantized,
)
from experiments.policy.candidates.scores import (
  Examples,
  make_measure,
  make_objective,
  score_data,
)

MODEL = LeNet300(features=(16, 8))
BITS = (1, 2, 4, 8)


@functools.cache
def network():
  """Images of both signs, weights of some spread, no training."""
  keys = jax.random.split(jax.random.key(0), 3)
  images = jax.random.normal(keys[0], (3, 32, 6, 6, 1))
  variables = jax.jit(MODEL.init)(keys[1], images[0])
  labels = jax.random.randint(keys[2], (3, 32), 0, 10)
  return variables, images, labels


@functools.cache
def quantized(mode, clip='mse'):
  variables, images, _ = network()
  pins = None
  if mode == 'linear':
    pins = authors_pins(layer_shapes(MODEL, images[0, :1]))
    del pins['Dense_2/weights'], pins['Dense_2/activations']
  return make_quantized(
    MODEL, variables, images, mode=mode, bits=BITS, pins=pins, clip=clip
  )


@functools.cache
def program(mode, clip='mse'):
  """`(candidate, images) -> (variables, logits)`; and what counts traces."""
  found = quantized(mode, clip)

  @Counted
  def evaluate(data, candidate, images):
    variables = found.chosen(data, candidate)
    with found.rounding(data, candidate):
      return variables, found.model.apply(variables, images)

  data = found.arrays()
  return functools.partial(jax.jit(evaluate), data), evaluate


def kernels_of(variables):
  leaves = dict(tree.named_leaves(variables))
  return [np.asarray(leaves[f'params/Dense_{i}/kernel']) for i in range(3)]


def levels_for(found, bits):
  """Levels of so many bits, wherever that is a choice: int32 [G]."""
  return jnp.array(
    [x.index(bits) if bits in x else 0 for x in found.space.levels], jnp.int32
  )


# Grids.


def rounded_in_numpy(values, *, top, bits, signed):
  """As the paper has it, with one more integer below where signed."""
  values = values.astype(np.float64)
  if not signed:
    step = top / (2**bits - 1)
    return step * np.clip(np.round(values / step), 0, 2**bits - 1)
  if bits == 1:
    return np.where(values < 0, -top, top)
  step = top / (2 ** (bits - 1) - 1)
  whole = np.round(values / step)
  return step * np.clip(whole, -(2 ** (bits - 1)), 2 ** (bits - 1) - 1)


@pytest.mark.parametrize('signed', [False, True])
def test_grids_of_the_range(signed):
  rng = np.random.default_rng(1)
  values = rng.normal(size=2000).astype('f4')
  values = values if signed else np.abs(values)
  # Away from halves, where float32 may fall to the other side.
  bits = np.array([[1, 2, 3, 5, 8, UNQUANTIZED]])
  tensor = jax.tree.map(lambda x: x[None], sample(jnp.asarray(values), 2000))
  grids, errors = fit_grids(
    tensor, bits, signed=np.array([signed]), fractions=np.ones(1)
  )
  top = np.abs(values).max()
  for level, count in enumerate(bits[0].tolist()):
    grid = Grids(*(leaf[0, level] for leaf in grids))
    found = np.asarray(on_grid(jnp.asarray(values), grid))
    if count == UNQUANTIZED:
      np.testing.assert_array_equal(found, values)
      assert errors[0, level] == 0
      continue
    expected = rounded_in_numpy(values, top=top, bits=count, signed=signed)
    off = np.abs(found - expected) > 1e-5
    assert off.mean() < 1e-3
    assert len(np.unique(found)) <= 2**count
    relative = np.mean((found - values) ** 2) / np.mean(values**2)
    np.testing.assert_allclose(errors[0, level], relative, rtol=1e-4)


def test_the_best_range_is_found():
  rng = np.random.default_rng(2)
  values = rng.standard_t(3, size=3000).astype('f4')
  tensor = jax.tree.map(lambda x: x[None], sample(jnp.asarray(values), 3000))
  bits = np.array([[1, 2, 3, 8]])
  fractions = np.arange(32, 0, -1) / 32
  grids, errors = fit_grids(
    tensor, bits, signed=np.array([True]), fractions=fractions
  )
  top = np.abs(values).max()
  for level, count in enumerate(bits[0].tolist()):
    tried = [
      np.mean(
        (
          rounded_in_numpy(values, top=share * top, bits=count, signed=True)
          - values
        )
        ** 2
      )
      for share in fractions
    ]
    best = min(tried) / np.mean(values.astype(np.float64) ** 2)
    np.testing.assert_allclose(errors[0, level], best, rtol=1e-3)
    reach = 0.5 if count == 1 else 2 ** (count - 1) - 1
    share = float(grids.step[0, level]) * reach / top
    np.testing.assert_allclose(share, fractions[np.argmin(tried)], rtol=1e-4)
  # Few bits cut off the tails.
  assert grids.step[0, 1] < 0.5 * top


def test_values_that_are_all_zero_stay():
  tensor = jax.tree.map(lambda x: x[None], sample(jnp.zeros(4), 8))
  bits = np.array([[2, 8, UNQUANTIZED]])
  for signed in (False, True):
    grids, errors = fit_grids(
      tensor, bits, signed=np.array([signed]), fractions=np.ones(1)
    )
    assert not np.asarray(errors).any()
    grid = Grids(*(leaf[0, 0] for leaf in grids))
    np.testing.assert_array_equal(on_grid(jnp.zeros(4), grid), np.zeros(4))


def test_samples():
  values = jnp.arange(10.0).reshape(2, 5) - 3
  found = sample(values, 25)
  counts = np.unique(found.values, return_counts=True)[1]
  assert sorted(counts) == [2] * 5 + [3] * 5
  assert (found.least, found.greatest) == (-3, 6)
  few = sample(jnp.arange(1000.0), 50)
  assert few.values.shape == (50,)
  assert few.greatest == 999
  # Of all channels, not of every tenth.
  assert len(np.unique(np.asarray(few.values) % 10)) > 5


# What is evaluated.


@pytest.mark.parametrize('mode', ['linear', 'kmeans'])
def test_weights_have_few_values(mode):
  found = quantized(mode)
  evaluate, counted = program(mode)
  _, images, _ = network()
  rng = np.random.default_rng(3)
  for _ in range(4):
    candidate = rng.integers(0, found.space.counts()).astype('i4')
    variables, _ = evaluate(candidate, images[0])
    levels = candidate[list(found.space.reads)]
    for layer, kernel in enumerate(kernels_of(variables)):
      bits = found.space.levels[found.space.reads[layer]][levels[layer]]
      assert 1 < len(np.unique(kernel)) <= 2**bits
  assert counted.traces == 1


def test_linear_weights_are_those_of_the_paper():
  found = quantized('linear', 'max')
  evaluate, _ = program('linear', 'max')
  original, images, _ = network()
  for bits in (2, 4, 8):
    variables, _ = evaluate(levels_for(found, bits), images[0])
    pairs = zip(kernels_of(variables), kernels_of(original), strict=True)
    for layer, (kernel, whole) in enumerate(pairs):
      own = 8 if layer == 0 else bits
      step = np.abs(whole).max() / (2 ** (own - 1) - 1)
      np.testing.assert_allclose(
        kernel, step * np.round(whole / step), rtol=1e-5, atol=1e-7
      )


def forward_in_numpy(kernels, biases, images, bits, tops):
  """The network of dense layers, what each reads rounded to [0, top]."""
  x = np.asarray(images, np.float64).reshape(len(images), -1)
  for layer, (kernel, bias) in enumerate(zip(kernels, biases, strict=True)):
    if bits[layer] != UNQUANTIZED:
      x = rounded_in_numpy(x, top=tops[layer], bits=bits[layer], signed=False)
    x = x @ kernel.astype(np.float64) + bias
    if layer < 2:
      x = np.maximum(x, 0)
  return x


def test_inputs_are_rounded():
  found = quantized('linear', 'max')
  evaluate, counted = program('linear', 'max')
  original, images, _ = network()
  leaves = dict(tree.named_leaves(original))
  biases = [np.asarray(leaves[f'params/Dense_{i}/bias']) for i in range(3)]
  # Ranges are those of all batches, in the whole network.
  tops, x = [0.0], np.asarray(images, np.float64).reshape(96, -1)
  for kernel, bias in zip(kernels_of(original)[:2], biases, strict=False):
    x = np.maximum(x @ kernel + bias, 0)
    tops.append(x.max())
  for bits in (1, 2, 4, 8):
    candidate = levels_for(found, bits)
    variables, logits = evaluate(candidate, images[1])
    expected = forward_in_numpy(
      kernels_of(variables), biases, images[1], [UNQUANTIZED, bits, bits], tops
    )
    # A rounding to the other side moves a logit by a step at most.
    differences = np.abs(np.asarray(logits) - expected)
    assert np.median(differences) < 1e-5
    assert (differences > 1e-4).mean() < 0.05
  assert counted.traces == 1


def test_images_have_both_signs():
  variables, images, _ = network()
  found = make_quantized(MODEL, variables, images, bits=(8,), clip='max')
  assert found.input_grids.low[:, 0].tolist() == [-128, 0, 0]
  np.testing.assert_allclose(
    found.input_grids.step[0, 0], np.abs(images).max() / 127, rtol=1e-6
  )


@pytest.mark.parametrize('mode', ['linear', 'kmeans'])
def test_more_bits_are_closer(mode):
  found = quantized(mode)
  evaluate, _ = program(mode)
  variables, images, _ = network()
  exact = np.asarray(MODEL.apply(variables, images[0]))
  errors = []
  for bits in BITS:
    _, logits = evaluate(levels_for(found, bits), images[0])
    errors.append(np.mean((np.asarray(logits) - exact) ** 2))
  errors = np.array(errors) / np.mean(exact**2)
  assert (np.diff(errors) < 0).all()
  assert errors[-1] < 1e-3
  assert errors[1] > 10 * errors[-1]


@pytest.mark.parametrize('mode', ['linear', 'kmeans'])
def test_errors_alone(mode):
  found = quantized(mode)
  errors = np.asarray(found.errors)
  assert errors.shape == (found.space.decisions, found.space.most_levels)
  assert (errors[:, -1] == 0).all()
  assert (np.diff(errors, axis=1) <= 0).all()
  free = found.space.counts() > 1
  assert (errors[free][:, 0] > 0.01).all()
  original, images, _ = network()
  # Of weights, what is evaluated.
  low, high = (
    kernels_of(program(mode)[0](levels_for(found, bits), images[0])[0])
    for bits in (2, 8)
  )
  for layer, whole in enumerate(kernels_of(original)):
    decision = found.space.reads[layer]
    if free[decision]:
      energy = np.sum(whole**2)
      expected = (
        np.sum((low[layer] - whole) ** 2) - np.sum((high[layer] - whole) ** 2)
      ) / energy
      level = found.space.levels[decision].index(2)
      np.testing.assert_allclose(
        errors[decision, level], expected, rtol=0.05, atol=1e-4
      )


def test_scores():
  found = quantized('linear')
  _, images, labels = network()
  # What only fills the last batch does not count.
  labels = labels.at[2, 20:].set(-1)
  data = score_data(found, Examples(images, labels))
  objectives = {x: make_objective(found, x) for x in ('accuracy', 'loss')}
  measure = make_measure(found)

  @Counted
  def all_of(data, candidates):
    def one(candidate):
      scores = {x: f(data, candidate) for x, f in objectives.items()}
      return scores, measure(data, candidate)

    return jax.lax.map(one, candidates)

  candidates = jnp.stack([levels_for(found, bits) for bits in (2, 8)])
  scores, measured = jax.jit(all_of)(data, candidates)
  assert all_of.traces == 1
  np.testing.assert_array_equal(scores['accuracy'], measured['accuracy'])
  np.testing.assert_array_equal(scores['loss'], -measured['loss'])
  evaluate, _ = program('linear')
  real = np.asarray(labels).reshape(-1)
  for row in range(2):
    logits = np.concatenate(
      [evaluate(candidates[row], batch)[1] for batch in images]
    )[real >= 0]
    wanted = real[real >= 0]
    hits = (logits.argmax(1) == wanted).mean()
    np.testing.assert_allclose(measured['accuracy'][row], hits, rtol=1e-6)
    losses = np.log(np.exp(logits).sum(1)) - logits[np.arange(84), wanted]
    np.testing.assert_allclose(measured['loss'][row], losses.mean(), rtol=1e-5)
  with pytest.raises(ValueError, match='accuracies'):
    make_objective(found, 'accuracies')


# Codebooks.


def test_codebooks_are_those_of_the_solver():
  variables, images, _ = network()
  solver = quantization.lloyd(init=quantization.density_init, iterations=3)
  found = make_quantized(
    MODEL, variables, images, mode='kmeans', bits=(3,), solver=solver
  )
  book = quantization.fit_codebook(
    kernels_of(variables)[1],
    quantization.Sharing(entries=8, reserve_zero=False),
    solver=solver,
  )
  np.testing.assert_array_equal(found.tables[1][0], book.decode())
  assert book.entries == 8


def test_weights_that_are_zero_stay_in_codebooks():
  variables, images, _ = network()
  pruned = jax.tree.map(lambda x: jnp.where(jnp.abs(x) < 0.1, 0, x), variables)
  found = make_quantized(MODEL, pruned, images, mode='kmeans', bits=(1, 3))
  for whole, table in zip(kernels_of(pruned), found.tables, strict=True):
    for level, bits in enumerate((1, 3)):
      np.testing.assert_array_equal(np.asarray(table[level]) == 0, whole == 0)
      assert len(np.unique(table[level])) <= 2**bits


# Files.


@pytest.mark.parametrize('mode', ['linear', 'kmeans'])
def test_a_file_decodes_to_what_was_evaluated(mode):
  found = quantized(mode)
  evaluate, _ = program(mode)
  _, images, _ = network()
  for bits in BITS:
    candidate = levels_for(found, bits)
    variables, _ = evaluate(candidate, images[0])
    tensors = export_tensors(found, np.asarray(candidate))
    assert list(tensors) == [f'Dense_{i}/kernel' for i in range(3)]
    file = coding.encode(tensors)
    decoded = coding.decode(file)
    for layer, kernel in enumerate(kernels_of(variables)):
      stored = decoded.array(f'Dense_{layer}/kernel')
      assert stored.dtype == np.float32
      # Bit for bit, but for the sign of a zero.
      np.testing.assert_array_equal(stored, kernel)


@pytest.mark.parametrize('mode', ['linear', 'kmeans'])
def test_fewer_bits_make_smaller_files(mode):
  found = quantized(mode)
  sizes = [
    len(coding.encode(export_tensors(found, levels_for(found, bits))))
    for bits in BITS
  ]
  assert (np.diff(sizes) > 0).all()


@pytest.mark.parametrize('mode', ['linear', 'kmeans'])
def test_kernels_may_stay(mode):
  variables, images, _ = network()
  found = make_quantized(
    MODEL,
    variables,
    images,
    mode=mode,
    bits=(4,),
    pins={'Dense_0/weights': UNQUANTIZED},
  )
  candidate = np.zeros(found.space.decisions, np.int32)
  assert list(export_tensors(found, candidate)) == [
    'Dense_1/kernel',
    'Dense_2/kernel',
  ]
  chosen = found.chosen(found.arrays(), jnp.asarray(candidate))
  np.testing.assert_array_equal(kernels_of(chosen)[0], kernels_of(variables)[0])


# Other networks.


class Separable(nn.Module):
  """A depthwise convolution between ordinary layers, with normalization."""

  norm_momentum: float = 0.9

  @nn.compact
  def __call__(self, images, *, train=False):
    x = nn.Conv(4, (3, 3), use_bias=False)(images)
    x = nn.BatchNorm(not train, momentum=self.norm_momentum)(x)
    x = nn.relu(x)
    x = nn.Conv(4, (3, 3), feature_group_count=4, name='depthwise')(x)
    return nn.Dense(5)(nn.relu(x).mean((1, 2)))


@pytest.mark.slow
def test_convolutions_round_what_they_read():
  model = Separable()
  images = jax.random.uniform(jax.random.key(0), (2, 4, 8, 8, 3))
  variables = jax.jit(model.init)(jax.random.key(1), images[0])
  found = make_quantized(model, variables, images, bits=(1, 8))
  assert [group.name for group in found.space.groups][2:4] == [
    'depthwise/weights',
    'depthwise/activations',
  ]
  labels = jnp.zeros((2, 4), jnp.int32)
  measure = make_measure(found)

  @jax.jit
  def run(data, candidate):
    seen = {}

    def note(call, args, kwargs, context):
      if isinstance(context.module, nn.Conv):
        seen['/'.join(context.module.path)] = args[0]
      y = call(*args, **kwargs)
      if context.module.name == 'Conv_0':
        seen['made'] = y
      return y

    with found.rounding(data, candidate), nn.intercept_methods(note):
      logits = model.apply(found.chosen(data, candidate), images[0])
    measured = measure(data, candidate)
    again = data['examples']._replace(statistics=images[0])
    fresh = measure({**data, 'examples': again}, candidate)
    return seen, logits, measured, fresh

  data = score_data(found, Examples(images[:1], labels[:1]))
  # One bit for what the depthwise convolution reads alone.
  candidate = jnp.array([1, 1, 1, 0, 1, 1], jnp.int32)
  seen, logits, plain, statistics = run(data, candidate)
  assert len(np.unique(seen['depthwise'])) == 2
  assert 2 < len(np.unique(seen['Conv_0'])) <= 256
  assert float(plain['loss']) == pytest.approx(
    float(np.mean(jax.nn.logsumexp(logits, axis=1) - logits[:, 0])), rel=1e-5
  )
  # Statistics are those of what the candidate makes.
  made = np.asarray(seen['made'])
  own = {'mean': made.mean((0, 1, 2)), 'var': made.var((0, 1, 2))}
  given = {**variables, 'batch_stats': {'BatchNorm_0': own}}
  _, _, expected, _ = run({**data, 'variables': given}, candidate)
  np.testing.assert_allclose(statistics['loss'], expected['loss'], rtol=1e-4)
  assert abs(statistics['loss'] - plain['loss']) > 1e-3


@pytest.mark.slow
def test_a_network_of_matrix_products_has_plain_layers():
  model = LeNet5(channels=(2, 3), features=4, convolution='matrix')
  images = jnp.ones((1, 2, 28, 28, 1))
  shapes = jax.eval_shape(model.init, jax.random.key(0), images[0])
  variables = jax.tree.map(lambda x: jnp.ones(x.shape), shapes)
  linear = make_quantized(model, variables, images, bits=(2, 4))
  assert linear.model.convolution == 'xla'
  assert linear.space.decisions == 8
  shared = make_quantized(model, variables, images, mode='kmeans', bits=(2, 4))
  assert shared.model.convolution == 'matrix'


def test_bits_of_mobilenet_v2():
  image = jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32)
  layers = layer_shapes(MobileNetV2(), image)
  # As many as the authors' table has, of 1 to 8 bits.
  model = lookup(np.ones((53, 8, 8)), layers)
  space = make_bit_space(layers, pins=authors_pins(layers))
  assert equal_bit_cost(space, model) == 53
  assert space.decisions == 106
  assert tabulate_bits(space, model).units.shape == (53, 7, 7)
  features = bit_features(space)
  assert features.shape == (53, 8)
  assert features[:, 0].sum() == 17
  np.testing.assert_array_equal(features[0], [0, 3, 32, 2, 3, 864, 224**2, 0])
  np.testing.assert_array_equal(
    features[-1], [0, 1280, 1000, 0, 1, 1_280_000, 1280, 52]
  )
  operations = equal_bit_cost(
    space, bit_operations, weight_bits=1, activation_bits=1
  )
  assert operations == 300_774_272


def test_bad_arguments():
  variables, images, _ = network()
  with pytest.raises(ValueError, match=r'clip=.*kl'):
    make_quantized(MODEL, variables, images, clip='kl')
  with pytest.raises(ValueError, match=r'mode=.*cubic'):
    make_quantized(MODEL, variables, images, mode='cubic')
  with pytest.raises(ValueError, match='batches: not all'):
    make_quantized(MODEL, variables, images.at[1, 2, 3].set(jnp.inf), bits=(2,))
  broken = jax.tree.map(lambda x: x * jnp.nan, variables)
  for mode in ('linear', 'kmeans'):
    with pytest.raises(ValueError, match='weights must be finite'):
      make_quantized(MODEL, broken, images, mode=mode, bits=(2,))
