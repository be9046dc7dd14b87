import dataclasses

import numpy as np

from t5x_lite.model import T5Config
from t5x_lite.model.flops import train_flops
from t5x_lite.training.work import Work, work_of

CONFIG = T5Config(vocab_size=8, d_model=4, num_heads=2, head_dim=2, d_ff=6, num_encoder_layers=2, num_decoder_layers=1)


def batch(inputs: list[list[int]], targets: list[list[int]], packed: bool = True) -> dict[str, np.ndarray]:
    """Of segment ids."""
    segments = {"encoder_segment_ids": np.array(inputs), "decoder_segment_ids": np.array(targets)}
    tokens = {"encoder_input_tokens": 5 * (np.array(inputs) > 0), "decoder_loss_weights": (np.array(targets) > 0) * 1}
    return tokens | (segments if packed else {})


def test_a_packed_example_pays_for_itself_and_not_for_its_row():
    found = work_of(batch([[1, 1, 2, 2, 2, 0], [1, 1, 1, 1, 1, 1]], [[1, 2, 2, 0], [1, 1, 0, 0]]), CONFIG)
    real = [train_flops(CONFIG, *lengths) for lengths in ((2, 1), (3, 2), (6, 2))]
    assert found == Work(tokens=5 + 6 + 3 + 2, flops=2 * train_flops(CONFIG, 6, 4), real_flops=sum(real))


def test_a_row_that_is_one_example():
    found = work_of(batch([[1, 1, 0], [1, 0, 0]], [[1, 1], [1, 0]], packed=False), CONFIG)
    assert found.real_flops == train_flops(CONFIG, 2, 2) + train_flops(CONFIG, 1, 1)
    assert found.tokens == 6


def test_a_full_row_of_one_example_is_all_real():
    found = work_of(batch([[1] * 5], [[1] * 3]), CONFIG)
    assert found.flops == found.real_flops == train_flops(CONFIG, 5, 3)


def test_large_models_do_not_overflow():
    large = dataclasses.replace(CONFIG, d_model=4096, num_heads=64, head_dim=64, d_ff=10240, num_encoder_layers=24)
    found = work_of(batch([[1] * 2048] * 64, [[1] * 512] * 64), large)
    assert found.flops == found.real_flops == 64 * train_flops(large, 2048, 512)
