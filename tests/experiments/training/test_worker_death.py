"""A process of a run that dies, and the run after it."""

import contextlib
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time

import pytest

from experiments import launch
from experiments.runtime import processes

ROOT = pathlib.Path(__file__).parents[3]
STEPS = 300
CONFIG = f"""
import ml_collections


def get_config():
  return ml_collections.ConfigDict({{
    'workers': 2, 'cpu_devices': 2, 'batch_size': 64, 'log_every': 10,
    'model': {{'name': 'lenet300', 'features': (8,)}},
    'optimizer': {{'momentum': 0.0}},
    'reducer': {{'name': 'deep_gradient_compression', 'density': 0.05}},
    'stages': {{'train': {{'steps': {STEPS}}}}},
    'checkpoint_every_epochs': 60 / 937, 'eval_every_epochs': 0.0,
  }})
"""


@pytest.fixture
def start():
  """Starts launchers, and ends those that a failed test leaves."""
  with contextlib.ExitStack() as stack:

    def start(*arguments):
      environment = {**os.environ, 'JAX_PLATFORMS': 'cpu'}
      for name in ('XLA_FLAGS', 'JAX_NUM_CPU_DEVICES'):
        environment.pop(name, None)
      process = stack.enter_context(
        subprocess.Popen(
          [sys.executable, '-m', 'experiments.launch', *arguments],
          stdout=subprocess.PIPE,
          stderr=subprocess.PIPE,
          text=True,
          env=environment,
          cwd=ROOT,
        )
      )
      stack.callback(process.terminate)
      return process

    yield start


def processes_of(workdir):
  """Process ids of the train processes of a run, by index."""
  found = {}
  for path in pathlib.Path('/proc').glob('[0-9]*/cmdline'):
    try:
      words = path.read_bytes().decode().split('\0')
    except OSError:
      continue
    index = [w for w in words if w.startswith('--process_id=')]
    if index and f'--workdir={workdir}' in words:
      found[int(index[0].split('=')[1])] = int(path.parent.name)
  return found


def wait_for_checkpoint(process, workdir):
  deadline = time.monotonic() + 200
  # Another name until it is complete.
  while not any(p.name.isdecimal() for p in workdir.glob('checkpoints/*')):
    assert process.poll() is None, process.communicate()
    assert time.monotonic() < deadline
    time.sleep(0.01)


@pytest.mark.slow
@pytest.mark.skipif(not os.path.isdir('/proc/1'), reason='there is no /proc')
def test_a_killed_process_ends_the_run_and_another_run_goes_on(start, tmp_path):
  config, workdir = tmp_path / 'config.py', tmp_path / 'w'
  config.write_text(CONFIG)
  common = ('--', f'--config={config}', f'--workdir={workdir}')
  run = start('--processes=2', *common)
  wait_for_checkpoint(run, workdir)
  victims = processes_of(workdir)
  assert sorted(victims) == [0, 1]
  os.kill(victims[1], signal.SIGKILL)
  _, err = run.communicate(timeout=60)
  assert run.returncode == 128 + signal.SIGKILL
  said = [line for line in err.splitlines() if line.startswith('launch: ')]
  assert said == [
    'launch: error: process 1 of 2 ended with signal 9 (SIGKILL); the others '
    'were stopped; the same command, also with another --processes, resumes '
    'from the last checkpoint'
  ]
  assert not processes_of(workdir)
  assert not (workdir / 'report.json').exists()
  other = tmp_path / 'other'
  shutil.copytree(workdir, other)
  runs = [
    start('--processes=2', *common),
    start(
      '--processes=1', '--', f'--config={config}', f'--workdir={other}',
      '--config.workers=4', '--config.cpu_devices=4',
    ),
  ]  # fmt: skip
  for resumed, directory in zip(runs, (workdir, other), strict=True):
    out, err = resumed.communicate(timeout=240)
    assert resumed.returncode == 0, err
    assert 'resumed after step' in out
    assert f'step {STEPS}/{STEPS}' in out
    assert (directory / 'report.json').exists()


STUBBORN = """
import signal, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print('ready', flush=True)
time.sleep(600)
"""


def begun(code):
  child = subprocess.Popen(
    [sys.executable, '-c', code], stdout=subprocess.PIPE, text=True
  )
  assert child.stdout.readline() == 'ready\n'
  return processes.Process(child, None)


def test_survivors_that_ignore_sigterm_are_killed(capsys):
  survivor = begun(STUBBORN)
  dead = begun("print('ready', flush=True); raise SystemExit(3)")
  with survivor.child, dead.child:
    assert processes.wait([survivor, dead]) == 3
    assert survivor.child.returncode == -signal.SIGKILL
  assert 'process 1 of 2 ended with status 3' in capsys.readouterr().err


def test_the_killed_one_is_named_and_not_who_lost_it(capsys):
  lost = begun("print('ready', flush=True); raise SystemExit(1)")
  aborted = begun("import os; print('ready', flush=True); os.abort()")
  killed = begun(
    "import os; print('ready', flush=True); os.kill(os.getpid(), 9)"
  )
  started = [lost, aborted, killed]
  for process in started:
    with process.child:
      process.child.wait()
  assert processes.wait(started) == 137
  assert 'process 2 of 3 ended with signal 9' in capsys.readouterr().err


def test_bad_arguments_promise_no_resumption(capsys):
  bad = begun("print('ready', flush=True); raise SystemExit(2)")
  with bad.child:
    bad.child.wait()
  assert processes.wait([bad]) == 2
  assert 'resumes' not in capsys.readouterr().err


@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGTERM])
def test_a_signal_to_the_launcher_ends_all(start, tmp_path, number):
  config, workdir = tmp_path / 'config.py', tmp_path / 'w'
  config.write_text(CONFIG)
  run = start(
    '--processes=2', '--', f'--config={config}', f'--workdir={workdir}'
  )
  deadline = time.monotonic() + 60
  while len(processes_of(workdir)) < 2:
    assert run.poll() is None
    assert time.monotonic() < deadline
    time.sleep(0.01)
  run.send_signal(number)
  _, err = run.communicate(timeout=60)
  assert run.returncode == 128 + number
  assert f'launch: error: stopped by signal {number.value}' in err
  assert not processes_of(workdir)


def test_a_signal_while_processes_start_leaves_none_behind(monkeypatch, capsys):
  children = []
  real = subprocess.Popen

  def interrupted(command, **options):
    del command
    children.append(real(['sleep', '600'], **options))
    os.kill(os.getpid(), signal.SIGTERM)
    return children[-1]

  monkeypatch.setattr(processes.subprocess, 'Popen', interrupted)
  assert launch.main(['--processes=2', '--', '--workdir=w']) == 143
  assert [child.returncode for child in children] == [-signal.SIGTERM] * 2
  assert 'stopped by signal 15 (SIGTERM)' in capsys.readouterr().err
