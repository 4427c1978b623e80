"""Deep deterministic policy gradient (DDPG), as in AMC and HAQ.

Actor and critic are functions of parameter trees and a single observation. An
agent is three pure functions, so that a search can scan and map over it.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from bandwidth.base import Params
from bandwidth.search.agents.replay import Transition


class Agent(NamedTuple):
  """Pure functions that choose actions in [0, 1] and learn.

  Attributes:
    init: `key -> state`, an `AgentState`.
    act: `(state, observation float32 [F]) -> action float32 []`, without noise.
    update: `(state, batch, key) -> state`: one update on a minibatch of
      transitions, leaves [B, …].
  """

  init: Callable[[jax.Array], Any]
  act: Callable[[Any, jax.Array], jax.Array]
  update: Callable[[Any, Transition, jax.Array], Any]


@dataclasses.dataclass(frozen=True, kw_only=True)
class AgentOptions:
  """Hyperparameters of an agent.

  Attributes:
    hidden: H, width of both hidden layers of the actor and of the critic.
    actor_rate: learning rate of the actor's Adam optimizer, positive.
    critic_rate: learning rate of the critic's Adam optimizer, positive.
    discount: γ; with 1, and one reward R stored with all T transitions of an
      episode, Q grows to T (R - b).
    tau: weight of the new parameters in an update of the target networks, in
      [0, 1].
    baseline_rate: weight of a minibatch's mean reward in an update of the
      baseline b, in [0, 1]; see `moved_baseline`.
    delay: TD3 only: updates of the critics for each update of the actor.
    smoothing: TD3 only: standard deviation of the noise added to a target
      action. This and the next are half the paper's 0.2 and 0.5, whose actions
      lie in [-1, 1].
    smoothing_clip: TD3 only: largest magnitude of that noise.
  """

  hidden: int = 300
  actor_rate: float = 1e-4
  critic_rate: float = 1e-3
  discount: float = 1.0
  tau: float = 0.01
  baseline_rate: float = 0.5
  delay: int = 2
  smoothing: float = 0.1
  smoothing_clip: float = 0.25

  def __post_init__(self) -> None:
    for name in ('hidden', 'delay'):
      if getattr(self, name) < 1:
        raise ValueError(f'{name}={getattr(self, name)!r} is not positive')
    for name in ('actor_rate', 'critic_rate'):
      if not getattr(self, name) > 0:
        raise ValueError(f'{name}={getattr(self, name)!r} is not positive')
    for name in ('smoothing', 'smoothing_clip'):
      if not getattr(self, name) >= 0:
        raise ValueError(f'{name}={getattr(self, name)!r} is negative')
    for name in ('discount', 'tau', 'baseline_rate'):
      if not 0 <= getattr(self, name) <= 1:
        raise ValueError(f'{name}={getattr(self, name)!r} is not in [0, 1]')


class AgentState(NamedTuple):
  """What an agent has learned.

  Attributes:
    actor: parameters of μ, see `init_actor`.
    critic: parameters of Q, see `init_critic`; of TD3's two critics, stacked:
      leaves [2, …].
    target_actor: moving average of `actor`, the same tree.
    target_critic: moving average of `critic`, the same tree.
    actor_optimizer: Adam's state for `actor`.
    critic_optimizer: Adam's state for `critic`.
    baseline: b, moving average of the rewards, float32 [].
    updates: number of updates of the critic so far, int32 [].
  """

  actor: Params
  critic: Params
  target_actor: Params
  target_critic: Params
  actor_optimizer: optax.OptState
  critic_optimizer: optax.OptState
  baseline: jax.Array
  updates: jax.Array


def init_dense(key: jax.Array, inputs: int, outputs: int) -> Params:
  """Draws a dense layer from the default distribution of PyTorch's `Linear`.

  Kernel [inputs, outputs] and bias [outputs] are uniform between
  -1 / sqrt(inputs) and 1 / sqrt(inputs), float32.
  """
  bound = inputs**-0.5
  drawn = jax.random.uniform(
    key, (inputs + 1, outputs), minval=-bound, maxval=bound
  )
  return {'kernel': drawn[:-1], 'bias': drawn[-1]}


def init_actor(key: jax.Array, features: int, hidden: int) -> Params:
  """Draws the parameters of `actor`: F -> H -> H -> 1."""
  keys = jax.random.split(key, 3)
  return {
    'first': init_dense(keys[0], features, hidden),
    'second': init_dense(keys[1], hidden, hidden),
    'last': init_dense(keys[2], hidden, 1),
  }


def init_critic(key: jax.Array, features: int, hidden: int) -> Params:
  """Draws the parameters of `critic`: (F -> H) + (1 -> H) -> H -> 1."""
  keys = jax.random.split(key, 4)
  return {
    'observation': init_dense(keys[0], features, hidden),
    'action': init_dense(keys[1], 1, hidden),
    'second': init_dense(keys[2], hidden, hidden),
    'last': init_dense(keys[3], hidden, 1),
  }


def actor(params: Params, observation: jax.Array) -> jax.Array:
  """Returns μ(s), an action in [0, 1]: float32 [] of float32 [F]."""
  hidden = jax.nn.relu(_dense(params['first'], observation))
  hidden = jax.nn.relu(_dense(params['second'], hidden))
  return jax.nn.sigmoid(_dense(params['last'], hidden))[0]


def critic(
  params: Params, observation: jax.Array, action: jax.Array
) -> jax.Array:
  r"""Returns Q(s, a), float32 []; its first layer adds both inputs.

  .. math:: \mathrm{relu}(W_1 s + b_1 + W_2 a + b_2)

  Args:
    params: parameters of the critic, see `init_critic`.
    observation: s, float32 [F], for F features.
    action: a, float32 [], in [0, 1].
  """
  hidden = _dense(params['observation'], observation)
  hidden = jax.nn.relu(hidden + _dense(params['action'], action[None]))
  hidden = jax.nn.relu(_dense(params['second'], hidden))
  return _dense(params['last'], hidden)[0]


def moved_baseline(
  baseline: jax.Array, updates: jax.Array, rewards: jax.Array, rate: float
) -> jax.Array:
  """Moves b towards a minibatch's mean reward by `rate`; at first, onto it.

  Args:
    baseline: b before the update, float32 [].
    updates: number of updates so far, int32 [].
    rewards: rewards of the minibatch, float32 [B].
    rate: weight of the minibatch's mean, in [0, 1].

  >>> rewards = jnp.array([1.0, 3.0])
  >>> [float(moved_baseline(jnp.float32(6.0), jnp.int32(n), rewards, 0.5))
  ...  for n in (0, 1)]
  [2.0, 4.0]
  """
  mean = jnp.mean(rewards)
  return jnp.where(updates == 0, mean, baseline + rate * (mean - baseline))


def sigma_at(
  episode: jax.Array,
  *,
  warmup: int,
  start: float = 0.5,
  decay: float = 0.95,
  floor: float = 1e-3,
) -> jax.Array:
  r"""Returns the standard deviation of the noise in an episode, float32.

  .. math:: \max(\sigma_0 d^{\max(e - w, 0)}, \sigma_{min})

  Args:
    episode: e, counted from 0, int32.
    warmup: w, last episode with uniform actions.
    start: σ_0, standard deviation in episode `warmup`.
    decay: d, factor from one episode to the next, in (0, 1].
    floor: σ_min; draws from a far narrower distribution may become NaN.

  >>> [round(float(sigma_at(jnp.int32(e), warmup=100)), 4)
  ...  for e in (101, 110, 800)]
  [0.475, 0.2994, 0.001]
  """
  age = jnp.maximum(episode - warmup, 0).astype(jnp.float32)
  return jnp.maximum(start * jnp.float32(decay) ** age, floor)


def explore(key: jax.Array, mean: jax.Array, sigma: jax.Array) -> jax.Array:
  """Draws from a normal distribution truncated to [0, 1].

  Args:
    key: typed PRNG key, of `jax.random.key`.
    mean: mean of the untruncated distribution, in [0, 1], float32 [].
    sigma: its standard deviation, positive, float32 [].

  Returns:
    float32 [].
  """
  low, high = (0.0 - mean) / sigma, (1.0 - mean) / sigma
  noise = jax.random.truncated_normal(key, low, high)
  return jnp.clip(mean + sigma * noise, 0.0, 1.0)


def make_ddpg(features: int, options: AgentOptions | None = None) -> Agent:
  r"""Builds the DDPG agent of AMC's authors' code.

  .. math:: y = r - b + (1 - d) \gamma Q'(s', \mu'(s'))

  is the target of the critic's mean squared error, where the baseline b has
  already moved towards the minibatch's mean reward. Then the actor ascends the
  mean of Q(s, μ(s)) of the new critic, and the target networks follow both.

  Args:
    features: F, length of an observation.
    options: hyperparameters; None: those of the authors' code.

  References:
    Lillicrap et al., Continuous control with deep reinforcement learning, 2015,
    https://arxiv.org/abs/1509.02971; He et al., AMC, 2018,
    https://arxiv.org/abs/1802.03494
  """
  options = options or AgentOptions()
  return Agent(
    init=functools.partial(_init, features, options),
    act=lambda state, observation: actor(state.actor, observation),
    update=functools.partial(_update, options),
  )


def init_state(mu: Params, q: Params, options: AgentOptions) -> AgentState:
  """Returns the state of an agent that has learned nothing yet.

  Args:
    mu: parameters of the actor, see `init_actor`.
    q: parameters of the critic, or of stacked critics; see `init_critic`.
    options: hyperparameters of the agent.
  """
  return AgentState(
    actor=mu,
    critic=q,
    target_actor=mu,
    target_critic=q,
    actor_optimizer=optax.adam(options.actor_rate).init(mu),
    critic_optimizer=optax.adam(options.critic_rate).init(q),
    baseline=jnp.zeros((), jnp.float32),
    updates=jnp.zeros((), jnp.int32),
  )


def update_critic(
  options: AgentOptions,
  state: AgentState,
  batch: Transition,
  ahead: jax.Array,
  loss: Callable[[Params, Transition, jax.Array], jax.Array],
) -> AgentState:
  """Updates the baseline, then takes a step of the critic.

  Args:
    options: hyperparameters of the agent.
    state: state of the agent before the update.
    batch: minibatch of transitions, leaves [B, …].
    ahead: discounted value of the next state, 0 at the end of an episode,
      float32 [B].
    loss: `(critic, batch, targets float32 [B]) -> float32 []`.
  """
  baseline = moved_baseline(
    state.baseline, state.updates, batch.reward, options.baseline_rate
  )
  targets = batch.reward - baseline + ahead
  grads = jax.grad(loss)(state.critic, batch, targets)
  q, optimizer = _adam_step(
    options.critic_rate, grads, state.critic_optimizer, state.critic
  )
  return state._replace(
    critic=q,
    critic_optimizer=optimizer,
    baseline=baseline,
    updates=state.updates + 1,
  )


def update_actor(
  options: AgentOptions,
  state: AgentState,
  critic_params: Params,
  observations: jax.Array,
) -> AgentState:
  """Takes a step of the actor, then updates both target networks.

  Args:
    options: hyperparameters of the agent.
    state: state of the agent before the update.
    critic_params: parameters of the one critic that the actor ascends.
    observations: of the minibatch, float32 [B, F].
  """
  grads = jax.grad(_actor_loss)(state.actor, critic_params, observations)
  mu, optimizer = _adam_step(
    options.actor_rate, grads, state.actor_optimizer, state.actor
  )
  # In this order of the terms: (1 - tau) * target + tau * params.
  follow, stay = optax.incremental_update, 1 - options.tau
  return state._replace(
    actor=mu,
    target_actor=follow(state.target_actor, mu, stay),
    target_critic=follow(state.target_critic, state.critic, stay),
    actor_optimizer=optimizer,
  )


def _actor_loss(
  params: Params, critic_params: Params, observations: jax.Array
) -> jax.Array:
  """Minus the mean of Q(s, μ(s)) over observations [B, F]."""

  def value(observation: jax.Array) -> jax.Array:
    return critic(critic_params, observation, actor(params, observation))

  return -jnp.mean(jax.vmap(value)(observations))


def _adam_step(
  rate: float, grads: Params, state: optax.OptState, params: Params
) -> tuple[Params, optax.OptState]:
  updates, state = optax.adam(rate).update(grads, state, params)
  return optax.apply_updates(params, updates), state


def _init(features: int, options: AgentOptions, key: jax.Array) -> AgentState:
  actor_key, critic_key = jax.random.split(key)
  mu = init_actor(actor_key, features, options.hidden)
  q = init_critic(critic_key, features, options.hidden)
  return init_state(mu, q, options)


def _update(
  options: AgentOptions, state: AgentState, batch: Transition, key: jax.Array
) -> AgentState:
  del key
  ahead = _ahead(state, batch, options.discount)
  state = update_critic(options, state, batch, ahead, _critic_loss)
  return update_actor(options, state, state.critic, batch.observation)


def _critic_loss(
  params: Params, batch: Transition, targets: jax.Array
) -> jax.Array:
  values = jax.vmap(critic, (None, 0, 0))(
    params, batch.observation, batch.action
  )
  return jnp.mean((values - targets) ** 2)


def _ahead(state: AgentState, batch: Transition, discount: float) -> jax.Array:
  """The discounted value of what follows: float32 [B]."""

  def value(observation: jax.Array) -> jax.Array:
    action = actor(state.target_actor, observation)
    return critic(state.target_critic, observation, action)

  values = jax.vmap(value)(batch.next_observation)
  return jnp.where(batch.done, 0.0, discount * values)


def _dense(params: Params, x: jax.Array) -> jax.Array:
  return x @ params['kernel'] + params['bias']
