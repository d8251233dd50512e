"""The vocabulary of a checklist, ready to find its expressions in text: with endings and typing errors."""

import functools
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from rapidfuzz import process
from rapidfuzz.distance import OSA

from .checklist import ROLES, Allowed, Checklist, Criterion, Language, fold, is_capital, split_words

_TOKEN = re.compile(r"[^\W\d_]+|\d+(?:[.,]\d+)*|\n|\+/-|[-=]+>|[^\s\w]|_")
_STEM = 4  # letters that stay when an ending is taken off
_MIN_TYPO = 5  # letters of a word that may be written with an error
_SHORT = 7  # letters; of a shorter word the last letter must be right, or its letters only swapped
_LONG = 9  # letters of a word that may have two errors
_JOINS = frozenset("-'’‐‑/&")  # between letters they join words: "blue-white", "d'un", "dots/globules"


_CUES = frozenset({"deny", "without", "nor", "concord", "absent", "doubt", "doubt_next", "elsewhere"})


class Token(NamedTuple):
    """A word, number or sign of a text, with its place."""

    text: str  # folded
    start: int
    end: int
    joined: bool  # stands between two words without a space, as a hyphen
    capital: bool  # written in capitals


@dataclass(frozen=True, slots=True)
class Entry:
    """The meaning of an expression.

    role : one of ROLES, or "term", "needs_value", "phrase", "word".
    criterion : of a term or a phrase.
    allowed : the values of a phrase.
    beside : for each criterion, the values that a word means beside its name.
    """

    role: str
    criterion: str = ""
    allowed: Allowed = ()
    beside: Mapping[str, Allowed] = field(default_factory=dict)


class Match(NamedTuple):
    """An expression of the lexicon in a text: tokens first to last - 1."""

    first: int
    last: int
    entry: Entry


@dataclass(slots=True)
class _Node:
    entry: Entry | None = None
    capital: Entry | None = None  # the meaning in capitals
    next: dict[int, "_Node"] = field(default_factory=dict)


class _Vocabulary:
    """The expressions of one language as a tree over its words; a word has forms with other endings."""

    def __init__(self, language: Language, criteria: Mapping[str, Criterion]) -> None:
        self._endings = sorted(map(fold, language.endings), key=len, reverse=True)
        self.listed: dict[str, int] = {}  # the words as they are written in the file, numbered
        self.of_role: dict[str, set[str]] = {"cue": set(), "finding": set()}  # words of denials, of findings
        self.forms: dict[str, tuple[int, ...]] = {}  # form -> the words that have it, the word itself first
        self.root = _Node()
        for written, entry in _expressions(language, criteria):
            kind = "cue" if entry.role in _CUES else "" if entry.role in ROLES else "finding"
            for spelling in _spellings(written):
                self._add(spelling, entry, is_capital(written))
                if kind:
                    self.of_role[kind].update(spelling)
        self.forms = dict.fromkeys(self.listed, ())
        for word, number in self.listed.items():
            self.forms[word] = (number, *self.forms[word])
            for form in self._inflect(word):
                self.forms[form] = (*self.forms.get(form, ()), number)
        self.abbreviations = {fold(word) for word in language.roles["abbreviations"]}

    def _inflect(self, word: str) -> set[str]:
        if len(word) < _STEM or not word.isalpha():
            return set()
        cut = next((e for e in self._endings if word.endswith(e) and len(word) - len(e) >= _STEM), "")
        stem = word[: len(word) - len(cut)]
        return ({stem} | {stem + ending for ending in self._endings}) - {word}

    def _add(self, words: Sequence[str], entry: Entry, capital: bool) -> None:
        node = self.root
        for word in words:
            node = node.next.setdefault(self.listed.setdefault(word, len(self.listed)), _Node())
        if capital:
            node.capital = _merge(node.capital, entry)
        else:
            node.entry = _merge(node.entry, entry)


