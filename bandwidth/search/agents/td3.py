"""Twin delayed DDPG, for the same environments and memory."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from bandwidth.base import Params
from bandwidth.search.agents.ddpg import (
  Agent,
  AgentOptions,
  actor,
  actor_loss,
  adam_step,
  critic,
  init_actor,
  init_critic,
  moved_baseline,
  soft_update,
)
from bandwidth.search.agents.replay import Transition


class TD3State(NamedTuple):
  """What a TD3 agent has learned.

  Attributes:
    actor: parameters of μ, see `init_actor`.
    critics: parameters of both critics, stacked: leaves [2, …].
    target_actor: moving average of `actor`, the same tree.
    target_critics: moving average of `critics`, the same tree.
    actor_optimizer: Adam's state for `actor`.
    critic_optimizer: Adam's state for `critics`.
    baseline: b, moving average of the rewards, float32 [].
    updates: number of updates of the critics so far, int32 [].
  """

  actor: Params
  critics: Params
  target_actor: Params
  target_critics: Params
  actor_optimizer: optax.OptState
  critic_optimizer: optax.OptState
  baseline: jax.Array
  updates: jax.Array


def smoothed(
  key: jax.Array, actions: jax.Array, *, sigma: float, clip: float
) -> jax.Array:
  """Adds clipped normal noise to actions and clips them to [0, 1].

  Args:
    key: typed PRNG key, of `jax.random.key`.
    actions: target actions, in [0, 1], float32 [B].
    sigma: standard deviation of the noise.
    clip: largest magnitude of the noise.

  Returns:
    float32 [B].
  """
  noise = sigma * jax.random.normal(key, actions.shape)
  return jnp.clip(actions + jnp.clip(noise, -clip, clip), 0.0, 1.0)


def make_td3(features: int, options: AgentOptions | None = None) -> Agent:
  r"""Builds a TD3 agent with the networks and the baseline of `make_ddpg`.

  .. math::
    y = r - b + (1 - d) \gamma \min_{i=1,2}
      Q_i'(s', \mathrm{clip}(\mu'(s') + \epsilon, 0, 1)), \quad
    \epsilon \sim \mathrm{clip}(\mathcal{N}(0, \sigma), -c, c)

  is the target of both critics. The actor ascends the first critic, and the
  slow copies follow, in every `delay`-th update only.

  Args:
    features: F, numbers of an observation.
    options: hyperparameters; None: the defaults of `AgentOptions`.

  References:
    Fujimoto et al., Addressing Function Approximation Error in Actor-Critic
    Methods, 2018, algorithm 1, https://arxiv.org/abs/1802.09477
  """
  options = options or AgentOptions()
  return Agent(
    init=functools.partial(_init, features, options),
    act=lambda state, observation: actor(state.actor, observation),
    update=functools.partial(_update, options),
  )


def _init(features: int, options: AgentOptions, key: jax.Array) -> TD3State:
  actor_key, *critic_keys = jax.random.split(key, 3)
  mu = init_actor(actor_key, features, options.hidden)
  pair = jax.tree.map(
    lambda *critics: jnp.stack(critics),
    *[init_critic(key, features, options.hidden) for key in critic_keys],
  )
  return TD3State(
    actor=mu,
    critics=pair,
    target_actor=mu,
    target_critics=pair,
    actor_optimizer=optax.adam(options.actor_rate).init(mu),
    critic_optimizer=optax.adam(options.critic_rate).init(pair),
    baseline=jnp.zeros((), jnp.float32),
    updates=jnp.zeros((), jnp.int32),
  )


def _update(
  options: AgentOptions, state: TD3State, batch: Transition, key: jax.Array
) -> TD3State:
  baseline = moved_baseline(
    state.baseline, state.updates, batch.reward, options.baseline_rate
  )
  targets = batch.reward - baseline + _ahead(options, state, batch, key)
  grads = jax.grad(_critics_loss)(state.critics, batch, targets)
  critics, critic_optimizer = adam_step(
    options.critic_rate, grads, state.critic_optimizer, state.critics
  )
  state = state._replace(
    critics=critics,
    critic_optimizer=critic_optimizer,
    baseline=baseline,
    updates=state.updates + 1,
  )
  return jax.lax.cond(
    state.updates % options.delay == 0,
    functools.partial(_update_actor, options),
    lambda state, _: state,
    state,
    batch.observation,
  )


def _ahead(
  options: AgentOptions, state: TD3State, batch: Transition, key: jax.Array
) -> jax.Array:
  """The discounted value of what follows: float32 [B]."""
  seen = batch.next_observation
  actions = smoothed(
    key,
    jax.vmap(actor, (None, 0))(state.target_actor, seen),
    sigma=options.smoothing,
    clip=options.smoothing_clip,
  )
  values = jnp.min(_values(state.target_critics, seen, actions), axis=0)
  return jnp.where(batch.done, 0.0, options.discount * values)


def _update_actor(
  options: AgentOptions, state: TD3State, observations: jax.Array
) -> TD3State:
  first = jax.tree.map(lambda x: x[0], state.critics)
  grads = jax.grad(actor_loss)(state.actor, first, observations)
  mu, actor_optimizer = adam_step(
    options.actor_rate, grads, state.actor_optimizer, state.actor
  )
  return state._replace(
    actor=mu,
    actor_optimizer=actor_optimizer,
    target_actor=soft_update(state.target_actor, mu, options.tau),
    target_critics=soft_update(
      state.target_critics, state.critics, options.tau
    ),
  )


def _values(
  critics: Params, observations: jax.Array, actions: jax.Array
) -> jax.Array:
  """Both critics of a batch: float32 [2, B]."""
  batched = jax.vmap(critic, (None, 0, 0))
  return jax.vmap(batched, (0, None, None))(critics, observations, actions)


def _critics_loss(
  critics: Params, batch: Transition, targets: jax.Array
) -> jax.Array:
  values = _values(critics, batch.observation, batch.action)
  # A sum, so that each critic has the gradient of its own mean.
  return jnp.sum(jnp.mean((values - targets[None]) ** 2, axis=1))
