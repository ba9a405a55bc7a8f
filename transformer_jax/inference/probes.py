"""What attention does in a trained model, in numbers: `transformer-jax probe`.

For every site, layer and head, over the queries of some batches, teacher-forced:

- entropy: −Σ w log w of a query's weights w, in nats; where the weights do not sum to 1, of their
  shares in the sum
- normalized_entropy: entropy divided by log n, where n is the number of keys that the query may
  see; over queries that may see two or more
- distance: Σ w |position of the query − position of the key|, by the same shares; positions count
  from 0 on both sides, in cross-attention too
- sink: the weight on the first token of the segment, not divided by the sum
- max_logit: the largest score, before the normalizer, of any query for a key that it may see
- logit_std: the standard deviation of these scores over all such pairs

None means that a number has no meaning: entropies and distance where weights are negative,
max_logit and logit_std where attention has no score for each pair or keeps none (a recurrent
model's). A score of differential attention is the larger one of its two maps.

Queries and keys are those of the forward pass. The weights are computed from them once more by the
kind's dense formula, so that an engine that never holds weights is probed as well.
"""

import functools
import statistics
from collections.abc import Mapping, Sequence
from typing import Any, cast

import flax.linen as nn
import jax
import numpy as np
from etils import epath

from transformer_jax.attention.masks import Segments
from transformer_jax.batch import Batch
from transformer_jax.errors import ConfigError
from transformer_jax.inference.head_sums import (
    NEED_POSITIVE_WEIGHTS,
    NEED_SCORES,
    AttentionRecord,
    HeadSums,
    head_sums,
)
from transformer_jax.inference.trained_run import TrainedRun
from transformer_jax.models.architecture import Architecture
from transformer_jax.schema import ModelConfig
from transformer_jax.storage.files import write_text
from transformer_jax.storage.json_files import read_json
from transformer_jax.storage.json_text import to_json

RENAMED = {'normalised_entropy': 'normalized_entropy'}  # keys of old files
FILE = 'probes.json'

HeadProbes = dict[str, Any]  # {'site': 'encoder', 'layer': 0, 'head': 0, 'entropy': …, …}


def cannot_probe(architecture: Architecture, model: ModelConfig, name: str = 'sink') -> str:
    """Say why no head of a model can have a probe, a key of PROBES; '' where some can."""
    kinds = [architecture.attention_at(*place).kind for place in architecture.sites]
    if not kinds and not architecture.cell.attends:
        return f'model.rnn={model.rnn!r} has no attention to probe'
    if name in NEED_SCORES and not any(kind.has_scores for kind in kinds):
        attention = f'model.attention={model.attention!r}' if kinds else f'model.rnn={model.rnn!r}'
        return f'{attention} keeps no scores before a normalizer'
    if name in NEED_POSITIVE_WEIGHTS and kinds and all(kind.has_signed_weights for kind in kinds):
        return f'model.attention={model.attention!r} has negative weights'
    return ''


def attention_records(
    model: nn.Module, params: Any, batch: Batch
) -> dict[tuple[str, int], AttentionRecord]:
    """Compute the weights of every attention of a model on a batch.

    Args:
        model: with attention.
        params: its parameters, unboxed.
        batch: rows [B, T], teacher-forced.

    Returns:
        the records by site and layer; of a recurrent model the one of ('cross', 0).
    """
    architecture = model.architecture
    collection = 'heads' if architecture.sites else 'intermediates'
    _, state = model.apply({'params': params}, batch, method='features', mutable=[collection])
    sown = cast(dict[str, Any], state)  # what the modules stored, by the path of the module
    if not architecture.sites:  # a recurrent model
        query, key = batch.target_tokens, batch.source_tokens
        [weights_BNTS] = sown[collection]['weights_BNTS']
        allowed_BTS = Segments().allowed(query, key)
        return {('cross', 0): AttentionRecord(weights_BNTS, None, allowed_BTS, query, key)}
    records = {}
    for site, layer in architecture.sites:
        block = sown[collection][f'{"encoder" if site == "encoder" else "decoder"}_{layer}']
        [(queries, keys, inputs)] = block['cross' if site == 'cross' else 'attention']['inputs']
        kind = architecture.attention_at(site, layer).kind
        records[site, layer] = AttentionRecord(
            kind.weights(queries, keys, inputs),
            kind.logits(queries, keys, inputs),
            inputs.allowed_BTS(),
            inputs.query_tokens,
            inputs.key_tokens,
        )
    return records


