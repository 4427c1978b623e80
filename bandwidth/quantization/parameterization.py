"""What a quantized network is trained through: variables instead of weights."""

from collections.abc import Callable
from typing import Any, NamedTuple

from bandwidth.base import Params


class Parameterization(NamedTuple):
  """Pure functions between what is trained and what the network computes with.

  A training loop becomes quantization-aware by two changes: it optimizes
  `variables = init(params)` instead of `params`, and its loss calls the network
  with `decode(variables)`. Everything else, the optimizer included, stays.

  Attributes:
    init: `params -> variables`. Traceable, so that abstract shapes do.
    decode: `variables -> params`, in the structure, shapes and dtypes of the
      parameters; differentiable.
    export: `variables -> {name: tensor}`, on the host: the quantized tensors as
      integers with their codebook or step. What it leaves out is not quantized.
  """

  init: Callable[[Params], Any]
  decode: Callable[[Any], Params]
  export: Callable[[Any], dict[str, Any]]
