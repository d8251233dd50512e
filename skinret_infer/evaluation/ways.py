"""Ways of writing: turn the recorded findings of a case into the words of some clinician, to measure with.

A file of ways is TOML with an array [[ways]]. Each has a name, and any of the fields of `Way`. The same way,
case and checklist always give the same words.
"""

import hashlib
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np

from ..cases import Case
from ..errors import InputError
from ..words.checklist import ABSENT, Allowed, Checklist

_CURE = "correct the file; benchmarks/ways.toml is an example of every field"


@dataclass(frozen=True, slots=True, kw_only=True)
class Way:
    """A way of writing.

    Attributes
    ----------
    name :
        as the report shows it.
    text :
        templates, of which each case takes one: {findings} is replaced by the findings.
    join, last :
        between two findings, and before the last of them.
    say :
        for a criterion and a value, expressions of which each case takes one; "" leaves the finding out.
        Without any, the canonical words.
    names, denied, denied_join, denied_last :
        names of criteria, and a template with {} for a list of those that are absent, such as "no {}".
    only_present :
        leave out what is absent.
    share :
        of the findings, drawn for each case.
    shuffled :
        the findings in an order drawn for each case.
    typos :
        the share of the words of five letters or more with one error.
    contradict :
        say another value of every criterion than the case has.
    """

    name: str
    text: tuple[str, ...] = ("{findings}",)
    join: str = ", "
    last: str = ", "
    say: Mapping[str, Mapping[str, Sequence[str]]] = field(default_factory=dict)
    names: Mapping[str, str] = field(default_factory=dict)
    denied: str = ""
    denied_join: str = ", "
    denied_last: str = " or "
    only_present: bool = False
    share: float = 1.0
    shuffled: bool = False
    typos: float = 0.0
    contradict: bool = False

    def write(self, case: Case, checklist: Checklist) -> tuple[str, dict[str, Allowed]]:
        """Return the words for a case, and the values that they say of each criterion."""
        rng = np.random.default_rng(
            list(hashlib.sha256(f"{self.name}\n{case.case_id}".encode()).digest()[:8])
        )
        template = str(rng.choice(list(self.text)))
        said: dict[str, Allowed] = {}
        items, absent = list[str](), list[str]()
        for name, recorded in checklist.values_of(case.attributes).items():
            criterion = checklist.criteria[name]
            value = recorded
            if self.contradict:
                value = str(rng.choice([v for v in criterion.values if v != recorded]))
            kept = rng.random() < self.share and not (self.only_present and value == ABSENT)
            choices = self.say.get(name, {}).get(value, [checklist.text({name: [value]}) or value])
            words = str(rng.choice(list(choices)))
            if not kept or not words or "{findings}" not in template:
                continue
            said[name] = (value,)
            if value == ABSENT and self.denied and name in self.names:
                absent.append(self.names[name])
            else:
                items.append(words)
        if self.shuffled:
            items = [items[n] for n in rng.permutation(len(items))]
        if absent:
            items.append(self.denied.replace("{}", _join(absent, self.denied_join, self.denied_last)))
        text = template.replace("{findings}", _join(items, self.join, self.last))
        return " ".join(_mistype(word, self.typos, rng) for word in text.split(" ")), said


def read_ways(path: str | Path, checklist: Checklist) -> list[Way]:
    """Read a file of ways. Raises InputError."""
    try:
        data = tomllib.loads(Path(path).read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(
            f"the ways of writing in {path} cannot be read",
            code="ways-unreadable",
            expected="a TOML file in UTF-8",
            found=str(error),
            cure=_CURE,
        ) from None
    rows = data.get("ways")
    if not isinstance(rows, list) or not rows or set(data) != {"ways"}:
        raise _fault(path, "an array [[ways]] and nothing else", ", ".join(data) or "nothing")
    ways = [_way(path, row, checklist) for row in rows]
    names = [way.name for way in ways]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise _fault(path, "a name for each way", f"{twice[0]!r} twice")
    return ways


def _way(path: str | Path, row: Mapping[str, Any], checklist: Checklist) -> Way:
    kinds = {f.name: f.type for f in fields(Way)}
    name = row.get("name") if isinstance(row, Mapping) else None
    if not isinstance(name, str) or not name:
        raise _fault(path, "a name for each way", repr(row))
    values: dict[str, Any] = {}
    for key, value in row.items():
        kind: Any = kinds.get(key)
        if key == "text" and isinstance(value, str):
            value = [value]
        if key == "say":
            value = _sayings(path, name, value, checklist)
        elif key == "text":
            value = tuple(value) if _is_texts(value) else None
        elif key == "names":
            is_names = isinstance(value, Mapping) and set(value) <= set(checklist.criteria)
            value = value if is_names and all(isinstance(text, str) for text in value.values()) else None
        elif kind is float:
            is_share = isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= 1
            value = float(value) if is_share else None
        elif kind in (str, bool):
            value = value if isinstance(value, kind) else None
        else:
            raise _fault(path, f"fields among {', '.join(kinds)}", f"{key!r} in the way {name!r}")
        if value is None:
            raise _fault(path, f"a value that {key} can have", f"{row[key]!r:.80} in the way {name!r}")
        values[key] = value
    return Way(**values)


def _sayings(
    path: str | Path, way: str, data: Any, checklist: Checklist
) -> dict[str, dict[str, tuple[str, ...]]]:
    say: dict[str, dict[str, tuple[str, ...]]] = {}
    for name, by_value in data.items() if isinstance(data, Mapping) else [("say", data)]:
        known = checklist.criteria[name].values if name in checklist.criteria else ()
        if not isinstance(by_value, Mapping) or not set(by_value) <= set(known):
            expected = f"values of the checklist: {', '.join(known) or ', '.join(checklist.criteria)}"
            raise _fault(path, expected, f"{name}: {by_value!r:.80} in the way {way!r}")
        say[name] = {}
        for value, words in by_value.items():
            choices = [words] if isinstance(words, str) else words
            if not _is_texts(choices):
                raise _fault(path, "a text or a list of texts", f"{words!r:.80} in the way {way!r}")
            say[name][value] = tuple(choices)
    return say


def _is_texts(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(text, str) for text in value)


def _fault(path: str | Path, expected: str, found: str) -> InputError:
    return InputError(
        f"the ways of writing in {path} cannot be used",
        code="ways-field",
        expected=expected,
        found=f"{found:.200}",
        cure=_CURE,
    )


def _join(items: Sequence[str], join: str, last: str) -> str:
    return join.join(items[:-1]) + (last if len(items) > 1 else "") + items[-1] if items else ""


def _mistype(word: str, share: float, rng: np.random.Generator) -> str:
    """Return a word, with one letter left out, doubled, exchanged or swapped if the draw says so."""
    letters = [n for n, c in enumerate(word) if c.isalpha()]
    if not share or len(letters) < 5 or rng.random() >= share:
        return word
    place = int(rng.choice(letters[1:-1]))
    match rng.integers(4):
        case 0:
            return word[:place] + word[place + 1 :]
        case 1:
            return word[:place] + word[place] + word[place:]
        case 2:
            return word[:place] + "abcdefghijklmnopqrstuvwxyz"[rng.integers(26)] + word[place + 1 :]
        case _:
            return word[:place] + word[place + 1] + word[place] + word[place + 2 :]
