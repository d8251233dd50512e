"""What a sentence claims: its items, what each states of a criterion, and what one says of its neighbours."""

import itertools
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from .checklist import ABSENT, Allowed, Criterion
from .elements import FINDINGS, NAMES, Element

_LINKS = frozenset({"comma", "and", "or", "nor", "with"})
_OPEN = frozenset({"deny", "concord", "doubt_next"})  # what follows them belongs to them
LIGHT = frozenset({"plain", "copulas", "number", "colon", "abbreviations", "clear"})
_BREAKS = frozenset({"deny", "absent", "doubt", "doubt_next", "elsewhere", "unknown", "question", "back"})
_NEAR = 2  # words between a finding and an unknown word before it that may deny it


@dataclass(slots=True)
class Claim:
    """What an item states of one criterion, or of none if its words may only concern its neighbours.

    links : the roles of what stands between it and the item before.
    criterion : "" for an item without a name of one.
    values : None if no value is named.
    needs_value : its name states nothing without a value.
    before, after : what stands before and after the finding: "deny", "absent" (an adjective), "doubt",
        "elsewhere", "back" or "present".
    denied, unsure, conflict : the outcome; `conflict` if the item contradicts itself.
    words : value words of an item without a name, and whether each is denied.
    joined : its words were given to a neighbour.
    is_header : the denial or doubt is before a colon, as in "Absent: streaks, veil".
    of_diagnosis : what it denies or doubts is a diagnosis.
    """

    links: frozenset[str]
    elements: list[Element]
    criterion: str = ""
    values: Allowed | None = None
    needs_value: bool = False
    before: str = ""
    after: str = ""
    denied: bool = False
    unsure: bool = False
    conflict: bool = False
    words: list[tuple[Mapping[str, Allowed], bool]] = field(default_factory=list)
    joined: bool = False
    is_header: bool = False
    of_diagnosis: bool = False

    @property
    def bare(self) -> bool:
        """Whether it names a criterion alone, so that the words of a neighbour may apply to it."""
        return bool(self.criterion) and self.values is None and not self.before and not self.after

    @property
    def answered(self) -> bool:
        """Whether what stands after it denies or doubts it."""
        return self.after in ("deny", "doubt", "back")

    @property
    def reaches(self) -> bool:
        """Whether it has a denial that reaches over "and"."""
        return any(e.reaches for e in self.elements)

    @property
    def start(self) -> int:
        """The place of its first word that is more than plain."""
        return min(e.start for e in self._telling)

    @property
    def end(self) -> int:
        """The place after its last word that is more than plain."""
        return max(e.end for e in self._telling)

    @property
    def _telling(self) -> list[Element]:
        telling = [e for e in self.elements if e.role not in LIGHT | {"diagnoses", "open", "close"}]
        while telling and telling[-1].role == "doubt_next":  # "irregular streaks suggestive of melanoma"
            telling.pop()
        return telling or self.elements


def sentences(elements: Sequence[Element]) -> Iterator[list[Element]]:
    """Yield the sentences: up to a dot, a line, a word such as "but", or a bracket with its own findings."""
    sentence: list[Element] = []
    closing = -1  # up to here a bracket is left out
    for n, e in enumerate(elements):
        if n <= closing:
            continue
        following = elements[n + 1].role if n + 1 < len(elements) else ""
        last = sentence[-1].role if sentence else ""
        match e.role:
            case "line" if last in _LINKS or following in _LINKS:
                continue
            case "line" if last in _OPEN and not any(x.role in NAMES for x in sentence):  # "no" ends the line
                continue
            case "open" if _is_synonym(elements[n + 1 :]):
                closing = next((k for k, x in enumerate(elements[n:], n) if x.role == "close"), len(elements))
            case "open" if not _has_own_finding(elements[n + 1 :]):
                sentence.append(e)
            case "question" if not sentence or last in _LINKS:  # "? streaks"
                sentence.append(e._replace(role="doubt_next"))
            case "question":
                yield [*sentence, e]
                sentence = []
            case "close" if any(other.role == "open" for other in sentence):
                sentence.append(e)
            case "end" | "line" | "but" | "open" | "close":
                if sentence:
                    yield sentence
                sentence = []
            case _:
                sentence.append(e)
    if sentence:
        yield sentence


def _is_synonym(elements: Iterable[Element]) -> bool:
    """Say whether a bracket that begins here has a bare name alone: "structureless areas (blotches)"."""
    inside = {e.role for e in itertools.takewhile(lambda e: e.role != "close", elements)}
    return bool(inside & {"term", "needs_value"}) and inside <= {"term", "needs_value", "plain", "copulas"}


def _has_own_finding(elements: Iterable[Element]) -> bool:
    """Say whether a bracket that begins here names a criterion, or has no words for what stands before it."""
    inside = {e.role for e in itertools.takewhile(lambda e: e.role != "close", elements)}
    answers = {"word", "absent", "present", "deny", "plus", "minus", "doubt", "question"}
    return bool(NAMES & inside) or not answers & inside


