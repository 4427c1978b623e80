"""The compressed file: from arrays to `model.bwz` and back.

`write` and `open_file` are all that most programs need; `container` documents
the format.
"""

from bandwidth.coding.container import encode, write
from bandwidth.coding.ledger import Ledger, TensorEntry
from bandwidth.coding.reader import (
  Reader,
  decode,
  load_tree,
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
)

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
  'decode',
  'encode',
  'load_tree',
  'open_file',
  'read',
  'read_arrays',
  'stream_of',
  'write',
]
