"""Links between processes: what they carry, and that nothing of them stays."""

import os
import pathlib
import signal
import socket
import subprocess
import sys
import time

import pytest

from experiments import launch
from experiments.runtime import links
from experiments.runtime.links import parse_rate, shaped_links

ROOT = pathlib.Path(__file__).parents[3]
SEND = """
import socket
payload = bytes(1_000_000)
with socket.create_connection(('process0', 5000), timeout=60) as peer:
  peer.sendall(payload)
  peer.shutdown(socket.SHUT_WR)
  assert peer.recv(1) == b''
"""
RECEIVE = """
import socket
address = socket.gethostbyname(socket.gethostname())
with socket.create_server((address, 5000)) as s:
  print('listening', s.getsockname()[0], flush=True)
  peer, _ = s.accept()
  total = 0
  while part := peer.recv(1 << 16):
    total += len(part)
  print(total)
"""
HOLD = """
import subprocess, sys, time
from experiments.runtime.links import shaped_links
with shaped_links(1, None) as links:
  child = subprocess.Popen([*links.prefixes[0], 'sleep', '600'])
  time.sleep(0.2)
  print(*links.holders, child.pid, flush=True)
  time.sleep(600)
"""
CONFIG = """
import ml_collections


def get_config():
  return ml_collections.ConfigDict({
    'workers': 2, 'cpu_devices': 2, 'batch_size': 64,
    'model': {'name': 'lenet300', 'features': (16, 8)},
    'stages': {'train': {'steps': 40}},
  })
"""


@pytest.fixture(scope='module')
def possible():
  try:
    with shaped_links(1, 10**9):
      return
  except ValueError as error:
    pytest.skip(str(error))


def output(prefix, *command):
  done = subprocess.run([*prefix, *command], capture_output=True, check=True)
  return done.stdout.decode()


def is_gone(pid):
  stat = pathlib.Path(f'/proc/{pid}/stat')
  deadline = time.monotonic() + 30
  while time.monotonic() < deadline:
    try:
      if stat.read_text().rpartition(')')[2].split()[0] == 'Z':
        return True
    except (FileNotFoundError, ProcessLookupError):
      return True
    time.sleep(0.05)
  return False


@pytest.mark.parametrize(
  ('text', 'rate'),
  [
    ('100mbit', 10**8),
    ('1gbit', 10**9),
    ('2.5gbit', 25 * 10**8),
    ('1000kbit', 10**6),
    ('unshaped', None),
  ],
)
def test_rates(text, rate):
  assert parse_rate(text) == rate


@pytest.mark.parametrize(
  'text', ['', '1', 'mbit', '1 gbit', '-1gbit', '1gb', '0mbit', '41gbit']
)
def test_bad_rates_are_named(text):
  with pytest.raises(ValueError, match=f'^rate={text!r} is no'):
    parse_rate(text)


def test_processes_are_in_range():
  with pytest.raises(ValueError, match='processes=0 is not between'):
    shaped_links(0, None).__enter__()


def test_what_crosses_a_link_is_counted(possible):
  with shaped_links(3, 10**9) as net:
    receiver = subprocess.Popen(
      [*net.prefixes[0], sys.executable, '-c', RECEIVE],
      stdout=subprocess.PIPE,
      text=True,
    )
    with receiver:
      assert receiver.stdout.readline() == f'listening {net.addresses[0]}\n'
      output(net.prefixes[1], sys.executable, '-c', SEND)
      assert receiver.stdout.read() == '1000000\n'
    traffic = net.traffic()
  assert 1_000_000 < traffic[1].sent < 1_050_000
  assert 1_000_000 < traffic[0].received < 1_050_000
  # Acknowledgments; and nothing for the one that takes no part.
  assert max(traffic[0].sent, traffic[1].received) < 50_000
  assert max(traffic[2]) < 10_000


@pytest.mark.parametrize(
  ('rate', 'shown'),
  [(10**8, 'rate 100Mbit burst 18Kb'), (10**10, 'rate 10Gbit burst')],
)
def test_both_ends_are_shaped(possible, rate, shown):
  with shaped_links(2, rate) as net:
    for prefix in net.prefixes:
      assert shown in output(prefix, 'tc', 'qdisc', 'show', 'dev', 'eth0')


def test_unshaped_links_have_no_bucket(possible):
  with shaped_links(1, None) as net:
    shown = output(net.prefixes[0], 'tc', 'qdisc', 'show', 'dev', 'eth0')
  assert 'tbf' not in shown


