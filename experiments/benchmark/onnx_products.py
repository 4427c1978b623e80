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
_FLOAT, _UINT8, _INT8 = 1, 2, 3


def make_product(
  form: str, weights: np.ndarray, x: np.ndarray
) -> Callable[[], np.ndarray]:
  """Returns a product that is ready to run.

  Args:
    form: of `FORMS`.
    weights: float32 [K, N]; K a multiple of 32 for 4 bits.
    x: float32 [B, K].

  Raises:
    ValueError: onnx or onnxruntime is not installed, or K does not fit.
  """
  try:
    onnx: Any = importlib.import_module('onnx')
    onnxruntime: Any = importlib.import_module('onnxruntime')
  except ImportError as error:
    raise ValueError(
      f'pip install onnx onnxruntime to compare with {form} ({error.name} is '
      'missing)'
    ) from None
  make = onnx.helper.make_tensor_value_info
  node, constants = _node(onnx, form, weights)
  graph = onnx.helper.make_graph(
    [node],
    'product',
    [make('x', _FLOAT, list(x.shape))],
    [make('y', _FLOAT, [len(x), weights.shape[1]])],
    [onnx.numpy_helper.from_array(a, name) for name, a in constants.items()],
  )
  model = onnx.helper.make_model(
    graph,
    ir_version=9,
    opset_imports=[
      onnx.helper.make_opsetid('', 18),
      onnx.helper.make_opsetid('com.microsoft', 1),
    ],
  )
  options = onnxruntime.SessionOptions()
  options.log_severity_level = 3
  session = onnxruntime.InferenceSession(
    model.SerializeToString(), options, providers=['CPUExecutionProvider']
  )
  return lambda: session.run(None, {'x': x})[0]


def nbytes(form: str, weights: np.ndarray) -> int:
  """Returns the bytes of a form's constants."""
  if form == 'onnxruntime int8':
    return weights.size + 5
  return weights.size // 2 + 4 * weights.size // _BLOCK


def _node(
  onnx: Any, form: str, weights: np.ndarray
) -> tuple[Any, dict[str, Any]]:
  if form == 'onnxruntime int8':
    scale = np.abs(weights).max() / 127
    constants: dict[str, Any] = {
      'b': np.rint(weights / scale).astype(np.int8),
      'scale': np.asarray(scale, np.float32),
      'zero': np.zeros((), np.int8),
    }
    node = onnx.helper.make_node(
      'DynamicQuantizeMatMul',
      ['x', *constants],
      ['y'],
      domain='com.microsoft',
    )
    return node, constants
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
  node = onnx.helper.make_node(
    'MatMulNBits', ['x', *constants], ['y'], domain='com.microsoft',
    K=inputs, N=outputs, bits=4, block_size=_BLOCK,
    accuracy_level=4 if form.endswith('int8') else 0,
  )  # fmt: skip
  return node, constants
