import numpy as np
import seqio
import tensorflow as tf

from t5x_lite.data.features import encdec_batch


def example(inputs, targets):
    return np.array(inputs, np.int32), np.array(targets, np.int32)


LENGTHS = {"inputs": 7, "targets": 6}


def test_a_packed_row_by_hand():
    batch = encdec_batch([[example([5, 6, 1], [8, 1]), example([7, 1], [9, 4, 1])]], LENGTHS, pack=True)
    expected = {
        "encoder_input_tokens": [5, 6, 1, 7, 1, 0, 0],
        "encoder_segment_ids": [1, 1, 1, 2, 2, 0, 0],
        "encoder_positions": [0, 1, 2, 0, 1, 0, 0],
        "decoder_target_tokens": [8, 1, 9, 4, 1, 0],
        "decoder_input_tokens": [0, 8, 0, 9, 4, 0],
        "decoder_loss_weights": [1, 1, 1, 1, 1, 0],
        "decoder_segment_ids": [1, 1, 2, 2, 2, 0],
        "decoder_positions": [0, 1, 0, 1, 2, 0],
    }
    assert {name: array.tolist() for name, array in batch.items()} == {n: [row] for n, row in expected.items()}
    assert {array.dtype for array in batch.values()} == {np.dtype(np.int32)}


def test_unpacked_rows_have_no_segments():
    batch = encdec_batch([[example([5, 1], [8, 1])], [example([6, 6, 1], [9, 9, 1])]], LENGTHS, pack=False)
    assert set(batch) == {
        "encoder_input_tokens",
        "decoder_target_tokens",
        "decoder_input_tokens",
        "decoder_loss_weights",
    }
    assert batch["encoder_input_tokens"].tolist() == [[5, 1, 0, 0, 0, 0, 0], [6, 6, 1, 0, 0, 0, 0]]
    assert batch["decoder_input_tokens"].tolist() == [[0, 8, 0, 0, 0, 0], [0, 9, 9, 0, 0, 0]]


def seqio_batch(pairs, lengths, pack):
    """SeqIO's converter is the reference for names, shifting, segments and weights."""
    dataset = tf.data.Dataset.from_generator(
        lambda: ({"inputs": i, "targets": t} for i, t in pairs),
        output_signature={name: tf.TensorSpec([None], tf.int32) for name in ("inputs", "targets")},
    )
    rows = list(seqio.EncDecFeatureConverter(pack=pack)(dataset, lengths).as_numpy_iterator())
    return {name: np.stack([row[name] for row in rows]) for name in rows[0]}


def assert_same(ours, theirs):
    assert set(ours) == set(theirs)
    for name, array in ours.items():
        np.testing.assert_array_equal(array, theirs[name], err_msg=name)


def test_one_example_a_row_is_what_seqio_makes_of_it():
    rng = np.random.default_rng(0)
    pairs = [[rng.integers(2, 90, rng.integers(1, 9)).tolist() for _ in range(2)] for _ in range(40)]
    lengths = {"inputs": 8, "targets": 8}
    ours = encdec_batch([[example(*pair)] for pair in pairs], lengths, pack=False)
    theirs = seqio_batch(pairs, lengths, pack=False)
    # Unpacked, SeqIO shifts the last target into the first position of padding, which no loss looks at.
    theirs["decoder_input_tokens"] *= theirs["decoder_loss_weights"]
    assert_same(ours, theirs)


def test_packed_rows_are_what_seqio_makes_of_them():
    """SeqIO keeps one row open, so examples that fill rows in their order land alike."""
    pairs = [([5, 1], [7, 8, 1]), ([6, 9, 1], [4, 1]), ([3, 3, 3, 1], [2, 2, 1])]
    first, second, third = (example(*pair) for pair in pairs)
    lengths = {"inputs": 5, "targets": 5}
    ours = encdec_batch([[first, second], [third]], lengths, pack=True)
    assert_same(ours, seqio_batch(pairs, lengths, pack=True))
