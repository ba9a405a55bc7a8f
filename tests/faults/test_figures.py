"""Figures that can be read: scales, whole intervals, colors, names, and any number of points."""

import io
import itertools
import warnings

import matplotlib.colors
import numpy as np
import pytest
from helpers.made_up_ablation import analyzed, make_results
from matplotlib.text import Text

from transformer_jax.cli import main
from transformer_jax.display.figures import PlainFigure, figure_bytes, save_figure
from transformer_jax.display.lines import MOST_COLORS, fit_scale, name_ends
from transformer_jax.errors import ConfigError
from transformer_jax.profiling import bench_attention_result as bench
from transformer_jax.report import axis_figures, figures
from transformer_jax.report.metric_names import curve_name, metric_name
from transformer_jax.report.traces import Curve


def drawn_colors(axes) -> set[str]:
    return {matplotlib.colors.to_hex(line.get_color()) for line in axes.lines}


def axis_of(count: int, places=(16, 64)) -> dict:
    """Make an axis of `count` lines, whose variants are 'line x'."""
    points = {f'{line} {x}': (f'name {line}', x) for line in range(count) for x in places}
    return {'label': 'x', 'points': points}


def scores(axis: dict, mean=1.0, half=0.5) -> dict:
    return {
        variant: axis_figures.Point(mean, mean - half, mean + half, (mean,))
        for variant in axis['points']
    }


@pytest.mark.parametrize(
    ('values', 'ends', 'scale'),
    [
        ([8.0, 0.06], [], 'log'),
        ([5000.0, 5.0], [4.0, 6000.0], 'log'),
        ([8.0, 0.06], [-1.0, 9.0], 'symlog'),  # an interval that reaches below zero
        ([8.0, 0.06], [0.0], 'symlog'),
        ([8.0, 1.0], [], 'linear'),
        ([8.0, 0.0], [], 'linear'),
        ([8.0, -0.1], [], 'linear'),
        ([8.0, float('nan'), 0.06, float('inf')], [], 'log'),
        ([float('nan')], [], 'linear'),
        ([], [], 'linear'),
        ([3.0], [], 'linear'),
        ([1e-9, 1e9], [], 'log'),
    ],
)
def test_axes_are_logarithmic_where_values_span_decades(values, ends, scale):
    for direction in ('x', 'y'):
        axes = PlainFigure().subplots()
        fit_scale(axes, direction, values, ends)
        assert getattr(axes, f'get_{direction}scale')() == scale
        axes.plot(*[values, values] if values else [[1], [1]])
        axes.figure.draw_without_rendering()
        labels = [text.get_text() for text in getattr(axes, f'get_{direction}ticklabels')()]
        assert any(labels)
        assert not any('$' in label for label in labels)


@pytest.mark.parametrize(('mean', 'half'), [(0.5, 0.01), (0.5, 3.0), (1.0, 50.0), (1e-3, 2e-3)])
@pytest.mark.parametrize('linear', [True, False])
def test_intervals_are_whole(mean, half, linear):
    axis = axis_of(2)
    found = scores(axis, mean, half)
    found['0 16'] = axis_figures.Point(40 * mean, 40 * mean, 40 * mean, (40 * mean,))
    [axes] = axis_figures._axis_figure(axis, 'y', found, linear).axes
    low, high = axes.get_ylim()
    assert low <= mean - half
    assert high >= mean + half


@pytest.mark.parametrize('count', [1, 2, 8, 9, 30])
def test_many_lines_have_their_names_beside_them(count):
    axis = axis_of(count)
    figure = axis_figures._axis_figure(axis, 'y', scores(axis), linear=True)
    figure.draw_without_rendering()
    [axes] = figure.axes
    names = [f'name {line}' for line in range(count)]
    assert len(drawn_colors(axes)) <= MOST_COLORS
    if count > MOST_COLORS:
        assert axes.get_legend() is None
        # Of the words alone, without the line that leads to them.
        boxes = sorted((Text.get_window_extent(text) for text in axes.texts), key=lambda b: b.y0)
        assert {text.get_text() for text in axes.texts} == {*names}
        assert all(one.y1 - other.y0 < 3 for one, other in itertools.pairwise(boxes))
        assert all(box.y0 >= 0 and box.x1 <= figure.bbox.x1 for box in boxes)
    else:
        assert [text.get_text() for text in axes.get_legend().get_texts()] == names


def test_learning_curves_of_many_variants(tmp_path):
    results = make_results()
    report = analyzed(tmp_path, results)
    names = [f'variant {number}' for number in range(20)]
    report.experiment['variants'] |= {name: {} for name in names}
    points = [(step, 1000.0 * 0.5**step) for step in range(12)]
    found = {name: Curve({0: points}, points, 1) for name in names}
    report.curves['validation perplexity'] = found
    [axes] = figures._curves_figure(report, 'validation perplexity', found).axes
    assert axes.get_yscale() == 'log'
    assert {text.get_text() for text in axes.texts} == {*names}
    assert len(drawn_colors(axes)) <= MOST_COLORS
    [axes] = figures._curves_figure(report, 'validation bleu', found).axes
    assert axes.get_yscale() == 'linear'  # a score


