"""What a sentence claims: its items, what each states of a criterion, and what one says of its neighbours."""

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from .checklist import ABSENT, Allowed, Criterion
from .elements import FINDINGS, NAMES, Element

_LINKS = frozenset({"comma", "and", "or", "nor", "with"})
_JOINS = frozenset({"and", "or", "nor"})
_OPEN = frozenset({"deny", "concord", "doubt_next"})  # what follows them belongs to them
_LIGHT = frozenset({"plain", "copulas", "number", "colon", "abbreviations", "clear"})
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
        telling = [e for e in self.elements if e.role not in _LIGHT | {"diagnoses", "open", "close"}]
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


def read_sentence(
    sentence: Sequence[Element], criteria: Mapping[str, Criterion], previous: Claim | None = None
) -> list[Claim]:
    """Return the claims of a sentence, each with what its neighbours say of it.

    previous : the last claim before, to which words without a name may belong: "streaks, but not irregular".
    """
    claims = [
        _claim(links if n == 0 else frozenset({"with"}), part, criteria)
        for links, item in _items(sentence)
        for n, part in enumerate(_parts(item, criteria))
    ]
    if previous and not any(claim.criterion for claim in claims):
        _join_words([previous, *claims], criteria)
        return claims
    _join_words(claims, criteria)
    _share_values(claims)
    _reach_forward(claims)
    _reach_back(claims)
    for one, other in itertools.pairwise(claims):
        if "or" not in other.links or not other.criterion or one.denied or other.denied:
            continue
        if one.criterion == other.criterion and one.values and other.values:  # "back or flank"
            either = {*one.values, *other.values}
            one.values = other.values = tuple(v for v in criteria[one.criterion].values if v in either)
        elif one.criterion not in ("", other.criterion):  # "streaks or a veil": which of them?
            one.unsure = other.unsure = True
    for claim in claims:
        claim.unsure |= claim.before in ("doubt", "elsewhere") or claim.after in ("doubt", "back")
    open_names = {claim.criterion for claim in claims if claim.unsure}
    for claim in claims:
        claim.unsure |= claim.criterion in open_names
    return claims


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
        if first == item[other].criterion:
            continue
        cut = other  # the words before the other name belong to it, unless they answer the first one
        while cut - 1 > one:
            e = item[cut - 1]
            if e.role == "colon" and not criteria[first].from_image:
                break  # a heading, as in "Back: doubtful network"
            if any(x.role == "colon" for x in item[one:cut]) and not criteria[first].from_image:
                cut -= 1
                continue
            if e.role in answers or (e.role == "word" and not values_first and first in e.beside):
                break
            cut -= 1
            if e.role in ("deny", "doubt_next"):
                break
        cuts.append(cut)
    return [item[a:b] for a, b in itertools.pairwise([*cuts, len(item)])]


def _claim(links: frozenset[str], elements: list[Element], criteria: Mapping[str, Criterion]) -> Claim:
    """Return the claim of an item, or of a part of one."""
    claim = Claim(links, elements)
    named = [e for e in elements if e.role in NAMES]
    if not named:
        _read_nameless(claim)
        return claim
    claim.criterion = named[0].criterion
    claim.needs_value = all(e.role == "needs_value" for e in named)
    own = [n for n, e in enumerate(elements) if e.role in NAMES or _is_value_of(e, claim.criterion)]
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


def _is_value_of(e: Element, criterion: str) -> bool:
    return e.role == "word" and criterion in e.beside


def _read_nameless(claim: Claim) -> None:
    """Read an item without a name: the words for a value, and what it denies or doubts."""
    denied = False
    roles = [e.role for e in claim.elements if e.role not in _LIGHT]
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
        if e.role == "phrase" or _is_value_of(e, claim.criterion):
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
    roles = _without_diagnoses([e.role for e in before if e.role not in _LIGHT])
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
    place = next((n for n, role in enumerate(roles) if role not in _LIGHT | {"word"}), None)
    return place is not None and place <= distance and roles[place] == "unknown"


# -- what an item says of its neighbours --


