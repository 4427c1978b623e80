import subprocess
import sys

import matplotlib
import matplotlib.image
import numpy as np
import pytest

from bandwidth.pruning import SensitivityRow
from bandwidth.report import MemoryStage
from experiments.reports import plots, published

DENSE = plots.MeasuredPoint('dense', [1_066_440], [1.6])
CURVE = [
  plots.MeasuredPoint('rate', [8_000, 8_400, 8_100], [1.9, 1.8, 2.1]),
  plots.MeasuredPoint('rate', [4_000], [2.5]),
]
STAGES = [
  MemoryStage(name=name, bytes=size, ratio=1_000_000 / size, accuracy=0.98)
  for name, size in (('P', 100_000), ('P+Q', 40_000), ('auto', 20_000))
]


def sensitivity_rows():
  return [
    SensitivityRow(name, sparsity, 100, 50, 0.9 - loss * sparsity, -loss)
    for name, loss in (('a', 0.0), ('b', 0.5))
    for sparsity in (0.5, 0.9)
  ]


def draw_sensitivity(path):
  plots.plot_sensitivity(sensitivity_rows(), path)


def draw_stages(path):
  plots.plot_stages(
    STAGES,
    path,
    dense_bytes=1_000_000,
    published={'P': 12, 'P+Q': 32},
    title='net',
  )


def draw_rate_error(path, points=CURVE, network='lenet300', dense=DENSE):
  both = [p for p in published.PUBLISHED if p.network == network]
  plots.plot_rate_error(points, both, path, dense=dense, title='net')


DRAW = [draw_sensitivity, draw_stages, draw_rate_error]


@pytest.fixture
def figures(monkeypatch):
  """The figures that are made from now on."""
  made = []

  def figure(*args, **kwargs):
    made.append(matplotlib.figure.Figure(*args, **kwargs))
    return made[-1]

  monkeypatch.setattr(plots, 'Figure', figure)
  return made


@pytest.mark.parametrize('draw', DRAW)
def test_same_data_same_bytes_whatever_the_settings(draw, tmp_path):
  draw(tmp_path / 'new folder' / 'a.png')
  with matplotlib.rc_context({'font.size': 30, 'axes.facecolor': 'red'}):
    draw(tmp_path / 'b.png')
    assert matplotlib.rcParams['font.size'] == 30
  first = (tmp_path / 'new folder' / 'a.png').read_bytes()
  assert first == (tmp_path / 'b.png').read_bytes()
  image = matplotlib.image.imread(tmp_path / 'b.png')
  assert min(image.shape[:2]) > 400
  assert 0.02 < np.mean(image[..., :3].min(axis=-1) < 0.9) < 0.6
  assert sorted(p.name for p in tmp_path.iterdir()) == ['b.png', 'new folder']


def test_pyplot_is_not_imported():
  code = (
    'import sys, experiments.reports.plots; '
    'print("matplotlib.pyplot" in sys.modules)'
  )
  done = subprocess.run(
    [sys.executable, '-c', code], capture_output=True, text=True, check=True
  )
  assert done.stdout == 'False\n'


def test_sensitivity_has_a_line_for_each_parameter(figures, tmp_path):
  draw_sensitivity(tmp_path / 's.png')
  first, second, dense = figures[0].axes[0].lines
  np.testing.assert_allclose(first.get_xydata(), [[50, 90], [90, 90]])
  np.testing.assert_allclose(second.get_xydata(), [[50, 65], [90, 45]])
  np.testing.assert_allclose(dense.get_ydata(), 90)


def test_stages_stand_beside_the_published_sizes(figures, tmp_path):
  draw_stages(tmp_path / 's.png')
  axes = figures[0].axes[0]
  heights = sorted(patch.get_height() for patch in axes.patches)
  expected = [20_000, 1e6 / 32, 40_000, 1e6 / 12, 100_000]
  np.testing.assert_allclose(heights, expected)
  texts = [text.get_text() for text in axes.texts]
  assert texts == ['10x\n98.00%', '25x\n98.00%', '50x\n98.00%', '12x', '32x']


