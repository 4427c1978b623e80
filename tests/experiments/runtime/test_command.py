"""Options of commands, and how commands end."""

import os
import pathlib
import signal

import pytest

from experiments.runtime import options
from experiments.runtime.command import cli, run_python

KNOWN = {
  'network': options.choice(['lenet', 'mlp'], 'mlp'),
  'rates': options.number([0.5], 'bits'),
  'steps': options.integer(3, least=0),
  'part': options.fraction(None),
  'shape': options.shape('4x2'),
  'folder': options.path(pathlib.Path('~/runs')),
  'empty': options.integer([1], fewest=0),
  'quiet': options.flag(),
}


def parse(*argv):
  return options.parse('p', None, KNOWN, argv)


def test_defaults_are_values():
  given = parse()
  assert (given.network, given.rates, given.steps) == ('mlp', [0.5], 3)
  assert (given.part, given.shape, given.quiet) == (None, (4, 2), False)
  assert given.folder == pathlib.Path.home() / 'runs'


def test_values_are_read():
  given = parse(
    *('--rates', '2', '3.5', '--steps', '0', '--part', '1', '--quiet'),
    *('--shape', '784x300', '--folder', '~', '--empty'),
  )
  assert (given.rates, given.steps, given.part) == ([2.0, 3.5], 0, 1.0)
  assert (given.shape, given.empty, given.quiet) == ((784, 300), [], True)
  assert given.folder == pathlib.Path.home()


@pytest.mark.parametrize(
  ('argv', 'message'),
  [
    (['--network', 'lenat'], "network='lenat' is unknown; known: lenet, mlp"),
    (['--rates', '1', '-1'], 'rates=-1.0 is not positive and finite'),
    (['--rates', 'nan'], 'rates=nan is not positive and finite'),
    (['--rates', 'two'], "rates='two' is no number"),
    (['--steps', '-1'], 'steps=-1 is negative'),
    (['--steps', '1.5'], "steps='1.5' is no integer"),
    (['--part', '0'], r'part=0.0 is not in \(0, 1\]'),
    (['--shape', '4x'], "shape='4x' is not INPUTSxOUTPUTS"),
    (['--rates'], 'argument --rates: expected at least one argument'),
    (['--none', '1'], 'unrecognized arguments: --none 1'),
  ],
)
def test_bad_values_are_named(argv, message):
  with pytest.raises(ValueError, match=message):
    parse(*argv)


def test_missing_ones_are_named():
  known = {'model': options.text(options.REQUIRED)}
  with pytest.raises(ValueError, match='required: --model'):
    options.parse('p', None, known, [])


def test_ends_with_a_status_and_one_line(capsys):
  def fail(error):
    raise error

  for error, status, line in (
    (ValueError('x=1\n  is bad'), 2, 'p: error: x=1 is bad\n'),
    (FileNotFoundError(2, 'no', 'f'), 2, "p: error: [Errno 2] no: 'f'\n"),
    (KeyboardInterrupt(), 130, 'p: interrupted\n'),
  ):
    assert cli('p', lambda error=error: fail(error)) == status
    assert capsys.readouterr().err == line
  assert cli('p', lambda: None) == 0
  assert cli('p', lambda: 1) == 1


def test_sigterm_ends_as_ctrl_c_does(capsys):
  before, cleaned = signal.getsignal(signal.SIGTERM), []

  def main():
    try:
      os.kill(os.getpid(), signal.SIGTERM)
    finally:
      cleaned.append(True)

  assert cli('p', main) == 143
  assert capsys.readouterr().err == 'p: terminated\n'
  assert cleaned == [True]
  assert signal.getsignal(signal.SIGTERM) is before


def test_what_a_child_says_is_passed_on():
  assert run_python(['-c', 'print(3)'], 'adding') == '3\n'
  code = 'import sys; sys.exit("first\\nno such file")'
  with pytest.raises(ValueError, match=r'^adding: no such file$'):
    run_python(['-c', code], 'adding')
  with pytest.raises(ValueError, match=r'^adding: no word$'):
    run_python(['-c', 'import sys; sys.exit(3)'], 'adding')


def test_a_child_ends_with_its_parent(tmp_path):
  """SIGTERM to this process, while the child sleeps, ends both."""
  pid = tmp_path / 'pid'
  child = (
    'import os, pathlib, signal, time; '
    f'pathlib.Path({str(pid)!r}).write_text(str(os.getpid())); '
    'os.kill(os.getppid(), signal.SIGTERM); time.sleep(60)'
  )
  assert cli('p', lambda: bool(run_python(['-c', child], 'sleeping'))) == 143
  with pytest.raises(ProcessLookupError):
    os.kill(int(pid.read_text()), 0)
