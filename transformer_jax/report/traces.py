"""Learning curves, probes of attention heads, and pictures of attention that runs have left."""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from etils import epath

from transformer_jax.errors import WorkdirError
from transformer_jax.inference.head_sums import PROBES
from transformer_jax.inference.probes import FILE as PROBED
from transformer_jax.inference.probes import read_probes
from transformer_jax.storage.metrics_writer import read_sound_events, training_loss

PICTURES = 'attention*.png'  # as the command `attention` writes them
POINTS = 200  # of a curve; where more was logged, a point is the mean of several neighbors
# Keys of a validation event that are no scores of the model.
NO_SCORES = ('step', 'split', 'tokens', 'sentences', 'examples', 'seconds', 'stride')
FROM_TRAINING = ('loss', 'accuracy', 'grad_norm', 'learning_rate')

Points = list[tuple[int, float]]


class Curve(NamedTuple):
    """One quantity of one variant during training; NaN where a value was not finite.

    Attributes:
        seeds: seed -> points.
        mean: over seeds, at the steps that all of them have, so that it never jumps where one ends.
        merged: the largest number of logged values in a point.
    """

    seeds: dict[int, Points]
    mean: Points
    merged: int


def read_curves(
    root: epath.Path, runs: Mapping[str, Sequence[tuple[str, int]]]
) -> dict[str, dict[str, Curve]]:
    """Read the curves of an ablation.

    Args:
        root: of the ablation.
        runs: variant -> the folders and seeds of its runs. A run without metrics.jsonl has no
            curve.

    Returns:
        'validation loss' -> variant -> curve, the curves of validation first.
    """
    logged = {
        variant: {
            seed: _read_events(root / folder / str(seed) / 'metrics.jsonl')
            for folder, seed in members
        }
        for variant, members in runs.items()
    }
    names = dict.fromkeys(
        name
        for split in ('validation', 'train')
        for seeds in logged.values()
        for values in seeds.values()
        for name in values
        if name.startswith(split)
    )
    curves = {}
    for name in names:
        found = {
            variant: {seed: values[name] for seed, values in seeds.items() if name in values}
            for variant, seeds in logged.items()
        }
        curves[name] = {variant: _curve(seeds) for variant, seeds in found.items() if seeds}
    return curves


def _read_events(path: epath.Path) -> dict[str, Points]:
    """Read 'validation loss' -> its points; a line that is incomplete or foreign is left out."""
    series: dict[str, Points] = {}
    for event in read_sound_events(path):
        split, step = event['split'], event['step']
        if split == 'train':
            event['loss'] = training_loss(event)
        for name, value in event.items():
            wanted = name in FROM_TRAINING if split == 'train' else name not in NO_SCORES
            if wanted and _is_number(value):
                series.setdefault(f'{split} {name}', []).append((step, float(value)))
    return series


def _is_number(value: Any) -> bool:
    """Tell numbers, and those that metrics.jsonl writes as strings, from other values."""
    return value in ('nan', 'inf', '-inf') or (
        isinstance(value, int | float) and not isinstance(value, bool)
    )


def _curve(seeds: Mapping[int, Points]) -> Curve:
    merged = math.ceil(max(map(len, seeds.values())) / POINTS)
    thinned = {seed: list(_merged(points, merged)) for seed, points in seeds.items()}
    tables = [dict(points) for points in thinned.values()]
    common = sorted(set.intersection(*map(set, tables)))
    return Curve(
        thinned,
        [(step, float(np.mean([table[step] for table in tables]))) for step in common],
        merged,
    )


def _merged(points: Points, count: int) -> Iterator[tuple[int, float]]:
    """Yield the means of `count` neighbors each, at the last one's step."""
    for start in range(0, len(points), count):
        group = points[start : start + count]
        values = [value if math.isfinite(value) else math.nan for _, value in group]
        yield group[-1][0], float(np.mean(values))


class Heads(NamedTuple):
    """What was measured of every attention head of one run.

    Attributes:
        seed: of the run.
        split: on which it was measured.
        steps: of the checkpoints that were probed.
        maps: 'encoder: entropy (nats)' -> for each step [layer, head]; NaN: no meaning.
        pictures: the files of attention maps.
    """

    seed: int
    split: str
    steps: list[int]
    maps: dict[str, list[np.ndarray]]
    pictures: list[epath.Path]


def read_heads(root: epath.Path, runs: Mapping[str, Sequence[tuple[str, int]]]) -> dict[str, Heads]:
    """Read variant -> the heads of its first run that was probed or drawn.

    The arguments are those of `read_curves`.
    """
    found = {}
    for variant, members in runs.items():
        for folder, seed in members:
            workdir = root / folder / str(seed)
            content, pictures = _probed(workdir / PROBED), sorted(workdir.glob(PICTURES))
            if content or pictures:
                found[variant] = Heads(
                    seed,
                    content.get('split', ''),
                    [one['step'] for one in content.get('checkpoints', ())],
                    _maps(content),
                    pictures,
                )
                break
    return found


def _probed(path: epath.Path) -> dict[str, Any]:
    """Read a probes.json; {} where there is none that can be read."""
    try:
        return read_probes(path)
    except WorkdirError:
        return {}


def _maps(content: Mapping[str, Any]) -> dict[str, list[np.ndarray]]:
    checkpoints = [one['sites'] for one in content.get('checkpoints', ())]
    maps: dict[str, list[np.ndarray]] = {}
    for site in dict.fromkeys(row['site'] for rows in checkpoints for row in rows):
        for probe, label in PROBES.items():
            grids = [
                _grid([row for row in rows if row['site'] == site], probe) for rows in checkpoints
            ]
            if any(np.isfinite(grid).any() for grid in grids):
                maps[f'{site}: {label}'] = grids
    return maps


def _grid(rows: Sequence[Mapping[str, Any]], probe: str) -> np.ndarray:
    shape = [max((row[axis] for row in rows), default=-1) + 1 for axis in ('layer', 'head')]
    grid = np.full(shape, np.nan)
    for row in rows:
        grid[row['layer'], row['head']] = np.nan if row.get(probe) is None else row[probe]
    return grid
