"""What attention does in a trained model, in numbers: `transformer-jax probe`.

For every site, layer and head, over the queries of some batches, teacher-forced:

- entropy: −Σ w log w of a query's weights w in nats; where they do not sum to 1, of their shares in
  the sum
- normalised_entropy: divided by log n, n the keys that the query may see, of queries that may see
  two or more
- distance: Σ w |position of the query − position of the key|, by the same shares; in
  cross-attention, too, positions count from 0 on both sides
- sink: the weight on the first token of the segment, as it is
- max_logit: the largest score, before the normalizer, of any query for a key that it may see

None stands for what has no meaning: entropies and distance where weights are negative, max_logit
where attention has no score for each pair, or keeps none (a recurrent model's).

Queries and keys are those of the forward pass; weights are made of them once more by the kind's
dense formula, so that an engine that never holds weights is probed as well.
"""

import functools
import json
from collections.abc import Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
import rich.table
from etils import epath
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from transformer_jax.attention.masks import Segments
from transformer_jax.batch import Batch, Tokens
from transformer_jax.display.figures import DPI, save_figure
from transformer_jax.errors import ConfigError
from transformer_jax.evaluation.evaluator import Trained
from transformer_jax.storage.files import wrap_os_errors, write_text

PROBES = {
    'entropy': 'entropy (nats)',
    'normalised_entropy': 'entropy / log n',
    'distance': 'distance (tokens)',
    'sink': 'weight on the first',
    'max_logit': 'largest score',
}
FILE = 'probes.json'
SIGNED = -1e-6  # a weight below this is negative, and not rounded
FEW_CELLS = 48  # of a heat map: their numbers are written into them
PANEL_INCHES = 2.4

Row = dict[str, Any]  # {'site': 'encoder', 'layer': 0, 'head': 0, 'entropy': …, …}


class Look(NamedTuple):
    """How the heads of one attention look at a batch."""

    weights_BNTS: jax.Array
    logits_BNTS: jax.Array | None
    allowed_BTS: jax.Array
    query: Tokens
    key: Tokens


class Sums(NamedTuple):
    """Of each head, over queries that are no padding."""

    entropy_N: Any
    distance_N: Any
    weighing_N: Any  # queries with any weight, which the two above are summed over
    normalised_N: Any
    choosing_N: Any  # those of them that may see two keys or more
    sink_N: Any
    queries_N: Any
    least_N: Any  # the smallest weight
    logit_N: Any  # the largest score; None: there are none

    def plus(self, other: 'Sums') -> 'Sums':
        """Of the queries of both."""
        added = [mine_N + others_N for mine_N, others_N in zip(self[:7], other[:7], strict=True)]
        logit_N = None if self.logit_N is None else np.maximum(self.logit_N, other.logit_N)
        return Sums(*added, np.minimum(self.least_N, other.least_N), logit_N)

    def rows(self) -> list[dict[str, float | None]]:
        """The probes of each head."""

        def mean(sum_N, count_N, meaningful_N):
            return [
                float(total / count) if count and meaningful else None
                for total, count, meaningful in zip(sum_N, count_N, meaningful_N, strict=True)
            ]

        always_N, positive_N = np.ones(len(self.least_N), bool), self.least_N >= SIGNED
        logits = (
            [None] * len(always_N)
            if self.logit_N is None
            else [float(logit) if np.isfinite(logit) else None for logit in self.logit_N]
        )
        columns = (
            mean(self.entropy_N, self.weighing_N, positive_N),
            mean(self.normalised_N, self.choosing_N, positive_N),
            mean(self.distance_N, self.weighing_N, positive_N),
            mean(self.sink_N, self.queries_N, always_N),
            logits,
        )
        return [dict(zip(PROBES, values, strict=True)) for values in zip(*columns, strict=True)]


def looks(model: nn.Module, params: Any, batch: Batch) -> dict[tuple[str, int], Look]:
    """How every attention of a model looks at a batch, by site and layer."""
    architecture = model.architecture
    collection = 'heads' if architecture.sites else 'intermediates'
    _, sown = model.apply({'params': params}, batch, method='features', mutable=[collection])
    if not architecture.sites:  # a recurrent model
        query, key = batch.target_tokens, batch.source_tokens
        [weights_BNTS] = sown[collection]['weights_BNTS']
        return {('cross', 0): Look(weights_BNTS, None, Segments().allowed(query, key), query, key)}
    found = {}
    for site, layer in architecture.sites:
        block = sown[collection][f'{"encoder" if site == "encoder" else "decoder"}_{layer}']
        [(queries, keys, inputs)] = block['cross' if site == 'cross' else 'attention']['inputs']
        kind = architecture.attention_at(site, layer).kind
        found[site, layer] = Look(
            kind.weights(queries, keys, inputs),
            kind.logits(queries, keys, inputs),
            inputs.allowed_BTS(),
            inputs.query,
            inputs.key,
        )
    return found