def _join_words(claims: Sequence[Claim], criteria: Mapping[str, Criterion]) -> None:
    """Give value words without a name to the neighbour they fit: "network, atypical", "comma or dotted"."""
    for one, other in itertools.pairwise(claims):  # "absent or regular streaks": absent is a value here
        roles = {e.role for e in one.elements if e.role not in _LIGHT}
        if roles == {"absent"} and "or" in other.links and other.values:
            other.values, one.before = (ABSENT, *other.values), ""
    for n, claim in enumerate(claims):
        if not claim.words:
            continue
        before = next((c for c in reversed(claims[:n]) if c.criterion), None)
        after = next((c for c in claims[n + 1 :] if c.criterion or not c.words), None)
        is_back = any(e.role == "back" for e in claim.elements)
        if "with" in claim.links or is_back:
            before = None
        if is_back:  # "none of them irregular"
            after = None
        denies = claim.before == "deny"
        if after and (not after.criterion or "with" in after.links or ("nor" in after.links and not denies)):
            after = None
        for beside, denied in claim.words:
            fitting = [c for c in (before, after) if c and c.criterion in beside]
            if not fitting:
                continue
            target = fitting[0]
            if len(fitting) == 2 and target.values is not None and _begins_with_value(fitting[1]):
                target = fitting[1]
            criterion = criteria[target.criterion]
            values = beside[target.criterion]
            if target is before and (denied or "nor" in claim.links):
                is_there = not target.denied and target.values is None  # "globules, not irregular"
                values = criterion.without({*values, ABSENT} if is_there else values)
            links = claim.links if target is before else target.links
            either = "or" in links or (target is after and "nor" in links)
            _add_values(target, criterion, values, either)
            if target is after and claim.before:  # "neither comma nor dotted vessels" denies both
                target.before = target.before or claim.before
                target.denied |= claim.before == "deny"
            roles = {e.role for e in claim.elements}
            target.unsure |= claim.before in ("doubt", "elsewhere") and target is before
            target.unsure |= target is before and bool({"doubt", "question", "unknown"} & roles)
            target.elements = [*target.elements, *(e for e in claim.elements if e.role == "word")]
            claim.before, claim.joined = "", True


def _begins_with_value(claim: Claim) -> bool:
    return next(e.role for e in claim.elements if e.role in FINDINGS) == "word"


def _add_values(claim: Claim, criterion: Criterion, values: Allowed, either: bool) -> None:
    if claim.values is None:
        claim.values = values
        if either and claim.denied and claim.after == "deny":  # "streaks: absent or regular"
            claim.values, claim.denied, claim.after = (ABSENT, *values), False, ""
    elif either:
        claim.values = tuple(v for v in criterion.values if v in {*values, *(claim.values or ())})
    else:
        claim.values = combine(criterion, [claim.values, values])
        claim.conflict |= not claim.values


def _share_values(claims: Sequence[Claim]) -> None:
    """Give the value of the last of several subjects to all: "the streaks and globules are irregular"."""
    for other, claim in itertools.pairwise(claims):
        roles = [e.role for e in claim.elements]
        if (
            not other.bare
            or "and" not in claim.links
            or "copulas" not in roles
            or claim.before
            or claim.after
        ):
            continue
        after = claim.elements[roles.index("copulas") :]
        words = [e for e in after if _is_value_of(e, claim.criterion)]
        if claim.values and len(words) == 1 and other.criterion in words[0].beside:
            other.values = words[0].beside[other.criterion]


