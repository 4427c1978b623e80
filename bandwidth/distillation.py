"""Trains shared values, codes fixed, so that outputs stay what they were.

No labels: what the original network puts out is the target (Hinton et al.,
arXiv 1503.02531), on inputs like those that it will see. Each shared value
moves by the sum of the gradients of its weights (Han et al., arXiv 1510.00149,
equation 3); biases and norms are trained beside them.
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from bandwidth import coding, quantization, tree

_Rule = tuple[str, quantization.Sharing | int | None]

_WARM = 0.1


class TuningResult(NamedTuple):
  """A network after tuning."""

  # By name, all of it: codebooks, and arrays as `RawTensor`.
  tensors: dict[str, coding.Tensor]
  losses: np.ndarray  # of each step, before it


def tune_shared(
  apply: Callable[..., jax.Array],
  params: Any,
  tensors: Mapping[str, coding.Tensor],
  batches: Sequence[tuple[Any, ...]],
  *,
  learning_rate: float = 1e-4,
  largest: int | None = None,
) -> TuningResult:
  """Tunes a network to its original, a step for each batch.

  The loss is half the squared distance of outputs, in the mean over the batch:
  of outputs of unit length 1 - cos. The rate of Adam rises over the first tenth
  of the steps and falls to zero like a cosine.

  Args:
    apply: (params, *inputs) -> outputs [batch, ...].
    params: of the original, nested dictionaries.
    tensors: compressed ones, by name in `params`. Trained are kernels [inputs,
      outputs] with a codebook of each output, and arrays of one axis, which
      need not be among them; all others stay.
    batches: inputs of `apply`, a tuple for each step.
    learning_rate: the highest of the schedule.
    largest: codebooks that are tuned are integers up to this times a scale of
      each, and remain so, see `share_with_feedback`; None: they are any.

  Raises:
    ValueError: a tensor is none of the network's; there are no batches, or the
      rate is not positive.

  >>> from bandwidth import quantization
  >>> kernel = jax.random.normal(jax.random.key(0), (64, 8))
  >>> sharing = quantization.Sharing(entries=4, axis=1)
  >>> book = quantization.fit_codebook(kernel, sharing)
  >>> batches = list(jax.random.normal(jax.random.key(1), (60, 1, 32, 64)))
  >>> found = tune_shared(
  ...   lambda params, x: x @ params['kernel'],
  ...   {'kernel': kernel},
  ...   {'kernel': coding.as_tensor(book)},
  ...   batches,
  ...   learning_rate=0.01,
  ... )
  >>> bool(found.losses[-10:].mean() < 0.95 * found.losses[:3].mean())
  True
  """
  start = dict(tree.named_leaves(params))
  _check(start, tensors, batches, learning_rate)
  start |= {name: jnp.asarray(t.to_array()) for name, t in tensors.items()}
  shared = [name for name, tensor in tensors.items() if _by_output(tensor)]
  trained = {n: a for n, a in start.items() if n in shared or a.ndim == 1}
  kept = {n: a for n, a in start.items() if n not in trained}
  rules: list[_Rule] = [
    (re.escape(name), _sharing(tensors[name])) for name in shared
  ]
  if len(trained) > len(shared):
    rules.append(('.*', None))
  # Given to the step with each call: XLA would fold constants for minutes.
  fixed = {
    'original': params,
    'kept': kept,
    'start': {name: start[name] for name in (shared if largest else ())},
  }

  def placed(given: Any, fixed: Any) -> dict[str, jax.Array]:
    found = {
      name: _on_grid(given[name], array, largest or 1)
      for name, array in fixed['start'].items()
    }
    return {**fixed['kept'], **given, **found}

  tuned, losses, state = _train(
    lambda given, fixed, *inputs: apply(
      tree.nested(placed(given, fixed).items()), *inputs
    ),
    lambda fixed, *inputs: apply(fixed['original'], *inputs),
    trained,
    fixed,
    rules,
    batches,
    learning_rate,
  )
  tuned = {n: a for n, a in placed(tuned, fixed).items() if n in trained}
  codebooks = quantization.read_codebooks(tuned, state, rules)
  made = {name: _tensor(array, codebooks.get(name))
          for name, array in tuned.items()}  # fmt: skip
  for name, array in kept.items():
    made[name] = tensors[name] if name in tensors else _tensor(array, None)
  return TuningResult({name: made[name] for name in start}, losses)


def _check(
  start: Mapping[str, Any],
  tensors: Mapping[str, Any],
  batches: Sequence[Any],
  learning_rate: float,
) -> None:
  if not batches:
    raise ValueError('batches are empty')
  if not learning_rate > 0:
    raise ValueError(f'learning_rate={learning_rate} is not positive')
  if strange := tensors.keys() - start.keys():
    raise ValueError(f'tensors: {min(strange)} is no parameter of the network')


def _tensor(
  array: jax.Array, book: quantization.Codebook | None
) -> coding.Tensor:
  if book is None:
    return coding.RawTensor(np.asarray(array))
  return coding.as_tensor(book)


def _by_output(tensor: coding.Tensor) -> bool:
  """Whether a tensor has a codebook for each index of its second axis."""
  return (
    isinstance(tensor, coding.CodebookTensor)
    and len(tensor.shape) == 2
    and (1,) * (2 - len(tensor.grid)) + tensor.grid == (1, tensor.shape[1])
  )


def _on_grid(weights: jax.Array, start: jax.Array, largest: int) -> jax.Array:
  """Rounds to steps of each column, and lets gradients through.

  The largest value, by which the step would be found again, stays.
  """
  most = jnp.abs(start).max(axis=0, keepdims=True)
  step = jnp.where(most > 0, most / largest, 1.0)
  rounded = jnp.clip(jnp.round(weights / step) * step, -most, most)
  rounded = jnp.where(jnp.abs(start) == most, start, rounded)
  return weights + jax.lax.stop_gradient(rounded - weights)


def _sharing(tensor: Any) -> quantization.Sharing:
  return quantization.Sharing(
    entries=tensor.codebook.shape[-1], axis=1, reserve_zero=False
  )


def _train(
  student: Callable[..., jax.Array],
  teacher: Callable[..., jax.Array],
  params: dict[str, jax.Array],
  fixed: Any,
  rules: Sequence[_Rule],
  batches: Iterable[tuple[Any, ...]],
  learning_rate: float,
) -> tuple[dict[str, jax.Array], np.ndarray, Any]:
  """Returns parameters, losses, and the state that has the codes."""
  batches = list(batches)
  schedule = optax.warmup_cosine_decay_schedule(
    0.0, learning_rate, max(round(_WARM * len(batches)), 1), len(batches)
  )
  share = quantization.share_gradients(rules)
  optimizer = optax.chain(share, optax.adam(schedule))

  def loss(
    params: Any, fixed: Any, inputs: Any, target: jax.Array
  ) -> jax.Array:
    distance = jnp.square(student(params, fixed, *inputs) - target)
    return distance.reshape(len(target), -1).sum(axis=1).mean() / 2

  @jax.jit
  def step(
    params: Any, state: Any, fixed: Any, inputs: Any
  ) -> tuple[Any, Any, jax.Array]:
    before, gradients = jax.value_and_grad(loss)(
      params, fixed, inputs, teacher(fixed, *inputs)
    )
    updates, state = optimizer.update(gradients, state, params)
    return optax.apply_updates(params, updates), state, before

  state: Any = optimizer.init(params)
  losses = []
  for inputs in batches:
    params, state, before = step(params, state, fixed, inputs)
    # Awaited: a queue of steps would hold all of their batches.
    losses.append(float(before))
  return params, np.asarray(losses, np.float32), state[0]
