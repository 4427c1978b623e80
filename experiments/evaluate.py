"""Measures a compressed network: accuracy of what its file decodes to.

    python -m experiments.evaluate --model W/model.bwz [--data_dir DIR]
      [--backend auto|xla|pallas|native] [--mode exact|int16|int8]
      [--kernels scalar|avx2|avx512] [--plan]

Network and data set are those of the file's metadata or, where it was written
without, of `--config` or of the `config.json` beside it. With `--backend` it
runs from the compressed form, without its weights ever being decoded. With
`--plan` each layer runs in the form that is the fastest one on this device for
`--batch_size` examples at a time, be it the dense one
(`bandwidth.inference.plan_layers`).
"""

import argparse
import json
import pathlib
import sys
from collections.abc import Sequence

from bandwidth import inference
from bandwidth.files import replace_text
from bandwidth.inference import native
from experiments.inference.evaluation import config_of, evaluate, plan_lines
from experiments.runtime import command


def _use(kernels: str, backend: str) -> None:
  """Chooses native kernels.

  Raises:
    ValueError: the backend has none, or this machine can't run them.
  """
  asked = f'kernels={kernels!r}'
  if backend not in ('auto', 'native'):
    raise ValueError(f'{asked} needs --backend native or auto')
  try:
    used = native.use(kernels)
  except native.NativeError as error:
    raise ValueError(f'{asked}: {error}') from None
  if kernels not in ('best', used):
    raise ValueError(f"{asked}: this machine can't run them")


def _run(options: argparse.Namespace) -> None:
  if options.batch_size < 1:
    raise ValueError(f'batch_size={options.batch_size} is not positive')
  if options.mode != inference.MODES[0] and not options.backend:
    raise ValueError(f'mode={options.mode!r} needs a --backend')
  if options.plan and not options.backend:
    raise ValueError('plan: it needs a --backend')
  if options.kernels:
    _use(options.kernels, options.backend)
  config = config_of(options.model, options.config)
  if options.data_dir is not None:
    config['dataset'] = {**config['dataset'], 'data_dir': options.data_dir}
  result = evaluate(
    options.model,
    config,
    split=options.split,
    batch_size=options.batch_size,
    backend=options.backend,
    mode=options.mode,
    plan_cache=inference.plan_cache_path(
      backend=options.backend, mode=options.mode, kernels=options.kernels
    )
    if options.plan
    else None,
  )
  for line in plan_lines(
    {name: inference.Choice(**each) for name, each in result['plan'].items()}
  ):
    print(line)
  print(
    f'{result["accuracy"]:.2%} of {result["examples"]:,} {options.split} '
    f'examples; {result["file_bytes"]:,} bytes on disk for '
    f'{result["dense_bytes"]:,} of float32, {result["ratio"]:.1f}x'
  )
  if options.output:
    replace_text(options.output, json.dumps(result, indent=2) + '\n')


def main(argv: Sequence[str]) -> int:
  """Evaluates; returns the exit status."""
  parser = command.make_parser('evaluate', __doc__)
  add = parser.add_argument
  add('--model', type=pathlib.Path, required=True, help='.bwz or .safetensors')
  add('--config', type=pathlib.Path, help='config.json of the run')
  add('--data_dir', help='of tensorflow-datasets')
  add('--split', default='test', choices=('test', 'validation'))
  add('--batch_size', type=int, default=1000, help='examples at a time')
  backends, kernels = ('', *inference.BACKENDS), ('', *native.INSTRUCTIONS)
  compressed = 'run from the compressed form'
  add('--backend', default='', choices=backends, help=compressed)
  add('--mode', default='exact', choices=inference.MODES, help='of arithmetic')
  best = f'native ones; default: ${native.VARIABLE}, or the best'
  add('--kernels', default='', choices=kernels, help=best)
  fastest = 'each layer in the form that is fastest here, measured if need be'
  add('--plan', action='store_true', help=fastest)
  add('--output', type=pathlib.Path, help='JSON file for the result')
  return command.run('evaluate', parser, _run, argv)


if __name__ == '__main__':
  sys.exit(main(sys.argv[1:]))
