"""Who runs a product: settled when its program is lowered.

A program is traced on one machine and may be lowered for another, or be
exported: only then is it known which kernels there are. A product therefore is
one operation until then.
"""

import functools
import math
import os
import types
import warnings
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import Primitive
from jax.interpreters import mlir

from bandwidth.base import unknown_name
from bandwidth.inference import gpu, native, pallas, xla
from bandwidth.inference.matrices import Matrix

BACKENDS = ('auto', 'xla', 'pallas', 'native')
"""What may run a product; `auto` is `native` on a CPU with a C++ compiler,
`pallas` on a GPU for up to four rows of activations, and `xla` elsewhere and
for what these can't run. On a TPU it never is `pallas`: whether that kernel is
the faster one is not measured."""

VARIABLE = 'BANDWIDTH_BACKEND'
"""Of the environment: the backend that `auto` stands for."""

_MODULES: dict[str, types.ModuleType] = {
  'xla': xla, 'pallas': pallas, 'native': native,
}  # fmt: skip
# Platforms of XLA, and what their devices are called.
_DEVICES = {'cpu': 'cpu', 'cuda': 'gpu', 'rocm': 'gpu', 'tpu': 'tpu'}


def settled(backend: str, matrix: Matrix) -> str:
  """Returns the backend that is meant, as far as it is known before lowering.

  Args:
    backend: name of a backend, one of `BACKENDS`.
    matrix: a compressed matrix of any form.

  Raises:
    ValueError: the one that is asked for can't run the matrix here; the
      variable of the environment has another value.
  """
  asked = f'backend={backend!r}'
  if backend == 'auto' and (found := os.environ.get(VARIABLE)):
    if found not in BACKENDS:
      raise ValueError(unknown_name(VARIABLE, found, BACKENDS))
    backend, asked = found, f'{VARIABLE}={found!r}'
  device = jax.default_backend()
  if backend == 'auto':
    if device == 'cpu' and (problem := native_problem()):
      warn(problem)
      return 'xla'
  elif reason := _why_not(backend, matrix, device):
    raise ValueError(f'{asked}: {reason}')
  return backend


@functools.cache
def native_problem() -> str:
  """Returns why there are no native kernels; empty where there are.

  Raises:
    ValueError: see `native.library`.
  """
  try:
    native.library()
  except native.NativeError as error:
    return str(error)
  return ''


@functools.cache
def warn(problem: str) -> None:
  """Says once what costs time."""
  warnings.warn(f'{problem}; XLA multiplies, which is slower', stacklevel=4)


def _why_not(backend: str, matrix: Matrix, device: str) -> str:
  """Why a backend can't run a matrix on a device; empty where it can."""
  if backend == 'xla':
    return ''
  if backend == 'pallas':
    return pallas.why_not(matrix, device)
  if device != 'cpu':
    return f'its kernels are for CPUs, and this is a {device}'
  return native_problem() or native.why_not(matrix)


def _of_auto(matrix: Matrix, shape: tuple[int, ...], device: str) -> str:
  """What `auto` is on a device, for activations of a shape."""
  backend = {'cpu': 'native', 'gpu': 'pallas'}.get(device, 'xla')
  if backend == 'pallas' and (
    math.prod(shape[:-1]) > gpu.MOST_ROWS or not gpu.is_known()
  ):
    return 'xla'
  return 'xla' if _why_not(backend, matrix, device) else backend


def product(
  x: jax.Array, matrix: Matrix, *, backend: str, mode: str
) -> jax.Array:
  """Returns x W, float32 [..., N].

  Args:
    x: float32 [..., K], activations.
    matrix: a compressed matrix of any form; all parts vary over the same axes
      of a mesh as x.
    backend: name of the backend that `settled` returned.
    mode: mode of arithmetic, one of `rounding.MODES`.
  """
  parts, form = jax.tree.flatten(matrix)
  return _product.bind(x, *parts, form=form, backend=backend, mode=mode)


_product = Primitive('bandwidth_product')
_product.def_impl(
  jax.jit(_product.bind, static_argnames=('form', 'backend', 'mode'))
)


@_product.def_abstract_eval
def _result(x: Any, *parts: Any, form: Any, backend: str, mode: str) -> Any:
  del backend, mode
  outputs = jax.tree.unflatten(form, parts).shape[1]
  return x.update(shape=(*x.shape[:-1], outputs), dtype=jnp.dtype(jnp.float32))


def _lowering(device: str) -> Callable[..., Any]:
  """What a product becomes on a device; elsewhere, XLA runs it."""

  def lower(
    context: Any, *operands: Any, form: Any, backend: str, mode: str
  ) -> Any:
    # Over which axes of a mesh they vary, kernels need not know.
    plain = [jax.core.ShapedArray(a.shape, a.dtype) for a in context.avals_in]
    matrix = jax.tree.unflatten(form, plain[1:])
    chosen = backend
    if backend == 'auto':
      # Another machine may have no compiler, or none of these kernels.
      exported = context.module_context.lowering_parameters.for_export
      chosen = 'xla' if exported else _of_auto(matrix, plain[0].shape, device)
    elif reason := _why_not(backend, matrix, device):
      raise ValueError(f'backend={backend!r}: {reason}')

    def run(x: jax.Array, *parts: jax.Array) -> jax.Array:
      matrix = jax.tree.unflatten(form, parts)
      options = {'device': device} if chosen == 'pallas' else {}
      return _MODULES[chosen].product(x, matrix, mode, **options)

    rule = mlir.lower_fun(run, multiple_results=False)
    return rule(context.replace(avals_in=plain), *operands)

  return lower


mlir.register_lowering(_product, _lowering('device that is unknown'))
for _platform, _device in _DEVICES.items():
  mlir.register_lowering(_product, _lowering(_device), platform=_platform)
