import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from experiments.config import resolve
from experiments.training.stages import (
  first_state,
  make_stages,
  next_state,
  stage_of,
)
from experiments.training.workers import make_workers

PARAMS = {'w': np.ones((2, 2), np.float32)}


def stages_of(**fields):
  return make_stages(
    resolve(fields), steps_per_epoch=10, axis_name='data', workers=(2,)
  )


def test_lengths_in_steps_and_epochs():
  stages = stages_of(
    stage_order=('warm', 'main'),
    stages={'warm': {'steps': 3}, 'main': {'epochs': 1.5}},
  )
  assert [(s.name, s.first, s.last) for s in stages] == [
    ('warm', 0, 3),
    ('main', 3, 18),
  ]
  assert [stage_of(stages, step) for step in (1, 3, 4, 18)] == [0, 0, 1, 1]


@pytest.mark.parametrize(
  ('fields', 'message'),
  [
    ({'stage_order': ('a',)}, r"stage_order=\['a'\] does not name"),
    ({'stages': {'train': {}}}, 'one must be positive'),
    ({'stages': {'train': {'steps': 1, 'epochs': 1}}}, 'one must be positive'),
    (
      {'stages': {'train': {'step': 1}}},
      'no field stages.train.step; did you mean stages.train.steps',
    ),
    (
      {'stages': {'train': {'steps': 1, 'reducer': {'name': 'dens'}}}},
      "reducer.name='dens' is unknown",
    ),
    (
      {'reducer': {'name': 'dense_all_reduce', 'dtpe': 1}},
      "reducer.dtpe is no argument of 'dense_all_reduce'; known: dtype",
    ),
    (
      {'reducer': {'name': 'deep_gradient_compression', 'density': 0.01}},
      'optimizer.momentum=0.9 would be applied .* set one of them to 0',
    ),
  ],
)
def test_bad_stages(fields, message):
  with pytest.raises(ValueError, match=message):
    stages_of(**fields)


def test_adam_behind_momentum_is_warned_of():
  with pytest.warns(UserWarning, match='momentum=0.9 is in the reducer'):
    stages_of(
      reducer={'name': 'deep_gradient_compression', 'density': 0.01},
      optimizer={'name': 'adam'},
    )


def step(stage, state):
  grads = jax.tree.map(jnp.ones_like, state.params)
  updates, opt_state = stage.optimizer.update(
    grads, state.opt_state, state.params
  )
  return state._replace(
    step=state.step + 1,
    params=optax.apply_updates(state.params, updates),
    opt_state=opt_state,
  )


def test_momentum_and_schedule_go_on_in_the_next_stage():
  stages = stages_of(
    stage_order=('a', 'b', 'c'),
    stages={
      'a': {'steps': 4},
      'b': {'steps': 4},
      'c': {'steps': 4, 'optimizer': {'learning_rate': 7.0}},
    },
    optimizer={'learning_rate': 1.0, 'schedule': 'cosine'},
  )
  workers = make_workers('pmap', {'data': 2})
  state = first_state(stages[0], PARAMS, {}, workers, ['accuracy'])
  whole = state
  for _ in range(4):
    state = whole = step(stages[0], state)
  state = next_state(stages[1], stages[0], state, workers)
  jax.tree.map(np.testing.assert_array_equal, state, whole)
  for _ in range(4):
    state = step(stages[1], state)
  state = next_state(stages[2], stages[1], state, workers)
  before = np.asarray(state.params['w'])
  momentum = np.asarray(state.opt_state['optimizer'][0][0].trace['w'])
  state = step(stages[2], state)
  # The schedule of a stage's own optimizer begins with the stage.
  np.testing.assert_allclose(
    before - state.params['w'], 7.0 * (1 + 0.9 * momentum), rtol=1e-5
  )


def test_another_optimizer_begins_anew_on_the_schedule_of_the_run():
  stages = stages_of(
    stage_order=('a', 'b'),
    stages={
      'a': {'steps': 5},
      'b': {'steps': 5, 'optimizer': {'name': 'adam', 'learning_rate': 0.3}},
    },
  )
  workers = make_workers('pmap', {'data': 2})
  state = first_state(stages[0], PARAMS, {}, workers, [])
  for _ in range(5):
    state = step(stages[0], state)
  before = np.asarray(state.params['w'])
  state = step(stages[1], next_state(stages[1], stages[0], state, workers))
  np.testing.assert_allclose(before - state.params['w'], 0.3, rtol=1e-4)


def test_every_worker_begins_with_a_copy():
  stages = stages_of()
  workers = make_workers('shard_map', {'data': 4})
  state = first_state(
    stages[0], PARAMS, {'m': np.arange(3.0)}, workers, ['accuracy']
  )
  np.testing.assert_array_equal(state.model_state['m'], [[0, 1, 2]] * 4)
  assert state.window.steps.shape == (4,)
  assert set(state.window.sums) == {'loss', 'accuracy'}
