"""How tasks/recommendation.py asks: seen wordings train and are evaluated, unseen ones are only evaluated.

They suit films, books or a shop, and are short, since they are encoded with every example. {history}, {liked},
{disliked} and {candidates} are rows of items (`<item_3><item_99>`) or "nothing", {rated} has a rating after each
(`<item_3>5<item_99>2`); {interests} is what tasks/recommendation_interests.py says. The unseen wordings are other
sentences, but of words that the seen ones teach: a model trained from nothing on these tasks knows no synonyms.
"""

from t5x_lite.data.templates import InstructionTemplate


def _family(name: str, seen: tuple[str, ...], unseen: tuple[str, ...]) -> tuple[InstructionTemplate, ...]:
    """Templates name_1, name_2, ... of one task, all with the target {answer}."""
    splits = ["seen"] * len(seen) + ["unseen"] * len(unseen)
    return tuple(
        InstructionTemplate(f"{name}_{number}", inputs, "{answer}", split)
        for number, (inputs, split) in enumerate(zip(seen + unseen, splits, strict=True), 1)
    )


NEXT = _family(
    "next",
    seen=(
        "{history} What comes next?",
        "What comes after {history}?",
        "Someone picked {history}. Recommend the next item.",
        "Recommend an item to follow {history}.",
        "History: {history} Next:",
        "After {history} they want another item. Which one?",
        "Given the history {history}, what is the next pick?",
        "Which item fits this history? {history}",
    ),
    unseen=(
        "{history} Recommend another item to follow this history.",
        "After the history {history}, which item comes next?",
        "What is the next pick after {history}?",
    ),
)

RATED = _family(
    "rated",
    seen=(
        "Liked: {liked} Disliked: {disliked} Next:",
        "They liked {liked} and disliked {disliked}. What comes next?",
        "Someone disliked {disliked} but liked {liked}. Recommend an item.",
        "Recommend an item for someone who liked {liked}, not {disliked}.",
        "{liked} liked, {disliked} disliked. Which item is next?",
        "Good: {liked} Bad: {disliked} What is the next pick?",
        "What comes next? Disliked: {disliked} Liked: {liked}",
        "Which item fits someone who liked {liked} and disliked {disliked}?",
    ),
    unseen=(
        "{liked} liked, but not {disliked}. What comes next?",
        "Someone liked {liked} and disliked {disliked}. Which item fits?",
        "Recommend the next pick. Bad: {disliked} Good: {liked}",
    ),
)

INTERESTS = _family(
    "interests",
    seen=(
        "Recommend {interests}.",
        "I want {interests}.",
        "They are in the mood for {interests}. Recommend an item.",
        "{interests}, please.",
        "Someone asks for {interests}. Which item fits?",
        "Please show me {interests}.",
        "Looking for {interests}. What do you recommend?",
        "Interests: {interests} Item:",
    ),
    unseen=(
        "{interests}: which item do you recommend?",
        "Someone is in the mood for {interests}. What fits?",
        "Please recommend {interests}.",
    ),
)

HISTORY_AND_INTERESTS = _family(
    "history_and_interests",
    seen=(
        "History: {history} Interests: {interests} Next:",
        "Someone picked {history} and now wants {interests}. Recommend an item.",
        "Recommend {interests} for someone with the history {history}.",
        "After {history} they are in the mood for {interests}.",
        "I want {interests}. My history: {history}",
        "{history} Now recommend {interests}.",
        "Looking for {interests} after {history}. Which item fits?",
        "{interests}, please, given the history {history}.",
    ),
    unseen=(
        "{history} Now I want {interests}. What fits?",
        "Someone with the history {history} asks for {interests}.",
        "Recommend {interests} to follow {history}.",
    ),
)

