"""What free words state of a case's criteria, where that is sure.

A doctor must not read that a case is as she wrote when it is the opposite. So this reader knows few words,
and a sentence that has another one says nothing: the unknown word may deny, in any language. A criterion is
stated where its thing, such as "pigment network", stands in an item of a sentence with a value, or a word
that says whether it is there; and all statements of a criterion in a text must agree.

    sentence    items between commas and words such as "and", "with", "shows"; ends at . ; ! "but" or the line
    item        [no] [value] thing [seen | not seen | : value | (value) | : none | absent | - | +]

"No" before an item may go for the items after it, and "absent" behind one for those before it. Where that is
open they state nothing; in "no A, B or C" it is not open.
"""

import re
import unicodedata
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from .text import DERM7PT_VALUES

_TOKEN = re.compile(r"[^\W_]+|\n|\S")
_ENDS = frozenset(".;!\n•") | {"but"}
_LINKS = frozenset(",/&") | {
    "and", "or", "nor", "with", "plus", "also", "there", "in", "on", "at", "has", "have", "having", "show",
    "shows", "showing", "displays", "displaying",
}  # fmt: skip
_PLAIN = {
    "a", "an", "the", "this", "these", "is", "are", "was", "were", "be", "been", "can", "could", "dermoscopy",
    "dermatoscopy", "dermoscopic", "dermatoscopic", "finding", "findings", "feature", "features", "criteria",
}  # fmt: skip
_SEEN = {"seen", "present", "visible", "found", "noted", "observed", "detected", "identified", "evident"}
_YES = _SEEN | {"yes", "positive", "+"}
_NO = {"no", "not", "without", "neither", "nor", "lacks", "lacking"}
_NO_BY_TWO = {("absence", "of"), ("lack", "of"), ("free", "of"), ("none", "of"), ("negative", "for")}
_AFTER_NO = _SEEN | {"sign", "signs", "evidence", "of", "any", ":"}  # "no sign of any streaks"
_NONE = {"absent", "none", "no", "negative", "nil", "-", "missing", "lacking"}


class _Thing(NamedTuple):
    """The name of a criterion, in a sentence in the place of its thing's words."""

    name: str


@dataclass(frozen=True, slots=True)
class _Statement:
    """What an item states of a criterion: that it has a value, or None for any, or that this is denied."""

    name: str
    value: str | None
    denied: bool
    no_before: bool  # as in "no streaks"
    behind: bool  # as in "streaks absent"


class _Unsure(Exception):
    """A sentence has a word or a form that is not known."""


def compare(
    text: str, attributes: Mapping[str, Any], phrases: Mapping[str, str]
) -> tuple[dict[str, str], dict[str, str]]:
    """Return the criteria in which a case is as the words state, and those in which it is not.

    Both by name with the case's value. What the words deny, such as "no streaks" or "no irregular streaks",
    is shared by a case without it. A criterion is in neither where the words or the case leave it open.
    """
    owned = {n: value for n in phrases if (value := _normal(attributes.get(n)))}
    values = {n: {_normal(v) for v in DERM7PT_VALUES.get(n, ())} | {owned.get(n, "absent")} for n in phrases}
    stated, unsure = _read(text, phrases, values)
    shared: dict[str, str] = {}
    differing: dict[str, str] = {}
    for name, own in owned.items():
        answers = {_holds(each, own) for each in stated if each.name == name}
        if name not in unsure and answers in ({True}, {False}):
            (shared if answers == {True} else differing)[name] = str(attributes[name])
    return shared, differing


def _holds(stated: _Statement, own: str) -> bool | None:
    """Say whether a case with a value of its own is as stated; None where that is open."""
    known = {_normal(value) for value in DERM7PT_VALUES.get(stated.name, ("absent", "present"))}
    if stated.value in (None, "present", "absent"):
        if own not in known or not known & {"absent", "present"}:
            return None
        return (own == "absent") == (stated.denied or stated.value == "absent")
    if own == stated.value:
        return not stated.denied
    return stated.denied if own in known else None


def _read(
    text: str, phrases: Mapping[str, str], values: Mapping[str, Collection[str]]
) -> tuple[list[_Statement], set[str]]:
    """Return what a text states, and the names of the criteria of which it leaves something open."""
    things = {tuple(map(_singular, _words(phrase.format("")))): name for name, phrase in phrases.items()}
    stated: list[_Statement] = []
    unsure: set[str] = set()
    last: set[str] = set()  # the criteria of the sentence before
    heading = False  # a line such as "Absent:", which goes for what follows
    for sentence, end in _sentences(_things(_words(text), things)):
        names = {token.name for token in sentence if isinstance(token, _Thing)}
        words = {token for token in sentence if isinstance(token, str)}
        if not names and words - _PLAIN - _LINKS - {":"}:
            unsure |= last  # "These are not seen."
            heading = heading or end == "\n" or ":" in words or bool(words & (_NO | _NONE))
        if not names:
            continue
        last = names
        try:
            if heading:
                raise _Unsure
            found, left_open = _items(sentence, values)
            stated += found
            unsure |= left_open
        except _Unsure:
            unsure |= names
    return stated, unsure