def claims_of(sentence: Sequence[Element], criteria: Mapping[str, Criterion]) -> list[Claim]:
    """Return the claims of a sentence, without what its items say of each other."""
    return [
        _claim(links if n == 0 else frozenset({"with"}), part, criteria)
        for links, item in _items(sentence)
        for n, part in enumerate(_parts(item, criteria))
    ]


def speaks_of_others(sentence: Sequence[Element], claims: Sequence[Claim]) -> bool:
    """Say whether a sentence without a finding may deny or doubt others: "None of these.", "Absent:"."""
    if any(claim.joined for claim in claims):
        return False
    roles = {e.role for e in sentence}
    negative = bool(roles & {"deny", "concord", "absent", "doubt"}) and "elsewhere" not in roles
    return "back" in roles or (negative and not any(e.is_content for e in sentence))


def combine(criterion: Criterion, stated: Sequence[Allowed]) -> Allowed:
    """Return the values that all statements about a criterion allow; () if they contradict each other."""
    left = set(criterion.values).intersection(*map(set, stated))
    if not left:
        single = {values[0] for values in stated if len(values) == 1}
        others = [set(values) for values in stated if len(values) > 1]
        left = {whole for whole, parts in criterion.together.items() if single <= {whole, *parts}}
        if not left and criterion.several and ABSENT not in single:
            left = single
        left = left.intersection(*others)
    return tuple(value for value in criterion.values if value in left)


# -- the items of a sentence --


def _items(sentence: Sequence[Element]) -> Iterator[tuple[frozenset[str], list[Element]]]:
    """Yield the items of a sentence with the links before each. A bracket belongs to the item before it."""
    links: set[str] = set()
    item: list[Element] = []
    depth = 0
    for e in sentence:
        depth += (e.role == "open") - (e.role == "close")
        if e.role in _LINKS and depth <= 0:
            if item:
                yield frozenset(links), item
                item, links = [], set()
            links.add(e.role)
        elif e.role != "comma":
            item.append(e)
    if item:
        yield frozenset(links), item


def _parts(item: list[Element], criteria: Mapping[str, Criterion]) -> list[list[Element]]:
    """Split an item where it goes on to another criterion without a comma."""
    named = [n for n, e in enumerate(item) if e.role in NAMES]
    if len({item[n].criterion for n in named}) < 2:
        return [item]
    values_first = next(e.role for e in item if e.role in FINDINGS) == "word"
    answers = {"present", "colon", "close", "plus", "minus", "question", "doubt"}
    if not values_first:
        answers.add("absent")
    cuts = [0]
    for one, other in itertools.pairwise(named):
        first = item[one].criterion
        if first != item[other].criterion:
            colon = next((n for n in range(one, other) if item[n].role == "colon"), None)
            if colon is not None and not criteria[first].from_image:  # a heading: "Back: doubtful network"
                cuts.append(colon + 1)
            else:
                cuts.append(_cut(item, one, other, "" if values_first else first, answers))
    return [item[a:b] for a, b in itertools.pairwise([*cuts, len(item)])]


def _cut(item: Sequence[Element], one: int, other: int, first: str, answers: Collection[str]) -> int:
    """Return where the words of the name `other` begin: those before it, unless they answer the name `one`.

    first : the criterion of `one`, if its values stand after it.
    """
    cut = other
    while cut - 1 > one:
        e = item[cut - 1]
        if e.role in answers or is_value_of(e, first):
            break
        cut -= 1
        if e.role in ("deny", "doubt_next"):
            break
    return cut


def _claim(links: frozenset[str], elements: list[Element], criteria: Mapping[str, Criterion]) -> Claim:
    """Return the claim of an item, or of a part of one."""
    claim = Claim(links, elements)
    named = [e for e in elements if e.role in NAMES]
    if not named:
        _read_nameless(claim)
        return claim
    claim.criterion = named[0].criterion
    claim.needs_value = all(e.role == "needs_value" for e in named)
    own = [n for n, e in enumerate(elements) if e.role in NAMES or is_value_of(e, claim.criterion)]
    first, last = own[0], own[-1]
    _read_values(claim, elements[first : last + 1], criteria[claim.criterion])
    before, after = elements[:first], elements[last + 1 :]
    if before and before[-1].role == "number" and not before[-1].text.isdigit():
        claim.unsure = True  # "a score of 5.2 points"
    if criteria[claim.criterion].from_image:
        unknown_before = _unknown_near([e.role for e in reversed(before)], _NEAR)
        empty = bool(after) and after[-1].role == "colon"  # a form that is not filled in
        claim.unsure |= unknown_before or empty or _unknown_near([e.role for e in after], len(after))
    _read_before(claim, before, {e.role for e in after})
    _read_after(claim, after)
    claim.unsure |= claim.denied and any(e.role == "clear" for e in elements)  # "no clear streaks"
    return claim


def is_value_of(e: Element, criterion: str) -> bool:
    """Say whether an element is a word for a value of a criterion."""
    return e.role == "word" and criterion in e.beside


