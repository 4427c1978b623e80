import random
import zlib

import numpy as np
import pytest

from bandwidth import coding
from tests.fuzz import __main__, inputs, worker


def test_seeds_use_every_coder_and_are_decoded():
  methods = set()
  for data in inputs.seeds():
    assert inputs.check(data, max_bytes=None)
    for row in coding.decode(data).ledger().tensors:
      methods.update(row.methods)
  assert methods >= {
    'adaptive', 'ans', 'bitmask', 'constant', 'deflate', 'dense',
    'direct', 'elias_fano', 'fixed', 'huffman', 'planes', 'stored',
  }  # fmt: skip


def test_join_inverts_split():
  for data in inputs.seeds():
    parts = inputs.split(data)
    assert parts is not None
    assert inputs.join(parts) == data


def test_changes_pass_the_checksums():
  files = inputs.seeds()
  passed = 0
  for number in range(300):
    rng = random.Random(number)
    data = inputs.mutate(rng.choice(files), files, rng, inputs.byte_havoc)
    try:
      inputs.check(data, max_bytes=1 << 20)
      coding.decode(data, max_bytes=1 << 20).ledger()
    except ValueError as error:
      passed += 'wrong checksum' not in str(error)
    else:
      passed += 1
  assert passed > 250


def test_check_tells_refusals_from_faults(monkeypatch):
  data = coding.encode({'w': np.arange(9)})
  assert not inputs.check(data[:-1], max_bytes=None)

  def no_place(*arguments, **options):
    raise ValueError('bad')

  monkeypatch.setattr(coding, 'decode', no_place)
  with pytest.raises(AssertionError, match='no section and byte in: bad'):
    inputs.check(data, max_bytes=None)


def test_a_worker_counts_and_writes_what_it_finds(tmp_path, monkeypatch):
  trial = worker.Trial(tmp_path, 60.0)
  data = coding.encode({'w': np.arange(9)})
  trial.run(data)
  trial.run(data[:-1])

  def broken(data, *, max_bytes):
    raise KeyError(zlib.crc32(data))

  monkeypatch.setattr(trial, '_check', broken)
  trial.run(b'xyz')
  trial.run(b'zyx')
  counts = worker.Board(tmp_path).counts()
  assert (counts.inputs, counts.decoded, counts.refused) == (4, 1, 1)
  assert worker.Board(tmp_path).last_input() == b'zyx'
  findings = __main__._findings(tmp_path)
  assert [each['input'] for each in findings] == [b'xyz'.hex()]
  assert findings[0]['what'].startswith('KeyError at broken')


@pytest.mark.slow
def test_engine_by_structure():
  row = __main__.measure('structure', inputs=40, seconds=60.0)
  assert row['inputs'] == row['decoded'] + row['refused'] == 40
  assert not row['findings']
  assert row['peak_rss_mb'] > 0


def test_errors(capsys, monkeypatch):
  monkeypatch.setattr('importlib.util.find_spec', lambda name: None)
  assert __main__.main(['--engines', 'coverage', '--inputs', '1']) == 2
  assert 'needs atheris: pip install atheris' in capsys.readouterr().err
  assert __main__.main(['--inputs', '0']) == 2
  assert 'inputs=0 is not positive' in capsys.readouterr().err