def test_a_line_without_a_finite_point_has_no_name():
    axes = PlainFigure().subplots()
    lines = [*axes.plot([1, 2], [np.nan, np.nan]), *axes.plot([1, 2], [3.0, np.nan])]
    name_ends(axes, lines, ['lost', 'found'])
    assert [text.get_text() for text in axes.texts] == ['found']


@pytest.mark.parametrize(
    ('found', 'name'),
    [
        (curve_name('validation bleu'), 'BLEU (validation)'),
        (curve_name('train grad_norm'), 'norm of the gradient (training)'),
        (curve_name('train loss'), 'loss (training)'),
        (curve_name('validation bits_per_byte'), 'bits per byte (validation)'),
        (curve_name('train something_new'), 'something new (training)'),
        (metric_name({'name': 'step_seconds', 'split': 'test', 'length': 0}), 'seconds per step'),
        (
            metric_name({'name': 'exact_match', 'split': 'test', 'length': 40}),
            'exact match (test, length 40)',
        ),
        (metric_name({'name': 'bleu', 'split': 'test'}), 'BLEU (test)'),
    ],
)
def test_names_are_for_people(found, name):
    assert found == name


@pytest.mark.parametrize('suffix', ['.png', '.svg', '.pdf'])
def test_a_file_has_the_same_bytes_each_time(tmp_path, suffix):
    contents = []
    for stem in ('one', 'two'):
        figure = PlainFigure()
        figure.subplots().plot([1, 2], label='a')
        contents.append(save_figure(figure, tmp_path / f'{stem}{suffix}').read_bytes())
    assert contents[0] == contents[1]


# --- bench attention ------------------------------------------------------------------------------


def measured(lengths, kinds=('softmax',), seconds=0.5, size=2**20) -> bench.AttentionBench:
    points = [
        bench.Point(kind, 'dense', length, direction, seconds, 10, size)
        for kind in kinds
        for length in lengths
        for direction in bench.PASSES
    ]
    sizes = bench.Sizes(1, 2, 2, 8)
    return bench.AttentionBench({}, sizes, tuple(points), tuple(bench.fit_slopes(points)))


@pytest.mark.parametrize(
    ('result', 'panels'),
    [
        (measured([64]), 2),
        (measured([64, 64]), 2),
        (measured([64, 128]), 2),
        (measured([64], seconds=None), 1),
        (measured([64], size=0), 1),
        (measured([64], [f'kind {number}' for number in range(20)]), 2),
        (measured([64, 128], ['$x_', '_a']), 2),
    ],
)
def test_a_bench_of_any_lengths_is_drawn(result, panels, tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(bench, 'save_figure', lambda figure, path: drawn.append(figure) or path)
    bench.draw(result, tmp_path / 'out.png')
    [figure] = drawn
    figure.draw_without_rendering()
    assert len(figure.axes) == panels
    for axes in figure.axes:
        assert axes.lines
        assert len(drawn_colors(axes)) <= MOST_COLORS


def test_a_bench_without_numbers_says_so(tmp_path):
    with pytest.raises(ConfigError, match='nothing to draw'):
        bench.draw(measured([64], seconds=None, size=0), tmp_path / 'out.png')


@pytest.mark.parametrize(
    ('flags', 'message'),
    [
        (['--out=x.bmp'], 'x.bmp: the suffix of a figure must be'),
        (['--lengths='], '--lengths is empty'),
        (['--engines='], '--engines is empty'),
    ],
)
def test_what_cannot_be_measured_or_drawn_is_refused_first(flags, message, capsys):
    assert main(['bench', 'attention', '--lengths=64', *flags]) == 2
    assert message in capsys.readouterr().err


def test_one_length_is_measured_and_drawn(tmp_path):
    out = tmp_path / 'one.svg'
    command = ['bench', 'attention', '--attention=softmax', '--engines=dense', '--lengths=16']
    assert main([*command, '--heads=1', '--head_dim=8', f'--out={out}']) == 0
    assert out.stat().st_size > 1000
    assert io.StringIO(out.read_text()).readline().startswith('<?xml')


def test_characters_that_the_font_lacks_are_told_once(recwarn, monkeypatch):
    told = []
    monkeypatch.setattr(
        'transformer_jax.display.figures.logging.log_first_n', lambda *call: told.append(call)
    )
    for _ in range(2):
        figure = PlainFigure()
        figure.subplots().set_title('注意 🙂 softmax')
        figure_bytes(figure)
    assert not [warning for warning in recwarn if 'Glyph' in str(warning.message)]
    assert ['lacks characters of some names' in text for _, text, _ in told] == [True, True]
    assert {most for _, _, most in told} == {1}


def test_other_warnings_of_a_figure_are_passed_on(monkeypatch):
    monkeypatch.setattr(PlainFigure, 'savefig', lambda *_, **__: warnings.warn('odd', stacklevel=1))
    with pytest.warns(UserWarning, match='odd'):
        figure_bytes(PlainFigure())