def _words(text: str) -> list[str]:
    """Return words, without case and inner hyphens, and signs."""
    text = unicodedata.normalize("NFKC", text).casefold()
    text = re.sub(r"[\u2010-\u2015\u2212]", "-", text)
    text = re.sub(r"(?<=\w)-(?=\w)", " ", text)
    text = re.sub(r"n['’]t\b", " not", text).replace("cannot", "can not")
    return _TOKEN.findall(text)


def _normal(value: object) -> str:
    return " ".join(map(_singular, _words("" if value is None else str(value))))


def _singular(word: str) -> str:
    return word.removesuffix("s")


def _things(words: Sequence[str], things: Mapping[tuple[str, ...], str]) -> Iterator[str | _Thing]:
    """Put criteria in the place of the words of their things, the longest first."""
    longest = max(map(len, things), default=0)
    place = 0
    while place < len(words):
        for length in range(longest, 0, -1):
            if name := things.get(tuple(map(_singular, words[place : place + length]))):
                yield _Thing(name)
                place += length
                break
        else:
            yield words[place]
            place += 1


def _sentences(tokens: Iterator[str | _Thing]) -> Iterator[tuple[list[str | _Thing], str]]:
    """Give sentences with the sign or word at which each ends."""
    sentence: list[str | _Thing] = []
    for token in (*tokens, "."):
        if isinstance(token, str) and token in _ENDS:
            if sentence:
                yield sentence, token
            sentence = []
        else:
            sentence.append(token)


def _items(
    sentence: Sequence[str | _Thing], values: Mapping[str, Collection[str]]
) -> tuple[list[_Statement], set[str]]:
    """Return what a sentence states, and the criteria that it leaves open. Raises _Unsure."""
    items: list[list[str | _Thing]] = [[]]
    links = [""]  # what stands before each item
    for token in sentence:
        if token not in _LINKS:
            items[-1].append(token)
            continue
        if items[-1]:
            items.append([])
            links.append("")
        links[-1] = f"{links[-1]} {token}".strip()
        if token == "nor":
            items[-1].append(token)
    stated = [_item(item, values) for item in items]
    left_open: set[str] = set()

    first_no = next((n for n, each in enumerate(stated) if each.no_before), len(stated))
    after = range(first_no + 1, len(stated))
    bare = all(stated[n].value is None and not stated[n].behind for n in after)
    listed = all(links[n].lstrip(", ") in ("", "or", "nor") for n in after) and links[-1] != ","
    if after and bare and listed:
        for n in after:
            stated[n] = replace(stated[n], denied=True, no_before=True)
    for each in (stated[n] for n in after):
        if not (each.no_before or each.denied or each.value == "absent"):  # which deny by themselves
            left_open.add(each.name)

    ahead: set[str] = set()  # the items before, as far as the last with something behind it
    for each in stated:
        if each.behind:
            left_open |= ahead
            ahead = set()
        elif not each.no_before:
            ahead.add(each.name)
    return [each for each in stated if each.name not in left_open], left_open


def _item(tokens: Sequence[str | _Thing], values: Mapping[str, Collection[str]]) -> _Statement:
    """Read an item. Raises _Unsure unless it has one thing and each of its words is known."""
    places = [n for n, token in enumerate(tokens) if isinstance(token, _Thing)]
    if len(places) != 1:
        raise _Unsure
    name = tokens[places[0]].name  # type: ignore[union-attr]
    no, words = _denial([str(token) for token in tokens[: places[0]]])
    value = _value(words, values[name])
    behind = [str(token) for token in tokens[places[0] + 1 :]]
    if not behind:
        if no and value == "absent":
            raise _Unsure
        return _Statement(name, value, no, no, False)
    if behind[0] == "(" and behind[-1] == ")":
        behind = [":", *behind[1:-1]]
    if behind[0] == "-" and len(behind) > 1:
        behind[0] = ":"
    told = behind[0] == ":"
    behind = [word for word in behind[told:] if word not in _PLAIN]
    match behind:
        case [word] if word in _SEEN and not told:
            denied = no
        case [word] if word in _YES and not no:
            denied = False
        case [word] if word in _NONE and not no:
            denied = True
        case ["not" | "no", word] if word in _SEEN and not no:
            denied = True
        case [_, *_] if not no and value is None:
            value, denied = _value(behind, values[name]), False
        case _:
            raise _Unsure
    if denied and value == "absent":
        raise _Unsure
    return _Statement(name, value, denied, no, True)


def _denial(words: Sequence[str]) -> tuple[bool, list[str]]:
    """Say whether words before a thing deny it, and return the others. Raises _Unsure for two denials."""
    denials, left, place = 0, list[str](), 0
    while place < len(words):
        word = words[place]
        if tuple(words[place : place + 2]) in _NO_BY_TWO:
            denials, place = denials + 1, place + 1
        elif word in _NO:
            denials += 1
        elif not (
            word in _PLAIN or (word == ":" and not left) or (denials and not left and word in _AFTER_NO)
        ):
            left.append(word)
        place += 1
    if denials > 1:
        raise _Unsure
    return denials == 1, left


def _value(words: Sequence[str], values: Collection[str]) -> str | None:
    """Return the value that words are, None for no words. Raises _Unsure for others."""
    found = " ".join(map(_singular, words))
    if found and found not in {*values, "absent", "present"}:
        raise _Unsure
    return found or None
