"""What holding a search to a catalogue costs: our trie on the device against transformers' Python callback.

python benchmarks/constraint.py [--sequences=10000,100000,1000000] [--size=small] [--rounds=20] [--no_peer]

One request of 128 tokens, ten beams, sequences of four codes out of 256 a level, drawn so that few prefixes have most
of them. The constraint is timed alone (all that a step does after its logits, the softmax's sum apart), over each
level's own logits and many times in one call; a step is that of the whole search, without the encoder. Its cost
goes with the most children that a node has, and that grows with the catalogue: "one shape" gives all catalogues the
arrays and limits of the largest, so that only their number differs. transformers' step is timed with its callback,
over a trie of dicts, and without.
"""

import os
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

from t5x_lite import config

_PROMPT, _BEAMS, _LEVELS, _CODES, _DENIED = 128, 10, 4, 256, 100
_REPEATS = 200  # of a constraint, within one call


def main(argv: list[str]) -> None:
    def flags(parser):
        parser.add_argument("--sequences", default="10000,100000,1000000", help="sizes of catalogues")
        parser.add_argument("--size", default="small", help="of Flan-T5: small, base, large")
        parser.add_argument("--rounds", type=int, default=20)
        parser.add_argument("--no_peer", action="store_true", help="leave transformers out")

    args = config.parse_flags(argv, __doc__, flags)
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    import jax
    import numpy as np

    from t5x_lite.decoding.trie import build_trie
    from t5x_lite.model import init_params

    config.load([f"gin/models/flan_t5_{args.size}.gin"])
    model = config.build("T5Config")
    params = jax.jit(lambda key: init_params(model, key))(jax.random.key(0))
    prompt = np.random.default_rng(0).integers(3, 32000, (1, _PROMPT), np.int32)
    sizes = sorted(map(int, args.sequences.split(",")))
    tables = {size: catalogue(size) for size in sizes}
    largest = build_trie(tables[sizes[-1]])

    print(f"flan_t5_{args.size}, {_BEAMS} beams, {_LEVELS} levels of {_CODES}; medians of {args.rounds}, ms a step")
    print(
        f"{'sequences':>10}{'built in s':>11}{'bytes each':>11}{'step':>8}{'constraint':>11}{'share':>8}"
        f"{f'{_DENIED} denied':>11}{'one shape':>11}  branching"
    )
    for size, table in tables.items():
        began = time.perf_counter()
        trie = build_trie(table)
        built = time.perf_counter() - began
        each = sum(leaf.nbytes for leaf in jax.tree.leaves(trie)) / size
        step = _step(model, params, prompt, jax.device_put(trie), args.rounds)
        alone = _constraint(trie, model.vocab_size, args.rounds)
        denied = _constraint(trie, model.vocab_size, args.rounds, denied=_DENIED)
        one_shape = _constraint(build_trie(table, like=largest), model.vocab_size, args.rounds)
        print(
            f"{size:10,}{built:11.2f}{each:11.1f}{step:8.3f}{alone:11.4f}{alone / step:8.2%}{denied:11.4f}"
            f"{one_shape:11.4f}  {trie.branching}",
            flush=True,
        )
    print(f"{'no trie':>10}{'':22}{_step(model, params, prompt, None, args.rounds):8.3f}  (beam search)")
    if not args.no_peer:
        _peer(model, prompt, tables, args.rounds)


def catalogue(size: int):
    """Distinct code sequences [size, 4]; each level has its own tokens, and codes are Zipf-like after each prefix."""
    import numpy as np

    rng = np.random.default_rng(0)
    shares = 1 / np.arange(1, _CODES + 1) ** 0.7
    found = np.zeros((0, _LEVELS), np.int64)
    while len(found) < size:
        codes = rng.choice(_CODES, (2 * size, _LEVELS), p=shares / shares.sum())
        for level in range(1, _LEVELS):
            codes[:, level] = (codes[:, level] * (2 * codes[:, level - 1] + 1) + codes[:, 0]) % _CODES
        found = np.unique(np.concatenate([found, codes]), axis=0)
    return rng.permutation(found)[:size] + 1000 + _CODES * np.arange(_LEVELS)


def _medians_ms(calls: Sequence[Callable[[], Any]], rounds: int) -> list[float]:
    """In turn, so that what else the machine does meets them alike."""
    import jax

    times: list[list[float]] = [[] for _ in calls]
    for warm_up in (True, *[False] * rounds):
        for call, found in zip(calls, times, strict=True):
            began = time.perf_counter()
            jax.block_until_ready(call())
            if not warm_up:
                found.append(time.perf_counter() - began)
    return [1e3 * statistics.median(found) for found in times]


