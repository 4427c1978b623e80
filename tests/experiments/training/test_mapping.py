"""Three mappings, one step: the same bits on eight devices."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from bandwidth.base import GradientReducer
from bandwidth.collectives import dense_all_reduce
from experiments.models.lenet import LeNet5, LeNet300
from experiments.training.objectives import (
  make_augment,
  make_classification_loss,
  make_preprocess,
)
from experiments.training.step import (
  STATE_KINDS,
  TrainState,
  empty_window,
  make_train_step,
)
from experiments.training.workers import (
  MAPPINGS,
  PER_WORKER,
  REPLICATED,
  make_workers,
)

WORKERS = 8


class TinyConv(nn.Module):
  """Convolution and batch norm: what mappings are likeliest to differ in."""

  @nn.compact
  def __call__(self, images, *, train=False):
    x = nn.Conv(4, (3, 3), use_bias=False)(images)
    x = nn.relu(nn.BatchNorm(use_running_average=not train)(x))
    return nn.Dense(10)(x.mean(axis=(1, 2)))


MODELS = {
  'lenet300': (LeNet300(), (28, 28, 1)),
  'lenet300_narrow': (LeNet300(features=(16, 8)), (14, 14, 1)),
  'lenet5': (LeNet5(), (28, 28, 1)),
  'tiny_conv': (TinyConv(), (12, 12, 3)),
}


def make_loss(model, augment):
  return make_classification_loss(
    model, make_preprocess({}), make_augment(augment)
  )


def init(model, shape):
  """Drawn by NumPy: programs of random numbers take seconds to compile."""
  rng = np.random.default_rng(0)
  abstract = jax.eval_shape(
    model.init, jax.random.key(0), jnp.zeros((1, *shape))
  )
  return jax.tree.map(
    lambda leaf: rng.normal(scale=0.1, size=leaf.shape).astype('f4'), abstract
  )


def make_batch(shape, seed=0):
  rng = np.random.default_rng(seed)
  return {
    'image': rng.integers(0, 256, (WORKERS, 4, *shape)).astype(np.uint8),
    'label': rng.integers(0, 10, (WORKERS, 4)).astype(np.int32),
  }


def train(name, mapping, axes, *, steps=5, dtype='float32'):
  model, shape = MODELS[name]
  augment = {} if name == 'lenet300_narrow' else {'pad': 1, 'flip': True}
  workers = make_workers(mapping, axes)
  variables = init(model, shape)
  params = variables.pop('params')
  optimizer = optax.sgd(0.05, momentum=0.9)
  reducer = dense_all_reduce(workers.axis_name, dtype=dtype)

  def stacked(tree):
    return jax.tree.map(lambda leaf: np.stack([leaf] * WORKERS), tree)

  host = TrainState(
    step=np.zeros((), np.int32),
    params=params,
    opt_state=optimizer.init(params),
    reducer_state=stacked(reducer.init(params)),
    model_state=stacked(variables),
    window=stacked(empty_window(['loss', 'accuracy'])),
  )
  state = jax.tree.map(
    lambda kind, sub: workers.place(sub, kind), STATE_KINDS, host
  )
  batch = workers.place(make_batch(shape), PER_WORKER)
  gradients = jax.value_and_grad(make_loss(model, augment), has_aux=True)
  step = workers.compile(
    make_train_step(
      workers.local_gradients(gradients),
      reducer,
      optimizer,
      axis_name=workers.axis_name,
      seed=0,
    ),
    (state, batch),
    kinds=(STATE_KINDS, PER_WORKER),
    out_kinds=STATE_KINDS,
  )
  for _ in range(steps):
    state = jax.block_until_ready(step(state, batch))
  return jax.device_get(state._asdict())


@pytest.mark.compiler
@pytest.mark.parametrize(
  'name',
  [
    'lenet300_narrow',
    pytest.param('lenet300', marks=pytest.mark.slow),
    pytest.param('lenet5', marks=pytest.mark.slow),
    pytest.param('tiny_conv', marks=pytest.mark.slow),
  ],
)
def test_same_bits_after_five_steps(name):
  runs = {m: train(name, m, {'data': WORKERS}) for m in MAPPINGS}
  assert runs['pmap']['step'] == 5
  # Batch norm's running statistics, which no step depends on, are the one
  # result that XLA rounds differently from program to program.
  running = {m: run.pop('model_state') for m, run in runs.items()}
  for mapping in ('shard_map', 'vmap'):
    jax.tree.map(np.testing.assert_array_equal, runs[mapping], runs['pmap'])
    jax.tree.map(
      lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7),
      running[mapping],
      running['pmap'],
    )


@pytest.mark.slow
@pytest.mark.compiler
def test_two_axes_have_the_same_bits_under_shard_map_and_vmap():
  axes = {'host': 2, 'data': 4}
  runs = [
    train('lenet300', mapping, axes, dtype='bfloat16', steps=2)
    for mapping in ('shard_map', 'vmap')
  ]
  jax.tree.map(np.testing.assert_array_equal, *runs)


@pytest.mark.parametrize('mapping', MAPPINGS)
def test_gradients_reach_the_reducer_local_and_unsummed(mapping):
  """The check_vma trap: already summed gradients leave nothing to compress."""
  model, shape = MODELS['lenet300_narrow']
  workers = make_workers(mapping, {'data': WORKERS})
  params = init(model, shape)['params']
  loss = make_loss(model, {'pad': 1, 'flip': True})
  batch = make_batch(shape)
  seen = GradientReducer(
    init=lambda params: params,
    reduce=lambda grads, state, params=None: (grads, grads),
    wire_bytes=lambda params, workers: 0,
  )
  state = TrainState(
    step=jnp.zeros((), jnp.int32),
    params=params,
    opt_state=(),
    reducer_state=jax.tree.map(
      lambda leaf: jnp.zeros((WORKERS, *leaf.shape)), params
    ),
    model_state={},
    window=jax.tree.map(
      lambda leaf: jnp.stack([leaf] * WORKERS), empty_window(['loss'])
    ),
  )

  def step(state, batch):
    inner = make_train_step(
      workers.local_gradients(jax.value_and_grad(loss, has_aux=True)),
      seen,
      optax.set_to_zero(),
      axis_name='data',
      seed=0,
    )
    # What the optimizer makes of local gradients is not wanted here.
    return inner(state._replace(opt_state=optax.EmptyState()), batch)

  placed = jax.tree.map(
    lambda kind, sub: workers.place(sub, kind), STATE_KINDS, state
  )
  compiled = workers.compile(
    lambda s, b: step(s, b).reducer_state,
    (placed, workers.place(batch, PER_WORKER)),
    kinds=(STATE_KINDS, PER_WORKER),
    out_kinds=PER_WORKER,
  )
  got = jax.device_get(compiled(placed, workers.place(batch, PER_WORKER)))
  key = jax.random.fold_in(jax.random.key(0), 0)
  alone = jax.jit(jax.grad(loss, has_aux=True))
  for worker in range(WORKERS):
    mine = jax.tree.map(lambda leaf, w=worker: leaf[w], batch)
    mine_key = jax.random.fold_in(key, worker)
    expected = alone(params, {}, mine, mine_key)[0]
    jax.tree.map(
      lambda g, e, w=worker: np.testing.assert_allclose(g[w], e, atol=1e-5),
      got,
      expected,
    )
  kernel = got['Dense_0']['kernel']
  assert np.abs(kernel[0] - kernel[1]).max() > 1e-3


def test_kinds_of_arguments_and_results():
  workers = make_workers('shard_map', {'data': 4})
  x = workers.place(np.arange(8.0).reshape(4, 2), PER_WORKER)
  scale = workers.place(np.float32(2.0), REPLICATED)

  def fn(tree, scale):
    total = jax.lax.psum(tree['x'].sum(), 'data')
    return {'mine': tree['x'] * scale, 'all': total * scale}

  compiled = workers.compile(
    fn,
    ({'x': x}, scale),
    kinds=(PER_WORKER, REPLICATED),
    out_kinds={'mine': PER_WORKER, 'all': REPLICATED},
  )
  out = compiled({'x': x}, scale)
  np.testing.assert_array_equal(out['mine'], np.arange(8.0).reshape(4, 2) * 2)
  assert float(out['all']) == 56.0


@pytest.mark.parametrize(
  ('mapping', 'axes', 'message'),
  [
    ('pmpa', {'data': 1}, "mapping='pmpa' is unknown.*Did you mean 'pmap'"),
    ('pmap', {'host': 2, 'data': 2}, "use mapping='shard_map'"),
    ('pmap', {'data': 9}, r'workers=9 but there are 8 cpu devices; .*vmap'),
    ('shard_map', {'data': 0}, 'must be at least 1'),
  ],
)
def test_bad_mappings(mapping, axes, message):
  with pytest.raises(ValueError, match=message):
    make_workers(mapping, axes)


def test_simulation_needs_one_device():
  assert make_workers('vmap', {'data': 64}).count == 64