def _expressions(language: Language, criteria: Mapping[str, Criterion]) -> Iterator[tuple[str, Entry]]:
    """Yield what a language says, the strongest meaning of an expression first."""
    for role in ROLES:
        if role not in ("plain", "copulas", "abbreviations"):
            yield from ((expression, Entry(role)) for expression in language.roles[role])
    for way in language.ways:
        criterion = criteria[way.criterion]
        yield from ((expression, Entry("term", way.criterion)) for expression in way.terms)
        yield from ((expression, Entry("needs_value", way.criterion)) for expression in way.needs_value)
        for name, expressions in way.phrases.items():
            entry = Entry("phrase", way.criterion, criterion.allowed(name))
            yield from ((expression, entry) for expression in expressions)
    for way in language.ways:
        for name, words in way.words.items():
            entry = Entry("word", beside={way.criterion: criteria[way.criterion].allowed(name)})
            yield from ((word, entry) for word in words)
    for role in ("copulas", "plain"):
        yield from ((expression, Entry(role)) for expression in language.roles[role])


def _merge(old: Entry | None, new: Entry) -> Entry:
    """Return the meaning of an expression that has two: words add up, else the first one stays."""
    if old is None:
        return new
    if old.role == new.role == "word":
        return Entry("word", beside={**new.beside, **old.beside})
    return old


def _spellings(expression: str) -> set[tuple[str, ...]]:
    """Return the folded words of an expression, and those with ae, oe and ue in place of umlauts."""
    folded = expression.casefold()
    plain = folded.replace("ä", "ae").replace("ö", "oe").replace("ü", "ue")
    return {split_words(expression), split_words(plain)}