def _read_nameless(claim: Claim) -> None:
    """Read an item without a name: the words for a value, and what it denies or doubts."""
    denied = False
    roles = [e.role for e in claim.elements if e.role not in LIGHT]
    claim.of_diagnosis = _without_diagnoses(roles) != roles
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
    claim.is_header = bool(claim.before) and claim.elements[-1].role == "colon"


def _read_values(claim: Claim, elements: Sequence[Element], criterion: Criterion) -> None:
    """Read the finding itself: from the first to the last word of its criterion."""
    stated: list[Allowed] = []
    deny_next = False
    for e in elements:
        if e.role == "phrase" or is_value_of(e, claim.criterion):
            values = e.allowed or e.beside[claim.criterion]
            stated.append(criterion.without(values) if deny_next else values)
            deny_next = False
        elif e.role in ("deny", "concord") and not deny_next:
            deny_next = True  # "streaks not irregular"
        elif e.role in _BREAKS:
            claim.unsure = True
    claim.unsure |= deny_next
    if stated:
        claim.values = combine(criterion, stated)
        claim.conflict = not claim.values


def _read_before(claim: Claim, before: Sequence[Element], later: set[str]) -> None:
    """Read what stands before the finding. `later` are the roles after it."""
    roles = _without_diagnoses([e.role for e in before if e.role not in LIGHT])
    claim.unsure |= _heads_another(before)
    denials = max(roles.count("deny"), int("nor" in claim.links or "concord" in roles))
    negative = {"deny", "absent", "concord", "doubt", "doubt_next", "elsewhere"} & set(roles)
    claim.is_header = bool(negative) and before[-1].role == "colon"
    is_answered = bool({"absent", "concord"} & later)  # "search for streaks: negative"
    if "elsewhere" in {*roles, *later}:
        claim.before = "elsewhere"
    elif {"doubt", "question"} & set(roles) or ("doubt_next" in roles and not is_answered):
        claim.before = "doubt"
    elif denials or "absent" in roles:
        claim.before = "deny" if denials else "absent"
        claim.denied = True
        claim.unsure |= denials + roles.count("absent") > 1
    claim.unsure |= "minus" in roles


def _heads_another(before: Sequence[Element]) -> bool:
    """Say whether a heading denies something of its own: "no change: streaks"."""
    colon = max((n for n, e in enumerate(before) if e.role == "colon"), default=-1)
    heading = before[: colon + 1]
    denies = any(e.role in ("deny", "absent", "concord") for e in heading)
    return denies and any(e.is_content for e in heading)


def _read_after(claim: Claim, after: Sequence[Element]) -> None:
    """Read what stands after the finding: "absent", "not seen", "?", ": none", "+" and the like."""
    light = ("plain", "copulas", "number", "close", "open", "colon", "clear")
    roles = ["absent" if e.reaches and e is after[-1] else e.role for e in after if e.role not in light]
    has_colon = any(e.role in ("colon", "open") for e in after)
    while roles and roles[-1] == "diagnoses":
        roles.pop()
    roles = list(itertools.takewhile(lambda role: role != "doubt_next", roles))
    roles = [role for n, role in enumerate(roles) if role != "minus" or n == len(roles) - 1]
    if "concord" in roles:
        roles = [role for role in roles if role != "concord"]
        if not claim.denied and not {"deny", "absent"} & set(roles):
            roles.append("absent")
    found, denials = set(roles), roles.count("deny")
    if "back" in found:
        claim.after = "back"
    elif {"doubt", "question"} & found or denials > 1 or {"deny", "absent"} <= found:
        claim.after = "doubt"
    elif denials:
        ends = not any(
            e.is_content for e in after[[e.role for e in after].index("deny") :]
        )  # "not increased"
        claim.after = "deny" if "present" in found or (roles[-1] == "deny" and ends) else "doubt"
    elif "absent" in found:
        claim.after = "deny" if "present" not in found else "doubt"
    elif roles and roles[0] == "minus":
        claim.after = "deny" if claim.values is None else "doubt"
    elif {"present", "plus"} & found:
        claim.after = "present"
        claim.needs_value &= not has_colon and "plus" not in found
    if claim.after == "deny":
        claim.unsure |= claim.denied
        claim.denied = True
    elif claim.after == "present":
        claim.unsure |= claim.before == "absent" or (claim.denied and has_colon)


def _without_diagnoses(roles: Sequence[str]) -> list[str]:
    """Leave out what denies or doubts a diagnosis: "no melanoma: ...", "suspicious for melanoma"."""
    last = max((n for n, role in enumerate(roles) if role == "diagnoses"), default=-1)
    return [role for n, role in enumerate(roles) if n > last or role == "elsewhere"]


def _unknown_near(roles: Sequence[str], distance: int) -> bool:
    """Say whether the first of these words that is not light is unknown, and at most so many words away."""
    place = next((n for n, role in enumerate(roles) if role not in LIGHT | {"word"}), None)
    return place is not None and place <= distance and roles[place] == "unknown"
