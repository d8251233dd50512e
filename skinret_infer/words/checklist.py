"""A checklist as data: criteria, their values, and the ways to say each value in several languages.

The file is TOML. `seven_point.toml` beside this module is the checklist that ships, and its head explains
every field. A bundle has its checklist in the manifest, so that another site can use criteria of its own.
"""

import functools
import math
import tomllib
import unicodedata
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import InputError

SCHEMA = 1
ABSENT, PRESENT = "absent", "present"
ROLES = (
    "deny", "without", "nor", "concord", "clear", "absent", "present", "doubt", "doubt_next", "elsewhere",
    "back", "and", "or", "with", "but", "copulas", "abbreviations", "plain", "diagnoses",
)  # fmt: skip
_LISTS = ("endings", *ROLES)
_MAX_GROUPS = 100  # of a criterion
_CURE = "correct the file; skinret_infer/words/seven_point.toml is an example of every field"

Allowed = tuple[str, ...]  # the values of a criterion that a text or a case allows, in the checklist's order


@dataclass(frozen=True, slots=True, kw_only=True)
class Criterion:
    """A criterion and its values.

    Attributes
    ----------
    phrase :
        the canonical words, with {} for the value, such as "{} pigment network".
    values :
        its values. "absent" and "present" have the meaning of the words.
    from_image :
        whether the model predicts it from the picture. False for such as the location.
    groups :
        names for sets of values, such as irregular: (diffuse irregular, localized irregular).
    together :
        a value that means that several others were found, such as combinations: (blue areas, white areas).
    several :
        whether words may name several values of which the recorded one is one, as with types of vessels.
    """

    phrase: str
    values: Allowed
    from_image: bool = True
    groups: Mapping[str, Allowed] = field(default_factory=dict)
    together: Mapping[str, Allowed] = field(default_factory=dict)
    several: bool = False

    def allowed(self, name: str) -> Allowed:
        """Return the values of a value's name, a group's name, or "present". Raises KeyError."""
        if name in self.values:
            return (name,)
        if name == PRESENT and ABSENT in self.values:
            return tuple(value for value in self.values if value != ABSENT)
        return self.groups[name]

    def without(self, denied: Collection[str]) -> Allowed:
        """Return the values that are left when some are denied, and with them what they are a part of."""
        whole = {value for value, parts in self.together.items() if set(parts) & set(denied)}
        return tuple(value for value in self.values if value not in {*denied, *whole})

    def say(self, allowed: Collection[str]) -> str:
        """Return the canonical words for a set of values, "" for all of them, which is no statement."""
        chosen, everything = set(allowed), set(self.values)
        if not chosen or chosen >= everything:
            return ""
        names = [PRESENT] if ABSENT in everything else []
        names += [*self.values, *self.groups]
        for name in names:
            if chosen == set(self.allowed(name)):
                return self._phrase(name)
        for name in names:
            if chosen == set(self.without(self.allowed(name))):
                return f"not {self._phrase(name)}"
        return self._phrase(" or ".join(value for value in self.values if value in chosen))

    def _phrase(self, name: str) -> str:
        return " ".join(self.phrase.replace("{}", "" if name == PRESENT else name).split())


