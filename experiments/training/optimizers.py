"""Optimizers and learning-rate schedules by name."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import optax

from bandwidth.base import check_known

SCHEDULES = ('constant', 'cosine', 'steps')
OPTIMIZERS = ('sgd', 'adam', 'adamw')


def make_schedule(
  config: Mapping[str, Any], *, span: tuple[int, int]
) -> Callable[[Any], Any]:
  """Builds a learning-rate schedule over a range of steps.

  Args:
    config: `learning_rate`; `schedule`, one of 'constant', 'cosine' (to zero)
      and 'steps' (times `decay` at each of the fractions `boundaries`);
      `warmup`, the fraction of steps with a linear ramp from zero.
    span: steps done before the schedule begins, and after it ends.

  Raises:
    ValueError: the schedule is unknown or a number is out of range.
  """
  rate = float(config['learning_rate'])
  kind = config.get('schedule', 'constant')
  warmup = float(config.get('warmup', 0.0))
  check_known('optimizer.schedule', kind, SCHEDULES)
  if rate < 0:
    raise ValueError(f'optimizer.learning_rate={rate} is negative')
  if not 0 <= warmup < 1:
    raise ValueError(f'optimizer.warmup={warmup} is not in [0, 1)')
  first, last = span
  steps = last - first
  ramp = round(warmup * steps)
  if kind == 'cosine':
    after = optax.cosine_decay_schedule(rate, max(steps - ramp, 1))
  elif kind == 'steps':
    boundaries = config.get('boundaries', (0.5, 0.75))
    decay = float(config.get('decay', 0.1))
    after = optax.piecewise_constant_schedule(
      rate, {round(f * steps) - ramp: decay for f in boundaries}
    )
  else:
    after = optax.constant_schedule(rate)
  if ramp:
    ramp_up = optax.linear_schedule(0, rate, ramp)
    after = optax.join_schedules([ramp_up, after], [ramp])
  return lambda count: after(count - first)


def make_optimizer(
  config: Mapping[str, Any], *, span: tuple[int, int]
) -> optax.GradientTransformation:
  """Builds an optimizer.

  Weight decay is applied to arrays of two or more axes only: biases and
  normalization are left alone. With 'sgd' and 'adam' it is added to the
  gradient (L2 regularization), with 'adamw' to the update.

  Args:
    config: `name`, what `make_schedule` takes, `momentum`, `nesterov` (sgd),
      `b1`, `b2` (adam, adamw), `weight_decay`, `clip_norm` (0: off).
    span: of the learning-rate schedule, as `make_schedule` takes it.

  Raises:
    ValueError: the name is unknown or a number is out of range.
  """
  name = config['name']
  check_known('optimizer.name', name, OPTIMIZERS)
  rate = make_schedule(config, span=span)
  decay = float(config.get('weight_decay', 0.0))
  betas = {'b1': config.get('b1', 0.9), 'b2': config.get('b2', 0.999)}
  parts = []
  if config.get('clip_norm', 0.0):
    parts.append(optax.clip_by_global_norm(config['clip_norm']))
  if decay and name != 'adamw':
    parts.append(optax.add_decayed_weights(decay, mask=_is_matrix))
  if name == 'sgd':
    momentum = config.get('momentum', 0.0)
    parts.append(
      optax.sgd(
        rate,
        momentum=momentum or None,
        nesterov=bool(momentum) and config.get('nesterov', False),
      )
    )
  elif name == 'adam':
    parts.append(optax.adam(rate, **betas))
  else:
    parts.append(
      optax.adamw(rate, weight_decay=decay, mask=_is_matrix, **betas)
    )
  return optax.chain(*parts)


def _is_matrix(params: Any) -> Any:
  return jax.tree.map(lambda leaf: leaf.ndim >= 2, params)
