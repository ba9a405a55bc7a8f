"""Checks of every model that translates: of Transformers and of recurrent models."""

import numpy as np


def packed_is_separate(scores, batch_of, rows):
    """Pairs that share a row get the scores that each gets in a row of its own.

    Args:
        scores: from a batch to scores [B, T, V].
        batch_of: from rows of (source, target) pairs to a batch.
        rows: the packed rows.
    """
    packed = scores(batch_of(rows))
    for row, pairs in enumerate(rows):
        alone = scores(batch_of([[pair] for pair in pairs] + [[]] * (len(rows) - len(pairs))))
        start = 0
        for index, (_, target) in enumerate(pairs):
            np.testing.assert_allclose(
                packed[row, start : start + len(target)], alone[index, : len(target)], atol=1e-5
            )
            start += len(target)


def padding_has_no_influence(scores, batch):
    """The contents of padding, tokens and positions, change no real score, exactly.

    All scores are finite.
    """
    source_padding, target_padding = batch.source_segments_BS == 0, batch.segments_BT == 0
    assert source_padding.any()
    assert target_padding.any()
    changed = batch._replace(
        source_BS=np.where(source_padding, 7, batch.source_BS),
        inputs_BT=np.where(target_padding, 9, batch.inputs_BT),
        source_positions_BS=np.where(source_padding, 5, batch.source_positions_BS),
        positions_BT=np.where(target_padding, 6, batch.positions_BT),
    )
    before, after = np.asarray(scores(batch)), np.asarray(scores(changed))
    np.testing.assert_array_equal(before[~target_padding], after[~target_padding])
    assert np.isfinite(after).all()