class Lexicon:
    """All languages of a checklist. It finds the expressions of a text."""

    def __init__(self, checklist: Checklist) -> None:
        self._languages = {
            code: _Vocabulary(language, checklist.criteria) for code, language in checklist.languages.items()
        }
        self._own = checklist.language
        self._known: dict[str, list[str]] = {}  # form -> the languages that have it
        for code, vocabulary in self._languages.items():
            for form in vocabulary.forms:
                self._known.setdefault(form, []).append(code)
        self._by_letter: dict[tuple[str, str], list[str]] = {}  # language, first letter -> forms
        for code, vocabulary in self._languages.items():
            for form in vocabulary.forms:
                least = _MIN_TYPO if form in vocabulary.listed else _SHORT
                if len(form) >= least and form.isalpha():
                    self._by_letter.setdefault((code, form[0]), []).append(form)
        self._cues = set[str]().union(*(v.of_role["cue"] for v in self._languages.values()))
        self._correct = functools.lru_cache(maxsize=4096)(self._nearest)

    def languages(self, tokens: Sequence[Token]) -> list[str]:
        """Return the language that knows the most words of a text, and the checklist's own."""
        counts: Counter[str] = Counter()
        for token in tokens:
            for code in (
                self._known.get(token.text, ()) if token.text.isalpha() and len(token.text) > 1 else ()
            ):
                counts[code] += 3 if token.text in self._languages[code].of_role["finding"] else 2
        return list(dict.fromkeys([max(self._languages, key=lambda code: counts[code]), self._own]))

    def correct(self, tokens: Sequence[Token], languages: Sequence[str]) -> dict[int, str]:
        """Return by its number each word that is probably a known word with a typing error.

        No word is corrected in a text of which most words are unknown: it is in another language.
        """
        words = [n for n, token in enumerate(tokens) if token.text[0].isalpha()]
        unknown = [n for n in words if not set(languages) & set(self._known.get(tokens[n].text, ()))]
        unknown = [n for n in unknown if tokens[n].text not in self._cues]  # a denial in another language
        if 3 * len(unknown) > max(2 * len(words), 3):
            return {}
        found = {}
        for n in unknown:
            if len(tokens[n].text) >= _MIN_TYPO and (word := self._correct(tokens[n].text, languages[0])):
                found[n] = word
        return found

    def _nearest(self, word: str, language: str) -> str:
        """Return the known word that a word with a typing error means; "" if none or several are near."""
        limit = 2 if len(word) >= _LONG else 1
        forms = self._by_letter.get((language, word[0]), [])
        near = process.extract(word, forms, scorer=OSA.distance, score_cutoff=limit, limit=6)
        if len(word) < _SHORT:  # too many ordinary words are near
            near = [f for f in near if f[0][-1] == word[-1] or sorted(f[0]) == sorted(word)]
        best = [form for form, distance, _ in near if distance == near[0][1]]
        vocabulary = self._languages[language]
        for better in (vocabulary.listed, vocabulary.of_role["finding"]):
            best = [form for form in best if form in better] or best
        return best[0] if best and set.intersection(*(set(vocabulary.forms[form]) for form in best)) else ""

    def is_abbreviation(self, word: str, language: str) -> bool:
        """Say whether a dot after this word does not end a sentence."""
        return len(word) == 1 or word in self._languages[language].abbreviations

    def match(self, tokens: Sequence[Token], languages: Sequence[str]) -> Iterator[Match]:
        """Yield the longest expression at each place, in the text's language before the checklist's own.

        Where these know none, a denial or doubt in another language counts: "kein pigment network".
        """
        place = 0
        while place < len(tokens):
            best = self._best(tokens, place, languages)
            if best:
                yield best
            place = best.last if best else place + 1

    def _best(self, tokens: Sequence[Token], place: int, languages: Sequence[str]) -> Match | None:
        best: Match | None = None
        known = self._known.get(tokens[place].text, ())
        others = [code for code in known if code not in languages]
        for code in (*(code for code in languages if code in known), *others):
            if best and code in others:
                break
            vocabulary = self._languages[code]
            found = self._longest(tokens, place, place, vocabulary.root, vocabulary.forms)
            is_cue = found is not None and found.entry.role in _CUES
            is_allowed = is_cue or code in languages
            if found and is_allowed and (best is None or (found.last > best.last and not is_cue)):
                best = found
        return best

    def _longest(
        self,
        tokens: Sequence[Token],
        first: int,
        place: int,
        node: _Node,
        forms: Mapping[str, tuple[int, ...]],
    ) -> Match | None:
        """Return the longest expression that goes on with the token `place` below a node of the tree."""
        while place > first and place < len(tokens) and tokens[place].joined:
            place += 1
        best: Match | None = None
        if place < len(tokens):
            for number in forms.get(tokens[place].text, ()):
                if (step := node.next.get(number)) is None:
                    continue
                found = self._longest(tokens, first, place + 1, step, forms)
                entry = (step.capital if tokens[place].capital else None) or step.entry
                if found is None and entry:
                    found = Match(first, place + 1, entry)
                if (
                    found
                    and best
                    and found.last == best.last
                    and found.entry.role == best.entry.role == "word"
                ):
                    best = best._replace(entry=_merge(best.entry, found.entry))
                elif found and (best is None or found.last > best.last):
                    best = found
        return best


def tokenize(text: str) -> list[Token]:
    """Return the words, numbers, signs and line breaks of a text."""
    tokens = []
    shouts = text.isupper() and any(
        len(word) > _MIN_TYPO for word in text.split()
    )  # then capitals mean nothing
    for match in _TOKEN.finditer(text):
        start, end = match.span()
        piece = match[0]
        joined = (
            piece in _JOINS
            and start > 0
            and end < len(text)
            and text[start - 1].isalnum()
            and text[end].isalnum()
        )
        tokens.append(Token(fold(piece) or piece, start, end, joined, piece.isupper() and not shouts))
    for n in range(1, len(tokens) - 1):
        before, dot, after = tokens[n - 1 : n + 2]
        if dot.text == "." and len(before.text) == len(after.text) == 1 and after.text.isalpha():
            tokens[n] = dot._replace(joined=before.text.isalpha())  # "V.a."
    return tokens