@dataclass(frozen=True, slots=True, kw_only=True)
class Way:
    """Ways to speak of a criterion in one language, from one source.

    Attributes
    ----------
    criterion, source :
        names in `Checklist.criteria` and `Checklist.sources`.
    terms :
        names of the criterion. Alone they state that it is present.
    needs_value :
        names that state nothing without a value.
    words :
        for a value or group, the words that mean it beside a name of the criterion.
    phrases :
        for a value or group, the expressions that state it alone, such as "crown vessels".
    """

    criterion: str
    source: str = ""
    terms: tuple[str, ...] = ()
    needs_value: tuple[str, ...] = ()
    words: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    phrases: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Language:
    """The words of a language that belong to no criterion, by their role, and the endings of its words."""

    name: str
    endings: tuple[str, ...]
    roles: Mapping[str, tuple[str, ...]]
    ways: tuple[Way, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Checklist:
    """Criteria with their values and vocabulary. Two are equal if their files say the same."""

    name: str
    version: str
    language: str  # of the canonical phrases
    sources: Mapping[str, str]
    criteria: Mapping[str, Criterion]
    languages: Mapping[str, Language]
    _data: Mapping[str, Any]

    @classmethod
    def read(cls, path: str | Path) -> "Checklist":
        """Read a checklist from a TOML file. Raises InputError, which says what is wrong with it."""
        try:
            data = tomllib.loads(Path(path).read_text("utf-8"))
        except (OSError, ValueError) as error:
            raise InputError(
                f"the checklist {path} cannot be read",
                code="checklist-unreadable",
                expected="a TOML file in UTF-8",
                found=str(error),
                cure=_CURE,
            ) from None
        return cls.from_dict(data)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "Checklist":
        """Check a checklist as plain values, and return it. Raises InputError."""
        schema = data.get("schema") if isinstance(data, Mapping) else None
        if schema != SCHEMA or isinstance(schema, bool):
            raise InputError(
                "the checklist has another schema",
                code="checklist-schema",
                expected=f"schema = {SCHEMA}",
                found=f"{schema!r:.80}",
                cure=_CURE,
            )
        top = _Table(data, "")
        criteria = {name: _criterion(table) for name, table in top.tables("criteria").items()}
        if not criteria:
            raise _fault("criteria", "at least one criterion", "none")
        sources = {name: str(text) for name, text in top.texts("sources").items()}
        all_ways = {code: top.inner("ways").rows(code) for code in top.inner("ways").data}
        languages = {
            code: _language(code, table, all_ways.pop(code, []), criteria, sources)
            for code, table in top.tables("languages").items()
        }
        if all_ways:
            raise _fault(f"ways.{min(all_ways)}", f"one of the languages {', '.join(languages)}", "another")
        language = top.text("language")
        if language not in languages:
            raise _fault("language", f"one of {', '.join(languages)}", repr(language))
        top.only("schema", "name", "version", "language", "sources", "criteria", "languages", "ways")
        return cls(top.text("name"), top.text("version"), language, sources, criteria, languages, dict(data))

    @classmethod
    @functools.cache
    def seven_point(cls) -> "Checklist":
        """Return the checklist that ships: the seven-point checklist, with elevation, location and sex."""
        return cls.read(Path(__file__).with_name("seven_point.toml"))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Checklist) and self._data == other._data

    def __hash__(self) -> int:
        return hash((self.name, self.version, *self.criteria))

    def __repr__(self) -> str:
        return f"Checklist({self.name!r} {self.version}, {', '.join(self.criteria)})"

    def to_dict(self) -> dict[str, Any]:
        """Return the checklist as plain values, as `from_dict` takes them."""
        return dict(self._data)

    @property
    def from_image(self) -> tuple[str, ...]:
        """The criteria that a model predicts from the picture."""
        return tuple(name for name, criterion in self.criteria.items() if criterion.from_image)

    def values_of(self, attributes: Mapping[str, Any]) -> dict[str, str]:
        """Return the recorded values of a case by criterion, in the checklist's order, without empty ones."""
        return {n: str(attributes[n]) for n in self.criteria if attributes.get(n) not in (None, "")}

    def phrases_of(self, attributes: Mapping[str, Any]) -> list[str]:
        """Return the canonical phrase of each recorded value of a case."""
        return [self.criteria[n]._phrase(value) for n, value in self.values_of(attributes).items()]

    def text_of(self, attributes: Mapping[str, Any]) -> str:
        """Return the canonical words of a case, such as "atypical pigment network, flat lesion", or ""."""
        return ", ".join(self.phrases_of(attributes))

    def text(self, allowed: Mapping[str, Collection[str]]) -> str:
        """Return the canonical words for the allowed values of some criteria."""
        return ", ".join(
            words
            for name, criterion in self.criteria.items()
            if name in allowed and (words := criterion.say(allowed[name]))
        )

    def settled(self, allowed: Mapping[str, Collection[str]]) -> float:
        """Return how many criteria are settled by their allowed values.

        One value counts 1, m of M values 1 - log m / log M. "absent" counts a quarter: observers differ most
        in when they write it.
        """
        total = 0.0
        for name, values in allowed.items():
            if name not in self.criteria:
                continue
            share = 1 - math.log(len(values)) / math.log(len(self.criteria[name].values))
            total += share / 4 if list(values) == [ABSENT] else share
        return total

    def check_values(self, attributes: Mapping[str, Any]) -> list[str]:
        """Return the recorded values that the checklist does not have, such as "streaks 'some'"."""
        return [
            f"{name} {value!r:.80}"
            for name, value in self.values_of(attributes).items()
            if value not in self.criteria[name].values
        ]