def head_sums(look: Look) -> Sums:
    """What the probes of a batch are made of."""
    weights_BNTS, logits_BNTS, allowed_BTS, query, key = look
    weights_BNTS = weights_BNTS.astype(jnp.float32)
    real_BT, seen_BT = allowed_BTS.any(-1), allowed_BTS.sum(-1)
    total_BNT = weights_BNTS.sum(-1)
    weighing_BNT = (total_BNT > 0) & real_BT[:, None]
    choosing_BNT = weighing_BNT & (seen_BT >= 2)[:, None]
    shares_BNTS = weights_BNTS / jnp.where(weighing_BNT, total_BNT, 1)[..., None]
    entropy_BNT = jax.scipy.special.entr(jnp.maximum(shares_BNTS, 0)).sum(-1)
    normalised_BNT = entropy_BNT / jnp.log(jnp.maximum(seen_BT, 2).astype(jnp.float32))[:, None]
    apart_BTS = jnp.abs(query.positions_BT[:, :, None] - key.positions_BT[:, None]).astype(
        jnp.float32
    )
    first_BTS = (Segments().allowed(query, key) & (key.positions_BT == 0)[:, None]).astype(
        jnp.float32
    )
    distance_BNT = jnp.einsum('BNTS,BTS->BNT', shares_BNTS, apart_BTS)
    sink_BNT = jnp.einsum('BNTS,BTS->BNT', weights_BNTS, first_BTS)
    real_BNT = jnp.broadcast_to(real_BT[:, None], total_BNT.shape)
    logit_N = (
        None
        if logits_BNTS is None
        else jnp.where(allowed_BTS[:, None], logits_BNTS, -jnp.inf).max((0, 2, 3))
    )

    def over(a_BNT, counted_BNT):
        return jnp.where(counted_BNT, a_BNT, 0).sum((0, 2))

    return Sums(
        over(entropy_BNT, weighing_BNT),
        over(distance_BNT, weighing_BNT),
        weighing_BNT.sum((0, 2)),
        over(normalised_BNT, choosing_BNT),
        choosing_BNT.sum((0, 2)),
        over(sink_BNT, real_BNT),
        real_BNT.sum((0, 2)),
        weights_BNTS.min((0, 2, 3)),
        logit_N,
    )


def probe(
    trained: Trained, split: str, batches: int, every_checkpoint: bool = False
) -> dict[str, Any]:
    """The probes of a model as probes.json holds them: `split`, and `checkpoints`, each with its
    `step` and `sites`.

    Args:
        trained: the model and its data.
        split: 'validation' or 'test'.
        batches: how many of its batches to read, taken evenly from short rows to long ones.
        every_checkpoint: of all intact steps in the workdir, ascending, in place of the chosen one.

    Raises:
        ConfigError: a model without attention.
    """
    architecture = trained.model.architecture
    if not architecture.sites and not architecture.cell.attends:
        raise ConfigError(f'model.rnn={trained.config.model.rnn!r} has no attention to probe')
    places = architecture.sites or [('cross', 0)]
    partitioner, data = trained.partitioner, trained.data
    plan, _ = data.evaluation(split)
    chosen = set(np.linspace(0, plan.steps_per_epoch - 1, batches).round().astype(int).tolist())
    everything = data.eval_batches(split, partitioner.rows_multiple, partitioner.local_rows)
    taken = [partitioner.put(batch) for number, batch in enumerate(everything) if number in chosen]

    @jax.jit
    def summed(params: Any, batch: Batch) -> list[Sums]:
        found = looks(trained.model, params, batch)
        return [head_sums(found[place]) for place in places]

    def sites(steps: tuple[int, ...]) -> list[Row]:
        params = trained.params if steps == trained.steps else trained.params_of(steps)
        with partitioner.context():
            found = [
                jax.tree.map(functools.partial(np.asarray, dtype=np.float64), summed(params, batch))
                for batch in taken
            ]
        totals = [functools.reduce(Sums.plus, of_place) for of_place in zip(*found, strict=True)]
        return [
            {'site': site, 'layer': layer, 'head': head} | row
            for (site, layer), total in zip(places, totals, strict=True)
            for head, row in enumerate(total.rows())
        ]

    wanted = [trained.steps]
    if every_checkpoint:
        wanted = [(step,) for step in trained.checkpoints.intact_steps()][::-1]
    return {
        'split': split,
        'checkpoints': [{'step': steps[0], 'sites': sites(steps)} for steps in wanted],
    }


def save(result: dict[str, Any], folder: epath.Path) -> epath.Path:
    """Writes a result of `probe` as probes.json in a workdir; returns its path."""
    path = folder / FILE
    with wrap_os_errors(path):
        write_text(path, json.dumps(result, indent=1) + '\n')
    return path


