"""How tasks/qa.py asks: seen wordings train and are evaluated, unseen ones are only evaluated.

Fields of a closed-book or yes/no row: {country} inside a sentence ("the Netherlands"), {Country} at its
start, {possessive} ("the Netherlands'"), {name} alone ("Netherlands"), {answer}; {capital}, {continent},
{currency}, {other} where a statement has two sides. The unseen wordings are other sentences, but of words
that the seen ones teach: a model trained from nothing on these tasks knows no synonyms.
"""

from t5x_lite.data.templates import InstructionTemplate


def wordings(seen: dict[str, str], unseen: dict[str, str]) -> tuple[InstructionTemplate, ...]:
    """Templates of one task, all with the target {answer}."""
    return tuple(
        InstructionTemplate(name, inputs, "{answer}", split)
        for split, group in (("seen", seen), ("unseen", unseen))
        for name, inputs in group.items()
    )


CAPITAL = wordings(
    seen={
        "what_is": "What is the capital of {country}?",
        "name": "Name the capital of {country}.",
        "complete": "The capital of {country} is",
        "which_city": "Which city is the capital of {country}?",
        "has_which": "{Country} has its capital in which city?",
        "label": "Country: {name}\nCapital:",
        "possessive": "What is {possessive} capital city?",
        "quiz": "Geography quiz. Question: what is the capital of {country}? Answer in a few words.",
        "going": "I am going to {country}. What is the capital city there?",
        "in_which": "In which city does {country} have its capital?",
        "casual": "hey, do you know the capital of {country}?",
        "short": "capital of {country}",
        "please": "Please give the name of the capital city of {country} and nothing else.",
        "ask": "Do you know what {possessive} capital is called?",
    },
    unseen={
        "tell_me": "Tell me which city is the capital of {country}.",
        "do_you_know": "Do you know which city {country} has as its capital?",
        "in_country": "In {country}, which city is the capital?",
        "want_to_know": "I want to know the name of {possessive} capital. What is it?",
    },
)

CONTINENT = wordings(
    seen={
        "which": "Which continent is {country} in?",
        "on_which": "On which continent is {country}?",
        "name": "Name the continent of {country}.",
        "complete": "{Country} is a part of the continent of",
        "label": "Country: {name}\nContinent:",
        "possessive": "What is {possessive} continent?",
        "casual": "hey, what continent is {country} on?",
        "quiz": "Geography quiz. Question: on which continent is {country}? Answer with the continent only.",
        "going": "I am going to {country}. Which continent am I going to?",
        "map": "I want to find {country} on a map of the world. Which continent does it belong to?",
        "short": "continent of {country}",
        "tell_me": "Tell me the continent that {country} belongs to.",
        "ask": "Do you know which continent {country} is on?",
    },
    unseen={
        "part_of": "What is the name of the continent that {country} is a part of?",
        "belong": "Which continent does {country} belong to?",
        "do_you_know": "Do you know the continent of {country}?",
        "find": "On what continent do I find {country}?",
    },
)

CURRENCY = wordings(
    seen={
        "what_is": "What is the currency of {country}?",
        "used": "Which currency is used in {country}?",
        "money": "What money do people use in {country}?",
        "complete": "The currency of {country} is the",
        "pay": "With what currency do people in {country} pay?",
        "label": "Country: {name}\nCurrency:",
        "possessive": "What is {possessive} currency called?",
        "going": "I am going to {country}. What currency do I need there?",
        "casual": "hey, what is the money called in {country}?",
        "name": "Name the currency of {country}.",
        "short": "currency of {country}",
        "please": "Please give the name of the currency that people use in {country} and nothing else.",
        "quiz": "Money quiz. Question: what currency does {country} use? Answer in a few words.",
        "ask": "Do you know what the currency of {country} is called?",
    },
    unseen={
        "tell_me": "Tell me which currency people pay with in {country}.",
        "in_country": "In {country}, what is the currency called?",
        "which": "Which currency does {country} use?",
        "do_you_know": "Do you know the name of the money that is used in {country}?",
    },
)

