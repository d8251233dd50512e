"""What free words state of a case's criteria, where that is sure.

A doctor must not read that a case is as she wrote when it is the opposite. So this reader knows few words and
forms, and a text that has another one states nothing: what is not known may deny or doubt the rest, in any
language and over the end of a sentence ("V.a. streaks", "Both were ruled out."). A criterion is stated where
its thing, such as "pigment network", stands in an item of a sentence with a value, or with a word that says
whether it is there; and all statements of a criterion in a text must agree.

    sentence    items between commas and words such as "and", "with", "shows"; ends at . ; ! "but" or the line
    item        [no] [value] thing [seen | not seen | : value | (value) | : none | absent | - | +]

A word at one item may go for others: "no" or a value for the items after it, "absent" for those on either
side. Where that is open they are left open; in "no A, B or C" it is not.
"""

import functools
import re
import unicodedata
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from .checklist import DERM7PT_VALUES

_TOKEN = re.compile(r"[^\W_]+(?:-[^\W_]+)*|\n|\S")
_ENDS = frozenset(".;!\n•") | {"but"}
_AND = frozenset("&") | {"and"}
_OR = frozenset("/") | {"or"}
_HAS = {
    "with", "in", "on", "at", "has", "have", "having", "show", "shows", "showing", "displays", "displaying",
}  # fmt: skip
_LINKS = frozenset(",") | _AND | _OR | _HAS | {"nor", "plus", "also", "there"}
_TITLES = {
    "dermoscopy", "dermatoscopy", "dermoscopic", "dermatoscopic", "finding", "findings", "feature",
    "features", "criteria",
}  # fmt: skip
_PLAIN = _TITLES | {"a", "an", "the", "this", "these"}
_IS = {"is", "are", "was", "were"}
_SEEN = {"seen", "present", "visible", "found", "noted", "observed", "detected", "identified", "evident"}
_YES = _SEEN | {"yes", "positive", "+"}
_NO = {"no", "not", "without", "neither", "nor", "lacks", "lacking"}
_NO_BY_TWO = {("absence", "of"), ("lack", "of"), ("free", "of"), ("none", "of"), ("negative", "for")}
_AFTER_NO = _SEEN | {"sign", "signs", "evidence", "of", "any"}  # "no sign of any streaks"
_NONE = {"absent", "none", "negative", "nil", "missing"}
_SEVERAL = "combination"  # a case of this value may have each of the others of its criterion


class _Thing(NamedTuple):
    """The name of a criterion, in a sentence in the place of its thing's words."""

    name: str


_Token = str | _Thing


@dataclass(frozen=True, slots=True)
class _Statement:
    """What an item states of a criterion: that it has a value, or None for any, or that this is denied."""

    name: str
    value: str | None
    denied: bool
    no_before: bool  # as in "no streaks"
    behind: bool  # as in "streaks absent"

    @property
    def bare(self) -> bool:
        return self.value is None and not self.behind


class _Unsure(Exception):
    """A text has a word or a form that is not known."""


def compare(
    text: str, attributes: Mapping[str, Any], phrases: Mapping[str, str]
) -> tuple[dict[str, str], dict[str, str]]:
    """Return the criteria in which a case is as the words state, and those in which it is not.

    Both by name with the case's value. What the words deny, such as "no streaks" or "no irregular streaks",
    is shared by a case without it. A criterion is in neither where the words or the case leave it open.
    """
    owned = {n: value for n in phrases if (value := _normal(attributes.get(n)))}
    values = {n: _known(n) | {owned.get(n, "absent")} for n in phrases}
    stated, left_open = _read(text, phrases, values)
    shared: dict[str, str] = {}
    differing: dict[str, str] = {}
    for name, own in owned.items():
        answers = {_holds(each, own) for each in stated if each.name == name}
        if name not in left_open and answers in ({True}, {False}):
            (shared if answers == {True} else differing)[name] = str(attributes[name])
    return shared, differing


def _holds(stated: _Statement, own: str) -> bool | None:
    """Say whether a case with a value of its own is as stated; None where that is open."""
    known = _known(stated.name) or {"absent", "present"}
    if stated.value in (None, "present", "absent"):
        if own not in known or not known & {"absent", "present"}:
            return None
        return (own == "absent") == (stated.denied or stated.value == "absent")
    if own == stated.value:
        return not stated.denied
    return stated.denied if own in known - {_SEVERAL} else None