def test_names_and_directory_inside(possible):
  with shaped_links(2, None) as net:
    assert output(net.prefixes[1], 'hostname') == 'process1\n'
    assert output(net.prefixes[1], 'pwd') == f'{os.getcwd()}\n'
    hosts = output(net.prefixes[0], 'cat', '/etc/hosts').splitlines()
  assert f'{net.addresses[1]} process1' in hosts


def test_the_host_is_untouched_and_networks_do_not_meet(possible):
  def host():
    hosts = pathlib.Path('/etc/hosts').read_bytes()
    return socket.gethostname(), hosts, socket.if_nameindex()

  before = host()
  with shaped_links(2, None) as one, shaped_links(2, None) as other:
    assert host() == before
    assert one.addresses == other.addresses
    names = [os.readlink(f'/proc/{n.holders[0]}/ns/net') for n in (one, other)]
    assert len({*names, os.readlink('/proc/self/ns/net')}) == 3
  assert host() == before
  assert all(is_gone(pid) for pid in (*one.holders, *other.holders))


def test_an_error_removes_them(possible):
  with (
    pytest.raises(RuntimeError, match='inside'),
    shaped_links(2, None) as net,
  ):
    raise RuntimeError('inside')
  assert all(is_gone(pid) for pid in net.holders)


@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGKILL])
def test_a_signal_removes_them_and_what_runs_in_them(possible, number):
  with subprocess.Popen(
    [sys.executable, '-c', HOLD], stdout=subprocess.PIPE, text=True, cwd=ROOT
  ) as owner:
    pids = [int(word) for word in owner.stdout.readline().split()]
    assert len(pids) == 2
    owner.send_signal(number)
  assert all(is_gone(pid) for pid in pids)


@pytest.mark.parametrize(
  ('name', 'value', 'message'),
  [
    ('os.geteuid', lambda: 1000, 'need root'),
    ('shutil.which', lambda tool: None if tool == 'tc' else tool, 'need tc'),
  ],
)
def test_launch_says_what_the_machine_lacks(
  monkeypatch, capfd, name, value, message
):
  monkeypatch.setattr(links.os, 'geteuid', lambda: 0)
  module, attribute = name.split('.')
  monkeypatch.setattr(getattr(links, module), attribute, value)
  arguments = ['--processes=2', '--rate=1gbit', '--', '--config=none']
  assert launch.main(arguments) == 2
  said = capfd.readouterr().err
  assert said.startswith('launch: error: ')
  assert message in said
  assert said.count('\n') == 1


def test_launch_refuses_a_bad_rate(capfd):
  arguments = ['--processes=2', '--rate=1gb', '--', '--config=none']
  assert launch.main(arguments) == 2
  said = capfd.readouterr().err
  assert said.startswith("launch: error: rate='1gb' is no rate")
  assert said.count('\n') == 1


@pytest.mark.slow
def test_launch_prints_what_interfaces_counted(possible, tmp_path):
  config = tmp_path / 'config.py'
  config.write_text(CONFIG)
  arguments = ['--processes=2', '--rate=1gbit', '--', f'--config={config}']
  done = subprocess.run(
    [
      sys.executable, '-m', 'experiments.launch', *arguments,
      f'--workdir={tmp_path / "w"}',
    ],
    capture_output=True,
    text=True,
    cwd=ROOT,
    env={**os.environ, 'JAX_PLATFORMS': 'cpu', 'XLA_FLAGS': ''},
    check=False,
  )  # fmt: skip
  assert done.returncode == 0, done.stderr
  lines = [x for x in done.stdout.splitlines() if x.startswith('launch: ')]
  assert [line.split()[2] for line in lines] == ['0', '1']
  sent = [int(line.split()[4].replace(',', '')) for line in lines]
  # 784 x 16 + 16, 16 x 8 + 8 and 8 x 10 + 10 parameters of 4 bytes, dense: two
  # workers send each once a step. The rest is coordination.
  gradients = 40 * 4 * (784 * 16 + 16 + 16 * 8 + 8 + 8 * 10 + 10)
  assert all(gradients < count < 1.5 * gradients for count in sent)


def test_a_process_that_cannot_start_is_one_line(monkeypatch, capsys):
  monkeypatch.setattr(sys, 'executable', '/nonexistent/python')
  assert launch.main(['--processes=2', '--', '--config=c.py']) == 2
  said = capsys.readouterr().err
  assert said.startswith('launch: error: processes=2: number 0 cannot be start')
  assert said.count('\n') == 1