CURRENCY_CODE = wordings(
    seen={
        "what_is": "What is the currency code of {country}?",
        "stands_for": "Which three-letter code stands for the currency of {country}?",
        "possessive": "Give the three-letter code of {possessive} currency.",
        "complete": "The currency code of {country} is",
        "label": "Country: {name}\nCurrency code:",
        "casual": "hey, what is the code for the money of {country}?",
        "short": "currency code of {country}",
        "sending": "I want to send money to {country}. What is the currency code?",
        "name": "Name the currency code that banks use for {country}.",
        "write": "Banks write the currency of {country} with which code?",
        "please": "Please give the currency code of {country} and nothing else.",
        "ask": "Do you know which code banks use for {possessive} money?",
    },
    unseen={
        "banks": "What code do banks use for the currency of {country}?",
        "tell_me": "Tell me {possessive} currency code.",
        "do_you_know": "Do you know the three-letter currency code of {country}?",
    },
)

LANGUAGE = wordings(
    seen={
        "what_is": "What is the main language of {country}?",
        "spoken": "Which language is spoken in {country}?",
        "speak": "What language do people in {country} speak?",
        "name": "Name the main language of {country}.",
        "complete": "The main language of {country} is",
        "label": "Country: {name}\nLanguage:",
        "possessive": "What is {possessive} main language?",
        "going": "I am going to {country}. What language do I need there?",
        "casual": "hey, what language do they speak in {country}?",
        "short": "language of {country}",
        "please": "Please give the name of the main language that is spoken in {country} and nothing else.",
        "quiz": "Language quiz. Question: what language do people use in {country}? Answer in a few words.",
        "ask": "Do you know what language they speak in {country}?",
    },
    unseen={
        "tell_me": "Tell me which language people speak in {country}.",
        "in_country": "In {country}, what is the main language?",
        "do_you_know": "Do you know the main language that people use in {country}?",
    },
)

CALLING_CODE = wordings(
    seen={
        "what_is": "What is the calling code of {country}?",
        "international": "What is the international calling code for {country}?",
        "dial": "Which code do I dial to call {country}?",
        "phone": "Give the phone code of {country}.",
        "complete": "The calling code of {country} is",
        "label": "Country: {name}\nCalling code:",
        "start": "Phone numbers in {country} start with which code?",
        "friend": "I want to call a friend in {country}. Which code do I dial first?",
        "casual": "hey, what is the phone code for {country}?",
        "short": "calling code of {country}",
        "possessive": "What is {possessive} calling code?",
        "please": "Please give the international phone code of {country} and nothing else.",
        "quiz": "Phone quiz. Question: what is the calling code for {country}? Answer with the code only.",
        "ask": "Do you know which code I dial for {country}?",
    },
    unseen={
        "which_call": "Which calling code do I dial to call a friend in {country}?",
        "tell_me": "Tell me the phone code for {country}.",
        "numbers": "What code do phone numbers in {country} start with?",
        "do_you_know": "Do you know the international calling code of {country}?",
    },
)

COUNTRY = wordings(
    seen={
        "of_which": "{capital} is the capital of which country?",
        "has_capital": "Which country has {capital} as its capital?",
        "what_country": "What country is {capital} the capital of?",
        "complete": "{capital} is the capital of",
        "label": "Capital: {capital}\nCountry:",
        "name": "Name the country whose capital is {capital}.",
        "i_am_in": "I am in {capital}, the capital city. Which country am I in?",
        "casual": "hey, which country is {capital} the capital of?",
        "short": "country with the capital {capital}",
        "quiz": "Geography quiz. Question: which country has {capital} as its capital? Name it.",
        "please": "Please give the name of the country that has the capital city {capital} and nothing else.",
        "possessive": "Which country's capital is {capital}?",
        "ask": "Do you know which country {capital} is the capital of?",
    },
    unseen={
        "tell_me": "Tell me which country has its capital in {capital}.",
        "in_which": "In which country is {capital} the capital city?",
        "do_you_know": "Do you know the country whose capital city is {capital}?",
    },
)

BORDER = wordings(
    seen={
        "does": "Does {country} border {other}?",
        "share": "Do {country} and {other} share a border?",
        "between": "Is there a border between {country} and {other}?",
        "neighbour": "Is {country} a neighbour of {other}?",
        "neighbours": "Are {country} and {other} neighbours?",
        "yes_or_no": "Yes or no: {country} has a border with {other}.",
        "claim": "{Country} and {other} share a border. Is that true? Answer yes or no.",
        "statement": "Statement: {country} borders {other}.\nTrue, yes or no?",
        "casual": "hey, do {country} and {other} have a border?",
        "know": "Do you know if {country} borders {other}?",
    },
    unseen={
        "true_that": "Is it true that {country} borders {other}?",
        "yes_or_no_share": "Yes or no: {country} and {other} share a border.",
        "have": "Does {country} have a border with {other}?",
        "claim_neighbour": "{Country} is a neighbour of {other}. Is that true?",
    },
)

