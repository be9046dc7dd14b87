"""The peer of benchmarks/serve.py: the recommender that people write today, with transformers and FastAPI.

python -m t5x_lite.convert --from=runs/recommend/checkpoints/2000 --to=exported --format=hf
python -m benchmarks.serve_peer --exported=exported --items=runs/recommend/items --port=8001

The exported weights and tokenizer in `T5ForConditionalGeneration.generate`: a beam search held to the items by
`prefix_allowed_tokens_fn` over a trie of dicts. The prompt and the prefix that the decoder is given are those of
t5x_lite, so that the task is equal. Seen and excluded items are left out by that function, at the last token: with one
token an item the list is exact, with longer ones a beam may run into a subtree of which nothing is left.
POST /recommend takes `history`, `exclude` ("id:ID") and `k` of /v1/recommend.
"""

import os
import threading

from t5x_lite import doors
from t5x_lite.errors import UserError


def main(argv: list[str]) -> None:
    def flags(parser):
        parser.add_argument("--exported", required=True, help="folder of `convert --format=hf`")
        parser.add_argument("--items", required=True, help="items/ of the run that was exported")
        parser.add_argument("--port", type=int, default=8001)
        parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="of torch")

    args = doors.parse_flags(argv, __doc__, flags)
    import torch
    import uvicorn

    torch.set_num_threads(args.threads)
    app = create_app(Peer(args.exported, args.items))
    uvicorn.run(app, host="127.0.0.1", port=args.port, log_level="warning", access_log=False)


class Peer:
    """An exported run, and what its prompts are made of."""

    def __init__(self, exported: str, items: str):
        import transformers

        from t5x_lite.recommendation.knowledge import Knowledge

        self._knowledge = Knowledge.load(items)
        if self._knowledge.index.kind == "title":  # which end with an end of sequence, and may begin another
            raise UserError(f"{items}: its items are titles; give a run of ITEM_INDEX='token'")
        self._tokenizer = transformers.AutoTokenizer.from_pretrained(exported)
        self._model = transformers.T5ForConditionalGeneration.from_pretrained(exported).eval()
        sequences = [self._tokens(text) for text in self._knowledge.index.texts]
        self._item_of = {tuple(sequence): item for item, sequence in enumerate(sequences)}
        self._longest = max(map(len, sequences))
        self._root: dict = {}
        for sequence in sequences:
            node = self._root
            for token in sequence:
                node = node.setdefault(token, {})

    def _tokens(self, text: str) -> list[int]:
        return self._tokenizer(text, add_special_tokens=False).input_ids

    def recommend(self, history: list[str], exclude: list[str], k: int) -> list[dict]:
        """(item, title, score) of the best items, `exclude` and the history not among them."""
        import torch

        catalogue = self._knowledge.catalogue
        taken, excluded = ([catalogue.number_of[id.removeprefix("id:")] for id in ids] for ids in (history, exclude))
        prompt, prefix = self._knowledge.prompt(taken, "")
        start = [self._model.config.decoder_start_token_id, *self._tokens(prefix)]
        denied = set(taken) | set(excluded)

        def allowed(_, sentence):
            written = sentence[len(start) :].tolist()
            node = self._root
            for token in written:
                node = node.get(token, {})
            left = [token for token in node if self._item_of.get((*written, token)) not in denied]
            return left or [self._model.config.eos_token_id]

        with torch.no_grad():
            found = self._model.generate(
                **self._tokenizer(prompt, return_tensors="pt"),
                decoder_input_ids=torch.tensor([start]),
                num_beams=k,
                num_return_sequences=k,
                max_new_tokens=self._longest,
                do_sample=False,
                length_penalty=0.0,  # the score is the log-probability itself
                prefix_allowed_tokens_fn=allowed,
                return_dict_in_generate=True,
                output_scores=True,
            )
        sequences = [tuple(row[len(start) :]) for row in found.sequences.tolist()]
        items = [self._item_of.get(sequence) for sequence in sequences]
        return [
            {"item": catalogue.ids[item], "title": catalogue.titles[item], "score": score}
            for item, score in zip(items, found.sequences_scores.tolist(), strict=True)
            if item is not None
        ]


def create_app(peer: Peer):
    """The plain app: each request in a thread of Starlette's pool, one of them computing at a time."""
    import fastapi
    import pydantic

    class Question(pydantic.BaseModel):
        history: list[str]
        exclude: list[str] = []
        k: int = 10

    app = fastapi.FastAPI()
    turn = threading.Lock()  # measured: without it, fewer requests a second

    @app.get("/health/ready")
    def ready():
        return {"status": "ready"}

    @app.post("/recommend")
    def recommend(question: Question):
        with turn:
            return {"items": peer.recommend(question.history, question.exclude, question.k)}

    return app


if __name__ == "__main__":
    doors.run_door(main)