def _step(model, params, prompt, trie, rounds: int) -> float:
    """Of the search in a trie; without one, of beam search."""
    import jax

    from t5x_lite.decoding.beam import beam_search
    from t5x_lite.decoding.constrained import constrained_search
    from t5x_lite.decoding.options import Decoding
    from t5x_lite.model import bind

    options = Decoding(max_tokens=_LEVELS, beams=_BEAMS, n_best=_BEAMS)

    def search(params, prompt, trie):
        bound = bind(model, params)
        if trie is None:
            return beam_search(bound, prompt, options, eos_id=1)
        return constrained_search(bound, prompt, trie, options)

    def start(params, prompt):
        bound = bind(model, params)
        return bound.start_cache(bound.encode(prompt), prompt, _LEVELS).cross

    search, start = jax.jit(search), jax.jit(start)
    whole, before = _medians_ms([lambda: search(params, prompt, trie), lambda: start(params, prompt)], rounds)
    return (whole - before) / _LEVELS


def _constraint(trie, vocab_size: int, rounds: int, denied: int = 0) -> float:
    """Of all levels, over their number."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    from t5x_lite.decoding import constrained
    from t5x_lite.decoding.options import Decoding
    from t5x_lite.decoding.trie import restrict

    rng = np.random.default_rng(0)
    options = Decoding(max_tokens=_LEVELS, beams=_BEAMS, n_best=_BEAMS)
    restriction = restrict(trie, [rng.choice(int(trie.size), denied, replace=False)]) if denied else None
    trie, restriction = jax.device_put((trie, restriction))
    live = constrained.nothing(1, 1, _LEVELS)._replace(place=jnp.zeros((1, 1), jnp.int32), scores=jnp.zeros((1, 1)))
    done = constrained.nothing(1, _BEAMS, _LEVELS)
    total = 0.0
    for level in range(_LEVELS):
        logits = rng.normal(size=(live.place.shape[1], vocab_size)).astype(np.float32)

        def advance(trie, live, done, logits, restriction, level=level):
            return constrained.advance(trie, level, live, done, logits, options, restriction)

        def repeated(trie, live, done, logits, restriction, advance=advance):
            def again(_, shift):
                # Each round waits for the last, by a 0 that the compiler cannot see; the logits' sums do not.
                moved = live._replace(place=live.place + shift)
                results = advance(trie, moved, done, logits, restriction)
                total = sum(jnp.sum(x).astype(jnp.float32) for x in jax.tree.leaves(results))
                return jnp.isnan(total).astype(jnp.int32)

            return jax.lax.fori_loop(0, _REPEATS, again, jnp.int32(0))

        call = jax.jit(repeated)
        arguments = (trie, live, done, logits, restriction)
        total += _medians_ms([lambda call=call, arguments=arguments: call(*arguments)], rounds)[0]
        live, _, done = jax.jit(advance)(*arguments)
    return total / _REPEATS / _LEVELS


def _peer(shape, prompt, tables, rounds: int) -> None:
    import torch
    import transformers

    from t5x_lite.interop.hugging_face import write_config

    theirs = transformers.T5Config.from_dict(write_config(shape, "float32", {}))
    model = transformers.T5ForConditionalGeneration(theirs).eval()
    tokens = torch.tensor(prompt, dtype=torch.long)

    def generate(allowed: Callable | None = None):
        with torch.no_grad():
            return model.generate(
                tokens,
                num_beams=_BEAMS,
                num_return_sequences=_BEAMS,
                min_new_tokens=_LEVELS,
                max_new_tokens=_LEVELS,
                do_sample=False,
                prefix_allowed_tokens_fn=allowed,
            )

    print(f"\ntransformers {transformers.__version__}, the encoder's share of a step included")
    print(f"{'sequences':>10}{'built in s':>11}{'step':>10}{'without':>10}{'constraint':>12}{'share':>8}")
    for count, table in tables.items():
        began = time.perf_counter()
        root: dict = {}
        for sequence in table.tolist():
            node = root
            for token in sequence:
                node = node.setdefault(token, {})
        built = time.perf_counter() - began

        def allowed(_, sentence, root=root):
            node = root
            for token in sentence.tolist()[1:]:
                node = node.get(token, {})
            return list(node)

        medians = _medians_ms([lambda allowed=allowed: generate(allowed), generate], rounds)
        step, without = (median / _LEVELS for median in medians)
        print(f"{count:10,}{built:11.2f}{step:10.2f}{without:10.2f}{step - without:12.3f}{1 - without / step:8.2%}")


if __name__ == "__main__":
    config.run_door(main)