def table(result: dict[str, Any]) -> rich.table.Table:
    """The newest checkpoint's probes for a terminal; layers and heads count from 1, as in pictures
    of attention.
    """
    newest = result['checkpoints'][-1]
    rows = rich.table.Table(title=f'{result["split"]}, step {newest["step"]}')
    rows.add_column('site')
    for name in ('layer', 'head', *PROBES.values()):
        rows.add_column(name, justify='right')
    for index, row in enumerate(newest['sites']):
        if index and row['head'] == 0 == row['layer']:
            rows.add_section()
        numbers = ('–' if row[name] is None else f'{row[name]:.3f}' for name in PROBES)
        rows.add_row(row['site'], str(row['layer'] + 1), str(row['head'] + 1), *numbers)
    return rows


def draw(result: dict[str, Any], path: epath.PathLike) -> epath.Path:
    """Draws a site in each row and a probe in each column; what has no meaning is left out.

    Of one checkpoint, heat maps of layers by heads; of several, a line for each head over the
    steps, coloured by layer.

    Raises:
        ConfigError: a suffix that is no picture's.
    """
    checkpoints = result['checkpoints']
    sites = list(dict.fromkeys(row['site'] for row in checkpoints[0]['sites']))
    names = [
        name
        for name in PROBES
        if any(row[name] is not None for checkpoint in checkpoints for row in checkpoint['sites'])
    ]
    size = PANEL_INCHES * len(names), PANEL_INCHES * len(sites) + 0.4
    figure = Figure(figsize=size, dpi=DPI, layout='constrained')
    panels = figure.subplots(len(sites), len(names), squeeze=False)
    for name, column in zip(names, panels.T, strict=True):
        grids = [
            np.stack([_grid(checkpoint['sites'], site, name) for checkpoint in checkpoints])
            for site in sites
        ]
        if len(checkpoints) == 1:
            _heat_maps(figure, column, [grid for [grid] in grids])
        else:
            for axes, grid in zip(column, grids, strict=True):
                _lines(axes, [checkpoint['step'] for checkpoint in checkpoints], grid)
        shown = [axes for axes, grid in zip(column, grids, strict=True) if np.isfinite(grid).any()]
        for axes in column:
            axes.set_visible(axes in shown)
        shown[0].set_title(PROBES[name], fontsize=9)
        shown[-1].set_xlabel('step' if len(checkpoints) > 1 else 'head')
    firsts = [
        next(axes for axes in row if axes.get_visible()) for row in panels
    ]  # there is always a sink
    for site, axes in zip(sites, firsts, strict=True):
        axes.set_ylabel(site if len(checkpoints) > 1 else f'{site} layer')
    if len(checkpoints) > 1:
        firsts[0].legend(frameon=False, fontsize=6)
    return save_figure(figure, epath.Path(path))


def _grid(rows: Sequence[Row], site: str, name: str) -> np.ndarray:
    """[layers, heads] of a probe, NaN for None."""
    values = {(row['layer'], row['head']): row[name] for row in rows if row['site'] == site}
    layers, heads = (1 + max(place) for place in zip(*values, strict=True))
    return np.array(
        [[values[layer, head] for head in range(heads)] for layer in range(layers)], float
    )


def _heat_maps(figure: Figure, column: Sequence[Axes], grids: Sequence[np.ndarray]) -> None:
    """One probe at all sites, in colours of one scale."""
    low, high = (
        bound([bound(grid[np.isfinite(grid)]) for grid in grids if np.isfinite(grid).any()])
        for bound in (np.min, np.max)
    )
    for axes, grid in zip(column, grids, strict=True):
        layers, heads = grid.shape
        image = axes.imshow(grid, vmin=low, vmax=high, cmap='viridis', aspect='auto')
        axes.set_xticks(range(heads), range(1, heads + 1))
        axes.set_yticks(range(layers), range(1, layers + 1))
        for (layer, head), value in np.ndenumerate(grid):
            if np.isfinite(value) and grid.size <= FEW_CELLS:
                axes.text(
                    head,
                    layer,
                    f'{value:.{0 if value >= 100 else 1 if value >= 10 else 2}f}',
                    ha='center',
                    va='center',
                    fontsize=6,
                    color='black' if value > (low + high) / 2 else 'white',
                )
    figure.colorbar(image, ax=list(column), location='bottom', shrink=0.9, aspect=30)


def _lines(axes: Axes, steps: Sequence[int], values: np.ndarray) -> None:
    """Values [checkpoints, layers, heads] of one probe at one site."""
    layers = values.shape[1]
    for layer in range(layers):
        colour = matplotlib.colormaps['viridis'](layer / max(layers - 1, 1) * 0.9)
        for head, line in enumerate(values[:, layer].T):
            axes.plot(
                steps,
                line,
                color=colour,
                linewidth=1,
                marker='.',
                markersize=3,
                label=f'layer {layer + 1}' if head == 0 else None,
            )
    axes.grid(alpha=0.3)
    axes.spines[['top', 'right']].set_visible(False)
