import importlib.util
import json
from types import SimpleNamespace

import numpy as np
import pytest

from bandwidth.collectives.traffic import hlo
from bandwidth.collectives.traffic.accounting import dense_wire_bytes
from experiments.benchmark.network import pods, tpu

needs_compiler = pytest.mark.skipif(
  importlib.util.find_spec('libtpu') is None,
  reason="the TPU compiler is missing: pip install '.[tpu]'",
)
LENET = 266_610


def collective(**kwargs):
  plain = {
    'name': 'c',
    'kind': 'all-reduce',
    'operands': (),
    'results': (),
    'groups': (),
    'pairs': (),
    'count': 1,
    'channel': None,
    'op_name': '',
    'between_slices': False,
  }
  return hlo.Collective(**{**plain, **kwargs})


def two_slices_of_two():
  chips = [
    SimpleNamespace(id=100_000 * (s + 1) + d, slice_index=s)
    for s in range(2)
    for d in range(2)
  ]
  return SimpleNamespace(devices=np.array(chips).reshape(2, 2))


@pytest.mark.parametrize(
  ('found', 'share'),
  [
    ({'groups': ((0, 1),)}, 0),
    ({'groups': ((0, 2), (1, 3))}, 1),
    ({'groups': ((100000, 200000),), 'between_slices': True}, 1),
    (
      {
        'groups': ((100000, 100001, 200000, 200001),),
        'between_slices': True,
      },
      2 / 3,
    ),
    ({'pairs': ((0, 1), (1, 0))}, 0),
    ({'pairs': ((100001, 200000),), 'between_slices': True}, 1),
    ({'groups': ((0,),)}, 0),
  ],
)
def test_what_leaves_the_slice(found, share):
  measured = pods.share_between_slices(collective(**found), two_slices_of_two())
  assert measured == pytest.approx(share)


def test_cycles_of_a_loop():
  text = """\
HloModule m

%cond (s: (s32[], f32[8])) -> pred[] {
  %s = (s32[], f32[8]{0}) parameter(0)
  %i = s32[] get-tuple-element(%s), index=0
  %n = s32[] constant(3)
  ROOT %lt = pred[] compare(%i, %n), direction=LT
}

%body (s: (s32[], f32[8])) -> (s32[], f32[8]) {
  %s = (s32[], f32[8]{0}) parameter(0)
  %i = s32[] get-tuple-element(%s), index=0
  %one = s32[] constant(1)
  %next = s32[] add(%i, %one)
  %x = f32[8]{0} get-tuple-element(%s), index=1
  %y = f32[8]{0} negate(%x), backend_config={"w":{"estimated_cycles":"100"}}
  ROOT %t = (s32[], f32[8]{0}) tuple(%next, %y)
}

ENTRY %main (p: f32[8]) -> f32[8] {
  %p = f32[8]{0} parameter(0)
  %zero = s32[] constant(0)
  %q = f32[8]{0} negate(%p), backend_config={"estimated_cycles":"7"}
  %t = (s32[], f32[8]{0}) tuple(%zero, %q)
  %w = (s32[], f32[8]{0}) while(%t), condition=%cond, body=%body
  ROOT %out = f32[8]{0} get-tuple-element(%w), index=1
}
"""
  assert tpu.estimated_cycles(text) == 7 + 3 * 100


@pytest.mark.slow
@needs_compiler
def test_one_slice_and_two(tmp_path, capsys):
  path = tmp_path / 'new' / 'tpu.json'
  status = tpu.main(
    [
      *('--topology', 'v5e:2x2', '--slice_topology', 'v5e:2x2'),
      *('--model', 'lenet300', '--dtype', 'float32', '--batch', '8'),
      *('--output', str(path)),
    ]
  )
  assert status == 0
  written = json.loads(path.read_text())
  assert {'name', 'device', 'versions', 'commit', 'rows'} <= set(written)
  one, two = written['rows']
  assert (one['chips'], two['chips']) == (4, 8)
  params = np.zeros(LENET)
  assert one['ici_bytes'] == dense_wire_bytes(params, workers=4)
  assert (one['collectives'], one['dcn_bytes']) == (1, 0)
  # Between slices a chip sends the quarter of the sum that it is in charge of,
  # padded to whole tiles.
  quarter = LENET * 4 / 4
  assert quarter <= two['dcn_bytes'] < 1.05 * quarter
  assert two['ici_bytes'] >= one['ici_bytes']
  for row in (one, two):
    assert row['estimated_cycles'] > 1000
    assert row['argument_bytes'] > 2 * 4 * LENET
    # Two thirds of three passes: the input has no gradient.
    assert row['operations'] > 4 * LENET * 8
  printed = capsys.readouterr().out
  assert 'lenet300' in printed
  assert 'all-reduce' in printed


@needs_compiler
def test_unknown_topology(capsys):
  assert tpu.main(['--topology', 'v9z:2x2']) == 2
  assert "topology='v9z:2x2'" in capsys.readouterr().err


def test_without_the_compiler(monkeypatch, capsys):
  monkeypatch.setattr(importlib.util, 'find_spec', lambda name: None)
  assert tpu.main([]) == 2
  (line,) = capsys.readouterr().err.splitlines()
  assert '.[tpu]' in line


@pytest.mark.parametrize(
  ('argv', 'message'),
  [
    (['--slices', '0'], 'slices=0 is not positive'),
    (['--model', 'none'], "model='none' is unknown"),
    (['--dtype', 'int8'], "dtype='int8' is unknown"),
    (['--exchanges', 'small', '--reducers', 'all'], "reducers='all' is unkno"),
  ],
)
def test_bad_arguments(argv, message, capsys):
  assert tpu.main(argv) == 2
  (line,) = capsys.readouterr().err.splitlines()
  assert line.startswith(f'benchmark tpu: error: {message}')