IS_CONTINENT = wordings(
    seen={
        "in": "Is {country} in {continent}?",
        "part": "Is {country} a part of {continent}?",
        "belong": "Does {country} belong to {continent}?",
        "yes_or_no": "Yes or no: {country} is in {continent}.",
        "claim": "{Country} belongs to {continent}. Is that true? Answer yes or no.",
        "statement": "Statement: {country} is a part of {continent}.\nTrue, yes or no?",
        "continent_of": "Is {continent} the continent of {country}?",
        "casual": "hey, is {country} on the continent of {continent}?",
        "going": "I am going to {country}. Am I going to {continent}?",
        "know": "Do you know if {country} is in {continent}?",
        "true_on": "Is it true that {country} is on the continent of {continent}?",
    },
    unseen={
        "true_that": "Is it true that {country} is in {continent}?",
        "yes_or_no_belong": "Yes or no: {country} belongs to {continent}.",
        "claim_in": "{Country} is in {continent}. Is that true?",
    },
)

IS_CAPITAL = wordings(
    seen={
        "is_the": "Is the capital of {country} {capital}?",
        "is_it": "Is {capital} the capital of {country}?",
        "possessive": "Is {capital} {possessive} capital city?",
        "yes_or_no": "Yes or no: {capital} is the capital of {country}.",
        "claim": "The capital of {country} is {capital}. Is that true? Answer yes or no.",
        "statement": "Statement: {country} has its capital in {capital}.\nTrue, yes or no?",
        "have": "Does {country} have its capital in {capital}?",
        "casual": "hey, is {capital} the capital city of {country}?",
        "know": "Do you know if {capital} is the capital of {country}?",
        "true_has": "Is it true that {country} has {capital} as its capital?",
    },
    unseen={
        "true_that": "Is it true that {capital} is the capital of {country}?",
        "yes_or_no_the": "Yes or no: the capital of {country} is {capital}.",
        "claim_city": "{capital} is the capital city of {country}. Is that true?",
    },
)

IS_CURRENCY = wordings(
    seen={
        "people_in": "Do people in {country} pay with the {currency}?",
        "people_pay": "Do people pay with the {currency} in {country}?",
        "used": "Is the {currency} used in {country}?",
        "currency_of": "Is the {currency} the currency of {country}?",
        "yes_or_no": "Yes or no: people in {country} use the {currency}.",
        "claim": "The currency of {country} is the {currency}. Is that true? Answer yes or no.",
        "statement": "Statement: the {currency} is used in {country}.\nTrue, yes or no?",
        "casual": "hey, is the money in {country} called the {currency}?",
        "going": "I am going to {country}. Do I need the {currency} there?",
        "know": "Do you know if people in {country} pay with the {currency}?",
        "true_use": "Is it true that people in {country} use the {currency}?",
    },
    unseen={
        "true_that": "Is it true that people in {country} pay with the {currency}?",
        "yes_or_no_is": "Yes or no: the {currency} is the currency of {country}.",
        "does_use": "Does {country} use the {currency}?",
    },
)

OPEN_BOOK = wordings(
    seen={
        "what_is": "{record}\n\nWhat is the {attribute} of {country}?",
        "read": "Read this record and answer.\n{record}\nQuestion: what is the {attribute} of {country}?",
        "according": "{record}\nAccording to the record, what is the {attribute} of {country}?",
        "question_first": "Question: what is the {attribute} of {country}?\nRecord: {record}",
        "use_below": "Use the record below to give the {attribute} of {country}.\n{record}",
        "name_above": "{record}\nName the {attribute} that is in the record above.",
        "find": "Find the {attribute} in this record: {record}",
        "label": "Record: {record}\n{attribute} of {country}:",
        "facts": "Facts about {country}: {record}\nTell me the {attribute}.",
        "complete": "{record}\nThe {attribute} of {country} is",
        "which": "Which {attribute} does the record give for {country}?\n{record}",
        "please": "{record}\nPlease give the {attribute} of {country} and nothing else.",
    },
    unseen={
        "tell_me": "Read the record and tell me the {attribute} of {country}.\n{record}",
        "which_after": "{record}\nQuestion: which {attribute} does the record give for {country}?",
        "find_below": "Find the {attribute} of {country} in the record below.\n{record}",
        "name_according": "According to this record, name the {attribute}: {record}",
    },
)
