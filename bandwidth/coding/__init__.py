"""The compressed file: from arrays to `model.bwz` and back.

A file holds every array of a network by name: as it is, as codes and a codebook
(`CodebookTensor`), or as integers and a step (`UniformTensor`), each in the
coding that is smallest. `save_tree` and `load_tree` are all that most programs
need, of any tree and of what `quantization` makes of it; `write` and
`open_file` do the same for arrays by name. A `Ledger` says where the bytes
went; `container` documents the format.

>>> import pathlib, tempfile
>>> import numpy as np
>>> from bandwidth import coding
>>> codes = np.zeros((64, 64), np.uint8)
>>> codes[::8, ::8] = 1  # 64 weights of 4,096 are not zero
>>> tensors = {
...   'layer/kernel': coding.CodebookTensor(codes, [0.0, 0.5]),
...   'layer/bias': np.zeros(64, np.float32),
... }
>>> with tempfile.TemporaryDirectory() as folder:
...   path = pathlib.Path(folder) / 'model.bwz'
...   ledger = coding.write(path, tensors)
...   with coding.open_file(path) as reader:
...     kernel = reader.array('layer/kernel')
...   params = coding.load_tree(path)
>>> kernel.shape, float(kernel.sum()), ledger.total < 200
((64, 64), 32.0, True)
>>> np.array_equal(params['layer']['kernel'], kernel)
True
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
