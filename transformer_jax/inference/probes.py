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

None means that a number has no meaning: entropies and distance where weights are negative,
max_logit where attention has no score for each pair or keeps none (a recurrent model's).

Queries and keys are those of the forward pass. The weights are computed from them once more by the
kind's dense formula, so that an engine that never holds weights is probed as well.
"""

import functools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from transformer_jax.attention.masks import Segments
from transformer_jax.batch import Batch, Tokens
from transformer_jax.errors import ConfigError
from transformer_jax.inference.trained_run import TrainedRun
from transformer_jax.storage.files import write_text
from transformer_jax.storage.json_files import read_json
from transformer_jax.storage.json_text import to_json

# The probes and their labels in tables and figures, in the order of `HeadSums.probes`.
PROBES = {
    'entropy': 'entropy (nats)',
    'normalized_entropy': 'entropy / log n',
    'distance': 'distance (tokens)',
    'sink': 'weight on the first',
    'max_logit': 'largest score',
}
RENAMED = {'normalised_entropy': 'normalized_entropy'}  # keys of old files
FILE = 'probes.json'
SIGNED = -1e-6  # Weights below this are negative; above it they are rounding errors.

HeadProbes = dict[str, Any]  # {'site': 'encoder', 'layer': 0, 'head': 0, 'entropy': …, …}


class AttentionRecord(NamedTuple):
    """The weights of one attention on a batch, and what they belong to."""

    weights_BNTS: jax.Array
    logits_BNTS: jax.Array | None  # None: there is no score for each pair
    allowed_BTS: jax.Array
    query: Tokens
    key: Tokens


class HeadSums(NamedTuple):
    """Sums for each of N heads, over queries that are not padding."""

    entropy_N: Any
    distance_N: Any
    normalized_N: Any  # entropy / log n, over the queries of `choosing_N`
    sink_N: Any
    queries_N: Any  # the number of queries
    weighing_N: Any  # queries with any weight, over which entropy and distance are summed
    choosing_N: Any  # queries with any weight that may see two keys or more
    smallest_N: Any  # the smallest weight
    logit_N: Any  # the largest score; None: there are no scores

    def plus(self, other: 'HeadSums') -> 'HeadSums':
        """Join the sums of two batches."""
        pairs = zip(self, other, strict=True)
        added = HeadSums._make(None if a is None else a + b for a, b in pairs)
        return added._replace(
            smallest_N=np.minimum(self.smallest_N, other.smallest_N),
            logit_N=None if self.logit_N is None else np.maximum(self.logit_N, other.logit_N),
        )

    def probes(self) -> list[dict[str, float | None]]:
        """Compute the probes of each head, in the order of PROBES."""
        always_N, positive_N = np.ones(len(self.smallest_N), bool), self.smallest_N >= SIGNED
        columns = (
            _means(self.entropy_N, self.weighing_N, positive_N),
            _means(self.normalized_N, self.choosing_N, positive_N),
            _means(self.distance_N, self.weighing_N, positive_N),
            _means(self.sink_N, self.queries_N, always_N),
            self._max_logits(),
        )
        return [dict(zip(PROBES, values, strict=True)) for values in zip(*columns, strict=True)]

    def _max_logits(self) -> list[float | None]:
        if self.logit_N is None:
            return [None] * len(self.smallest_N)
        return [float(logit) if np.isfinite(logit) else None for logit in self.logit_N]


def _means(sum_N: Any, count_N: Any, meaningful_N: Any) -> list[float | None]:
    return [
        float(total / count) if count and meaningful else None
        for total, count, meaningful in zip(sum_N, count_N, meaningful_N, strict=True)
    ]


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


def head_sums(record: AttentionRecord) -> HeadSums:
    """Sum what the probes are made of over the queries of a batch."""
    weights_BNTS, logits_BNTS, allowed_BTS, query, key = record
    weights_BNTS = weights_BNTS.astype(jnp.float32)
    real_BT, seen_BT = allowed_BTS.any(-1), allowed_BTS.sum(-1)
    total_BNT = weights_BNTS.sum(-1)
    real_BNT = jnp.broadcast_to(real_BT[:, None], total_BNT.shape)
    weighing_BNT = (total_BNT > 0) & real_BNT
    choosing_BNT = weighing_BNT & (seen_BT >= 2)[:, None]
    shares_BNTS = weights_BNTS / jnp.where(weighing_BNT, total_BNT, 1)[..., None]
    entropy_BNT = jax.scipy.special.entr(jnp.maximum(shares_BNTS, 0)).sum(-1)
    normalized_BNT = entropy_BNT / jnp.log(jnp.maximum(seen_BT, 2).astype(jnp.float32))[:, None]
    distance_BTS = jnp.abs(query.positions_BT[:, :, None] - key.positions_BT[:, None])
    first_BTS = Segments().allowed(query, key) & (key.positions_BT == 0)[:, None]
    distance_BNT = jnp.einsum('BNTS,BTS->BNT', shares_BNTS, distance_BTS.astype(jnp.float32))
    sink_BNT = jnp.einsum('BNTS,BTS->BNT', weights_BNTS, first_BTS.astype(jnp.float32))
    logit_N = None
    if logits_BNTS is not None:
        logit_N = jnp.where(allowed_BTS[:, None], logits_BNTS, -jnp.inf).max((0, 2, 3))

    def total_N(a_BNT, counted_BNT):
        return jnp.where(counted_BNT, a_BNT, 0).sum((0, 2))

    return HeadSums(
        entropy_N=total_N(entropy_BNT, weighing_BNT),
        distance_N=total_N(distance_BNT, weighing_BNT),
        normalized_N=total_N(normalized_BNT, choosing_BNT),
        sink_N=total_N(sink_BNT, real_BNT),
        queries_N=real_BNT.sum((0, 2)),
        weighing_N=weighing_BNT.sum((0, 2)),
        choosing_N=choosing_BNT.sum((0, 2)),
        smallest_N=weights_BNTS.min((0, 2, 3)),
        logit_N=logit_N,
    )


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
    if not architecture.sites and not architecture.cell.attends:
        raise ConfigError(f'model.rnn={trained.config.model.rnn!r} has no attention to probe')
    places = architecture.sites or [('cross', 0)]
    taken = _choose_batches(trained, split, batches)

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


def _choose_batches(trained: TrainedRun, split: str, count: int) -> list[Batch]:
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
