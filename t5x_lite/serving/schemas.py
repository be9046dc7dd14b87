"""Bodies of requests and answers, and their limits; FastAPI writes OpenAPI from them."""

import re
from typing import Annotated, Any, Generic, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Discriminator, Field, Tag, model_validator

from t5x_lite.serving import settings

# Line breaks and tabs are text; other control characters and halves of surrogate pairs come from no keyboard.
_UNPRINTABLE = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff]")
_MOST_FIELDS = 40  # of one object; each that is unknown costs an error


def _printable(text: str) -> str:
    if wrong := _UNPRINTABLE.search(text):
        raise ValueError(f"has the character {wrong[0]!a}, which is no text; remove it")
    return text


Printable = Annotated[str, AfterValidator(_printable)]
Title = Annotated[Printable, Field(min_length=1, max_length=settings.TITLE_LENGTH)]
Interests = Annotated[Printable, Field(max_length=settings.INTERESTS_LENGTH)]
Filter = Annotated[Printable, Field(max_length=settings.FILTER_LENGTH)]
Prompt = Annotated[Printable, Field(min_length=1, max_length=settings.PROMPT_LENGTH)]
Target = Annotated[Printable, Field(max_length=settings.TARGET_LENGTH)]
Items = Annotated[list[Title], Field(max_length=settings.MOST_ITEMS)]
DeadlineMs = Annotated[
    int | None, Field(gt=0, le=3_600_000, description="after so many milliseconds the answer is 504")
]


class Body(BaseModel):
    """Takes no field that it does not know, and no number for a text: a mistake is said, not guessed at."""

    model_config = ConfigDict(extra="forbid", strict=True)

    @model_validator(mode="before")
    @classmethod
    def _few_fields(cls, fields: Any) -> Any:
        if isinstance(fields, dict) and len(fields) > _MOST_FIELDS:
            raise ValueError(f"has {len(fields)} fields; there are {', '.join(cls.model_fields)}")
        return fields


class RecommendRequest(Body):
    """For a known user, after a history, or for stated interests; with none of them, the most popular items."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"history": ["Toy Story (1995)", "Apollo 13"], "k": 5, "evidence": True}]}
    )
    user: Title | None = Field(None, description="an id of the training data")
    history: Items = Field([], description="titles, or id:ID, the oldest first")
    interests: Interests = Field("", description="what somebody says, in words")
    k: int = Field(10, ge=1, description="items in the list; at most what /v1/info says")
    exclude: Items = Field([], description="titles, or id:ID, that must not come")
    exclude_seen: bool = Field(True, description="whether what was taken must not come again")
    filters: list[Filter] = Field(
        [], max_length=settings.MOST_FILTERS, description="all hold, as genre=Comedy and year>=1990"
    )
    candidates: Items | None = Field(None, description="the only items that may come")
    evidence: bool = Field(False, description="name the history entries that speak for each item")
    template: int = Field(0, ge=0, description="which of the run's wordings asks the model")
    deadline_ms: DeadlineMs = None

    @model_validator(mode="after")
    def _one_history(self) -> "RecommendRequest":
        if self.user is not None and self.history:
            raise ValueError("user and history: give the one or the other")
        return self


class GenerateRequest(Body):
    """A prompt; or a text and the language to translate it to."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"prompt": "What is the capital of Japan?"}]})
    prompt: Prompt | None = None
    text: Prompt | None = None
    target_language: Title | None = Field(None, description="its code, de, or its name, German")
    mode: Literal["greedy", "beams"] = "greedy"
    n_best: int = Field(1, ge=1, le=settings.MOST_BEST, description="answers, best first; more than one needs beams")
    stream: bool = Field(False, description="pieces of the text as server-sent events, while it is written")
    deadline_ms: DeadlineMs = None

    @model_validator(mode="after")
    def _one_question(self) -> "GenerateRequest":
        if (self.prompt is None) == (self.text is None):
            raise ValueError("give a prompt, or a text and its target_language")
        if (self.text is None) != (self.target_language is None):
            raise ValueError("text and target_language belong together; give both or neither")
        if self.n_best > 1 and self.mode != "beams":
            raise ValueError('n_best is more than 1; set "mode": "beams"')
        if self.stream and self.mode != "greedy":
            raise ValueError('a stream is greedy; set "mode": "greedy"')
        return self


class ScoreRequest(Body):
    """Answers whose likelihood is asked for."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"prompt": "What is the capital of Japan?", "targets": ["Tokyo", "Kyoto"]}]}
    )
    prompt: Prompt
    targets: list[Target] = Field(min_length=1, max_length=settings.MOST_TARGETS)
    deadline_ms: DeadlineMs = None


Request = TypeVar("Request", bound=Body)


class Several(Body, Generic[Request]):
    """Several requests in one body; each has its own result."""

    requests: list[Request] = Field(min_length=1, max_length=settings.MOST_REQUESTS)


def _which(body: Any) -> str:
    several = "requests" in body if isinstance(body, dict) else isinstance(body, Several)
    return "several" if several else "one"


OneOrSeveralRecommend = Annotated[
    Annotated[RecommendRequest, Tag("one")] | Annotated[Several[RecommendRequest], Tag("several")],
    Discriminator(_which),
]
OneOrSeveralGenerate = Annotated[
    Annotated[GenerateRequest, Tag("one")] | Annotated[Several[GenerateRequest], Tag("several")],
    Discriminator(_which),
]

# Answers. They describe themselves in OpenAPI; the routes write plain dicts of these shapes.


class Timing(BaseModel):
    """Milliseconds: waiting for a batch, text to tokens on the host, the model's calls."""

    queue: float
    encode: float
    decode: float


class Reason(BaseModel):
    """An entry of the history, and by how much the item's log-probability falls without it."""

    item: str
    title: str
    effect: float


class Item(BaseModel):
    """`score` is a log-probability; of a fallback, that of the item's share of all interactions."""

    rank: int
    item: str
    title: str
    score: float
    attributes: dict[str, list[str]]
    evidence: list[Reason] | None = None


class RecommendAnswer(BaseModel):
    """A list, best first: as many as asked for, or all that are left."""

    items: list[Item]
    source: Literal["model", "fallback"]
    warnings: list[str]
    template: int
    model_version: str
    catalogue_version: str
    timing: Timing


class Written(BaseModel):
    """What the model wrote; `ended` says whether it came to an end by itself."""

    text: str
    score: float
    ended: bool


class GenerateAnswer(Written):
    """The best answer, and the `others` of `n_best`."""

    others: list[Written]
    warnings: list[str]
    model_version: str
    timing: Timing


class Score(BaseModel):
    """Log-probability of each token, the end included, and their sum."""

    total: float
    tokens: list[float]


class ScoreAnswer(BaseModel):
    """One score for each target."""

    scores: list[Score]
    model_version: str
    timing: Timing


class FieldError(BaseModel):
    """One field that is wrong."""

    field: str
    message: str


class ProblemDetails(BaseModel):
    """RFC 9457."""

    type: str
    title: str
    status: int
    detail: str
    instance: str = Field(description="the request's id, as in the access log")
    errors: list[FieldError] | None = None


class ProblemResult(BaseModel):
    """In the place of a result that could not be."""

    problem: ProblemDetails


Answer = TypeVar("Answer", bound=BaseModel)


class Results(BaseModel, Generic[Answer]):
    """Of several requests, in their order."""

    results: list[Answer | ProblemResult]
