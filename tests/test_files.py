import os
import shlex
import stat
import sys

import pytest

from bandwidth import coding, files
from experiments.policy.run import run as search
from experiments.runtime import provenance
from experiments.runtime.files import make_writable
from experiments.training.run import run


def test_new_file_has_the_permissions_of_any_new_file(tmp_path):
  old = os.umask(0o027)
  try:
    files.replace_text(tmp_path / 'a', 'x')
    (tmp_path / 'b').write_text('x')
  finally:
    os.umask(old)
  modes = [stat.S_IMODE((tmp_path / n).stat().st_mode) for n in 'ab']
  assert modes == [0o640, 0o640]


def test_umask_of_the_process_is_never_touched(tmp_path, monkeypatch):
  # Another thread may be making a file at the same time.
  touched = []
  monkeypatch.setattr('os.umask', touched.append)
  files.replace_bytes(tmp_path / 'a', b'x')
  assert touched == []


def test_data_is_on_disk_before_it_gets_its_name(tmp_path, monkeypatch):
  order = []
  fsync, replace = os.fsync, files.Path.replace

  def synced(descriptor):
    order.append('fsync')
    fsync(descriptor)

  def renamed(path, target):
    order.append('rename')
    return replace(path, target)

  monkeypatch.setattr('os.fsync', synced)
  monkeypatch.setattr(files.Path, 'replace', renamed)
  files.replace_bytes(tmp_path / 'a', b'x')
  # The last one is of the folder, which holds the name.
  assert order == ['fsync', 'rename', 'fsync']


def test_failure_leaves_the_old_file_and_nothing_else(tmp_path):
  path = tmp_path / 'a'
  files.replace_text(path, 'old')

  def interrupted():
    with files.replacing(path) as stream:
      stream.write(b'half')
      raise KeyboardInterrupt

  with pytest.raises(KeyboardInterrupt):
    interrupted()
  assert path.read_text() == 'old'
  assert os.listdir(tmp_path) == ['a']


@pytest.mark.parametrize(
  'path', ['gs://bucket/run', 's3:/bucket', 'memory://x']
)
def test_remote_paths_are_refused_and_make_no_folder(
  tmp_path, monkeypatch, path
):
  monkeypatch.chdir(tmp_path)
  for write in (
    lambda: make_writable(path),
    lambda: files.replace_text(path, 'x'),
    lambda: coding.write(path, {}),
    lambda: run({'stages': {'train': {'steps': 1}}}, path),
    lambda: search({}, path),
  ):
    with pytest.raises(ValueError, match=f"='{path}' is on a remote file"):
      write()
  assert os.listdir(tmp_path) == []


def test_windows_drives_and_colons_are_local_paths():
  for path in ('C:/x', 'a:b', 'runs/12:30/w', './gs:/x'):
    assert str(files.local_path(path)) == path.removeprefix('./')


def test_command_can_be_typed_again(monkeypatch):
  argv = ['train', '--config=configs/a b.py', "--config.reducer.name='x'"]
  monkeypatch.setattr(sys, 'argv', argv)
  monkeypatch.setattr(sys.modules['__main__'], '__spec__', None)
  assert shlex.split(provenance.command()) == ['python', *argv]


def test_child_records_what_started_its_parent(monkeypatch):
  monkeypatch.setattr(sys, 'argv', ['launch', '--processes=2'])
  monkeypatch.setattr(sys.modules['__main__'], '__spec__', None)
  environment = provenance.as_child({'A': 'b'})
  assert environment.pop('A') == 'b'
  for name, value in environment.items():
    monkeypatch.setenv(name, value)
  monkeypatch.setattr(sys, 'argv', ['train', '--process_id=1'])
  assert provenance.command() == 'python launch --processes=2'
