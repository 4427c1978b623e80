"""Real processes: killed, launched, told nonsense."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from experiments.config import resolve
from experiments.training import run as run_module

ROOT = pathlib.Path(__file__).parents[3]
CONFIG = """
import ml_collections


def get_config():
  return ml_collections.ConfigDict({
    'workers': 2, 'cpu_devices': 2, 'batch_size': 64, 'log_every': 10,
    'model': {'name': 'lenet300', 'features': (16, 8)},
    'stages': {'train': {'steps': STEPS}},
    'checkpoint_every_epochs': 20 / 937, 'eval_every_epochs': 0.0,
    'keep_checkpoints': 99,
  })
"""


def start(module, *arguments):
  environment = {**os.environ, 'PYTHONPATH': str(ROOT), 'JAX_PLATFORMS': 'cpu'}
  for name in ('XLA_FLAGS', 'JAX_NUM_CPU_DEVICES'):
    environment.pop(name, None)
  return subprocess.Popen(
    [sys.executable, '-m', module, *arguments],
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
    env=environment,
    cwd=ROOT,
  )


def finish(process, timeout=240):
  out, err = process.communicate(timeout=timeout)
  return process.returncode, out, err


def params_of(workdir):
  config = json.loads((workdir / 'config.json').read_text())
  setup = run_module.make_setup(resolve(config))
  checkpoints = run_module.Checkpoints(workdir / 'checkpoints', keep=99)
  state, step, _ = run_module._begin(setup, checkpoints)
  checkpoints.close()
  return jax.device_get(state.params), step


@pytest.fixture
def config_file(tmp_path):
  def write(steps):
    path = tmp_path / f'config{steps}.py'
    path.write_text(CONFIG.replace('STEPS', str(steps)))
    return f'--config={path}'

  return write


@pytest.mark.slow
def test_killed_run_finishes_with_the_same_bits(config_file, tmp_path):
  config, steps = config_file(600), 600
  whole = start('experiments.train', config, f'--workdir={tmp_path / "a"}')
  status, _, err = finish(whole)
  assert status == 0, err
  killed = start('experiments.train', config, f'--workdir={tmp_path / "b"}')
  deadline = time.monotonic() + 120
  while len(list((tmp_path / 'b').glob('checkpoints/[0-9]*'))) < 2:
    assert killed.poll() is None, killed.communicate()
    assert time.monotonic() < deadline
    time.sleep(0.01)
  killed.send_signal(signal.SIGKILL)
  killed.communicate()
  assert not (tmp_path / 'b' / 'report.json').exists()
  status, out, err = finish(
    start('experiments.train', config, f'--workdir={tmp_path / "b"}')
  )
  assert status == 0, err
  assert 'resumed after step' in out
  expected, _ = params_of(tmp_path / 'a')
  got, step = params_of(tmp_path / 'b')
  assert step == steps
  jax.tree.map(np.testing.assert_array_equal, got, expected)


@pytest.mark.slow
def test_two_processes_reach_what_one_with_two_devices_does(
  config_file, tmp_path
):
  config = config_file(40)
  one = start('experiments.train', config, f'--workdir={tmp_path / "one"}')
  assert finish(one)[0] == 0
  two = start(
    'experiments.launch',
    '--processes=2',
    '--',
    config,
    f'--workdir={tmp_path / "two"}',
  )
  status, out, err = finish(two)
  assert status == 0, err
  assert out.count('# Bandwidth report') == 1
  recorded = json.loads((tmp_path / 'two' / 'report.json').read_text())
  assert recorded['command'].startswith(
    'python -m experiments.launch --processes=2 -- '
  )
  expected, _ = params_of(tmp_path / 'one')
  got, step = params_of(tmp_path / 'two')
  assert step == 40
  jax.tree.map(np.testing.assert_array_equal, got, expected)
  again = start(
    'experiments.launch',
    '--processes=2',
    '--',
    config,
    f'--workdir={tmp_path / "two"}',
  )
  status, out, err = finish(again)
  assert status == 0, err
  assert 'resumed after step 40' in out


@pytest.mark.parametrize(
  ('argument', 'message'),
  [
    pytest.param(
      '--config.batch_size=63',
      'batch_size=63 is not divisible by workers=2',
      marks=pytest.mark.slow,
    ),
    ('--config.workers=1', 'workers=1 leave process 1 of 2 without one'),
  ],
)
def test_launch_reports_one_error_and_ends(
  config_file, tmp_path, argument, message
):
  status, _, err = finish(
    start(
      'experiments.launch',
      '--processes=2',
      '--',
      config_file(40),
      f'--workdir={tmp_path / "w"}',
      argument,
    )
  )
  assert status == 2
  assert err.count(message) == 1
  assert 'Traceback' not in err


@pytest.mark.parametrize(
  ('arguments', 'message'),
  [
    (('--config.bach_size=1',), 'did you mean batch_size?'),
    (('--config.workers=64',), '--config.cpu_devices=64 makes virtual CPU'),
    (('--distributed',), 'Give --coordinator'),
  ],
)
def test_bad_flags_are_one_line(arguments, message, tmp_path):
  status, out, err = finish(
    start(
      'experiments.train',
      '--config=configs/quickstart.py:runlocal',
      f'--workdir={tmp_path / "w"}',
      *arguments,
    )
  )
  lines = [line for line in err.splitlines() if 'error' in line]
  assert status == 2
  assert len(lines) == 1
  assert lines[0].startswith('train: error: ')
  assert message in lines[0]
  assert 'Traceback' not in out + err
