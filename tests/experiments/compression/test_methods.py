"""Methods of stages: what they train, and what they leave."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from bandwidth import coding
from experiments.compression.methods import make_method, wrap_loss_with_method
from experiments.config import resolve
from experiments.training.stages import first_state, make_stages, next_state
from experiments.training.workers import make_workers

RNG = np.random.default_rng(0)
PARAMS = {
  'a': {
    'kernel': RNG.normal(size=(12, 8)).astype(np.float32),
    'bias': RNG.normal(size=8).astype(np.float32),
  }
}
KERNELS = (('.*/kernel', True), ('.*', False))


def stages_of(*methods, **optimizer):
  order = [f's{i}' for i in range(len(methods))]
  config = {
    'stage_order': order,
    'stages': {
      name: {'steps': 6, 'method': method}
      for name, method in zip(order, methods, strict=True)
    },
    'optimizer': {'learning_rate': 0.05, **optimizer},
  }
  return make_stages(
    resolve(config), steps_per_epoch=10, axis_name='data', workers=(2,)
  )


def steps(stage, state, count=6):
  optimizer = optax.with_extra_args_support(stage.optimizer)
  rng = np.random.default_rng(1)
  for _ in range(count):
    grads = jax.tree.map(
      lambda leaf: jnp.asarray(rng.normal(size=leaf.shape), leaf.dtype),
      state.params,
    )
    updates, opt_state = optimizer.update(
      grads, state.opt_state, state.params, grads=grads
    )
    state = state._replace(
      step=state.step + 1,
      params=optax.apply_updates(state.params, updates),
      opt_state=opt_state,
    )
  return state


def test_pruned_then_kept_then_shared_weights_stay_zero_and_few():
  rules = (('.*/kernel', 2), ('.*', None))
  stages = stages_of(
    {'name': 'prune', 'sparsity': 0.75, 'frequency': 1},
    {'name': 'keep'},
    {'name': 'share', 'rules': rules},
    weight_decay=0.1,
  )
  workers = make_workers('pmap', {'data': 1})
  state = first_state(stages[0], PARAMS, {}, workers, [])
  state = steps(stages[0], state)
  zeros = np.asarray(state.params['a']['kernel']) == 0
  assert zeros.sum() == 72
  before = stages[0]
  for stage in stages[1:]:
    state = steps(stage, next_state(stage, before, state, workers))
    before = stage
    np.testing.assert_array_equal(state.params['a']['kernel'] == 0, zeros)
  kernel = np.asarray(state.params['a']['kernel'])
  assert len(np.unique(kernel)) <= 4
  tensors = stages[2].method.export(state.params, jax.device_get(state.params))
  np.testing.assert_array_equal(tensors['a/kernel'].to_array(), kernel)
  assert set(tensors) == {'a/kernel'}


@pytest.mark.parametrize(
  'method',
  [
    {'name': 'rate', 'weight': 1.0, 'step': 0.5},
    {'name': 'rate', 'weight': 1.0, 'prior': 'logistic'},
    {'name': 'ternary', 'rules': KERNELS},
    {'name': 'learned_step', 'rules': (('.*/kernel', 3), ('.*', None))},
  ],
)
def test_file_has_the_values_that_the_network_computes_with(method):
  (stage,) = stages_of(method)
  workers = make_workers('pmap', {'data': 1})
  state = steps(stage, first_state(stage, PARAMS, {}, workers, []), 3)
  params = jax.device_get(jax.jit(stage.method.decode)(state.params))
  tensors = stage.method.export(jax.device_get(state.params), params)
  assert 'a/kernel' in tensors
  for name, tensor in tensors.items():
    assert isinstance(tensor, coding.CodebookTensor | coding.UniformTensor)
    layer, leaf = name.split('/')
    np.testing.assert_allclose(
      tensor.to_array(), params[layer][leaf], rtol=1e-6
    )


def test_next_stage_begins_with_what_the_last_one_decoded():
  stages = stages_of({'name': 'ternary', 'rules': KERNELS}, {'name': 'none'})
  workers = make_workers('pmap', {'data': 1})
  state = first_state(stages[0], PARAMS, {}, workers, [])
  decoded = stages[0].method.decode(state.params)
  state = next_state(stages[1], stages[0], state, workers)
  jax.tree.map(np.testing.assert_array_equal, state.params, decoded)
  assert len(np.unique(state.params['a']['kernel'])) == 3


def test_penalty_is_bits_a_parameter_times_its_weight():
  method = make_method({'name': 'rate', 'weight': 2.0}, steps=1)
  variables = method.init(PARAMS)

  def loss(params, model_state, batch, key):
    return jnp.float32(0.5), (model_state, {'accuracy': jnp.float32(1)})

  wrapped = wrap_loss_with_method(loss, method)
  total, (_, metrics) = wrapped(variables, {}, None, None)
  levels = np.concatenate(
    [np.round(np.ravel(leaf)) for leaf in jax.tree.leaves(variables.latents)]
  )
  assert metrics['penalty'] == pytest.approx(float(total) - 0.5, rel=1e-5)
  # Two groups, kernel and bias, each under its own fitted distribution.
  assert 0 < metrics['penalty'] < 2 * 8 * len(levels)
  only = make_method({'name': 'none'}, steps=1)
  assert wrap_loss_with_method(loss, only)(PARAMS, {}, None, None)[0] == 0.5


@pytest.mark.parametrize(
  ('method', 'message'),
  [
    ({'name': 'prun'}, "method.name='prun' is unknown"),
    ({'name': 'prune'}, "'prune' needs sparsity"),
    ({'name': 'prune', 'sparsity': 1.5}, 'sparsity|final'),
    ({'name': 'prune', 'sparsity': 0.5, 'score': 'x'}, "score='x' is unknown"),
    ({'name': 'prune', 'sparsity': 0.5, 'until': 0}, 'until=0 is not in'),
    ({'name': 'share', 'bit': 3}, "method.bit is no argument of 'share'"),
    ({'name': 'share', 'rules': 5}, 'rules=5 are not pairs'),
    ({'name': 'share', 'rules': (('.*', 99),)}, 'bits=99'),
    ({'name': 'rate', 'weight': -1.0}, 'weight=-1.0 is negative'),
    ({'name': 'ternary', 'rules': KERNELS, 'threshold': 2.0}, 'threshold=2.0'),
  ],
)
def test_bad_methods(method, message):
  with pytest.raises(ValueError, match=message):
    stages_of(method)


def test_rules_that_match_nothing_name_the_stage():
  (stage,) = stages_of({'name': 'share', 'rules': (('x', 2), ('.*', None))})
  workers = make_workers('pmap', {'data': 1})
  with pytest.raises(ValueError, match=r's0\.method: rules: first match of no'):
    first_state(stage, PARAMS, {}, workers, [])