def probe(
    trained: TrainedRun, split: str, batches: int, every_checkpoint: bool = False
) -> dict[str, Any]:
    """Probe every head of a trained model.

    Args:
        trained: the model and its data.
        split: 'validation' or 'test'.
        batches: how many of its batches to read, taken evenly from short rows to long ones; all
            where there are fewer.
        every_checkpoint: probe all intact steps in the workdir, ascending, in place of the chosen
            checkpoint.

    Returns:
        what probes.json holds: `split`, and `checkpoints`, each with its `step`, the other steps
        that are `averaged` with it, and `sites`.

    Raises:
        ConfigError: a model without attention.
    """
    architecture = trained.model.architecture
    if why := cannot_probe(architecture, trained.config.model):
        raise ConfigError(why)
    places = architecture.sites or [('cross', 0)]
    taken = choose_batches(trained, split, batches)

    def sums(params: Any, batch: Batch) -> list[HeadSums]:
        records = attention_records(trained.model, params, batch)
        return [head_sums(records[place]) for place in places]

    compiled = trained.partitioner.compile(sums, out_shardings=trained.partitioner.replicated)

    def probe_steps(steps: tuple[int, ...]) -> list[HeadProbes]:
        params = trained.params if steps == trained.steps else trained.params_at(steps)
        to_host = functools.partial(np.asarray, dtype=np.float64)
        found = [jax.tree.map(to_host, compiled(params, batch)) for batch in taken]
        totals = [functools.reduce(HeadSums.plus, parts) for parts in zip(*found, strict=True)]
        return [
            {'site': site, 'layer': layer, 'head': head} | probes
            for (site, layer), total in zip(places, totals, strict=True)
            for head, probes in enumerate(total.probes())
        ]

    wanted = [trained.steps]
    if every_checkpoint:
        wanted = [(step,) for step in trained.checkpoints.intact_steps()][::-1]
    checkpoints = [
        {'step': steps[0], 'averaged': list(steps[1:]), 'sites': probe_steps(steps)}
        for steps in wanted
    ]
    return {'split': split, 'checkpoints': checkpoints}


def choose_batches(trained: TrainedRun, split: str, count: int) -> list[Batch]:
    """Place `count` batches of a split, taken evenly from short rows to long ones."""
    data, partitioner = trained.data, trained.partitioner
    plan, _ = data.evaluation(split)
    count = min(count, plan.steps_per_epoch)
    chosen = np.linspace(0, plan.steps_per_epoch - 1, count).round().astype(int).tolist()
    batches = data.eval_batches(split, partitioner.rows_multiple, partitioner.local_rows)
    return [partitioner.put(batch) for number, batch in enumerate(batches) if number in chosen]


def write_probes(result: Mapping[str, Any], folder: epath.Path) -> epath.Path:
    """Write a result of `probe` as probes.json in a workdir; return its path."""
    path = folder / FILE
    write_text(path, to_json(result, indent=1) + '\n')
    return path


def read_probes(path: epath.Path) -> dict[str, Any]:
    """Read a probes.json; keys of old files get their present names.

    Raises:
        WorkdirError: it is missing, damaged, or cannot be read.
    """
    row = {'site': str, 'layer': int, 'head': int}
    shape = {'checkpoints': [{'step': int, 'sites': [row]}]}

    def rename(row: Mapping[str, Any]) -> HeadProbes:
        return {RENAMED.get(key, key): value for key, value in row.items()}

    content = read_json(path, shape, 'let `transformer-jax probe` write it anew')
    for checkpoint in content['checkpoints']:
        checkpoint['sites'] = [rename(row) for row in checkpoint['sites']]
    return content


def probes_at(rows: Sequence[HeadProbes], site: str, name: str) -> np.ndarray:
    """Arrange one probe of one site as [layers, heads]; NaN where it has no meaning."""
    values = {(row['layer'], row['head']): row[name] for row in rows if row['site'] == site}
    layers, heads = (1 + max(place) for place in zip(*values, strict=True))
    return np.array(
        [[values[layer, head] for head in range(heads)] for layer in range(layers)], float
    )


def mean_probe(rows: Sequence[HeadProbes], name: str) -> float | None:
    """Return the mean of one probe over the heads that have it; None where none has."""
    values = [row[name] for row in rows if row[name] is not None]
    return statistics.fmean(values) if values else None