def fold(word: str) -> str:
    """Return a word without case and accents, to compare it; a single letter keeps its accent."""
    lower = unicodedata.normalize("NFKD", unicodedata.normalize("NFKC", word).casefold())
    letters = "".join(c for c in lower if not unicodedata.combining(c))
    return letters if len(letters) > 1 else unicodedata.normalize("NFC", lower)  # the Italian "è" is not "e"


def split_words(expression: str) -> tuple[str, ...]:
    """Return the folded words, numbers and commas of an expression, without its other signs."""
    commas = expression.replace(",", " , ")
    spaced = "".join(c if c.isalnum() or c == "," or unicodedata.combining(c) else " " for c in commas)
    return tuple(fold(word) for word in spaced.split()) or tuple(expression.split())


def is_capital(expression: str) -> bool:
    """Say whether an expression counts only in capitals: a short one that is written so, such as "RS"."""
    return expression.isalpha() and expression.isupper() and len(expression) < 5


# -- the checks of a file --


def _fault(where: str, expected: str, found: str) -> InputError:
    return InputError(
        f"the checklist cannot be used: {where}",
        code="checklist-field",
        expected=expected,
        found=f"{found:.200}",
        cure=_CURE,
    )


def _duplicate(expression: str, language: str, expected: str, meanings: tuple[str, str]) -> InputError:
    return InputError(
        f"the checklist cannot be used: {expression!r} in the language {language}",
        code="checklist-duplicate",
        expected=expected,
        found=f"{' and '.join(meanings):.200}",
        cure=_CURE,
    )


class _Table:
    """A table of the file, whose fields are checked as they are read."""

    def __init__(self, data: Any, where: str) -> None:
        if not isinstance(data, Mapping) or not all(isinstance(name, str) for name in data):
            raise _fault(where or "the file", "a table", repr(data))
        self.data: Mapping[str, Any] = data
        self.where = where

    def path(self, name: str) -> str:
        return f"{self.where}.{name}" if self.where else name

    def only(self, *known: str) -> None:
        if unknown := sorted(set(self.data) - set(known)):
            raise _fault(self.path(unknown[0]), f"one of {', '.join(known)}", "a field that is not known")

    def text(self, name: str) -> str:
        value = self.data.get(name)
        if not isinstance(value, str) or not value.strip():
            raise _fault(self.path(name), "a text", "none" if value is None else repr(value))
        return value

    def flag(self, name: str, default: bool) -> bool:
        value = self.data.get(name, default)
        if not isinstance(value, bool):
            raise _fault(self.path(name), "true or false", repr(value))
        return value

    def names(self, name: str, *, empty: bool = True) -> tuple[str, ...]:
        value = self.data.get(name, [])
        is_list = isinstance(value, list | tuple)
        if not is_list or not all(isinstance(v, str) and v.strip() for v in value) or not (value or empty):
            raise _fault(self.path(name), "a list of texts", repr(value) if name in self.data else "none")
        return tuple(value)

    def inner(self, name: str) -> "_Table":
        return _Table(self.data.get(name, {}), self.path(name))

    def tables(self, name: str) -> dict[str, "_Table"]:
        table = self.inner(name)
        return {key: table.inner(key) for key in table.data}

    def rows(self, name: str) -> list["_Table"]:
        value = self.data.get(name, [])
        if not isinstance(value, list | tuple):
            raise _fault(self.path(name), "an array of tables", repr(value))
        return [_Table(row, f"{self.path(name)}[{n}]") for n, row in enumerate(value)]

    def texts(self, name: str) -> dict[str, str]:
        table = self.inner(name)
        return {key: table.text(key) for key in table.data}

    def lists(self, name: str) -> dict[str, tuple[str, ...]]:
        table = self.inner(name)
        return {key: table.names(key) for key in table.data}


def _criterion(table: _Table) -> Criterion:
    table.only("phrase", "values", "from_image", "groups", "together", "several")
    phrase, values = table.text("phrase"), table.names("values", empty=False)
    if phrase.count("{}") != 1 or set("{}") & set(phrase.replace("{}", "")):
        raise _fault(table.path("phrase"), "words with {} once, for the value", repr(phrase))
    if len(set(values)) < max(2, len(values)):
        raise _fault(table.path("values"), "two or more different values", ", ".join(values))
    groups = _resolve(table.lists("groups"), values, table.path("groups"))
    together = table.lists("together")
    for whole, parts in together.items():
        if whole not in values or len(parts) < 2 or not set(parts) <= set(values) - {whole}:
            raise _fault(table.path(f"together.{whole}"), "a value, and two or more others", ", ".join(parts))
    return Criterion(
        phrase=phrase,
        values=values,
        from_image=table.flag("from_image", True),
        groups=groups,
        together=together,
        several=table.flag("several", False),
    )


