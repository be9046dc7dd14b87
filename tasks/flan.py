"""Public question-answering sets through TensorFlow Datasets: four tasks and the mixture `flan_qa`.

Importing this module only registers the tasks; TFDS is imported, and a set is downloaded, when its rows are
read. `fields` of each source turns an example of TFDS (numpy values) into the fields of the templates.
"""

from t5x_lite.data.metrics import classification, exact_match, token_f1
from t5x_lite.data.registry import register_mixture, register_task
from t5x_lite.data.sources import Tfds
from t5x_lite.data.templates import InstructionTemplate

Row = dict[str, str | list[str]]


def text(value: bytes | str) -> str:
    """TFDS gives strings as bytes."""
    return value.decode("utf-8") if isinstance(value, bytes) else str(value)


def question_mark(question: str) -> str:
    """bool_q and natural_questions_open write questions without a capital and a question mark."""
    question = question.strip()
    return question[:1].upper() + question[1:].rstrip("?").rstrip() + "?" if question else question


def squad_row(example: dict) -> Row:
    """The first answer is the target; the annotators' others count as right."""
    answers = list(dict.fromkeys(text(answer) for answer in example["answers"]["text"]))
    return {
        "title": text(example["title"]).replace("_", " "),
        "context": text(example["context"]),
        "question": text(example["question"]).strip(),
        "answer": answers[0],
        "answers": answers,
    }


def bool_q_row(example: dict) -> Row:
    return {
        "title": text(example["title"]),
        "passage": text(example["passage"]),
        "question": question_mark(text(example["question"])),
        "answer": "yes" if example["answer"] else "no",
    }


def natural_questions_open_row(example: dict) -> Row:
    answers = [text(answer) for answer in example["answer"]]
    return {"question": question_mark(text(example["question"])), "answer": answers[0], "answers": answers}


def trivia_qa_row(example: dict) -> Row:
    """The value is the target; every alias counts as right."""
    value = text(example["answer"]["value"])
    aliases = [text(alias) for alias in example["answer"]["aliases"]]
    return {
        "question": text(example["question"]).strip(),
        "answer": value,
        "answers": list(dict.fromkeys([value, *aliases])),
    }


def templates(seen: dict[str, str], unseen: dict[str, str]) -> tuple[InstructionTemplate, ...]:
    return tuple(
        InstructionTemplate(name, inputs, "{answer}", split)
        for split, group in (("seen", seen), ("unseen", unseen))
        for name, inputs in group.items()
    )


SQUAD = templates(
    seen={
        "context_question": "{context}\n\n{question}",
        "question_context": "Question: {question}\n\nContext: {context}\n\nAnswer:",
        "read_answer": "Read this passage and answer the question after it.\n\n{context}\n\n{question}",
        "article": "A paragraph from the article {title}.\n\n{context}\n\nAnswer from it: {question}",
        "quote": "{context}\n\nQuote the words of the text above that answer this question: {question}",
        "short": "Answer briefly, using only the passage.\n\nPassage: {context}\n\nQuestion: {question}",
        "search": "I am looking for the answer to: {question}\n\nIt is somewhere in here:\n{context}",
        "exam": "Reading test, topic {title}.\n\n{context}\n\nQ: {question}\nA:",
    },
    unseen={
        "given": "Given the text below, {question}\n\n{context}",
        "extract": "Extract the answer from the text.\n\nQuestion: {question}\nText: {context}",
        "according": "{context}\n\nAccording to this article about {title}: {question}",
    },
)

BOOL_Q = templates(
    seen={
        "passage_question": "{passage}\n\n{question}\nAnswer yes or no.",
        "question_passage": "Question: {question}\n\nPassage: {passage}\n\nYes or no?",
        "read_decide": "Read the text and decide between yes and no.\n\n{passage}\n\n{question}",
        "article": "From the article {title}:\n\n{passage}\n\nBased on it, {question} (yes/no)",
        "one_word": "Answer with one word, yes or no.\n\nText: {passage}\n\nQuestion: {question}",
        "wonder": "I wonder: {question}\n\nHere is what I found about it.\n{passage}\n\nSo, yes or no?",
        "exam": "Reading test, topic {title}.\n\n{passage}\n\nQ: {question} Yes or no?\nA:",
        "does_it_say": "{passage}\n\nGoing by this text alone, is it yes or no?\n{question}",
    },
    unseen={
        "according": "{question}\n\nAnswer yes or no according to this passage about {title}: {passage}",
        "choose": "Choose yes or no for the question below the text.\n\n{passage}\n\n{question}",
        "given": "Given that:\n{passage}\n\nIs it yes or no? {question}",
    },
)

OPEN_QUESTION_SEEN = {
    "plain": "{question}",
    "question_answer": "Question: {question}\nAnswer:",
    "short": "Answer in a few words: {question}",
    "please": "Please answer this question. {question}",
    "quiz": "Quiz time! {question}",
    "q_a": "Q: {question}\nA:",
    "know": "What do you know about this? {question} Give only the answer.",
    "friend": "My friend asks: {question} What should I reply?",
}
OPEN_QUESTION_UNSEEN = {
    "tell": "Tell me the answer to this question: {question}",
    "fact": "Give the short fact that is asked for.\n\n{question}",
    "trivia": "{question}\n\nThe answer is",
}
NATURAL_QUESTIONS_OPEN = templates(OPEN_QUESTION_SEEN, OPEN_QUESTION_UNSEEN)
TRIVIA_QA = templates(OPEN_QUESTION_SEEN, OPEN_QUESTION_UNSEEN)

TRAIN_AND_VALIDATION = {"train": "train", "validation": "validation"}

register_task(
    "squad",
    Tfds("squad", splits=TRAIN_AND_VALIDATION, fields=squad_row),
    SQUAD,
    metrics=[exact_match, token_f1],
    renderings_per_row=1,
    answers_field="answers",
)
register_task(
    "bool_q",
    Tfds("bool_q", splits=TRAIN_AND_VALIDATION, fields=bool_q_row),
    BOOL_Q,
    metrics=[classification(("yes", "no"))],
    renderings_per_row=1,
)
register_task(
    "natural_questions_open",
    Tfds("natural_questions_open", splits=TRAIN_AND_VALIDATION, fields=natural_questions_open_row),
    NATURAL_QUESTIONS_OPEN,
    metrics=[exact_match, token_f1],
    renderings_per_row=1,
    answers_field="answers",
)
register_task(  # TriviaQA's own test split has no answers
    "trivia_qa",
    Tfds("trivia_qa/unfiltered.nocontext", splits=TRAIN_AND_VALIDATION, fields=trivia_qa_row),
    TRIVIA_QA,
    metrics=[exact_match, token_f1],
    renderings_per_row=1,
    answers_field="answers",
)

# FLAN's rule: rates proportional to size, no task counting for more than `cap` examples.
register_mixture(
    "flan_qa", ["squad", "bool_q", "natural_questions_open", "trivia_qa"], rates="proportional", cap=30_000
)
