"""Read statements about a case's criteria from free text, and compare them with a case.

A doctor must not read that a case is as she wrote when it is the opposite. So this reader knows few words and
forms, and a text with any other word or form makes no statement: an unknown word may deny or doubt the rest,
in any language and beyond the end of its sentence ("V.a. streaks", "Both were ruled out."). An item of a
sentence makes a statement about a criterion if it has the criterion's term, such as "pigment network", with a
value or with a word for its presence or absence. All statements of a text about a criterion must agree.

    sentence    items between commas and words such as "and", "with", "shows"; ends at . ; ! "but" or the line
    item        [no] [value] term [seen | not seen | : value | (value) | : none | absent | - | +]

A word at one item may apply to others: "no" or a value to the items after it, "absent" to those on either
side. If it is not clear whether it does, the criteria of those items are open. In "no A, B or C" it is clear.
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
_COMBINATION = "combination"  # a case with this value may have each other value of the criterion too


class _Term(NamedTuple):
    """The name of a criterion, in place of the words of its term."""

    name: str


_Token = str | _Term


@dataclass(frozen=True, slots=True)
class _Statement:
    """The statement of an item: a criterion has a value, or with None any value, or this is denied."""

    name: str
    value: str | None
    denied: bool
    no_before: bool  # as in "no streaks"
    words_after: bool  # after the term, as in "streaks absent"

    @property
    def bare(self) -> bool:
        return self.value is None and not self.words_after


class _Unsure(Exception):
    """A text has an unknown word or form."""


def compare(
    text: str, attributes: Mapping[str, Any], phrases: Mapping[str, str]
) -> tuple[dict[str, str], dict[str, str]]:
    """Return the criteria in which a case matches the text, and those in which it contradicts it.

    Both are by name, with the case's value. If the text denies a finding, as in "no streaks" or "no irregular
    streaks", a case without it matches. A criterion that the text or the case leaves open is in neither.
    """
    case_values = {n: value for n in phrases if (value := _normal(attributes.get(n)))}
    values = {n: _checklist_values(n) | {case_values.get(n, "absent")} for n in phrases}
    statements, open_names = _read(text, phrases, values)
    matching: dict[str, str] = {}
    conflicting: dict[str, str] = {}
    for name, case_value in case_values.items():
        answers = {_is_true(statement, case_value) for statement in statements if statement.name == name}
        if name not in open_names and answers in ({True}, {False}):
            (matching if answers == {True} else conflicting)[name] = str(attributes[name])
    return matching, conflicting


def _is_true(statement: _Statement, case_value: str) -> bool | None:
    """Return whether a statement is true of a case with this value; None if that is open."""
    known = _checklist_values(statement.name) or {"absent", "present"}
    if statement.value in (None, "present", "absent"):
        if case_value not in known or not known & {"absent", "present"}:
            return None
        return (case_value == "absent") == (statement.denied or statement.value == "absent")
    if case_value == statement.value:
        return not statement.denied
    return statement.denied if case_value in known - {_COMBINATION} else None


@functools.cache
def _checklist_values(name: str) -> frozenset[str]:
    """Return the values of a criterion in the checklist."""
    return frozenset(_normal(value) for value in DERM7PT_VALUES.get(name, ()))


def _read(
    text: str, phrases: Mapping[str, str], values: Mapping[str, Collection[str]]
) -> tuple[list[_Statement], set[str]]:
    """Return the statements of a text, and the names of the criteria that it leaves open."""
    terms = {term: name for name, phrase in phrases.items() if (term := _normal(phrase.format("")))}
    statements: list[_Statement] = []
    open_names: set[str] = set()
    try:
        for sentence in _sentences(_mark_terms(_words(text), terms)):
            items, links = _split(sentence)
            of_items = [_parse_item(item, link, values) for item, link in zip(items, links, strict=True)]
            of_sentence, unclear_names = _spread(of_items, links, values)
            statements += of_sentence
            open_names |= unclear_names
    except _Unsure:
        return [], set()
    # A value that only the case has may be a word that denies or doubts its neighbours: "keine", "possible".
    case_only = {
        each.name
        for each in statements
        if each.value not in {None, "absent", "present", *_checklist_values(each.name)}
    }
    if case_only:
        open_names |= {each.name for each in statements} - case_only
    return statements, open_names


def _words(text: str) -> list[str]:
    """Return the words of a text in lower case, those with hyphens in one piece, and its signs."""
    text = unicodedata.normalize("NFKC", text).casefold()
    text = re.sub(r"[\u2010-\u2013\u2212]", "-", text)  # a longer dash ends a sentence
    text = "\n".join(line for line in text.splitlines() if line.strip())
    text = re.sub(r"\bcan['’]t\b|\bcannot\b", "can not", text)
    text = re.sub(r"\b(is|are|was|were|could)n['’]t\b", r"\1 not", text)
    return _TOKEN.findall(text)


def _normal(value: object) -> str:
    return _joined(_words("" if value is None else str(value)))


def _joined(words: Sequence[str]) -> str:
    """Join words, without hyphens and the s of the plural, which make no difference."""
    parts = (part for word in words for part in (word.split("-") if word != "-" else [word]))
    return " ".join(part.removesuffix("s") for part in parts)


def _mark_terms(words: Sequence[str], terms: Mapping[str, str]) -> list[_Token]:
    """Replace the words of each term by its criterion, the longest term first."""
    longest = max((len(term.split()) for term in terms), default=0)
    tokens: list[_Token] = []
    place = 0
    while place < len(words):
        for length in range(longest, 0, -1):
            if name := terms.get(_joined(words[place : place + length])):
                tokens.append(_Term(name))
                place += length
                break
        else:
            tokens.append(words[place])
            place += 1
    return tokens


def _sentences(tokens: Sequence[_Token]) -> Iterator[list[_Token]]:
    """Yield the sentences. Raises _Unsure. No sentence ends at a line break beside a link, such as "or"."""
    sentence: list[_Token] = []
    if tokens and tokens[-1] == "but":
        raise _Unsure  # the rest is missing
    with_end = [*tokens, "."]
    for token, following in zip(with_end, [*with_end[1:], "."], strict=True):
        if token == "\n" and ((sentence and sentence[-1] in _LINKS) or following in _LINKS):
            continue
        if token not in _ENDS:
            sentence.append(token)
        elif sentence:
            yield sentence
            sentence = []


def _split(sentence: Sequence[_Token]) -> tuple[list[list[_Token]], list[set[str]]]:
    """Return the items of a sentence, and the links before each item. Raises _Unsure."""
    items: list[list[_Token]] = [[]]
    links: list[set[str]] = [set()]
    for token in sentence:
        if isinstance(token, _Term) or token not in _LINKS:
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
    statements: list[_Statement], links: Sequence[set[str]], values: Mapping[str, Collection[str]]
) -> tuple[list[_Statement], set[str]]:
    """Apply the words of one item to others; return the statements, and the names that this leaves open."""
    names = [each.name for each in statements]
    open_names: set[str] = set()
    first_no = next((n for n, each in enumerate(statements) if each.no_before), len(statements))
    after = range(first_no + 1, len(statements))
    listed = bool(after) and all(statements[n].bare and links[n] <= {",", "or", "nor"} for n in after)
    listed = listed and links[-1] != {","}

    head: _Statement | None = None  # the last item with words that may apply to the bare ones after it
    for n, each in enumerate(statements):
        if each.no_before or not each.bare:
            head = each
        elif head and _may_apply(head, links[n], values[each.name]):
            open_names.add(each.name)
    if listed:
        statements = [replace(each, denied=True) if n in after else each for n, each in enumerate(statements)]
    for n in range(1, len(statements)):
        each = statements[n]
        if n in after and not (each.no_before or each.denied or each.value == "absent"):
            open_names.add(each.name)
        if n in after and links[n] & _HAS:  # "no flat lesion with streaks"
            open_names.update(names[first_no : n + 1])
        if links[n] & _OR and not listed:
            open_names.update(names[: n + 1])
    ahead: set[str] = set()  # the items since the last one with words after its term
    for each in statements:
        if each.words_after and (each.denied or each.value):
            open_names |= ahead
        if each.words_after:
            ahead = set()
        elif not each.no_before:
            ahead.add(each.name)
    return statements, open_names


def _may_apply(head: _Statement, links: set[str], values: Collection[str]) -> bool:
    """Return whether the words of an item may apply to a bare item after it, as in "absent A and B".

    values : those of the criterion of the bare item.
    """
    if head.value == "absent":
        return bool(links & _AND) or (links == {","} and "present" not in values)
    if head.value is None:
        return head.words_after and head.denied and bool(links & _AND)
    return not {head.value, *head.value.split()}.isdisjoint(values)


def _parse_item(
    tokens: Sequence[_Token], links: set[str], values: Mapping[str, Collection[str]]
) -> _Statement:
    """Return the statement of an item. Raises _Unsure unless it has one term and only known words."""
    terms = [token for token in tokens if isinstance(token, _Term)]
    if len(terms) != 1:
        raise _Unsure
    name, place = terms[0].name, tokens.index(terms[0])
    before, after = ([str(token) for token in part] for part in (tokens[:place], tokens[place + 1 :]))
    if "there" in links and before and before[0] in _IS:
        del before[0]
    no, words = _denial(before)
    value = _value(words, values[name])
    if not after:
        if no and value == "absent":
            raise _Unsure
        return _Statement(name, value, no, no, False)
    if after[0] == "(" and after[-1] == ")":
        after = [":", *after[1:-1]]
    if after[0] == "-" and len(after) > 1:
        after[0] = ":"
    has_colon = after[0] == ":"
    if has_colon or after[0] in _IS:
        del after[0]
    elif after[:3] in (["can", "not", "be"], ["could", "not", "be"]):
        after = after[1:2] + after[3:]
    match after:
        case [word] if word in _SEEN and not has_colon:
            denied = no
        case [word] if word in _YES and not no:
            denied = False
        case [word] if word in _NONE and not no:
            denied = True
        case ["no"] if has_colon and not no:
            denied = True
        case ["-"] if value is None and not no:
            denied = True
        case ["not" | "no", word] if word in _SEEN and not no:
            denied = True
        case [_, *_] if not no and value is None:
            value, denied = _value(after, values[name]), False
        case _:
            raise _Unsure
    if value == "absent" and (denied or words):
        raise _Unsure
    return _Statement(name, value, denied, no, True)


def _denial(words: Sequence[str]) -> tuple[bool, list[str]]:
    """Return whether words before a term deny it, and the other words. Raises _Unsure for two denials."""
    denials, others, place = 0, list[str](), 0
    while place < len(words):
        word = words[place]
        if others and word in _NO:  # "irregular no streaks"
            raise _Unsure
        if tuple(words[place : place + 2]) in _NO_BY_TWO:
            denials, place = denials + 1, place + 1
        elif word in _NO:
            denials += 1
        elif not (
            word in _PLAIN
            or (word == ":" and not (denials or others))
            or (denials and not others and word in _AFTER_NO)
        ):
            others.append(word)
        place += 1
    if denials > 1:
        raise _Unsure
    return denials == 1, others


def _value(words: Sequence[str], values: Collection[str]) -> str | None:
    """Return the value that these words name, None for no words. Raises _Unsure for other words."""
    value = _joined(words)
    if value and value not in {*values, "absent", "present"}:
        raise _Unsure
    return value or None
