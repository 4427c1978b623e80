"""The compressed file: from arrays to `model.bwz` and back.

`save_tree` and `load_tree` are all that most programs need; `write` and
`open_file` do the same for arrays by name; `container` documents the format.
"""

from bandwidth.coding.container import encode, write
from bandwidth.coding.ledger import Ledger, TensorEntry
from bandwidth.coding.reader import (
  Reader,
  decode,
  open_file,
  read,
  read_arrays,
)
from bandwidth.coding.records import CodeStream, stream_of
from bandwidth.coding.symbols import CODERS
from bandwidth.coding.tensors import (
  CodebookTensor,
  RawTensor,
  Tensor,
  UniformTensor,
  as_tensor,
)
from bandwidth.coding.trees import load_tree, save_tree

__all__ = [
  'CODERS',
  'CodeStream',
  'CodebookTensor',
  'Ledger',
  'RawTensor',
  'Reader',
  'Tensor',
  'TensorEntry',
  'UniformTensor',
  'as_tensor',
  'decode',
  'encode',
  'load_tree',
  'open_file',
  'read',
  'read_arrays',
  'save_tree',
  'stream_of',
  'write',
]
