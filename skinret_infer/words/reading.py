"""Read findings from free text, and compare them with a case.

The reader says nothing where it is not sure. A text is split into sentences, and a sentence into items between
commas and words such as "and" or "with". An item states a finding by a name of a criterion ("streaks"), with
words for its value ("irregular") or without, or by an expression of its own ("crown vessels"). What denies or
doubts an item may reach over its neighbours, as in "no streaks, dots or veil" and "streaks and veil absent". Where
that is not clear the neighbours are not used: in "no streaks, veil" the veil may be denied or not. An unknown
word beside a finding may deny it too, so that such a finding is not used either.
"""

import functools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from ..errors import InputError, SkinretWarning, printable
from .checklist import ABSENT, Allowed, Checklist, Criterion
from .lexicon import Lexicon, Token, tokenize

_SIGNS = {
    ",": "comma", ";": "end", "!": "end", "•": "end", "*": "end", "—": "end", "\n": "line", ".": "dot",
    ":": "colon", "=": "colon", "(": "open", "[": "open", ")": "close", "]": "close", "+": "plus", "-": "minus",
    "–": "minus", "−": "minus", "?": "question", "&": "and", "/": "comma", "|": "comma", "→": "end", "->": "end", "=>": "end",
    ">": "end", "+/-": "question", "±": "question", "¿": "doubt_next",
}  # fmt: skip
_LINKS = frozenset({"comma", "and", "or", "nor", "with"})
_FINDINGS = frozenset({"term", "needs_value", "phrase", "word"})
_ANSWERS = frozenset({"word", "absent", "present", "deny", "doubt", "concord"})
_LIGHT = frozenset({"plain", "copulas", "number", "colon", "abbreviations"})
_ARTICLE = 3  # letters of the longest plain word that may be an article
_NEAR = 2  # words between a finding and an unknown word before it that may deny it
WARNINGS = {
    "words-unsure": "not used, because it is not certain",
    "words-contradiction": "not used, because it contradicts itself",
    "words-diagnosis": "not used, because a suspicion must not steer what is called similar",
    "words-unknown": "not understood",
    "words-corrected": "read with a correction",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """A statement of a text about a criterion.

    Attributes
    ----------
    criterion :
        its name in the checklist.
    values :
        the values that the words allow, such as ("irregular",); more than one for "streaks" or "no
        irregular streaks".
    start, end :
        the place of the words in the text.
    words :
        the words themselves.
    """

    criterion: str
    values: Allowed
    start: int
    end: int
    words: str

    def __str__(self) -> str:
        return f"{self.criterion.replace('_', ' ')} {' or '.join(self.values)} ({printable(self.words)!r})"

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, ready for json.dumps."""
        return {
            "criterion": self.criterion, "values": list(self.values), "start": self.start, "end": self.end,
            "words": self.words,
        }  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Note:
    """Words of a text that were not used, or not as they are written, with the `code` of a warning."""

    code: str
    start: int
    end: int
    words: str
    read: str = ""  # the correction


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """What was understood of a text.

    Attributes
    ----------
    text :
        the text.
    language :
        the code of the language that knows the most of its words; "" if none knows one.
    findings :
        the statements, in the order of the text. Those about one criterion agree.
    notes :
        what was not used or was corrected.
    allowed :
        for each criterion with findings the values that all of them allow, in the checklist's order.
    canonical :
        the findings in the canonical words, which the text encoder gets.
    """

    text: str
    language: str
    findings: tuple[Finding, ...]
    notes: tuple[Note, ...]
    allowed: Mapping[str, Allowed]
    canonical: str

    @property
    def warnings(self) -> list[SkinretWarning]:
        """A warning for each kind of note, with its words."""
        warnings = []
        for code, why in WARNINGS.items():
            if notes := [note for note in self.notes if note.code == code]:
                listed = ", ".join(
                    f"{note.words!r:.80}" + (f" as {note.read!r}" if note.read else "") for note in notes
                )
                warnings.append(SkinretWarning(f"{why}: {listed}", code))
        return warnings

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, ready for json.dumps."""
        return {
            "text": self.text,
            "language": self.language,
            "findings": [finding.to_dict() for finding in self.findings],
            "allowed": {name: list(values) for name, values in self.allowed.items()},
            "canonical": self.canonical,
            "warnings": [{"code": warning.code, "text": str(warning)} for warning in self.warnings],
        }


def compare(
    allowed: Mapping[str, Allowed], attributes: Mapping[str, Any], checklist: Checklist
) -> tuple[dict[str, str], dict[str, str]]:
    """Return the criteria in which a case matches the findings of a text, and those in which it contradicts them.

    Both are by name, with the case's value. A criterion that the text or the case leaves open is in neither, nor
    is a case with a value such as "combinations" of which the text names a part.
    """
    matching: dict[str, str] = {}
    conflicting: dict[str, str] = {}
    for name, value in checklist.values_of(attributes).items():
        criterion = checklist.criteria[name]
        if name not in allowed or value not in criterion.values:
            continue
        if value in allowed[name]:
            matching[name] = value
        elif not set(criterion.together.get(value, ())) & set(allowed[name]):
            conflicting[name] = value
    return matching, conflicting


class _Element(NamedTuple):
    """An expression or sign of the text with its role."""

    role: str
    start: int
    end: int
    criterion: str = ""
    allowed: Allowed = ()
    beside: Mapping[str, Allowed] = {}
    text: str = ""
    reaches: bool = False  # a denial that reaches over "and", as "without"


@dataclass(slots=True)
class _Claim:
    """What an item states of one criterion, or of none: then it has words that belong to a neighbour, or none."""

    links: frozenset[str]
    elements: list[_Element]
    criterion: str = ""
    values: Allowed | None = None  # None: no value is named
    needs_value: bool = False
    before: str = ""  # "deny", "absent", "doubt" or "elsewhere" before the finding
    after: str = ""  # "deny", "doubt" or "present" after it
    denied: bool = False
    unsure: bool = False
    conflict: bool = False
    words: list[tuple[Mapping[str, Allowed], bool]] = field(default_factory=list)  # without a name; denied?
    header: bool = False  # "Absent: ..."
    about_diagnosis: bool = False  # what it denies or doubts is a diagnosis

    @property
    def bare(self) -> bool:
        """Whether it names a criterion alone, so that the words of a neighbour may apply to it."""
        return bool(self.criterion) and self.values is None and not self.before and not self.after

    @property
    def start(self) -> int:
        return min(e.start for e in self.elements)

    @property
    def end(self) -> int:
        return max(e.end for e in self.elements)


@functools.lru_cache(maxsize=4)
def reader_of(checklist: Checklist) -> "Reader":
    """Return the reader of a checklist; several Searchers in a process share it. Raises InputError."""
    return Reader(checklist)


class Reader:
    """Reads texts with the vocabulary of a checklist. Safe to call from several threads.

    Raises InputError for a checklist whose own canonical phrases it cannot read.
    """

    def __init__(self, checklist: Checklist) -> None:
        self.checklist = checklist
        self._lexicon = Lexicon(checklist)
        for name, criterion in checklist.criteria.items():
            for value in criterion.values:
                phrase = criterion.say([value])
                if self.read(phrase).allowed != {name: (value,)}:
                    raise InputError(
                        f"the checklist cannot be used: {phrase!r} is not read as {name} {value!r}",
                        code="checklist-phrase",
                        expected="a language that has the words of every canonical phrase",
                        found=f"{dict(self.read(phrase).allowed)!r:.200}",
                        cure="add the missing names and words to the ways of that criterion",
                    )

    def read(self, text: str) -> Reading:
        """Return the findings of a text, at most a few thousand characters, and what was not understood."""
        tokens = tokenize(text)
        languages = self._lexicon.languages(tokens)
        corrected = self._lexicon.correct(tokens, languages)
        tokens = (
            [t._replace(text=corrected.get(n, t.text)) for n, t in enumerate(tokens)] if corrected else tokens
        )
        elements = list(self._elements(tokens, languages))
        claims: list[_Claim] = []
        for sentence in _sentences(elements):
            of_sentence = self._read_sentence(sentence)
            if _speaks_of_before(sentence, of_sentence):
                for claim in claims:
                    claim.unsure = True
            claims += of_sentence
        known = any(e.role not in ("unknown", "number") and e.role not in _SIGNS.values() for e in elements)
        notes = [
            Note(
                code="words-corrected",
                start=t.start,
                end=t.end,
                words=text[t.start : t.end],
                read=corrected[n],
            )
            for n, t in enumerate(tokens)
            if n in corrected
        ]
        notes += [
            Note(code=code, start=e.start, end=e.end, words=text[e.start : e.end])
            for role, code in (("diagnoses", "words-diagnosis"), ("unknown", "words-unknown"))
            for e in elements
            if e.role == role
        ]
        return self._result(text, languages[0] if known else "", claims, notes)

    def _result(self, text: str, language: str, claims: Sequence[_Claim], notes: list[Note]) -> Reading:
        findings: list[Finding] = []
        for claim in claims:
            if not claim.criterion or (claim.needs_value and claim.values is None and not claim.denied):
                continue
            values = self._stated(claim)
            start, end = claim.start, claim.end
            words = text[start:end]
            if claim.conflict or claim.unsure:
                code = "words-contradiction" if claim.conflict else "words-unsure"
                notes.append(Note(code=code, start=start, end=end, words=words))
            elif values:
                findings.append(
                    Finding(criterion=claim.criterion, values=values, start=start, end=end, words=words)
                )
        allowed: dict[str, Allowed] = {}
        for name, criterion in self.checklist.criteria.items():
            of_name = [f for f in findings if f.criterion == name]
            if not of_name:
                continue
            if values := _combine(criterion, [f.values for f in of_name]):
                allowed[name] = values
            else:
                notes += [
                    Note(code="words-contradiction", start=f.start, end=f.end, words=f.words) for f in of_name
                ]
        return Reading(
            text=text,
            language=language,
            findings=tuple(f for f in findings if f.criterion in allowed),
            notes=tuple(sorted(notes, key=lambda note: (note.start, note.end))),
            allowed=allowed,
            canonical=self.checklist.text(allowed),
        )

    def _stated(self, claim: _Claim) -> Allowed:
        """Return the values that a claim allows; () if it states nothing."""
        criterion = self.checklist.criteria[claim.criterion]
        if claim.values is None:
            if ABSENT not in criterion.values:
                return ()
            return (ABSENT,) if claim.denied else criterion.without([ABSENT])
        values = criterion.without(claim.values) if claim.denied else claim.values
        return () if len(values) == len(criterion.values) else values

    def _elements(self, tokens: Sequence[Token], languages: Sequence[str]) -> Iterator[_Element]:
        """Yield the expressions and signs of a text."""
        matches = {match.first: match for match in self._lexicon.match(tokens, languages)}
        place, marks = 0, any(token.text == "+" for token in tokens)
        while place < len(tokens):
            token = tokens[place]
            if match := matches.get(place):
                entry, last = match.entry, tokens[match.last - 1]
                role = "deny" if entry.role == "without" else entry.role
                yield _Element(
                    role, token.start, last.end, entry.criterion, entry.allowed, entry.beside, last.text,
                    role != entry.role,
                )  # fmt: skip
                place = match.last
                continue
            place += 1
            if token.joined:
                if token.text in "/&":
                    yield _Element(
                        "or" if token.text == "/" else "and", token.start, token.end, text=token.text
                    )
                continue
            if token.text == "0":
                yield _Element("absent", token.start, token.end, text=token.text)
            elif token.text in _SIGNS:
                role = _SIGNS[token.text]
                before = tokens[place - 2].text if place > 1 else ""
                if role == "dot" and (
                    self._lexicon.is_abbreviation(before, languages[0]) or not _ends(tokens, place)
                ):
                    continue
                if role == "minus" and not marks and _is_dash(tokens, place - 1):
                    following = matches[place].entry.role if place in matches else "plain"
                    role = "colon" if following in _ANSWERS else "comma"
                yield _Element("end" if role == "dot" else role, token.start, token.end, text=token.text)
            elif token.text[0].isdigit():
                yield _Element("number", token.start, token.end, text=token.text)
            elif token.text[0].isalpha():
                short = len(token.text) == 1 or (self._lexicon.is_abbreviation(token.text, languages[0]))
                yield _Element("plain" if short else "unknown", token.start, token.end, text=token.text)

    # -- one sentence --

    def _read_sentence(self, sentence: Sequence[_Element]) -> list[_Claim]:
        claims = [claim for item in _items(sentence) for claim in self._claims(*item)]
        claims = self._join_words(claims)
        self._share_values(claims)
        _reach_forward(claims)
        _reach_back(claims)
        for claim in claims:
            claim.unsure |= claim.before in ("doubt", "elsewhere") or claim.after in ("doubt", "back")
        open_names = {claim.criterion for claim in claims if claim.unsure}
        for claim in claims:
            claim.unsure |= claim.criterion in open_names
        return claims

    def _claims(self, links: frozenset[str], elements: list[_Element]) -> Iterator[_Claim]:
        """Yield the claims of an item: one for each criterion that it names."""
        for n, part in enumerate(self._parts(elements)):
            yield self._claim(links if n == 0 else frozenset({"with"}), part)

    def _parts(self, elements: list[_Element]) -> list[list[_Element]]:
        """Split an item where it goes on to another criterion without a comma."""
        named = [n for n, e in enumerate(elements) if e.role in ("term", "needs_value", "phrase")]
        if len({elements[n].criterion for n in named}) < 2:
            return [elements]
        values_first = next(e.role for e in elements if e.role in _FINDINGS) == "word"
        cuts = [0]
        for one, other in zip(named, named[1:], strict=False):
            first, second = elements[one].criterion, elements[other].criterion
            if first == second:
                continue
            cut = other
            while cut - 1 > one:
                e = elements[cut - 1]
                if e.role == "word" and not values_first and first in e.beside:
                    break
                if e.role in (
                    "absent",
                    "present",
                    "colon",
                    "close",
                    "plus",
                    "minus",
                    "question",
                    "doubt",
                ) and (not values_first or e.role != "absent"):
                    break
                cut -= 1
                if e.role in ("deny", "doubt_next"):
                    break
            cuts.append(cut)
        return [elements[a:b] for a, b in zip(cuts, [*cuts[1:], len(elements)], strict=True)]

    def _claim(self, links: frozenset[str], elements: list[_Element]) -> _Claim:
        claim = _Claim(links, elements)
        named = [e for e in elements if e.role in ("term", "needs_value", "phrase")]
        if not named:
            return self._claim_without_name(claim)
        claim.criterion = named[0].criterion
        criterion = self.checklist.criteria[claim.criterion]
        claim.needs_value = all(e.role == "needs_value" for e in named)
        own = [
            n
            for n, e in enumerate(elements)
            if e.role in ("term", "needs_value", "phrase")
            or (e.role == "word" and claim.criterion in e.beside)
        ]
        first, last = own[0], own[-1]
        stated: list[Allowed] = [e.allowed for e in named if e.role == "phrase"]
        deny_next = False
        for n, e in enumerate(elements[first : last + 1], first):
            if e.role == "word" and claim.criterion in e.beside:
                values = e.beside[claim.criterion]
                stated.append(criterion.without(values) if deny_next else values)
                deny_next = False
            elif e.role in ("deny", "concord") and not deny_next:
                deny_next = True
            elif e.role in ("deny", "absent", "doubt", "doubt_next", "unknown", "question", "back"):
                claim.unsure = True
        claim.unsure |= deny_next
        if stated:
            claim.values = _combine(criterion, stated)
            claim.conflict = not claim.values
        self._polarity(claim, elements[:first], elements[last + 1 :], criterion.from_image)
        return claim

    @staticmethod
    def _claim_without_name(claim: _Claim) -> _Claim:
        denied = False
        roles = [e.role for e in claim.elements if e.role not in _LIGHT]
        claim.about_diagnosis = _without_diagnoses(roles) != roles
        for e in claim.elements:
            if e.role == "word":
                claim.words.append((e.beside, denied))
            elif e.role in ("deny", "absent", "concord"):
                denied = True
                claim.before = claim.before or "deny"
            elif e.role in ("doubt_next", "doubt"):
                claim.before = "doubt"
            elif e.role == "elsewhere":
                claim.before = "elsewhere"
        claim.header = bool(claim.before) and claim.elements[-1].role == "colon"
        return claim

    @staticmethod
    def _polarity(
        claim: _Claim, before: Sequence[_Element], after: Sequence[_Element], from_image: bool
    ) -> None:
        """Set what an item says before and after its finding: denied, doubted, or seen."""
        roles = _without_diagnoses([e.role for e in before if e.role not in _LIGHT])
        later = {e.role for e in after}
        denials = max(roles.count("deny"), int("nor" in claim.links or "concord" in roles))
        claim.header = bool(before) and before[-1].role == "colon" and bool({"deny", "absent"} & set(roles))
        if "elsewhere" in roles or any(e.role == "elsewhere" for e in after):
            claim.before = "elsewhere"
        elif {"doubt", "question"} & set(roles) or (
            "doubt_next" in roles and not {"absent", "concord"} & later
        ):
            claim.before = "doubt"
        elif denials or "absent" in roles:
            claim.before = "absent" if not denials else "deny"
            claim.denied = True
            claim.unsure |= denials + roles.count("absent") > 1
        claim.unsure |= "minus" in roles or "plus" in roles
        if from_image:
            claim.unsure |= _unknown_near([e.role for e in before][::-1], _NEAR)
            claim.unsure |= _unknown_near([e.role for e in after], len(after))

        roles = [e.role for e in after if e.role not in ("plain", "copulas", "number", "close", "open")]
        has_colon = "colon" in roles or any(e.role == "open" for e in after)
        roles = [role for role in roles if role != "colon"]
        while roles and roles[-1] in ("diagnoses", "doubt_next"):
            roles.pop()
        if "doubt_next" in roles:
            del roles[roles.index("doubt_next") :]
        if not roles:
            return
        if "minus" in roles[:-1]:  # a dash, as in "network - atypical"
            roles = [role for n, role in enumerate(roles) if role != "minus" or n == len(roles) - 1]
        denials = roles.count("deny")
        if "concord" in roles:
            roles = [role for role in roles if role != "concord"]
            if not denials and not claim.denied and "absent" not in roles:
                roles.append("absent")
        if not roles:
            return
        if "back" in roles:
            claim.after = "back"
        elif {"doubt", "question"} & set(roles) or denials > 1 or (denials and "absent" in roles):
            claim.after = "doubt"
        elif denials:
            seen = "present" in roles
            claim.after = "deny" if seen or (has_colon and roles[0] == "deny") else "doubt"
        elif "absent" in roles:
            claim.after = "deny" if "present" not in roles else "doubt"
        elif roles[0] == "minus":
            claim.after = "deny" if claim.values is None else "doubt"
        elif {"present", "plus"} & set(roles):
            claim.after = "present"
            claim.needs_value &= not has_colon and "plus" not in roles
        if claim.after == "deny":
            claim.unsure |= claim.denied
            claim.denied = True
        elif claim.after == "present" and claim.before == "absent":
            claim.unsure = True

    @staticmethod
    def _share_values(claims: Sequence[_Claim]) -> None:
        """Give the value of the last of several subjects to all: "the streaks and globules are irregular"."""
        for n, claim in enumerate(claims):
            roles = [e.role for e in claim.elements]
            if "and" not in claim.links or not claim.values or "copulas" not in roles:
                continue
            after = claim.elements[roles.index("copulas") :]
            words = [e for e in after if e.role == "word" and claim.criterion in e.beside]
            other = claims[n - 1] if n else None
            if other and other.bare and words and not (claim.before or claim.after or claim.denied):
                values = [e.beside[other.criterion] for e in words if other.criterion in e.beside]
                if len(values) == len(words) == 1:
                    other.values = values[0]

    def _join_words(self, claims: list[_Claim]) -> list[_Claim]:
        """Give value words without a name to the neighbour that they fit: "network, atypical", "comma or dotted"."""
        for n, claim in enumerate(claims):
            if not claim.words or claim.criterion:
                continue
            after = next((c for c in claims[n + 1 :] if c.criterion), None)
            before = next((c for c in reversed(claims[:n]) if c.criterion), None)
            if after and any(c.words == [] and not c.criterion for c in claims[n + 1 : claims.index(after)]):
                after = None
            if after and after.links & {"with", "nor"}:
                after = None
            if before and claim.links & {"with", "nor"}:
                before = None
            for beside, denied in claim.words:
                takes = [c for c in (before, after) if c and c.criterion in beside]
                if not takes:
                    continue
                target = takes[0]
                if len(takes) == 2 and before and before.values:
                    first = next(e.role for e in takes[1].elements if e.role in _FINDINGS)
                    target = takes[1] if first == "word" else before
                criterion = self.checklist.criteria[target.criterion]
                values = beside[target.criterion]
                if denied:
                    values = criterion.without(values)
                links = claim.links if target is before else target.links
                if target.values is None:
                    target.values = values
                elif "or" in links:
                    chosen = {*values, *target.values}
                    target.values = tuple(v for v in criterion.values if v in chosen)
                else:
                    target.values = _combine(criterion, [target.values, values])
                    target.conflict |= not target.values
                if target is after and claim.before:
                    target.before = target.before or claim.before
                    target.denied |= claim.before in ("deny", "absent")
                elif claim.before in ("doubt", "elsewhere"):
                    target.unsure = True
                if target is before and any(
                    e.role in ("doubt", "question", "unknown") for e in claim.elements
                ):
                    target.unsure = True
                target.elements = [*target.elements, *(e for e in claim.elements if e.role == "word")]
                claim.before = ""
        return claims


def _without_diagnoses(roles: Sequence[str]) -> list[str]:
    """Leave out what denies or doubts a diagnosis: "no melanoma: ...", "suspicious for melanoma"."""
    last = max((n for n, role in enumerate(roles) if role == "diagnoses"), default=-1)
    return [role for n, role in enumerate(roles) if n > last or role == "elsewhere"]


def _unknown_near(roles: Sequence[str], distance: int) -> bool:
    """Say whether the first of these words that is not light is unknown, and at most so many words away."""
    place = next((n for n, role in enumerate(roles) if role not in _LIGHT), None)
    return place is not None and place <= distance and roles[place] == "unknown"


def _combine(criterion: Criterion, stated: Sequence[Allowed]) -> Allowed:
    """Return the values that all statements about a criterion allow; () if they contradict each other."""
    left = set(criterion.values).intersection(*map(set, stated))
    if not left:
        single = {values[0] for values in stated if len(values) == 1 and values[0] != ABSENT}
        if len(single) == len(set(stated)):
            left = {whole for whole, parts in criterion.together.items() if single <= {whole, *parts}}
            if not left and criterion.several:
                left = single
    return tuple(value for value in criterion.values if value in left)


def _is_dash(tokens: Sequence[Token], place: int) -> bool:
    """Say whether a hyphen stands between words with a space on both sides, and so is no minus."""
    if not 0 < place < len(tokens) - 1:
        return False
    before, token, after = tokens[place - 1 : place + 2]
    return (
        before.end < token.start
        and token.end < after.start
        and after.text[0].isalpha()
        and before.text[-1].isalnum()
    )


def _ends(tokens: Sequence[Token], place: int) -> bool:
    """Say whether a dot before the token `place` has space after it."""
    return place >= len(tokens) or tokens[place].start > tokens[place - 1].end or tokens[place].text == "\n"


def _sentences(elements: Sequence[_Element]) -> Iterator[list[_Element]]:
    """Yield the sentences: up to a dot, a line, a word such as "but", or a bracket with findings of its own."""
    sentence: list[_Element] = []
    for n, e in enumerate(elements):
        following = elements[n + 1].role if n + 1 < len(elements) else ""
        if e.role == "line" and ((sentence and sentence[-1].role in _LINKS) or following in _LINKS):
            continue
        if e.role == "open" and not _has_own_finding(elements[n + 1 :]):
            sentence.append(e)
        elif e.role == "question" and sentence and sentence[-1].role not in _LINKS:
            yield [*sentence, e]
            sentence = []
        elif e.role == "question":
            sentence.append(e._replace(role="doubt_next"))
        elif e.role in ("end", "line", "but", "open") or (
            e.role == "close" and not any(x.role == "open" for x in sentence)
        ):
            if sentence:
                yield sentence
            sentence = []
        else:
            sentence.append(e)
    if sentence:
        yield sentence


def _has_own_finding(elements: Iterable[_Element]) -> bool:
    """Say whether a bracket that begins here names a criterion, or has no words for what stands before it."""
    inside = []
    for e in elements:
        if e.role == "close":
            break
        inside.append(e.role)
    return bool({"term", "needs_value", "phrase"} & set(inside)) or not (
        {"word", "absent", "present", "deny", "plus", "minus", "doubt", "question"} & set(inside)
    )


def _items(sentence: Sequence[_Element]) -> Iterator[tuple[frozenset[str], list[_Element]]]:
    """Yield the items of a sentence with the links before each. A bracket belongs to the item before it."""
    links: set[str] = set()
    item: list[_Element] = []
    depth = 0
    for n, e in enumerate(sentence):
        depth += (e.role == "open") - (e.role == "close")
        bullet = e.role == "minus" and not item and not links
        if bullet:
            continue
        if e.role in _LINKS and depth <= 0:
            if item:
                yield frozenset(links), item
                item, links = [], set()
            links.add(e.role)
        elif e.role == "comma" and depth > 0:
            continue
        else:
            item.append(e)
    if item:
        yield frozenset(links), item


def _speaks_of_before(sentence: Sequence[_Element], claims: Sequence[_Claim]) -> bool:
    """Say whether a sentence without findings denies or doubts those before it, as "None of these.\""""
    if any(claim.criterion for claim in claims):
        return False
    roles = {e.role for e in sentence}
    negative = bool(roles & {"deny", "absent", "doubt", "unknown"})
    content = _has_content(sentence)
    return ("back" in roles and negative) or (bool(roles & {"deny", "absent", "doubt"}) and not content)


def _has_content(elements: Iterable[_Element]) -> bool:
    """Say whether there are words that may be what a denial or doubt speaks of."""
    return any(e.role in ("plain", "diagnoses", "unknown") and not _is_article(e) for e in elements)


def _is_article(e: _Element) -> bool:
    return e.role == "plain" and len(e.text) <= _ARTICLE


def _reach_forward(claims: Sequence[_Claim]) -> None:
    """Apply a denial or doubt to the items after it, where it reaches over them."""
    head: _Claim | None = None
    for n, claim in enumerate(claims):
        if "with" in claim.links and head and head.before == "elsewhere":
            claim.unsure = True
            continue
        if "with" in claim.links and n and _ends_open(claims[n - 1]):  # "not showing streaks"
            claim.before = claim.before or claims[n - 1].before
            claim.unsure |= claim.denied
            claim.denied = claim.before == "deny"
        if claim.before or claim.after or "with" in claim.links:
            head = claim if claim.before else None
            continue
        if head is None or not claim.criterion:
            if claim.criterion or claim.words:
                head = None
            continue
        if (
            head.header
            or claim.links & {"or", "nor"}
            or _list_goes_on(claims, n, any(e.reaches for e in head.elements))
        ):
            _deny(claim, head)
        elif claim.links == {"comma"} and (
            head.before == "absent"
            or head.about_diagnosis
            or (head.before == "elsewhere" and (head.criterion or _has_content(head.elements)))
            or (head.before != "elsewhere" and claim.values is not None)
        ):
            head = None
        elif (
            "and" in claim.links
            and any(e.reaches for e in head.elements)
            and (claim.values is None or claim.criterion == head.criterion)
        ):
            _deny(claim, head)
        elif "and" in claim.links or head.before in ("deny", "doubt", "elsewhere"):
            claim.unsure = True


def _ends_open(claim: _Claim) -> bool:
    """Say whether an item without a finding ends with a denial or a doubt, which then is about what follows."""
    light = ("copulas", "number")
    roles = [e.role for e in claim.elements if e.role not in light and not _is_article(e)]
    return not claim.criterion and bool(roles) and roles[-1] in ("deny", "doubt", "doubt_next", "concord")


def _list_goes_on(claims: Sequence[_Claim], n: int, reaches: bool) -> bool:
    """Say whether the item n, after a comma, is in a list that ends with "or": "no A, B or C".

    reaches : the denial reaches over "and" too: "without A, B and C".
    """
    if claims[n].links != {"comma"} or claims[n].values is not None:
        return False
    for claim in claims[n + 1 :]:
        if claim.before or claim.after or claim.values is not None or "with" in claim.links:
            return False
        if claim.links & {"or", "nor", *({"and"} if reaches else ())}:
            return True
        if claim.links != {"comma"}:
            return False
    return False


def _deny(claim: _Claim, head: _Claim) -> None:
    if head.before in ("doubt", "elsewhere"):
        claim.unsure = True
    else:
        claim.denied = True


def _reach_back(claims: Sequence[_Claim]) -> None:
    """Apply what stands after an item to those before it, as in "streaks and veil absent"."""
    for n, claim in enumerate(claims):
        nameless = not claim.criterion and not claim.words
        after = claim.after
        if nameless:
            after = _points_back(claim)
            if after and n:
                claims[n - 1].unsure |= bool(claims[n - 1].criterion)
            continue
        if after not in ("deny", "doubt", "back"):
            continue
        linked = bool(claim.links & {"and", "or", "nor"})
        for other, following in zip(reversed(claims[:n]), reversed(claims[1 : n + 1]), strict=True):
            links = following.links
            if not other.criterion or "with" in links:
                break
            if other.before or other.after:
                break
            if not other.bare and (links & {"and", "or", "nor"} or not linked):
                other.unsure |= bool(links & {"and", "or", "nor"})
                break
            if not other.bare:
                break
            if after == "deny" and linked:
                other.denied = True
                other.unsure |= claim.unsure
            elif after == "doubt" and not linked and links == {"comma"}:
                break
            else:
                other.unsure = True


def _points_back(claim: _Claim) -> str:
    """Return "doubt" for an item without a name that speaks of the item before it: "streaks, not seen"."""
    roles = {e.role for e in claim.elements}
    content = _has_content(claim.elements)
    negative = ("deny" in roles and bool(roles & {"present", "back"})) or bool(roles & {"absent", "doubt"})
    alone = "deny" in roles and roles <= {"deny", "copulas"}
    return "doubt" if (negative and not content) or alone else ""
