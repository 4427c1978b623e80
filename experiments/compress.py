"""Compresses any pretrained weights into one file, without training.

    python -m experiments.compress --input model.safetensors --output model.bwz
    python -m experiments.compress --input model.bwz --output model.safetensors
    python -m experiments.compress --input runs/W --output model.bwz
    python -m experiments.compress --config configs/… --workdir W
    python -m experiments.compress --network minilm --output minilm.bwz

The last two train and compress as a config says, and make a file of a known
network that runs from its codes, see `compression.networks`.

Arrays of two or more axes and at least `--smallest` elements are pruned by
magnitude (`--sparsity`) and share 2^bits values each (`--bits`, or as few bits
as keep the relative error of each array below `--tolerance`). Or they get
levels of uniform grids, whose bits go where they pay, so that the whole file
takes `--rate` bits for each weight. All other arrays are kept to the bit. What
is printed was measured on the file that was written.
"""

import argparse
import pathlib
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

from bandwidth import coding
from bandwidth.files import replace_text
from bandwidth.rate_allocation import compress_to_rate
from experiments.compression.pretrained import (
  BITS,
  compress_weights,
  report,
  writing,
)
from experiments.compression.tables import run_tables
from experiments.compression.weights import (
  READABLE,
  WRITABLE,
  read_weights,
  write_safetensors,
)
from experiments.runtime import command
from experiments.runtime.startup import InputError

_STARTED = time.monotonic()


def _check_output(path: pathlib.Path) -> None:
  """Says what is wrong with it before minutes of work."""
  if path.suffix not in WRITABLE:
    raise ValueError(
      f'output={str(path)!r} has none of the suffixes {", ".join(WRITABLE)}'
    )
  if path.is_dir():
    raise ValueError(f'output={str(path)!r} is a directory')
  if not path.parent.is_dir():
    raise ValueError(f'output={str(path)!r}: its directory is not there')


def _run(options: argparse.Namespace) -> None:
  _check_output(options.output)
  restores = options.input.suffix == '.bwz' and not options.input.is_dir()
  if restores == (options.output.suffix == '.bwz'):
    raise ValueError(
      f'input={str(options.input)!r}, output={str(options.output)!r}: one of '
      'the two must be a .bwz file'
    )
  if options.tolerance is not None and not options.tolerance > 0:
    raise ValueError(f'tolerance={options.tolerance} is not positive')
  if not 0 <= options.sparsity < 1:
    raise ValueError(f'sparsity={options.sparsity} is not in [0, 1)')
  _check_rate(options)
  bits = options.bits
  if bits is None:
    bits = 4 if options.tolerance is None else 8
  if bits not in BITS:
    raise ValueError(f'bits={bits} is not in 1 to {BITS[-1]}')
  if options.smallest < 0:
    raise ValueError(f'smallest={options.smallest} is negative')
  arrays = read_weights(options.input)
  if restores:
    with writing(options.output):
      write_safetensors(options.output, arrays)
    print(f'{len(arrays)} arrays, {options.output.stat().st_size:,} bytes')
    return
  if options.rate is None:
    tensors = compress_weights(
      arrays,
      sparsity=options.sparsity,
      bits=bits,
      tolerance=options.tolerance,
      smallest=options.smallest,
    )
  else:
    tensors = compress_to_rate(
      arrays, rate=options.rate, smallest=options.smallest, coder=options.coder
    )
  with writing(options.output):
    ledger = coding.write(options.output, tensors, coder=options.coder)
  report(arrays, ledger, options.output)


def _check_rate(options: argparse.Namespace) -> None:
  if options.rate is None:
    return
  if not options.rate > 0:
    raise ValueError(f'rate={options.rate} is not positive')
  if options.bits or options.sparsity or options.tolerance:
    raise ValueError(
      f'rate={options.rate} goes with none of bits, sparsity and tolerance, '
      'which it chooses itself'
    )


def main(argv: Sequence[str]) -> int:
  """Compresses or restores; returns the exit status."""
  parser = command.make_parser('compress', __doc__)
  add = parser.add_argument
  path = pathlib.Path
  readable = f'one of {", ".join(READABLE)}, or a directory written by Orbax'
  add('--input', type=path, required=True, help=readable)
  add('--output', type=path, required=True, help=' or '.join(WRITABLE))
  add('--bits', type=int, help='of the codes; default 4, or 8 with a tolerance')
  add('--sparsity', type=float, default=0.0, help='fraction to prune')
  add('--tolerance', type=float, help='of the relative error of each array')
  add('--rate', type=float, help='bits of the whole file for each weight')
  add('--smallest', type=int, default=1024, help='elements; smaller are kept')
  add('--coder', default='auto', choices=('fixed', 'huffman', 'ans', 'auto'))
  return command.run('compress', parser, _run, argv)


def train_and_compress(config: Mapping[str, Any], workdir: str) -> None:
  """Trains and compresses as a config says, and writes the paper's tables.

  `compression.md` has sizes and errors of all files that the stages wrote, of
  what else a user has today, a row for each array, and where the bytes of
  `model.bwz` went.

  Raises:
    InputError: no stage writes a file, or as `experiments.training.run`.
  """
  from experiments.training.run import run

  if not any(s.get('files') for s in config['stages'].values()):
    raise InputError('config: no stage writes a file; see stages.NAME.files')
  text = run_tables(run(config, workdir, started=_STARTED), workdir)
  replace_text(pathlib.Path(workdir) / 'compression.md', text)
  print(text)


def _has_flag(argv: Sequence[str], name: str) -> bool:
  return any(a.lstrip('-').split('=')[0] == name for a in argv)


if __name__ == '__main__':
  if _has_flag(sys.argv[1:], 'config'):
    from experiments.program import flags

    flags.run(train_and_compress, program='compress')
  if _has_flag(sys.argv[1:], 'network'):
    from experiments.compression import networks

    sys.exit(networks.main(sys.argv[1:]))
  sys.exit(main(sys.argv[1:]))
