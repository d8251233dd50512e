"""Read findings from free text, and compare them with a case.

The reader says nothing where it is not sure. A text is split into sentences, and a sentence into items
between commas and words such as "and" or "with". An item states a finding by a name of a criterion
("streaks"), with words for its value ("irregular") or without, or by an expression of its own ("crown
vessels"). What denies or doubts an item may reach over its neighbours, as in "no streaks, dots or veil" and
"streaks and veil absent". Where that is not clear the neighbours are not used: in "no streaks, veil" the veil
may be denied or not. An unknown word beside a finding may deny it too, so that such a finding is not used
either.
"""

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import InputError, SkinretWarning, printable
from .checklist import ABSENT, Allowed, Checklist
from .claims import Claim, combine, sentences, speaks_of_others
from .elements import FINDINGS, Element, count_words, elements_of
from .lexicon import Lexicon, Token, tokenize
from .neighbours import read_sentence

_FOREIGN = 2  # unknown words of a text that may be in another language
_NOTES = {"diagnoses": "words-diagnosis", "unknown": "words-unknown"}  # of elements by their role
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

    @classmethod
    def of(cls, code: str, text: str, place: Element | Token | Claim | Finding, read: str = "") -> "Note":
        """Return the note about a place of a text."""
        words = text[place.start : place.end]
        return cls(code=code, start=place.start, end=place.end, words=words, read=read)


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
    """Return the criteria in which a case matches the findings of a text, and in which it contradicts them.

    Both are by name, with the case's value. A criterion that the text or the case leaves open is in neither,
    nor is a case with a value such as "combinations" of which the text names a part.
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
        for n, word in corrected.items():
            tokens[n] = tokens[n]._replace(text=word)
        elements = list(elements_of(tokens, self._lexicon, languages))
        known, unknown = count_words(elements)
        claims = self._claims(elements)
        if unknown >= max(known, _FOREIGN):  # a language without a lexicon may deny in its own way
            for claim in claims:
                claim.unsure = True
        notes = [Note.of("words-corrected", text, tokens[n], word) for n, word in corrected.items()]
        notes += [Note.of(_NOTES[e.role], text, e) for e in elements if e.role in _NOTES]
        notes += [
            Note.of("words-unknown", text, e)
            for claim in claims
            if claim.words and not claim.joined
            for e in claim.elements
            if e.role == "word"
        ]
        is_known = known or any(e.role in FINDINGS for e in elements)
        return self._result(text, languages[0] if is_known else "", claims, notes)

    def _claims(self, elements: Sequence[Element]) -> list[Claim]:
        """Return the claims of all sentences, after what sentences without findings say of them."""
        claims: list[Claim] = []
        header = ""  # the last sign of a sentence before that may deny this one, as "Absent:" does
        for sentence in sentences(elements):
            previous = claims[-1] if claims and claims[-1].criterion else None
            of_sentence = read_sentence(sentence, self.checklist.criteria, previous)
            if any(claim.criterion for claim in of_sentence):
                for claim in of_sentence:
                    claim.unsure |= bool(header)
                header = header if header == "colon" else ""
            elif speaks_of_others(sentence, of_sentence):
                for claim in claims:
                    claim.unsure = True
                header = sentence[-1].role
            else:
                header = ""
            claims += of_sentence
        return claims

    def _result(self, text: str, language: str, claims: Sequence[Claim], notes: list[Note]) -> Reading:
        findings: list[Finding] = []
        for claim in claims:
            if not claim.criterion or (claim.needs_value and claim.values is None and not claim.denied):
                continue
            values = self._stated(claim)
            if claim.conflict or claim.unsure:
                notes.append(
                    Note.of("words-contradiction" if claim.conflict else "words-unsure", text, claim)
                )
            elif values:
                words = text[claim.start : claim.end]
                findings.append(
                    Finding(
                        criterion=claim.criterion,
                        values=values,
                        start=claim.start,
                        end=claim.end,
                        words=words,
                    )
                )
        allowed: dict[str, Allowed] = {}
        for name, criterion in self.checklist.criteria.items():
            of_name = [f for f in findings if f.criterion == name]
            if not of_name:
                continue
            if values := combine(criterion, [f.values for f in of_name]):
                allowed[name] = values
            else:
                notes += [Note.of("words-contradiction", text, finding) for finding in of_name]
        return Reading(
            text=text,
            language=language,
            findings=tuple(f for f in findings if f.criterion in allowed),
            notes=tuple(sorted(notes, key=lambda note: (note.start, note.end))),
            allowed=allowed,
            canonical=self.checklist.text(allowed),
        )

    def _stated(self, claim: Claim) -> Allowed:
        """Return the values that a claim allows; () if it states nothing."""
        criterion = self.checklist.criteria[claim.criterion]
        if claim.values is None:
            if ABSENT not in criterion.values:
                return ()
            return (ABSENT,) if claim.denied else criterion.without([ABSENT])
        values = criterion.without(claim.values) if claim.denied else claim.values
        return () if len(values) == len(criterion.values) else values
