"""What a recommender knows beside its weights: `items/` of a run folder."""

import dataclasses
import functools
import hashlib
import io
import json
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from etils import epath
from jaxtyping import Float32, Int32, Int64

from t5x_lite.errors import FieldError, UserError, first_words, nearest
from t5x_lite.files import write_whole
from t5x_lite.recommendation.catalogue import ITEMS_FILE, Catalogue
from t5x_lite.recommendation.index import INDEX_FILE, ItemIndex

FOLDER = "items"
_HISTORIES_FILE = "histories.npz"


@dataclasses.dataclass(frozen=True, eq=False)
class Knowledge:
    """N items and their texts, and U users with all that they took, oldest first; `ratings` where there are any.

    `recent` is how many of a history's last items the decoder is given as its prefix, `longest` how many of the ones
    before those the encoder reads. `prompts` are the wordings with the field `history`, `interests`, or both (the
    names then joined by '+'): those that the model was trained on, then those that only evaluate it.
    """

    catalogue: Catalogue
    index: ItemIndex
    users: tuple[str, ...]
    histories: Sequence[Int32[np.ndarray, "L"]]
    ratings: Sequence[Float32[np.ndarray, "L"]] | None
    recent: int
    longest: int
    prompts: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)

    @functools.cached_property
    def number_of_user(self) -> dict[str, int]:
        return {user: number for number, user in enumerate(self.users)}

    def user(self, id: str) -> int:
        """The number of a user; UserError, with the nearest id, where there is none."""
        if id not in self.number_of_user:
            raise UserError(f"user {id!r} is not among the {len(self.users)} of this run{nearest(str(id), self.users)}")
        return self.number_of_user[id]

    @functools.cached_property
    def popularity(self) -> Int64[np.ndarray, "N"]:
        """How often each item was taken."""
        taken = np.concatenate([*self.histories, np.zeros(0, np.int32)])
        return np.bincount(taken, minlength=len(self.catalogue))

    def text(self, items: Sequence[int]) -> str:
        """Items as a prompt has them: tokens without anything between, titles as a list; 'nothing' for none."""
        between = "; " if self.index.kind == "title" else ""
        return between.join(self.index.texts[item] for item in items) or "nothing"

    def prompt(
        self, history: Sequence[int], interests: str, template: int = 0, kind: str | None = None
    ) -> tuple[str, str]:
        """What is asked, and the text that the decoder is given, in wording number `template` of their `kind`.

        FieldError where the run was not trained on such, or has fewer wordings.
        """
        kind = kind or self.kind(history, interests)
        wordings = self.prompts.get(kind)
        if not wordings:
            known = ", ".join(self.prompts) or "none"
            raise FieldError(kind.split("+")[-1], f"this run knows no prompts of {kind}; it has those of {known}")
        if not 0 <= template < len(wordings):
            there_are = f"{len(wordings)} wordings of {kind}, numbers 0 to {len(wordings) - 1}"
            raise FieldError("template", f"template {template}: this run has {there_are}")
        read, prefix = self.parted(history) if kind == "history" else (history, "")
        fields = {"history": self.text(read[-self.longest :]), "interests": interests}
        return wordings[template].format_map(fields), prefix

    def kind(self, history: Sequence[int], interests: str) -> str:
        """The name in `prompts` of what is asked about these; nothing at all is a history."""
        given = [field for field, has in (("history", len(history)), ("interests", interests)) if has]
        return "+".join(given) or "history"

    def read(self, interests: str) -> int:
        """How many of a history's last items the model reads, where interests are stated or not."""
        return self.longest + (0 if interests else self.recent)

    def cut(self, history: Sequence[int]) -> tuple[Sequence[int], Sequence[int]]:
        """What of a history the encoder may read, and its last items, which the decoder is given."""
        place = max(len(history) - self.recent, 0)
        return history[:place], history[place:]

    def parted(self, history: Sequence[int]) -> tuple[Sequence[int], str]:
        """As `cut`, with the decoder's part as text; '' for none."""
        older, recent = self.cut(history)
        return older, self.text(recent) if len(recent) else ""

    @property
    def sha256(self) -> str:
        """Of items, texts, histories, ratings and wordings."""
        digest = hashlib.sha256(self.index.sha256.encode())
        described = [self.catalogue.ids, self.catalogue.titles, sorted(self.catalogue.attributes.items()), self.users]
        digest.update(json.dumps([*described, self.recent, self.longest, sorted(self.prompts.items())]).encode())
        for history in self.histories:
            digest.update(np.asarray(history, np.int32).tobytes() + b"|")
        for ratings in self.ratings or ():
            digest.update(np.asarray(ratings, np.float32).tobytes())
        return digest.hexdigest()

    def save(self, folder: str | Path) -> None:
        """Writes items.csv, the index, and histories.npz, which is looked for first, as the last."""
        folder = epath.Path(folder)
        self.catalogue.save(folder)
        self.index.save(folder)
        arrays = {
            "users": np.frombuffer(json.dumps(self.users).encode(), np.uint8),
            "items": np.concatenate([*self.histories, np.zeros(0, np.int32)]),
            "lengths": np.array([len(history) for history in self.histories], np.int64),
            "sizes": np.array([self.recent, self.longest]),
            "wordings": np.frombuffer(json.dumps(dict(self.prompts)).encode(), np.uint8),
        }
        if self.ratings is not None:
            arrays["ratings"] = np.concatenate([*self.ratings, np.zeros(0, np.float32)])
        file = io.BytesIO()
        np.savez_compressed(file, **arrays)
        write_whole(folder / _HISTORIES_FILE, file.getvalue())

    @classmethod
    def load(cls, folder: str | Path) -> "Knowledge":
        """Reads `items/` of a run folder; UserError where it is missing or damaged."""
        folder = Path(folder)
        try:
            with np.load(folder / _HISTORIES_FILE, allow_pickle=False) as arrays:
                users = tuple(json.loads(arrays["users"].tobytes()))
                ends = np.cumsum(arrays["lengths"])[:-1]
                histories = np.split(arrays["items"], ends)[: len(users)]
                ratings = np.split(arrays["ratings"], ends)[: len(users)] if "ratings" in arrays else None
                recent, longest = arrays["sizes"].tolist()
                wordings = json.loads(arrays["wordings"].tobytes())
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
            raise UserError(
                f"{folder}: no readable {_HISTORIES_FILE} ({first_words(error)}); is it a run of gin/recommend.gin?"
            ) from None
        catalogue, index = Catalogue.load(folder), ItemIndex.load(folder)
        if len(catalogue) != len(index):
            raise UserError(
                f"{folder}: {ITEMS_FILE} has {len(catalogue)} items and {INDEX_FILE} {len(index)}; restore them from a "
                "copy of the run"
            )
        prompts = {name: tuple(texts) for name, texts in wordings.items()}
        return cls(catalogue, index, users, histories, ratings, recent, longest, prompts)

    @classmethod
    def load_run(cls, model_dir: str) -> "Knowledge":
        """Of a run folder; UserError for one that does not recommend."""
        if not (Path(model_dir) / FOLDER).is_dir():
            raise UserError(f"{model_dir!r} has no {FOLDER}/: it is no run that recommends, as gin/recommend.gin is")
        return cls.load(Path(model_dir) / FOLDER)