def _reach_forward(claims: Sequence[Claim]) -> None:
    """Apply a denial or doubt to the items after it, where it reaches over them."""
    head: Claim | None = None  # the last item with a denial or doubt that may reach further
    for n, claim in enumerate(claims):
        opens = "with" in claim.links
        if claim.links == {"nor"} and n and claim.criterion and not claims[n - 1].denied:
            claims[n - 1].unsure = True  # "veil nor streaks"
        if head and head.before == "elsewhere" and (opens or _is_time(head)):
            claim.unsure = True
            continue
        if opens and n and _ends_open(claims[n - 1]):  # "not showing streaks"
            claim.before = claim.before or claims[n - 1].before
            claim.unsure |= claim.denied
            claim.denied = claim.before == "deny"
        elif claim.links == {"with"} and head and head.criterion and head.before == "deny" and claim.bare:
            claim.unsure = True  # "no streaks with a veil"
        if claim.before or claim.answered or opens:
            head = claim if claim.before else None
        elif head is None or not claim.criterion:
            head = None if claim.words else head
        elif _reaches(head, claims, n):
            claim.denied |= head.before not in ("doubt", "elsewhere")
            claim.unsure |= head.unsure or head.before in ("doubt", "elsewhere")
        elif _ends_reach(head, claim):
            head = None
        elif "and" in claim.links or head.before != "absent":
            claim.unsure = True


def _ends_open(claim: Claim) -> bool:
    """Say whether an item without a finding ends with a denial or a doubt, which is about what follows."""
    if claim.criterion:
        return False
    heavy = [e for e in claim.elements if e.is_content or e.role not in _LIGHT]
    return bool(heavy) and heavy[-1].role in ("deny", "doubt", "doubt_next", "concord")


def _is_time(head: Claim) -> bool:
    """Say whether an item says only another time, which is then its sentence's: "two years ago, ..."."""
    return not head.criterion and not any(e.is_content for e in head.elements)


def _reaches(head: Claim, claims: Sequence[Claim], n: int) -> bool:
    """Say whether a denial or doubt surely reaches over the item n: "no A or B", "no A, B or C"."""
    claim = claims[n]
    if head.is_header or claim.links & {"or", "nor"}:
        return True
    if "and" in claim.links and head.reaches and (claim.values is None or claim.criterion == head.criterion):
        return True
    last_links = {"or", "nor", *(("and",) if head.reaches else ())}
    for other in claims[n:]:
        if other is not claim and other.links & last_links:
            return True
        plain_list = other.links == {"comma"} and other.values is None
        if not plain_list or other.before or other.answered:
            return False
    return False


def _ends_reach(head: Claim, claim: Claim) -> bool:
    """Say whether a denial or doubt surely ends before an item after a comma: "no A, irregular B"."""
    if claim.links != {"comma"}:
        return False
    if head.before == "elsewhere":  # "mother had melanoma, ..." ends
        return not _is_time(head)
    return head.before == "absent" or head.of_diagnosis or claim.values is not None


def _reach_back(claims: Sequence[Claim]) -> None:
    """Apply what stands after an item to those before it, as in "streaks and veil absent"."""
    for n, claim in enumerate(claims):
        if not claim.criterion and (not claim.words or any(e.role == "back" for e in claim.elements)):
            asks = bool(claim.links & _JOINS) and any(e.role == "question" for e in claim.elements)
            if asks or _points_back(claim):
                for other in itertools.takewhile(lambda c: c.criterion, reversed(claims[:n])):
                    other.unsure = True
                    if not other.bare or "with" in other.links:
                        break
            continue
        if not claim.answered:
            continue
        linked = bool(claim.links & _JOINS)
        for other, following in zip(reversed(claims[:n]), reversed(claims[1 : n + 1]), strict=True):
            joined = bool(following.links & _JOINS)
            if not other.bare or "with" in following.links:
                stops = not other.criterion or other.before or other.answered or "with" in following.links
                other.unsure |= joined and not stops
                break
            if claim.after == "doubt" and not linked and following.links == {"comma"}:
                break
            other.denied |= claim.after == "deny" and linked
            other.unsure |= claim.unsure or not (claim.after == "deny" and linked)


def _points_back(claim: Claim) -> bool:
    """Say whether an item without a name denies or doubts the item before it: "streaks, not seen"."""
    roles = {e.role for e in claim.elements}
    denies = bool(roles & {"deny", "concord"})
    negative = (denies and bool(roles & {"present", "back"})) or bool(roles & {"absent", "concord", "doubt"})
    alone = (denies and roles <= {"deny", "concord", "copulas"}) or "back" in roles
    return alone or (negative and not any(e.is_content for e in claim.elements))
