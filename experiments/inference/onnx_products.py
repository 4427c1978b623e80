"""What one has today on a CPU: products of onnxruntime, to be compared with.

`int8` rounds activations on the fly (DynamicQuantizeMatMul); `4-bit` are blocks
of 32 weights with a scale each (MatMulNBits), with activations in float32 or,
of accuracy level 4, rounded to 8 bits.
"""

import importlib
from collections.abc import Callable
from typing import Any

import numpy as np

FORMS = ('onnxruntime int8', 'onnxruntime 4-bit', 'onnxruntime 4-bit, int8')

_BLOCK = 32
_FLOAT = 1


def make_product(
  form: str, weights: np.ndarray
) -> Callable[[np.ndarray], np.ndarray]:
  """Returns a product with activations, float32 [B, K] -> [B, N].

  Args:
    form: of `FORMS`.
    weights: float32 [K, N]; K a multiple of 32 for 4 bits.

  Raises:
    ValueError: onnx or onnxruntime is not installed, or K does not fit.
  """
  onnx, onnxruntime = packages(form)
  make = onnx.helper.make_tensor_value_info
  kind, constants, attributes = parts(form, weights)
  node = onnx.helper.make_node(
    kind, ['x', *constants], ['y'], domain='com.microsoft', **attributes
  )
  inputs, outputs = weights.shape
  graph = onnx.helper.make_graph(
    [node],
    'product',
    [make('x', _FLOAT, ['batch', inputs])],
    [make('y', _FLOAT, ['batch', outputs])],
    [onnx.numpy_helper.from_array(a, name) for name, a in constants.items()],
  )
  made = session(onnx, onnxruntime, graph, opset=18)
  return lambda x: made.run(None, {'x': x})[0]


def packages(form: str) -> tuple[Any, Any]:
  """Returns onnx and onnxruntime.

  Raises:
    ValueError: one is not installed.
  """
  try:
    return (
      importlib.import_module('onnx'),
      importlib.import_module('onnxruntime'),
    )
  except ImportError as error:
    raise ValueError(
      f'pip install onnx onnxruntime to compare with {form} ({error.name} is '
      'missing)'
    ) from None


def session(onnx: Any, onnxruntime: Any, graph: Any, *, opset: int) -> Any:
  """Returns a session of a graph, on this CPU."""
  model = onnx.helper.make_model(
    graph,
    ir_version=9,
    opset_imports=[
      onnx.helper.make_opsetid('', opset),
      onnx.helper.make_opsetid('com.microsoft', 1),
    ],
  )
  options = onnxruntime.SessionOptions()
  options.log_severity_level = 3
  return onnxruntime.InferenceSession(
    model.SerializeToString(), options, providers=['CPUExecutionProvider']
  )


def nbytes(form: str, weights: np.ndarray) -> int:
  """Returns the bytes of a form's constants."""
  if form == 'onnxruntime int8':
    return weights.size + 5
  return weights.size // 2 + 4 * weights.size // _BLOCK


def parts(
  form: str, weights: np.ndarray
) -> tuple[str, dict[str, np.ndarray], dict[str, int]]:
  """Returns the operation of a form, its constants and its attributes.

  Args:
    form: of `FORMS`.
    weights: float32 [K, N]; K a multiple of 32 for 4 bits.

  Raises:
    ValueError: K does not fit.
  """
  if form == 'onnxruntime int8':
    scale = np.abs(weights).max() / 127
    constants: dict[str, Any] = {
      'b': np.rint(weights / scale).astype(np.int8),
      'scale': np.asarray(scale, np.float32),
      'zero': np.zeros((), np.int8),
    }
    return 'DynamicQuantizeMatMul', constants, {}
  inputs, outputs = weights.shape
  if inputs % _BLOCK:
    raise ValueError(f'weights have {inputs} inputs, not blocks of {_BLOCK}')
  blocks = weights.T.reshape(outputs, -1, _BLOCK)
  scale = np.abs(blocks).max(-1, keepdims=True) / 7
  codes = (np.rint(blocks / scale) + 8).astype(np.uint8)
  constants = {
    'b': codes[..., ::2] | codes[..., 1::2] << 4,
    'scale': scale.reshape(-1).astype(np.float32),
  }
  attributes = {
    'K': inputs, 'N': outputs, 'bits': 4, 'block_size': _BLOCK,
    'accuracy_level': 4 if form.endswith('int8') else 0,
  }  # fmt: skip
  return 'MatMulNBits', constants, attributes
