"""A text as a row of elements: the expressions of the lexicon, the signs between them, and unknown words."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from .checklist import Allowed
from .lexicon import Lexicon, Match, Token

SIGNS = {
    ",": "comma", "|": "comma", "/": "comma", ";": "end", "!": "end", "•": "end", "*": "end", "—": "end",
    "→": "end", "->": "end", "=>": "end", ">": "end", "\n": "line", ".": "dot", ":": "colon", "=": "colon",
    "(": "open", "[": "open", ")": "close", "]": "close", "+": "plus", "-": "minus", "–": "minus",
    "−": "minus", "?": "question", "+/-": "question", "±": "question", "¿": "doubt_next", "&": "and",
    "0": "absent",
}  # fmt: skip
_SIGN_ROLES = frozenset(SIGNS.values())
_ANSWERS = frozenset({"word", "absent", "present", "deny", "doubt", "concord"})
NAMES = frozenset({"term", "needs_value", "phrase"})
FINDINGS = NAMES | {"word"}
_ARTICLE = 3  # letters of the longest plain word that may be an article


class Element(NamedTuple):
    """An expression or sign of a text.

    role : of ROLES or SIGNS; "term", "needs_value", "phrase" or "word", as of an Entry; "number" or
        "unknown".
    start, end : its place in the text.
    criterion, allowed, beside : of an Entry.
    text : its last word, folded.
    reaches : whether it is a denial that reaches over "and", such as "without".
    """

    role: str
    start: int
    end: int
    criterion: str = ""
    allowed: Allowed = ()
    beside: Mapping[str, Allowed] = {}
    text: str = ""
    reaches: bool = False

    @property
    def is_content(self) -> bool:
        """Whether it is a word that a denial or doubt may speak of, and more than an article."""
        return self.role in ("diagnoses", "unknown") or (self.role == "plain" and len(self.text) > _ARTICLE)


def elements_of(tokens: Sequence[Token], lexicon: Lexicon, languages: Sequence[str]) -> Iterator[Element]:
    """Yield the elements of a text in its order."""
    matches = {match.first: match for match in lexicon.match(tokens, languages)}
    has_plus = any(token.text == "+" for token in tokens)  # then a hyphen may be a minus everywhere
    place = 0
    while place < len(tokens):
        token = tokens[place]
        if match := matches.get(place):
            yield _expression(match, tokens)
            place = match.last
            continue
        role = _role(tokens, place, lexicon, languages[0])
        if role == "minus" and not has_plus and _is_dash(tokens, place):
            answers = place + 1 in matches and matches[place + 1].entry.role in _ANSWERS
            role = "colon" if answers and not _names_ahead(tokens, matches, place) else "comma"
        if role:
            yield Element(role, token.start, token.end, text=token.text)
        place += 1


def _expression(match: Match, tokens: Sequence[Token]) -> Element:
    entry, last = match.entry, tokens[match.last - 1]
    reaches = entry.role == "without"
    return Element(
        "deny" if reaches else entry.role,
        tokens[match.first].start,
        last.end,
        entry.criterion,
        entry.allowed,
        entry.beside,
        last.text,
        reaches,
    )


def _role(tokens: Sequence[Token], place: int, lexicon: Lexicon, language: str) -> str:
    """Return the role of a token that begins no expression, "" if it makes no difference."""
    token, before = tokens[place], tokens[place - 1].text if place else ""
    if token.joined:  # "blue-white", but "dots/globules" and "D&G" are two
        return {"/": "or", "&": "and"}.get(token.text, "")
    if token.text == ".":
        ends = (
            place + 1 == len(tokens) or tokens[place + 1].start > token.end or tokens[place + 1].text == "\n"
        )
        return "end" if ends and not lexicon.is_abbreviation(before, language) else ""
    if token.text in SIGNS:
        role = SIGNS[token.text]
        begins_line = role == "minus" and before in ("", "\n")
        has_space = place + 1 < len(tokens) and tokens[place + 1].start > token.end
        return "" if begins_line and has_space else role  # "- streaks" is an item of a list
    if token.text[0].isdigit():
        return "number"
    if not token.text[0].isalpha():
        return ""
    return "plain" if len(token.text) == 1 or lexicon.is_abbreviation(token.text, language) else "unknown"


def _is_dash(tokens: Sequence[Token], place: int) -> bool:
    """Say whether a hyphen stands between words with a space on both sides, and so is no minus."""
    if not 0 < place < len(tokens) - 1:
        return False
    before, token, after = tokens[place - 1 : place + 2]
    spaced = before.end < token.start and token.end < after.start
    return spaced and after.text[0].isalpha() and before.text not in SIGNS.keys() - {"."}


def _names_ahead(tokens: Sequence[Token], matches: Mapping[int, Match], place: int) -> bool:
    """Say whether a criterion is named between a dash and the next sign."""
    for n in range(place + 1, len(tokens)):
        if n in matches and matches[n].entry.role in NAMES:
            return True
        if tokens[n].text in SIGNS and not tokens[n].joined:
            return False
    return False


def count_words(elements: Iterable[Element]) -> tuple[int, int]:
    """Return how many expressions that are no findings are known, and how many words are unknown."""
    roles = [e.role for e in elements if e.role not in _SIGN_ROLES | FINDINGS | {"number"}]
    return len(roles) - roles.count("unknown"), roles.count("unknown")
