"""What every model that translates promises, whatever it is made of: a Transformer or a
recurrent model.
"""

import numpy as np


def packed_is_separate(scores, batch_of, rows):
    """Pairs that share rows get the scores that each has in a row of its own.

    `scores` maps a batch to [B, T, V], `batch_of` rows of (source, target) pairs to a batch.
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
    """What padded places hold, tokens and positions, changes no real one, exactly, and leaves
    all finite.
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
