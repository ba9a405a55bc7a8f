"""The sums that the probes of a head are made of, and the probes.

See `inference.probes` for what each of them means.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from transformer_jax.attention.masks import Segments
from transformer_jax.batch import Tokens

# The probes and their labels in tables and figures, in the order of `HeadSums.probes`.
PROBES = {
    'entropy': 'entropy (nats)',
    'normalized_entropy': 'entropy / log n',
    'distance': 'distance (tokens)',
    'sink': 'weight on the first',
    'max_logit': 'largest score',
    'logit_std': 'std of scores',
}
NEED_POSITIVE_WEIGHTS = ('entropy', 'normalized_entropy', 'distance')
NEED_SCORES = ('max_logit', 'logit_std')
SIGNED = -1e-6  # Weights below this are negative; above it they are rounding errors.


class AttentionRecord(NamedTuple):
    """The weights of one attention on a batch, and what they belong to."""

    weights_BNTS: jax.Array
    logits_BNTS: jax.Array | None  # None: there is no score for each pair
    allowed_BTS: jax.Array
    query: Tokens
    key: Tokens


class ScoreSums(NamedTuple):
    """What is known of the scores of each of N heads, over pairs of a query and a key it may see.

    `squares_N` holds the sums of squared differences from the means, so that nothing cancels where
    scores are large and nearly alike.
    """

    pairs_N: Any  # their number
    mean_N: Any
    squares_N: Any
    largest_N: Any

    def plus(self, other: 'ScoreSums') -> 'ScoreSums':
        """Join the sums of two batches (Chan et al. 1979)."""
        pairs_N = self.pairs_N + other.pairs_N
        share_N = other.pairs_N / np.maximum(pairs_N, 1)
        apart_N = other.mean_N - self.mean_N
        between_N = apart_N**2 * self.pairs_N * share_N
        return ScoreSums(
            pairs_N,
            self.mean_N + apart_N * share_N,
            self.squares_N + other.squares_N + between_N,
            np.maximum(self.largest_N, other.largest_N),
        )

    def probes(self) -> tuple[list[float | None], list[float | None]]:
        """Compute max_logit and logit_std of each head; None where there was no pair."""
        known_N = np.isfinite(self.largest_N)
        variance_N = self.squares_N / np.maximum(self.pairs_N, 1)
        return _known(self.largest_N, known_N), _known(np.sqrt(variance_N), known_N)


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
    scores: ScoreSums | None  # None: there are no scores

    def plus(self, other: 'HeadSums') -> 'HeadSums':
        """Join the sums of two batches."""
        scores = self.scores and other.scores and self.scores.plus(other.scores)
        smallest_N = np.minimum(self.smallest_N, other.smallest_N)
        added = map(np.add, self[:-2], other[:-2])
        return HeadSums._make((*added, smallest_N, scores))

    def probes(self) -> list[dict[str, float | None]]:
        """Compute the probes of each head, in the order of PROBES."""
        always_N, positive_N = np.ones(len(self.smallest_N), bool), self.smallest_N >= SIGNED
        nothing = [None] * len(self.smallest_N)
        columns = (
            _means(self.entropy_N, self.weighing_N, positive_N),
            _means(self.normalized_N, self.choosing_N, positive_N),
            _means(self.distance_N, self.weighing_N, positive_N),
            _means(self.sink_N, self.queries_N, always_N),
            *(self.scores.probes() if self.scores else (nothing, nothing)),
        )
        return [dict(zip(PROBES, values, strict=True)) for values in zip(*columns, strict=True)]


def _means(sum_N: Any, count_N: Any, meaningful_N: Any) -> list[float | None]:
    return _known(sum_N / np.maximum(count_N, 1), (count_N > 0) & meaningful_N)


def _known(value_N: Any, known_N: Any) -> list[float | None]:
    """Return the values as numbers, None where they are not known."""
    return [float(value) if known else None for value, known in zip(value_N, known_N, strict=True)]


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
        scores=None if logits_BNTS is None else _score_sums(logits_BNTS, allowed_BTS),
    )


def _score_sums(logits_BNTS: jax.Array, allowed_BTS: jax.Array) -> ScoreSums:
    """Sum the scores of the pairs of a batch that are allowed."""
    allowed_BNTS = jnp.broadcast_to(allowed_BTS[:, None], logits_BNTS.shape)

    def total_N(a_BNTS: jax.Array) -> jax.Array:
        return jnp.where(allowed_BNTS, a_BNTS, 0).sum((0, 2, 3))

    pairs_N = allowed_BNTS.sum((0, 2, 3))
    mean_N = total_N(logits_BNTS) / jnp.maximum(pairs_N, 1)
    return ScoreSums(
        pairs_N,
        mean_N,
        total_N((logits_BNTS - mean_N[None, :, None, None]) ** 2),
        jnp.where(allowed_BNTS, logits_BNTS, -jnp.inf).max((0, 2, 3)),
    )
