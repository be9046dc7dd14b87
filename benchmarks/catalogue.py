"""A million items: seconds and memory from interactions to a trie, and how long one request takes then.

python benchmarks/catalogue.py [--items=1000000] [--interactions=20] [--rounds=100]

Users have three of 2,000 topics each, topics and the items of a topic are Zipf-like, and a tenth of what users take is
of any topic: `interactions` for each item, and as many users as items. A request is 128 tokens, 200 items are denied,
and the model is TIGER's: four layers and four, d_model 128, here with random weights. Its time is from items to deny
on the host to items found on the host; of it, "restrict" is what makes a mask for the device of the denied.
"""

import os
import resource
import time
from collections.abc import Callable
from typing import Any

from t5x_lite import config

_PROMPT, _DENIED, _BEAMS, _TOPICS = 128, 200, (10, 50), 2000


def main(argv: list[str]) -> None:
    def flags(parser):
        parser.add_argument("--items", type=int, default=1_000_000)
        parser.add_argument("--interactions", type=int, default=20, help="of users with each item")
        parser.add_argument("--rounds", type=int, default=100)

    args = config.parse_flags(argv, __doc__, flags)
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    import tempfile

    import jax
    import numpy as np

    from t5x_lite.data import vocabularies
    from t5x_lite.decoding.trie import build_trie
    from t5x_lite.recommendation.index import ItemIndex, code_index

    print(f"{args.items:,} items, {args.interactions * args.items:,} interactions\n{'':24}{'seconds':>9}{'peak GB':>9}")
    catalogue, split = _timed("(making them up)", lambda: synthetic(args.items, args.interactions))
    index = _timed("codes", lambda: code_index(catalogue, split))
    vocabulary = vocabularies.byte().with_tokens(index.tokens)
    with tempfile.TemporaryDirectory() as folder:
        _timed("save", lambda: index.save(folder))
        _timed("load", lambda: ItemIndex.load(folder))
    sequences = _timed("sequences", lambda: index.sequences(vocabulary))
    trie = _timed("trie", lambda: build_trie(sequences))
    sizes, shared = [len(level) for level in index.codebooks.centroids], (index.codes[:, -1] > 0).mean()
    megabytes = sum(leaf.nbytes for leaf in jax.tree.leaves(trie)) / 1e6
    print(f"\ncodebooks {sizes} and {index.codebooks.room} last numbers, above 0 for {shared:.1%} of the items")
    print(f"trie of {megabytes:.0f} MB, branching {trie.branching}; vocabulary of {vocabulary.size}")

    print(f"\none request, {_DENIED} denied, of {args.rounds}, ms\n{'beams':>5}{'median':>9}{'95%':>9}{'restrict':>10}")
    prompt = np.random.default_rng(0).integers(3, vocabulary.size, (1, _PROMPT), np.int32)
    for beams in _BEAMS:
        whole, restricting = _request_ms(trie, vocabulary.size, prompt, beams, args.rounds)
        print(
            f"{beams:5}{np.median(whole):9.2f}{np.quantile(whole, 0.95):9.2f}{np.median(restricting):10.3f}", flush=True
        )


def synthetic(items: int, each: int):
    """A catalogue of titles of three words, and a split with nothing but what is for training."""
    import numpy as np

    from t5x_lite.recommendation.catalogue import Catalogue
    from t5x_lite.recommendation.splits import Cases, Split

    rng = np.random.default_rng(0)
    count, in_topic = items * each, -(-items // _TOPICS)

    def zipf(size: int, power: float, shape: Any):
        shares = 1 / np.arange(1, size + 1) ** power
        return rng.choice(size, shape, p=shares / shares.sum()).astype(np.int32)

    user = np.sort(rng.integers(0, items, count, np.int32))
    topic = zipf(_TOPICS, 0.7, (items, 3))[user, rng.integers(0, 3, count)]
    anything = rng.random(count) < 0.1
    topic[anything] = zipf(_TOPICS, 0.7, int(anything.sum()))
    item = rng.permutation(items).astype(np.int32)[(topic * in_topic + zipf(in_topic, 0.8, count)) % items]
    train = np.split(item, np.cumsum(np.bincount(user, minlength=items))[:-1])
    titles = tuple(" ".join(f"word{word}" for word in words) for words in zipf(20_000, 1.0, (items, 3)).tolist())
    nothing = Cases(np.zeros(0, np.int32), [], np.zeros(0, np.int32))
    return Catalogue(tuple(map(str, range(items))), titles), Split(items, train, nothing, nothing)


def _timed(name: str, call: Callable[[], Any]) -> Any:
    """Also the most memory that the process has had up to then."""
    began = time.perf_counter()
    result = call()
    seconds = time.perf_counter() - began
    print(f"{name:24}{seconds:9.1f}{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:9.2f}", flush=True)
    return result


def _request_ms(trie, vocab_size: int, prompt, beams: int, rounds: int) -> tuple[list[float], list[float]]:
    """Of whole requests, and of making their restrictions; each round denies other items."""
    import jax
    import numpy as np

    from t5x_lite.decoding.constrained import constrained_search
    from t5x_lite.decoding.options import Decoding
    from t5x_lite.decoding.trie import restrict
    from t5x_lite.model import bind, init_params
    from t5x_lite.model.config import T5Config

    model = T5Config(
        vocab_size=vocab_size,
        d_model=128,
        num_heads=6,
        head_dim=64,
        d_ff=1024,
        num_encoder_layers=4,
        num_decoder_layers=4,
    )
    params = jax.jit(lambda key: init_params(model, key))(jax.random.key(0))
    options = Decoding(max_tokens=len(trie.levels), beams=beams, n_best=beams)
    on_device = jax.device_put(trie)

    @jax.jit
    def search(params, prompt, trie, restriction):
        return constrained_search(bind(model, params), prompt, trie, options, restriction).items

    rng = np.random.default_rng(0)
    whole, restricting = [], []
    for warm_up in (True, *[False] * rounds):
        denied = rng.choice(int(trie.size), _DENIED, replace=False)
        began = time.perf_counter()
        restriction = restrict(trie, [denied])
        restricted = time.perf_counter()
        found = np.asarray(search(params, prompt, on_device, restriction))
        ended = time.perf_counter()
        if not warm_up:
            whole.append(1e3 * (ended - began))
            restricting.append(1e3 * (restricted - began))
        if (found < 0).any() or np.isin(found, denied).any():
            raise AssertionError(f"{beams} beams found {found}")
    return whole, restricting


if __name__ == "__main__":
    config.run_door(main)
