"""Fewer bits a weight: shared, ternary, uniform and rate-aware.

Each way has a form for trained weights (`share_params`, `quantize_params`,
`fit_entropy_constrained`, `optimize_levels`; where inputs of a layer are known,
`quantize_with_feedback`, `share_with_feedback`) and one for training
(`share_gradients`, `ternary_params`, `uniform_params`, `learned_step_params`,
`rate_model`). All end in integers: codes with a `Codebook`, or `UniformLevels`.

Weights that share 16 values train on, each value by the sum of the gradients of
its weights:

>>> import jax
>>> import jax.numpy as jnp
>>> import optax
>>> from bandwidth import quantization
>>> rules = [('.*', 4)]  # bits by name
>>> params = {'kernel': jax.random.normal(jax.random.key(0), (16, 16))}
>>> params, codebooks = quantization.share_params(params, rules)
>>> codebooks['kernel'].codes.dtype, codebooks['kernel'].centroids.shape
(dtype('uint8'), (16,))
>>> tx = optax.chain(quantization.share_gradients(rules), optax.sgd(1e-3))
>>> state = tx.init(params)
>>> updates, state = tx.update(params, state, params)
>>> params = optax.apply_updates(params, updates)
>>> len(jnp.unique(params['kernel']))  # and zero, which none of them has
15
"""

from bandwidth.quantization.codebook import (
  Codebook,
  Sharing,
  fit_codebook,
  nearest_codes,
  refine_centroids,
)
from bandwidth.quantization.entropy_constrained import (
  EntropyCodebook,
  fit_entropy_constrained,
)
from bandwidth.quantization.feedback import (
  RoundingPlan,
  Sensitivity,
  make_rounding_plan,
  quantize_with_feedback,
)
from bandwidth.quantization.kmeans import (
  density_init,
  exact_kmeans,
  forgy_init,
  linear_init,
  lloyd,
)
from bandwidth.quantization.learned_step import (
  LearnedStepVariables,
  initial_step,
  learned_step_params,
  quantize_learned,
)
from bandwidth.quantization.parameterization import Parameterization
from bandwidth.quantization.priors import (
  Prior,
  empirical_prior,
  geometric_prior,
  laplace_prior,
  logistic_prior,
  mixture_prior,
  table_prior,
)
from bandwidth.quantization.rate import (
  RateGroup,
  RateModel,
  RateVariables,
  rate_bits,
  rate_model,
  round_through,
)
from bandwidth.quantization.rdoq import (
  RateDistortion,
  RateTable,
  adaptive_bits,
  adaptive_rates,
  optimize_levels,
  search_step,
  static_bits,
)
from bandwidth.quantization.shared_feedback import share_with_feedback
from bandwidth.quantization.ternary import (
  Scales,
  TernaryVariables,
  mean_scales,
  ternarize,
  ternary_params,
  unit_scales,
)
from bandwidth.quantization.transforms import (
  SharedParams,
  ShareGradientsState,
  cluster_mean,
  cluster_sum,
  codes_by_value,
  read_codebooks,
  share_gradients,
  share_params,
)
from bandwidth.quantization.uniform import (
  Calibration,
  Grid,
  UniformLevels,
  affine,
  export_levels,
  fake_quantize,
  least_squares,
  quantize_params,
  symmetric,
  uniform_params,
)

__all__ = [
  'Calibration',
  'Codebook',
  'EntropyCodebook',
  'Grid',
  'LearnedStepVariables',
  'Parameterization',
  'Prior',
  'RateDistortion',
  'RateGroup',
  'RateModel',
  'RateTable',
  'RateVariables',
  'RoundingPlan',
  'Scales',
  'Sensitivity',
  'ShareGradientsState',
  'SharedParams',
  'Sharing',
  'TernaryVariables',
  'UniformLevels',
  'adaptive_bits',
  'adaptive_rates',
  'affine',
  'cluster_mean',
  'cluster_sum',
  'codes_by_value',
  'density_init',
  'empirical_prior',
  'exact_kmeans',
  'export_levels',
  'fake_quantize',
  'fit_codebook',
  'fit_entropy_constrained',
  'forgy_init',
  'geometric_prior',
  'initial_step',
  'laplace_prior',
  'learned_step_params',
  'least_squares',
  'linear_init',
  'lloyd',
  'logistic_prior',
  'make_rounding_plan',
  'mean_scales',
  'mixture_prior',
  'nearest_codes',
  'optimize_levels',
  'quantize_learned',
  'quantize_params',
  'quantize_with_feedback',
  'rate_bits',
  'rate_model',
  'read_codebooks',
  'refine_centroids',
  'round_through',
  'search_step',
  'share_gradients',
  'share_params',
  'share_with_feedback',
  'static_bits',
  'symmetric',
  'table_prior',
  'ternarize',
  'ternary_params',
  'uniform_params',
  'unit_scales',
]