WILL_LIKE = _family(
    "will_like",
    seen=(
        "Rated: {rated} Will they like {item}?",
        "Will someone who rated {rated} like {item}?",
        "{rated} Is {item} liked, yes or no?",
        "Ratings: {rated} Item: {item} Yes or no:",
        "They rated {rated}. Is {item} a good pick?",
        "{item} for someone who rated {rated}: yes or no?",
        "Does {item} fit the ratings {rated}?",
        "Yes or no: someone will like {item} after {rated}.",
    ),
    unseen=(
        "{rated} Will someone like {item}, yes or no?",
        "Yes or no: someone who rated {rated} will like {item}.",
        "Is {item} a good pick after the ratings {rated}?",
    ),
)

RATING = _family(
    "rating",
    seen=(
        "Rated: {rated} Rating of {item}:",
        "Someone rated {rated}. How do they rate {item}?",
        "{rated} From 1 to 5, how good is {item}?",
        "Rate {item} from 1 to 5 for someone who rated {rated}.",
        "Ratings: {rated} What rating will {item} get?",
        "What rating does {item} get after {rated}?",
        "How many stars, 1 to 5, for {item}? Rated: {rated}",
        "How will someone with the ratings {rated} rate {item}?",
    ),
    unseen=(
        "{rated} How many stars will {item} get?",
        "They rated {rated}. What is the rating of {item}, from 1 to 5?",
        "From 1 to 5, rate {item} given the ratings {rated}.",
    ),
)

CHOOSE = _family(
    "choose",
    seen=(
        "History: {history} Choices: {candidates} Next:",
        "After {history}, choose one of {candidates}.",
        "Which of {candidates} comes after {history}?",
        "Someone picked {history}. Which of {candidates} is next?",
        "Choose from {candidates} to follow {history}.",
        "{history} Now pick one of {candidates}.",
        "Choices: {candidates} History: {history} Choose the next item.",
        "Given the history {history}, which of {candidates} fits?",
    ),
    unseen=(
        "{history} Which of {candidates} comes next?",
        "Someone with the history {history} wants one of {candidates}. Which one?",
        "Choose one of {candidates} to follow {history}.",
    ),
)

SIMILAR = _family(
    "similar",
    seen=(
        "What is similar to {item}?",
        "Recommend an item like {item}.",
        "Similar to {item}:",
        "Someone liked {item}. What is similar?",
        "Which item is most like {item}?",
        "{item} was good. Show me something similar.",
        "Find another item like {item}.",
        "Given {item}, what is a similar pick?",
    ),
    unseen=(
        "{item} was good. Which item is most similar?",
        "Someone liked {item}. Find something like this.",
        "Show me another item similar to {item}.",
    ),
)

ITEM_OF_TITLE = _family(
    "item_of_title",
    seen=(
        "Which item is {title}?",
        "Item called {title}:",
        "Find {title}.",
        "{title}: which item is this?",
        "Title: {title} Item:",
        "What item has the title {title}?",
        "Show me the item {title}.",
        "Someone asks for {title}. Which item is it?",
    ),
    unseen=(
        "{title} is the title of which item?",
        "Which item has the title {title}?",
        "Find the item called {title}.",
    ),
)

TITLE_OF_ITEM = _family(
    "title_of_item",
    seen=(
        "What is the title of {item}?",
        "Title of {item}:",
        "What is {item} called?",
        "Item: {item} Title:",
        "Give the title of {item}.",
        "{item} has which title?",
        "Which title does {item} have?",
        "Someone picked {item}. What is it called?",
    ),
    unseen=(
        "{item} What is this item called?",
        "What title does {item} have?",
        "Give the title of the item {item}.",
    ),
)

ABOUT_ITEM = _family(
    "about_item",
    seen=(
        "What kind of item is {item}?",
        "Describe {item}.",
        "About {item}:",
        "Tell me about {item}.",
        "Item: {item} About:",
        "{item}: what kind of item is it?",
        "What is {item} about?",
        "Someone picked {item}. Describe it.",
    ),
    unseen=(
        "{item} What is this item about?",
        "Tell me what kind of item {item} is.",
        "Describe the item {item}.",
    ),
)