@functools.cache
def _known(name: str) -> frozenset[str]:
    """Return the values that the checklist has of a criterion."""
    return frozenset(_normal(value) for value in DERM7PT_VALUES.get(name, ()))


def _read(
    text: str, phrases: Mapping[str, str], values: Mapping[str, Collection[str]]
) -> tuple[list[_Statement], set[str]]:
    """Return what a text states, and the names of the criteria that it leaves open."""
    things = {thing: name for name, phrase in phrases.items() if (thing := _normal(phrase.format("")))}
    stated: list[_Statement] = []
    left_open: set[str] = set()
    try:
        for sentence in _sentences(_things(_words(text), things)):
            items, links = _split(sentence)
            found = [_item(item, link, values) for item, link in zip(items, links, strict=True)]
            found, unsure = _spread(found, links, values)
            stated += found
            left_open |= unsure
    except _Unsure:
        return [], set()
    own = {each.name for each in stated if each.value not in {None, "absent", "present", *_known(each.name)}}
    if own:  # a word of the case's own, which may deny or doubt what stands beside it: "keine", "possible"
        left_open |= {each.name for each in stated} - own
    return stated, left_open


def _words(text: str) -> list[str]:
    """Return words without case, those with hyphens whole, and signs."""
    text = unicodedata.normalize("NFKC", text).casefold()
    text = re.sub(r"[\u2010-\u2013\u2212]", "-", text)  # a longer one parts sentences
    text = "\n".join(line for line in text.splitlines() if line.strip())
    text = re.sub(r"\bcan['’]t\b|\bcannot\b", "can not", text)
    text = re.sub(r"\b(is|are|was|were|could)n['’]t\b", r"\1 not", text)
    return _TOKEN.findall(text)


def _normal(value: object) -> str:
    return _joined(_words("" if value is None else str(value)))


def _joined(words: Sequence[str]) -> str:
    """Join words, whose hyphens and s of the plural make no difference."""
    parts = (part for word in words for part in (word.split("-") if word != "-" else [word]))
    return " ".join(part.removesuffix("s") for part in parts)


def _things(words: Sequence[str], things: Mapping[str, str]) -> list[_Token]:
    """Put criteria in the place of the words of their things, the longest first."""
    longest = max((len(thing.split()) for thing in things), default=0)
    tokens: list[_Token] = []
    place = 0
    while place < len(words):
        for length in range(longest, 0, -1):
            if name := things.get(_joined(words[place : place + length])):
                tokens.append(_Thing(name))
                place += length
                break
        else:
            tokens.append(words[place])
            place += 1
    return tokens


def _sentences(tokens: Sequence[_Token]) -> Iterator[list[_Token]]:
    """Give the sentences; a line that a comma or "or" ends or begins goes on over its end. Raises _Unsure."""
    sentence: list[_Token] = []
    if tokens and tokens[-1] == "but":
        raise _Unsure  # what follows is missing
    ended = [*tokens, "."]
    for token, following in zip(ended, [*ended[1:], "."], strict=True):
        if token == "\n" and ((sentence and sentence[-1] in _LINKS) or following in _LINKS):
            continue
        if token not in _ENDS:
            sentence.append(token)
        elif sentence:
            yield sentence
            sentence = []


def _split(sentence: Sequence[_Token]) -> tuple[list[list[_Token]], list[set[str]]]:
    """Return the items of a sentence and the links that stand before each. Raises _Unsure."""
    items: list[list[_Token]] = [[]]
    links: list[set[str]] = [set()]
    for token in sentence:
        if isinstance(token, _Thing) or token not in _LINKS:
            items[-1].append(token)
            continue
        if items[-1]:
            items.append([])
            links.append(set())
        links[-1].add(token)
        if token == "nor":
            items[-1].append(token)
    if not items[-1] and links[-1] == {","}:
        del items[-1], links[-1]
    if items and _TITLES & set(items[0]) and not set(items[0]) - _PLAIN - {":"}:  # "dermoscopy shows"
        del items[0], links[0]
    if links and links[0] & _OR:
        raise _Unsure
    return items, links


