"""How tasks/translation.py asks for a translation: in English, and in the other language of the pair.

Seen wordings train and are evaluated, unseen ones are only evaluated; those are other sentences of words that the seen
ones teach. The language asked for is named in words, so one model serves all directions.
"""

import dataclasses

from t5x_lite.data.templates import InstructionTemplate


@dataclasses.dataclass(frozen=True)
class Phrases:
    """A language that is paired with English, and how its speakers ask for a translation.

    `native` is ("into German", "in German") in that language, `english` the same of English: what stands for {into} and
    {in_} ({In} where a sentence begins) in `seen` and `unseen`.
    """

    name: str
    native: tuple[str, str]
    english: tuple[str, str]
    seen: tuple[str, str, str]
    unseen: str


PHRASES = {
    "de": Phrases(
        "German",
        native=("ins Deutsche", "auf Deutsch"),
        english=("ins Englische", "auf Englisch"),
        seen=("{In}: {text}", "Übersetze {into}: {text}", "Wie sagt man „{text}“ {in_}?"),
        unseen="Übersetze „{text}“ {into}.",
    ),
    "fr": Phrases(
        "French",
        native=("en français", "en français"),
        english=("en anglais", "en anglais"),
        seen=("{In} : {text}", "Traduis {into} : {text}", "Comment dit-on « {text} » {in_} ?"),
        unseen="Traduis « {text} » {into}.",
    ),
    "es": Phrases(
        "Spanish",
        native=("al español", "en español"),
        english=("al inglés", "en inglés"),
        seen=("{In}: {text}", "Traduce {into}: {text}", "¿Cómo se dice «{text}» {in_}?"),
        unseen="Traduce «{text}» {into}.",
    ),
    "it": Phrases(
        "Italian",
        native=("in italiano", "in italiano"),
        english=("in inglese", "in inglese"),
        seen=("{In}: {text}", "Traduci {into}: {text}", "Come si dice «{text}» {in_}?"),
        unseen="Traduci «{text}» {into}.",
    ),
    "pt": Phrases(
        "Portuguese",
        native=("para o português", "em português"),
        english=("para o inglês", "em inglês"),
        seen=("{In}: {text}", "Traduza {into}: {text}", "Como se diz “{text}” {in_}?"),
        unseen="Traduza “{text}” {into}.",
    ),
    "nl": Phrases(
        "Dutch",
        native=("naar het Nederlands", "in het Nederlands"),
        english=("naar het Engels", "in het Engels"),
        seen=("{In}: {text}", "Vertaal {into}: {text}", "Hoe zeg je ‘{text}’ {in_}?"),
        unseen="Vertaal ‘{text}’ {into}.",
    ),
    "sv": Phrases(
        "Swedish",
        native=("till svenska", "på svenska"),
        english=("till engelska", "på engelska"),
        seen=("{In}: {text}", "Översätt {into}: {text}", "Hur säger man ”{text}” {in_}?"),
        unseen="Översätt ”{text}” {into}.",
    ),
    "pl": Phrases(
        "Polish",
        native=("na polski", "po polsku"),
        english=("na angielski", "po angielsku"),
        seen=("{In}: {text}", "Przetłumacz {into}: {text}", "Jak powiedzieć „{text}” {in_}?"),
        unseen="Przetłumacz „{text}” {into}.",
    ),
    "ru": Phrases(
        "Russian",
        native=("на русский", "по-русски"),
        english=("на английский", "по-английски"),
        seen=("{In}: {text}", "Переведи {into}: {text}", "Как сказать «{text}» {in_}?"),
        unseen="Переведи «{text}» {into}.",
    ),
    "zh": Phrases(
        "Chinese",
        native=("成中文", "用中文"),
        english=("成英文", "用英文"),
        seen=("{In}说：{text}", "请把下文翻译{into}：{text}", "“{text}”{in_}怎么说？"),
        unseen="请把“{text}”翻译{into}",
    ),
    "ja": Phrases(
        "Japanese",
        native=("日本語に", "日本語で"),
        english=("英語に", "英語で"),
        seen=("{In}：{text}", "次の文を{into}訳してください：{text}", "「{text}」は{in_}何と言いますか？"),
        unseen="「{text}」を{into}訳してください",
    ),
    "ar": Phrases(
        "Arabic",
        native=("إلى العربية", "بالعربية"),
        english=("إلى الإنجليزية", "بالإنجليزية"),
        seen=("{In}: {text}", "ترجم {into}: {text}", "كيف تقول «{text}» {in_}؟"),
        unseen="ترجم «{text}» {into}.",
    ),
}

SEEN = {
    "to": "Translate to {target}: {text}",
    "t5": "translate {source} to {target}: {text}",  # T5's own
    "into": "Translate from {source} into {target}.\n{text}",
    "how": "How do you say '{text}' in {target}?",
    "what": "What is '{text}' in {target}?",
    "in": "In {target}: {text}",
    "label": "{source}: {text}\n{target}:",
    "write": "Write this in {target}: {text}",
    "please": "Please translate this into {target}: {text}",
    "above": "{text}\nTranslate the text above to {target}.",
}
UNSEEN = {
    "please_write": "Please write '{text}' in {target}.",
    "say": "Say this in {target}: {text}",
    "into_above": "{text}\nPlease translate the text above from {source} into {target}.",
}


def wordings(source: str, target: str) -> tuple[InstructionTemplate, ...]:
    """Templates of one direction, with the fields {text} and {translation}; one of the two languages is English."""
    paired = PHRASES[source if target == "en" else target]
    into, in_ = paired.english if target == "en" else paired.native
    words = {"source": language_name(source), "target": language_name(target), "text": "{text}"}
    words |= {"into": into, "in_": in_, "In": in_[0].upper() + in_[1:]}
    seen = SEEN | dict(zip(("native_in", "native_into", "native_how"), paired.seen, strict=True))
    unseen = UNSEEN | {"native_quoted": paired.unseen}
    return tuple(
        InstructionTemplate(name, inputs.format(**words), "{translation}", split)
        for split, group in (("seen", seen), ("unseen", unseen))
        for name, inputs in group.items()
    )


def language_name(code: str) -> str:
    return "English" if code == "en" else PHRASES[code].name
