"""Compresses a pretrained network that is known here, for running from codes.

    python -m experiments.compress --network minilm --output minilm.bwz
    python -m experiments.compress --network efficientnet_lite0 --output e.bwz

Names in the file are those of the Flax network, so that `load_compressed` gives
what `CompressedNetwork` runs. MiniLM gets 4 bits for every weight, calibrated
on sentences of the Brown corpus' training split and then tuned on others of it
to the original's embeddings (minutes); EfficientNet-Lite0 gets 8 bits, with no
data. Weights come from the Python packages that `experiments.benchmark
pretrained` names.
"""

import argparse
import dataclasses
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from bandwidth import coding, quantization, tree
from bandwidth.base import check_known
from bandwidth.distillation import tune_shared
from bandwidth.quantization import Sensitivity
from bandwidth.rate_allocation import is_large
from experiments.compression.packages import BROWN, check_tokenizers, packaged
from experiments.compression.pretrained import report, writing
from experiments.compression.weights import read_weights
from experiments.models import minilm
from experiments.models.efficientnet_lite import efficientnet_variables
from experiments.runtime import command
from experiments.runtime.startup import keep_memory

NETWORKS = ('minilm', 'efficientnet_lite0')

_ENTRIES = 16
# Word pieces that share a codebook; a codebook is a third of the codes of one.
_TOGETHER = 6
_ROUNDS, _WORD_ROUNDS = 8, 4
_SENTENCES = 32
_LEARNING_RATE = 1.5e-4
# Of centroids, where products are of integers of 8 bits.
_LARGEST = 127


def share_minilm(
  names: Iterable[str],
  arrays: Mapping[str, np.ndarray],
  sensitivities: Mapping[str, Sensitivity],
) -> dict[str, coding.Tensor]:
  """Shares the weights of MiniLM, 16 values for each output.

  Args:
    names: of the Flax network's parameters.
    arrays: of the published file.
    sensitivities: of its matrices, see `benchmark.sentences.calibrate`.

  Returns:
    By name of the Flax network: kernels [inputs, outputs] with a codebook of
    each output, and embeddings of words with one for six of them.
  """
  shared = {}
  for name in names:
    source, transposed = minilm.source_of(name)
    if source not in sensitivities:
      continue
    words = not transposed
    found = quantization.share_with_feedback(
      arrays[source],
      sensitivities[source],
      entries=_ENTRIES,
      together=_together(len(arrays[source])) if words else 1,
      # Those of words are looked up and not multiplied.
      rounds=_WORD_ROUNDS if words else _ROUNDS,
      largest=None if words else _LARGEST,
    )
    if transposed:
      found = dataclasses.replace(found, codes=found.codes.T, axis=1)
    shared[name] = coding.as_tensor(found)
  return shared


def _together(rows: int) -> int:
  return next(n for n in range(_TOGETHER, 0, -1) if not rows % n)


def compress_minilm(
  arrays: Mapping[str, np.ndarray],
  *,
  tokenizer: pathlib.Path,
  brown: pathlib.Path,
  calibration: int = 384,
  steps: int = 240,
) -> dict[str, coding.Tensor]:
  """Compresses MiniLM to codes of 4 bits.

  Args:
    arrays: of the published file.
    tokenizer: file of the same.
    brown: folder of the corpus, whose `train.txt` alone is read.
    calibration: sentences that are differentiated.
    steps: of tuning, 32 sentences each; 0: none.

  Returns:
    Tensors of the Flax network by name, without `params/`.

  Raises:
    ValueError: a file is not there, or the corpus has too few sentences.
  """
  check_tokenizers('network=minilm')
  from experiments.compression import sentences

  pieces = sentences.make_tokenizer(tokenizer)
  corpus = sentences.read_sentences(brown, 'train', None)
  if steps * _SENTENCES > len(corpus):
    raise ValueError(f'steps={steps}: there are {len(corpus)} sentences')
  costs = sentences.calibrate(arrays, pieces, corpus, calibration)
  params = minilm.minilm_variables(arrays)['params']
  shared = share_minilm(tree.names(params), arrays, costs)
  if not steps:
    return {
      name: shared.get(name, coding.RawTensor(np.asarray(array)))
      for name, array in tree.named_leaves(params)
    }
  rng = np.random.default_rng(2)
  picked = rng.permutation(len(corpus))[: steps * _SENTENCES]
  batches = sentences.make_batches(
    pieces, [corpus[i] for i in picked], _SENTENCES
  )
  # By length they were; training wants them mixed.
  order = rng.permutation(len(batches))

  def apply(given: Any, *inputs: Any) -> Any:
    return minilm.MiniLM().apply({'params': given}, *inputs)

  return tune_shared(
    apply,
    params,
    shared,
    [batches[i] for i in order],
    learning_rate=_LEARNING_RATE,
    largest=_LARGEST,
  ).tensors


def compress_efficientnet(
  arrays: Mapping[str, np.ndarray],
) -> dict[str, coding.Tensor]:
  """Shares 256 values in each kernel of EfficientNet-Lite0.

  Args:
    arrays: of the published file.

  Returns:
    Tensors of the Flax network by name, collections included.
  """
  sharing = quantization.Sharing(entries=256, reserve_zero=False)

  def share(array: np.ndarray) -> coding.Tensor:
    if not is_large(array, 1):
      return coding.RawTensor(array)
    return coding.as_tensor(quantization.fit_codebook(array, sharing))

  named = _named(efficientnet_variables(arrays))
  return {name: share(array) for name, array in named}


def _named(variables: Any) -> list[tuple[str, np.ndarray]]:
  host = jax.device_get(variables)
  return [(name, np.asarray(leaf)) for name, leaf in tree.named_leaves(host)]


def _run(options: argparse.Namespace) -> None:
  check_known('network', options.network, NETWORKS)
  for field, least in (('calibration', 1), ('steps', 0)):
    if (value := getattr(options, field)) < least:
      raise ValueError(f'{field}={value} is less than {least}')
  if options.output.suffix != '.bwz':
    raise ValueError(f'output={str(options.output)!r} is no .bwz file')
  keep_memory()
  arrays = read_weights(options.weights or packaged(options.network))
  if options.network == 'minilm':
    original = _named(minilm.minilm_variables(arrays))
    made = compress_minilm(
      arrays,
      tokenizer=options.tokenizer or packaged('minilm', 'model/tokenizer.json'),
      brown=options.brown.expanduser(),
      calibration=options.calibration,
      steps=options.steps,
    )
    tensors: dict[str, Any] = {f'params/{n}': t for n, t in made.items()}
  else:
    original = _named(efficientnet_variables(arrays))
    tensors = compress_efficientnet(arrays)
  with writing(options.output):
    ledger = coding.write(
      options.output, tensors, metadata={'model': {'name': options.network}}
    )
  report(dict(original), ledger, options.output)


def main(argv: Sequence[str]) -> int:
  """Compresses a network; returns the exit status."""
  parser = command.make_parser('compress', __doc__)
  add = parser.add_argument
  path = pathlib.Path
  add('--network', required=True, help=', '.join(NETWORKS))
  add('--output', type=path, required=True, help='.bwz file')
  add('--weights', type=path, help='default: those of the package')
  add('--tokenizer', type=path, help='default: that of the package')
  add('--brown', type=path, default=BROWN, help=f'default {BROWN}')
  add('--calibration', type=int, default=384, help='sentences')
  add('--steps', type=int, default=240, help='of tuning')
  return command.run('compress', parser, _run, argv)