def _spread(
    stated: list[_Statement], links: Sequence[set[str]], values: Mapping[str, Collection[str]]
) -> tuple[list[_Statement], set[str]]:
    """Let what stands at one item go for others; return all that is stated, and what that leaves open."""
    names = [each.name for each in stated]
    left_open: set[str] = set()
    first_no = next((n for n, each in enumerate(stated) if each.no_before), len(stated))
    after = range(first_no + 1, len(stated))
    listed = bool(after) and all(stated[n].bare and links[n] <= {",", "or", "nor"} for n in after)
    listed = listed and links[-1] != {","}

    head: _Statement | None = None  # the last item with words that may go for the bare ones after it
    for n, each in enumerate(stated):
        if each.no_before or not each.bare:
            head = each
        elif head and _goes_on(head, links[n], values[each.name]):
            left_open.add(each.name)
    if listed:
        stated = [replace(each, denied=True) if n in after else each for n, each in enumerate(stated)]
    for n in range(1, len(stated)):
        each = stated[n]
        if n in after and not (each.no_before or each.denied or each.value == "absent"):
            left_open.add(each.name)
        if n in after and links[n] & _HAS:  # "no flat lesion with streaks"
            left_open.update(names[first_no : n + 1])
        if links[n] & _OR and not listed:
            left_open.update(names[: n + 1])
    ahead: set[str] = set()  # the items before, as far as the last with something behind it
    for each in stated:
        if each.behind and (each.denied or each.value):
            left_open |= ahead
        if each.behind:
            ahead = set()
        elif not each.no_before:
            ahead.add(each.name)
    return stated, left_open


def _goes_on(head: _Statement, links: set[str], values: Collection[str]) -> bool:
    """Say whether the words of an item may go for a bare one with such values, as in "absent A and B"."""
    if head.value == "absent":
        return bool(links & _AND) or (links == {","} and "present" not in values)
    if head.value is None:
        return head.behind and head.denied and bool(links & _AND)
    return not {head.value, *head.value.split()}.isdisjoint(values)


def _item(tokens: Sequence[_Token], links: set[str], values: Mapping[str, Collection[str]]) -> _Statement:
    """Read an item. Raises _Unsure unless it has one thing and each of its words is known."""
    things = [token for token in tokens if isinstance(token, _Thing)]
    if len(things) != 1:
        raise _Unsure
    name, place = things[0].name, tokens.index(things[0])
    before, behind = ([str(token) for token in part] for part in (tokens[:place], tokens[place + 1 :]))
    if "there" in links and before and before[0] in _IS:
        del before[0]
    no, words = _denial(before)
    value = _value(words, values[name])
    if not behind:
        if no and value == "absent":
            raise _Unsure
        return _Statement(name, value, no, no, False)
    if behind[0] == "(" and behind[-1] == ")":
        behind = [":", *behind[1:-1]]
    if behind[0] == "-" and len(behind) > 1:
        behind[0] = ":"
    told = behind[0] == ":"
    if told or behind[0] in _IS:
        del behind[0]
    elif behind[:3] in (["can", "not", "be"], ["could", "not", "be"]):
        behind = behind[1:2] + behind[3:]
    match behind:
        case [word] if word in _SEEN and not told:
            denied = no
        case [word] if word in _YES and not no:
            denied = False
        case [word] if word in _NONE and not no:
            denied = True
        case ["no"] if told and not no:
            denied = True
        case ["-"] if value is None and not no:
            denied = True
        case ["not" | "no", word] if word in _SEEN and not no:
            denied = True
        case [_, *_] if not no and value is None:
            value, denied = _value(behind, values[name]), False
        case _:
            raise _Unsure
    if value == "absent" and (denied or words):
        raise _Unsure
    return _Statement(name, value, denied, no, True)


def _denial(words: Sequence[str]) -> tuple[bool, list[str]]:
    """Say whether words before a thing deny it, and return the others. Raises _Unsure for two denials."""
    denials, left, place = 0, list[str](), 0
    while place < len(words):
        word = words[place]
        if left and word in _NO:  # "irregular no streaks"
            raise _Unsure
        if tuple(words[place : place + 2]) in _NO_BY_TWO:
            denials, place = denials + 1, place + 1
        elif word in _NO:
            denials += 1
        elif not (
            word in _PLAIN
            or (word == ":" and not (denials or left))
            or (denials and not left and word in _AFTER_NO)
        ):
            left.append(word)
        place += 1
    if denials > 1:
        raise _Unsure
    return denials == 1, left


def _value(words: Sequence[str], values: Collection[str]) -> str | None:
    """Return the value that words are, None for no words. Raises _Unsure for others."""
    found = _joined(words)
    if found and found not in {*values, "absent", "present"}:
        raise _Unsure
    return found or None
