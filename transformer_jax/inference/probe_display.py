"""Probes of attention as a table for a terminal, and as figures."""

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
import rich.table
from etils import epath
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from transformer_jax.display.figures import DPI, PlainFigure, save_figure
from transformer_jax.inference.head_sums import PROBES
from transformer_jax.inference.probes import probes_at

FEW_CELLS = 48  # Heat maps of at most so many cells have their numbers written into them.
PANEL_INCHES = 2.4


def probe_table(result: Mapping[str, Any]) -> rich.table.Table:
    """Format the newest checkpoint of a result of `probe` for a terminal.

    Layers and heads count from 1, as in pictures of attention.
    """
    newest = result['checkpoints'][-1]
    steps = ', '.join(str(step) for step in (newest['step'], *newest['averaged']))
    average = ', averaged' if newest['averaged'] else ''
    table = rich.table.Table(title=f'{result["split"]}, step {steps}{average}')
    table.add_column('site')
    for name in ('layer', 'head', *PROBES.values()):
        table.add_column(name, justify='right')
    for index, row in enumerate(newest['sites']):
        if index and row['head'] == 0 == row['layer']:
            table.add_section()
        numbers = ('–' if row[name] is None else f'{row[name]:.3f}' for name in PROBES)
        table.add_row(row['site'], str(row['layer'] + 1), str(row['head'] + 1), *numbers)
    return table


def draw_probes(result: Mapping[str, Any], path: epath.PathLike) -> epath.Path:
    """Draw a result of `probe`: a site in each row, a probe in each column.

    One checkpoint becomes heat maps of layers by heads. Several become a line for each head over
    the steps, colored by layer. Panels without any number are left out.

    Returns:
        the path.

    Raises:
        ConfigError: the suffix of `path` is not that of a picture.
    """
    checkpoints = result['checkpoints']
    sites = list(dict.fromkeys(row['site'] for row in checkpoints[0]['sites']))
    every_row = [row for checkpoint in checkpoints for row in checkpoint['sites']]
    names = [name for name in PROBES if any(row[name] is not None for row in every_row)]
    size = PANEL_INCHES * len(names), PANEL_INCHES * len(sites) + 0.4
    figure = PlainFigure(figsize=size, dpi=DPI, layout='constrained')
    panels = figure.subplots(len(sites), len(names), squeeze=False)
    for name, column in zip(names, panels.T, strict=True):
        _draw_column(figure, column, result, sites, name)
    # Every row has a visible panel: the sink always has a meaning.
    firsts = [next(axes for axes in row if axes.get_visible()) for row in panels]
    for site, axes in zip(sites, firsts, strict=True):
        axes.set_ylabel(site if len(checkpoints) > 1 else f'{site} layer')
    if len(checkpoints) > 1:
        firsts[0].legend(frameon=False, fontsize=6)
    return save_figure(figure, epath.Path(path))


def _draw_column(
    figure: Figure,
    column: Sequence[Axes],
    result: Mapping[str, Any],
    sites: Sequence[str],
    name: str,
) -> None:
    """Draw one probe at all sites; hide the panels of sites where it has no meaning."""
    checkpoints = result['checkpoints']
    grids = [
        np.stack([probes_at(checkpoint['sites'], site, name) for checkpoint in checkpoints])
        for site in sites
    ]
    if len(checkpoints) == 1:
        _heat_maps(figure, column, [grid for [grid] in grids])
    else:
        for axes, grid in zip(column, grids, strict=True):
            _lines(axes, [checkpoint['step'] for checkpoint in checkpoints], grid)
    visible = [axes for axes, grid in zip(column, grids, strict=True) if np.isfinite(grid).any()]
    for axes in column:
        axes.set_visible(axes in visible)
    visible[0].set_title(PROBES[name], fontsize=9)
    visible[-1].set_xlabel('step' if len(checkpoints) > 1 else 'head')


def _heat_maps(figure: Figure, column: Sequence[Axes], grids: Sequence[np.ndarray]) -> None:
    """Draw grids [layers, heads] of one probe in colors of one scale."""
    finite = np.concatenate([grid[np.isfinite(grid)] for grid in grids])
    low, high = finite.min(), finite.max()
    for axes, grid in zip(column, grids, strict=True):
        layers, heads = grid.shape
        image = axes.imshow(grid, vmin=low, vmax=high, cmap='viridis', aspect='auto')
        axes.set_xticks(range(heads), [str(head + 1) for head in range(heads)])
        axes.set_yticks(range(layers), [str(layer + 1) for layer in range(layers)])
        if grid.size <= FEW_CELLS:
            _write_numbers(axes, grid, dark_from=(low + high) / 2)
    figure.colorbar(image, ax=list(column), location='bottom', shrink=0.9, aspect=30)


def _write_numbers(axes: Axes, grid: np.ndarray, dark_from: float) -> None:
    """Write the numbers of a heat map into its cells, dark where the color is bright."""
    for (layer, head), value in np.ndenumerate(grid):
        if not np.isfinite(value):
            continue
        places = 0 if value >= 100 else 1 if value >= 10 else 2
        axes.text(
            head,
            layer,
            f'{value:.{places}f}',
            ha='center',
            va='center',
            fontsize=6,
            color='black' if value > dark_from else 'white',
        )


def _lines(axes: Axes, steps: Sequence[int], values: np.ndarray) -> None:
    """Draw values [checkpoints, layers, heads] of one probe at one site over the steps."""
    layers = values.shape[1]
    for layer in range(layers):
        color = matplotlib.colormaps['viridis'](layer / max(layers - 1, 1) * 0.9)
        for head, line in enumerate(values[:, layer].T):
            axes.plot(
                steps,
                line,
                color=color,
                linewidth=1,
                marker='.',
                markersize=3,
                label=f'layer {layer + 1}' if head == 0 else None,
            )
    axes.grid(alpha=0.3)
    axes.spines[['top', 'right']].set_visible(False)
