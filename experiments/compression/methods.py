"""What a stage does to the parameters of the network, by name.

A method changes a run in four places and nowhere else: what the parameters are
when the stage begins, what is trained in their stead, what the loss counts
besides, and what surrounds the optimizer. Loop and step know none of them.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, cast

import jax
import numpy as np
import optax

from bandwidth import coding, pruning, quantization, tree
from bandwidth.base import Params, check_known, make_named

Tensors = dict[str, Any]
"""Tensors of `bandwidth.coding`, by name; what is left out is kept as it is."""

KERNELS = (('.*/kernel', True), ('.*', False))
"""What is pruned where a config does not say: kernels, no biases or norms."""


class Method(NamedTuple):
  """What a stage does to the parameters."""

  name: str = 'none'  # as in the config
  # `params -> params` on the host, before the stage.
  enter: Callable[[Params], Params] = lambda params: params
  # `params -> variables`, what is trained.
  init: Callable[[Params], Any] = lambda params: params
  # `variables -> params`, differentiable.
  decode: Callable[[Any], Params] = lambda variables: variables
  # `(variables, params) -> Tensors`, on the host.
  export: Callable[[Any, Params], Tensors] = lambda variables, params: {}
  # `variables -> float32 []`, added to the loss; None: nothing.
  penalty: Callable[[Any], jax.Array] | None = None
  # Parts of the optimizer before it, by name.
  before: tuple[tuple[str, optax.GradientTransformation], ...] = ()
  # Likewise after it.
  after: tuple[tuple[str, optax.GradientTransformation], ...] = ()
  keeps_slots: bool = True  # whether the momentum of the stage before may go on


def wrap_loss_with_method(
  loss: Callable[..., Any], method: Method
) -> Callable[..., Any]:
  """Lets a loss of parameters take a method's variables, penalty added.

  Args:
    loss: `(params, model_state, batch, key) -> (loss, (model_state, metrics))`.
    method: what the stage does to the parameters.

  Returns:
    The same of variables; `penalty` is among the metrics where there is one.
  """

  def of_variables(
    variables: Any, model_state: Any, batch: Any, key: jax.Array
  ) -> tuple[jax.Array, Any]:
    value, (model_state, metrics) = loss(
      method.decode(variables), model_state, batch, key
    )
    if method.penalty is None:
      return value, (model_state, metrics)
    penalty = method.penalty(variables)
    return value + penalty, (model_state, {**metrics, 'penalty': penalty})

  return of_variables


def _prune(
  steps: int,
  *,
  sparsity: float,
  schedule: str = 'cubic',
  until: float = 0.7,
  frequency: int = 100,
  score: str = 'magnitude',
  distribution: str = 'global',
  rules: Any = KERNELS,
  seed: int = 0,
) -> Method:
  """Prunes while it trains; the masks stand after `until` of the stage."""
  scores = {
    'magnitude': pruning.magnitude,
    'gradient': pruning.gradient,
    'random': pruning.random,
  }
  distributions = {
    'uniform': pruning.uniform,
    'erdos_renyi_kernel': pruning.erdos_renyi_kernel,
    'global': pruning.global_threshold,
  }
  schedules = ('one_shot', 'cubic', 'iterative')
  for field, value, known in (
    ('score', score, scores),
    ('distribution', distribution, distributions),
    ('schedule', schedule, schedules),
  ):
    check_known(f'method.{field}', value, known)
  if not 0 < until <= 1:
    raise ValueError(f'method.until={until} is not in (0, 1]')
  if frequency < 1:
    raise ValueError(f'method.frequency={frequency} is not positive')
  end = max(round(until * steps), 1)
  targets = {
    'one_shot': lambda: sparsity,
    'cubic': lambda: pruning.every(pruning.cubic(sparsity, end=end), frequency),
    'iterative': lambda: pruning.iterative(
      sparsity, steps=max(end // frequency, 1), frequency=frequency
    ),
  }
  projection = pruning.prune(
    targets[schedule](),
    score=scores[score],
    distribution=distributions[distribution],
    rules=_pairs(rules),
    key=jax.random.key(seed),
  )
  return Method(name='prune', after=(('prune', projection),))


def _keep(steps: int, *, rules: Any = KERNELS) -> Method:
  """Trains what an earlier stage left of the network: zeros stay zeros."""
  del steps
  kept = pruning.keep_masks(lambda params: _surviving(params, rules))
  return Method(name='keep', after=(('keep', kept),))


def _surviving(params: Params, rules: Any) -> Any:
  chosen = pruning.prunable(params, _pairs(rules))
  return tree.map_named(
    lambda name, leaf: leaf != 0 if name in chosen else np.array(True), params
  )


def _share(
  steps: int,
  *,
  rules: Any = (('.*/kernel', 5), ('.*', None)),
  init: str = 'linear',
  reduction: str = 'mean',
) -> Method:
  """Shares weights and trains the centroids; zeros stay zeros."""
  del steps
  inits = {
    'linear': quantization.lloyd(init=quantization.linear_init),
    'density': quantization.lloyd(init=quantization.density_init),
    'exact': quantization.exact_kmeans(),
  }
  reductions = {
    'sum': quantization.cluster_sum,
    'mean': quantization.cluster_mean,
  }
  check_known('method.init', init, inits)
  check_known('method.reduction', reduction, reductions)
  pairs = _pairs(rules)
  share = quantization.share_gradients(pairs, reduction=reductions[reduction])

  def enter(params: Params) -> Params:
    shared = quantization.share_params(params, pairs, solver=inits[init])
    return jax.device_get(shared.params)

  def export(variables: Any, params: Params) -> Tensors:
    del variables
    state = cast(quantization.ShareGradientsState, share.init(params))
    books = quantization.read_codebooks(params, state, pairs)
    return {name: coding.as_tensor(book) for name, book in books.items()}

  return Method(
    name='share',
    enter=enter,
    export=export,
    before=(('share', share),),
    keeps_slots=False,
  )


def _rate(
  steps: int,
  *,
  weight: float,
  rules: Any = (('.*/bias', 'bias'), ('.*', None)),
  step: float = 3.0,
  prior: str = 'geometric',
) -> Method:
  """Counts the bits of the file in the loss (Oktay et al., 2020).

  `rules` gives the name of a parameter's group, or None for a group alone;
  False stores the parameter as it is.
  """
  del steps
  priors = {
    'geometric': quantization.geometric_prior,
    'empirical': quantization.empirical_prior,
    'logistic': quantization.logistic_prior,
    'mixture': quantization.mixture_prior,
  }
  check_known('method.prior', prior, priors)
  if not weight >= 0:
    raise ValueError(f'method.weight={weight} is negative')
  chosen = priors[prior]()
  model = quantization.rate_model(
    [
      (
        pattern,
        None
        if name is False
        else quantization.RateGroup(name=name, step=step, prior=chosen),
      )
      for pattern, name in _pairs(rules)
    ]
  )

  def penalty(variables: Any) -> jax.Array:
    size = tree.size(variables.latents)
    return weight * model.bits(variables) / size

  return Method(
    name='rate',
    init=model.init,
    decode=model.decode,
    export=_exporter(model.export),
    penalty=penalty,
  )


def _ternary(steps: int, *, rules: Any, threshold: float = 0.05) -> Method:
  """Trained ternary quantization (Zhu et al., 2017).

  `rules` says of each parameter whether it is ternary.
  """
  del steps
  pairs = [(p, threshold if chosen else None) for p, chosen in _pairs(rules)]
  model = quantization.ternary_params(pairs)
  return _of_parameterization('ternary', model)


def _learned_step(
  steps: int, *, rules: Any = (('.*/kernel', 4), ('.*', None))
) -> Method:
  """Learned step size quantization of weights (Esser et al., 2020)."""
  del steps
  model = quantization.learned_step_params(_pairs(rules))
  return _of_parameterization('learned_step', model)


def _of_parameterization(
  name: str, model: quantization.Parameterization
) -> Method:
  return Method(
    name=name,
    init=model.init,
    decode=model.decode,
    export=_exporter(model.export),
  )


def _exporter(
  export: Callable[[Any], dict[str, Any]],
) -> Callable[[Any, Params], Tensors]:
  def tensors(variables: Any, params: Params) -> Tensors:
    del params
    return {name: coding.as_tensor(v) for name, v in export(variables).items()}

  return tensors


def _pairs(rules: Any) -> list[tuple[str, Any]]:
  try:
    return [(str(pattern), value) for pattern, value in rules]
  except (TypeError, ValueError):
    raise ValueError(
      f'method.rules={rules!r} are not pairs (expression, value)'
    ) from None


METHODS: dict[str, Callable[..., Method]] = {
  'none': lambda steps: Method(),
  'prune': _prune,
  'keep': _keep,
  'share': _share,
  'rate': _rate,
  'ternary': _ternary,
  'learned_step': _learned_step,
}


def make_method(config: Mapping[str, Any], *, steps: int) -> Method:
  """Builds the method of a stage.

  Args:
    config: `name`, and arguments of the method.
    steps: number of steps of the stage.

  Raises:
    ValueError: the name or an argument is unknown, missing, or out of range.
  """
  arguments = dict(config)
  name = arguments.pop('name', None)
  return make_named('method', name, METHODS, arguments, steps=steps)
