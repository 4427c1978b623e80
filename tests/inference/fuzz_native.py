"""Random shapes through every native kernel; run by `test_native_memory`.

    python fuzz_native.py CASES FLAG…

The flags are those of the compiler. Results are compared with NumPy.
"""

import pathlib
import sys
import tempfile

import jax.numpy as jnp
import numpy as np

from bandwidth import inference
from bandwidth.inference import native

RNG = np.random.default_rng(0)


def random_matrix(inputs, outputs):
  shape = (outputs, inputs)
  groups = outputs if RNG.random() < 0.3 else 1
  runs = 1
  if RNG.random() < 0.3:
    # Runs are whole blocks of any number of bits.
    runs = int(RNG.integers(1, 4))
    inputs = 256 * runs
    shape = (outputs, inputs)
  kind = RNG.integers(3)
  if kind == 0:
    entries = int(RNG.integers(1, 257))
    book = RNG.normal(size=(groups, runs, entries))
    return inference.codebook_matrix(RNG.integers(0, entries, shape), book)
  if kind == 1:
    steps = RNG.random((groups, runs))
    return inference.uniform_matrix(RNG.integers(-128, 128, shape), steps)
  entries = int(RNG.integers(1, 257))
  book = RNG.normal(size=entries)
  book[0] = 0
  return inference.sparse_matrix(
    RNG.integers(0, entries, shape) * (RNG.random(shape) < 0.4), book
  )


def main():
  cases, flags = int(sys.argv[1]), tuple(sys.argv[2:])
  with tempfile.TemporaryDirectory() as folder:
    built = native.build(pathlib.Path(folder), flags)
    native.build = lambda: built
    native.library()
  for case in range(cases):
    inputs, outputs, batch = RNG.integers(1, [700, 90, [10, 140][case % 2]])
    matrix = random_matrix(inputs, outputs)
    inputs = matrix.shape[0]
    x = RNG.normal(size=(batch, inputs)).astype(np.float32)
    wanted = x.astype(np.float64) @ inference.decode(matrix)
    for name in native.INSTRUCTIONS[1:]:
      native.use(name)
      for mode in inference.MODES:
        y = inference.matmul(
          jnp.asarray(x), matrix, backend='native', mode=mode
        )
        scale = np.abs(x).max() * np.abs(inference.decode(matrix)).max()
        most = {'exact': 1e-5, 'int16': 1e-3, 'int8': 2e-2}[mode]
        error = np.abs(np.asarray(y) - wanted).max()
        assert error <= most * scale * inputs, (name, mode, matrix.shape, error)
  print(f'{cases} cases')


if __name__ == '__main__':
  main()