def test_measured_points_are_medians_with_all_seeds(figures, tmp_path):
  draw_rate_error(tmp_path / 'r.png')
  axes = figures[0].axes[0]
  (bars,) = axes.containers
  line, _, spreads = bars
  np.testing.assert_allclose(line.get_xydata(), [[4_000, 2.5], [8_100, 1.9]])
  horizontal, vertical = (spread.get_segments() for spread in spreads)
  np.testing.assert_allclose(horizontal[1], [[8_000, 1.9], [8_400, 1.9]])
  np.testing.assert_allclose(vertical[1], [[8_100, 1.8], [8_100, 2.1]])


def test_ratio_axis_agrees_with_the_bytes(figures, tmp_path):
  draw_rate_error(tmp_path / 'r.png')
  below, above = figures[0].axes
  assert below.get_xscale() == above.get_xscale() == 'log'
  for size in (4_000, 27_000):
    at = below.transData.transform((size, 2.0))[0]
    ratio = above.transData.inverted().transform((at, 0.0))[0]
    assert ratio == pytest.approx(1_066_440 / size)


@pytest.mark.parametrize('network', ['lenet300', 'lenet5'])
def test_only_coded_bytes_share_the_axis(figures, tmp_path, network):
  draw_rate_error(tmp_path / 'r.png', network=network)
  axes = figures[0].axes[0]
  drawn = {tuple(xy) for line in axes.lines for xy in line.get_xydata()}
  note = figures[0].get_supxlabel()
  for point in published.PUBLISHED:
    if point.network == network:
      coded = 'coded' in point.accounting.value
      assert ((point.file_bytes, point.error_percent) in drawn) == coded
      assert (f'{point.method} {point.ratio:g}x' in note) != coded


def test_labels_do_not_cover_points_or_each_other(figures, tmp_path):
  draw_rate_error(tmp_path / 'r.png', network='lenet5')
  axes = figures[0].axes[0]
  boxes = [text.get_window_extent() for text in axes.texts]
  assert len(boxes) == 4
  for i, box in enumerate(boxes):
    assert not any(box.overlaps(other) for other in boxes[:i])
    for line in axes.lines[1:]:
      assert not box.count_contains(axes.transData.transform(line.get_xydata()))


@pytest.mark.parametrize(
  ('draw', 'message'),
  [
    (lambda p: plots.plot_sensitivity([], p), 'rows='),
    (
      lambda p: plots.plot_stages([], p, dense_bytes=1, published={}, title=''),
      'stages=',
    ),
    (
      lambda p: plots.plot_rate_error([], [], p, dense=DENSE, title=''),
      'nothing to plot',
    ),
    (
      lambda p: draw_rate_error(p, [plots.MeasuredPoint('x', [0], [1.0])]),
      'x: file_bytes=0 is not positive',
    ),
    (
      lambda p: draw_rate_error(p, [plots.MeasuredPoint('x', [5], [])]),
      'x: 1 file_bytes and 0 error_percent',
    ),
    (lambda p: draw_stages(p.with_suffix('.pdf')), 'has not the suffix .png'),
    (lambda p: draw_stages(p / 'file' / 'below.png'), 'cannot be written'),
  ],
)
def test_bad_input_leaves_the_old_file(tmp_path, draw, message):
  path = tmp_path / 'old.png'
  path.write_bytes(b'old')
  with pytest.raises(ValueError, match=message):
    draw(path)
  assert path.read_bytes() == b'old'
  assert [p.name for p in tmp_path.iterdir()] == ['old.png']


DENSE_BYTES = {'lenet300': 4 * 266_610, 'lenet5': 4 * 431_080}


def test_published_bytes_and_ratios_agree():
  for point in published.PUBLISHED:
    if point.file_bytes:
      ratio = DENSE_BYTES[point.network] / point.file_bytes
      # As printed: rounded, and in kilobytes of 1000 or 1024 bytes.
      assert ratio == pytest.approx(point.ratio, rel=0.06), point


def test_published_points_by_accounting():
  for network in DENSE_BYTES:
    coded = published.published(network, coded=True)
    others = published.published(network, coded=False)
    assert all(point.file_bytes for point in coded)
    assert len({*coded, *others}) == len(
      [p for p in published.PUBLISHED if p.network == network]
    )
  with pytest.raises(ValueError, match="network='lenet' is none of lenet300"):
    published.published('lenet', coded=True)
