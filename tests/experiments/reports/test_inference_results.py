"""Tables of inference from files of results."""

import json

from experiments.reports import inference


def row(shape, batch, form, speedup, until):
  return {
    'shape': shape, 'batch': batch, 'form': form, 'bytes': 4096, 'ms': 0.5,
    'speedup': speedup, 'gains_until_batch': until, 'error': 1e-7,
  }  # fmt: skip


def write(results, name, rows, **facts):
  path = results / 'benchmark' / f'{name}.json'
  path.parent.mkdir(exist_ok=True)
  content = {
    'name': name, 'command': f'python {name}', 'device': '2 x CPU', **facts,
    'commit': 'a79783c32c77645bb385ffd8b4892182a51e0825', 'rows': rows,
  }  # fmt: skip
  path.write_text(json.dumps(content))


def test_tables_and_plot(tmp_path):
  rows = [
    row(shape, batch, form, speedup / batch, 4)
    for shape in ('4096x4096', '784x300', '300x100')
    for batch in (1, 8)
    for form, speedup in (('dense float32', batch), ('4-bit codebook', 6))
  ]
  write(tmp_path, 'inference', rows, copy_bytes_per_second=4e10)
  write(tmp_path, 'loading', [{'way': 'dense', 'peak_mb': 3}], note='By hand.')
  text = inference.tables(tmp_path)
  assert 'A copy reads and writes 40 GB a second.' in text
  assert '| 4-bit codebook | 4,096 | 0.5 |' in text
  assert '| form | 4096x4096 | 784x300 | 300x100 |' in text
  assert '| 4-bit codebook | 6 | 0.75 |' in text
  assert 'commit a79783c32c. By hand.' in text
  assert '| way | peak mb |' in text
  inference.plot(tmp_path)
  plot = tmp_path / 'plots' / 'inference_roofline_cpu.png'
  assert plot.read_bytes().startswith(b'\x89PNG')


def test_nothing_is_there(tmp_path):
  assert inference.tables(tmp_path).count('\n') == 1
  inference.plot(tmp_path)