def _resolve(groups: Mapping[str, Sequence[str]], values: Sequence[str], where: str) -> dict[str, Allowed]:
    """Return each group as values; a group may name others. Raises InputError for a cycle of groups."""

    if len(groups) > _MAX_GROUPS:
        raise _fault(where, f"at most {_MAX_GROUPS} groups", str(len(groups)))

    def members(name: str, above: tuple[str, ...]) -> Iterator[str]:
        if name in above:
            raise InputError(
                f"the checklist cannot be used: {where}.{name}",
                code="checklist-cycle",
                expected="groups of values",
                found=f"a cycle: {' > '.join((*above, name))}",
                cure=_CURE,
            )
        for member in groups[name]:
            if member in values:
                yield member
            elif member in groups:
                yield from members(member, (*above, name))
            else:
                raise _fault(f"{where}.{name}", "values or groups of the criterion", repr(member))

    for name in groups:
        if name in values or name in (ABSENT, PRESENT) or not groups[name]:
            raise _fault(
                f"{where}.{name}", "a name that no value has, and its values", ", ".join(groups[name])
            )
    found = {name: set(members(name, ())) for name in groups}
    return {name: tuple(value for value in values if value in found[name]) for name in groups}


def _language(
    code: str,
    table: _Table,
    rows: Sequence[_Table],
    criteria: Mapping[str, Criterion],
    sources: Mapping[str, str],
) -> Language:
    table.only("name", *_LISTS)
    ways = []
    for row in rows:
        row.only("criterion", "source", "terms", "needs_value", "words", "phrases")
        way = Way(
            criterion=row.text("criterion"),
            source=row.text("source"),
            terms=row.names("terms"),
            needs_value=row.names("needs_value"),
            words=row.lists("words"),
            phrases=row.lists("phrases"),
        )
        if way.criterion not in criteria:
            raise _fault(row.path("criterion"), f"one of {', '.join(criteria)}", repr(way.criterion))
        if way.source not in sources:
            raise _fault(row.path("source"), f"one of {', '.join(sources)}", repr(way.source))
        for kind in ("words", "phrases"):
            for name in getattr(way, kind):
                _check_meaning(row.path(f"{kind}.{name}"), criteria[way.criterion], name)
        ways.append(way)
    roles = {role: table.names(role) for role in ROLES}
    _check_duplicates(code, roles, ways)
    return Language(name=table.text("name"), endings=table.names("endings"), roles=roles, ways=tuple(ways))


def _check_meaning(where: str, criterion: Criterion, name: str) -> None:
    try:
        criterion.allowed(name)
    except KeyError:
        known = [*criterion.values, *criterion.groups]
        raise _fault(where, f"one of {', '.join(known)}", repr(name)) from None


def _check_duplicates(code: str, roles: Mapping[str, Sequence[str]], ways: Sequence[Way]) -> None:
    """Raise InputError for an expression with two meanings in one language."""
    meanings: dict[tuple[str, ...], str] = {}

    def note(expression: str, meaning: str) -> None:
        key = (expression,) if is_capital(expression) else split_words(expression)
        if (other := meanings.setdefault(key, meaning)) != meaning:
            raise _duplicate(expression, code, "one meaning for each expression", (other, meaning))

    beside: dict[tuple[str, tuple[str, ...]], str] = {}
    for way in ways:
        for expression in way.terms:
            note(expression, f"a name of {way.criterion}")
        for expression in way.needs_value:
            note(expression, f"a name that needs a value of {way.criterion}")
        for name, expressions in way.phrases.items():
            for expression in expressions:
                note(expression, f"{way.criterion} {name}")
        for name, words in way.words.items():
            for word in words:
                other = beside.setdefault((way.criterion, split_words(word)), name)
                if other != name:
                    raise _duplicate(
                        word, code, f"one meaning beside a name of {way.criterion}", (other, name)
                    )
    for role in ROLES:
        if role not in ("abbreviations", "plain", "copulas"):
            for expression in roles[role]:
                note(expression, f"the role {role}")
