"""What an item of a sentence says of its neighbours: "no streaks or veil", "streaks and veil absent"."""

import itertools
from collections.abc import Mapping, Sequence

from .checklist import ABSENT, Allowed, Criterion
from .claims import LIGHT, Claim, claims_of, combine, is_value_of
from .elements import FINDINGS, Element

_JOINS = frozenset({"and", "or", "nor"})


def read_sentence(
    sentence: Sequence[Element], criteria: Mapping[str, Criterion], previous: Claim | None = None
) -> list[Claim]:
    """Return the claims of a sentence, each with what its neighbours say of it.

    previous : the last claim before, to which words without a name may belong: "streaks, but not irregular".
    """
    claims = claims_of(sentence, criteria)
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


def _join_words(claims: Sequence[Claim], criteria: Mapping[str, Criterion]) -> None:
    """Give value words without a name to the neighbour they fit: "network, atypical", "comma or dotted"."""
    for one, other in itertools.pairwise(claims):  # "absent or regular streaks": absent is a value here
        roles = {e.role for e in one.elements if e.role not in LIGHT}
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
        words = [e for e in after if is_value_of(e, claim.criterion)]
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
    heavy = [e for e in claim.elements if e.is_content or e.role not in LIGHT]
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
