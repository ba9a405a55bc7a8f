"""Learning curves of one run, drawn from its metrics.jsonl."""

import collections

from etils import epath

from transformer_jax.display.figures import DPI, PlainFigure, save_figure
from transformer_jax.display.lines import fit_scale
from transformer_jax.errors import DataError
from transformer_jax.storage.metrics_writer import read_metrics, training_loss

# Metric -> the title of its panel, in the order of the panels.
TITLES = {'loss': 'loss (nats per token)', 'perplexity': 'perplexity', 'bleu': 'BLEU'}
UNBOUNDED = ('loss', 'perplexity')  # their axes are logarithmic where values span decades
COLORS = {'train': 'tab:gray', 'validation': 'tab:blue'}
PANEL_INCHES = (4.5, 3.2)

Series = tuple[list[int], list[float]]  # steps and values


def draw_learning_curves(metrics_path: epath.PathLike, path: epath.PathLike) -> epath.Path:
    """Draw loss, perplexity and BLEU over steps, one panel for each metric that was logged.

    Both losses are without label smoothing; that of training is the mean since the point before.
    Values that are not finite leave a gap in the curve.

    Args:
        metrics_path: the metrics.jsonl of a run.
        path: where to write the figure; the suffix decides the format.

    Returns:
        the path of the figure.

    Raises:
        ConfigError: the suffix is none of `figures.FORMATS`.
        DataError: no loss was logged yet.
    """
    series = _read_series(epath.Path(metrics_path))
    names = [name for name in TITLES if any((name, split) in series for split in COLORS)]
    if not names:
        raise DataError(f'{metrics_path} has no losses yet')
    width, height = PANEL_INCHES
    figure = PlainFigure(figsize=(width * len(names), height), dpi=DPI, layout='constrained')
    for axes, name in zip(figure.subplots(1, len(names), squeeze=False)[0], names, strict=True):
        for split, color in COLORS.items():
            if (name, split) in series:
                axes.plot(
                    *series[name, split],
                    color=color,
                    label=split,
                    marker='o' if split == 'validation' else '',
                    markersize=3,
                    linewidth=1.2,
                )
        if name in UNBOUNDED:
            logged = (series[name, split][1] for split in COLORS if (name, split) in series)
            fit_scale(axes, 'y', [value for values in logged for value in values])
        axes.set(title=TITLES[name], xlabel='step')
        axes.grid(alpha=0.3)
        axes.legend(frameon=False)
        axes.spines[['top', 'right']].set_visible(False)
    return save_figure(figure, epath.Path(path))


def _read_series(metrics_path: epath.Path) -> dict[tuple[str, str], Series]:
    """Read metrics.jsonl into {('loss', 'train'): (steps, values)}."""
    series: dict[tuple[str, str], Series] = collections.defaultdict(lambda: ([], []))
    for event in read_metrics(metrics_path):
        if event['split'] == 'train':
            event['loss'] = training_loss(event)
        for name in TITLES:
            if event.get(name) is not None:
                steps, values = series[name, event['split']]
                steps.append(event['step'])
                values.append(float(event[name]))
    return dict(series)
