"""What the words of a query state of a case: nothing false, and nothing where it is not sure."""

import itertools
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from skinret_infer.words.reading import compare, reader_of

from skinret_infer import Case
from skinret_infer.words.checklist import Checklist

SEVEN_POINT = Checklist.seven_point()

QUICK = settings(max_examples=100, deadline=None, derandomize=True, database=None)
CASE = {
    "pigment_network": "atypical", "streaks": "absent", "dots_and_globules": "irregular",
    "blue_whitish_veil": "present", "regression_structures": "absent", "vascular_structures": "absent",
    "elevation": "flat", "sex": "female",
}  # fmt: skip


def _said(text: str, case: dict[str, str] = CASE) -> tuple[set[str], set[str]]:
    """Return the names of what is shared and of what differs."""
    shared, differing = compare(reader_of(SEVEN_POINT).read(text).allowed, case, SEVEN_POINT)
    assert all(case[name] == value for name, value in {**shared, **differing}.items())
    return set(shared), set(differing)


NETWORK, STREAKS, GLOBULES, VEIL = "pigment_network", "streaks", "dots_and_globules", "blue_whitish_veil"


@pytest.mark.parametrize(
    "text",
    [
        "no streaks",
        "No streaks.",
        "not streaks",
        "without streaks",
        "without any streaks",
        "streaks absent",
        "streaks are absent",
        "absent streaks",
        "absence of streaks",
        "lack of streaks",
        "lacks streaks",
        "free of streaks",
        "negative for streaks",
        "no sign of streaks",
        "no evidence of any streaks",
        "streaks: none",
        "streaks: no",
        "streaks: absent",
        "streaks -",
        "streaks –",
        "streaks: -",
        "streaks (-)",
        "streaks (none)",
        "streaks - none",
        "streaks not seen",
        "streaks are not seen",
        "streaks not present",
        "streaks cannot be seen",
        "streaks aren't seen",
        "streaks can not be found",
        "streaks negative",
        "no streaks seen",
        "no streaks are visible",
        "STREAKS: NONE",
        "no streak",
        "no\N{NO-BREAK SPACE}streaks",
        "no\tstreaks",
        "dermoscopy: no streaks",
    ],
)
def test_what_is_denied_is_shared_by_a_case_without_it(text: str) -> None:
    assert _said(text) == ({STREAKS}, set())
    for value in ("regular", "irregular"):
        assert _said(text, {STREAKS: value}) == (set(), {STREAKS})
    assert _said(text, {}) == (set(), set())


@pytest.mark.parametrize(
    "text",
    [
        "no atypical pigment network",
        "without an atypical pigment network",
        "atypical pigment network absent",
        "atypical pigment network not seen",
        "no atypical pigment network is seen",
        "atypical pigment network: none",
        "not atypical pigment network",
    ],
)
def test_a_denied_value_is_shared_by_every_case_without_that_value(text: str) -> None:
    assert _said(text) == (set(), {NETWORK})
    for value in ("typical", "absent"):
        assert _said(text, {NETWORK: value}) == ({NETWORK}, set())


@pytest.mark.parametrize(
    "text",
    [
        "irregular dots and globules",
        "dots and globules: irregular",
        "dots and globules (irregular)",
        "dots and globules are irregular",
        "irregular dots and globules are seen",
        "Irregular  DOTS and globules!",
        "there are irregular dots and globules",
        "lesion with irregular dots and globules",
        "the lesion shows irregular dots and globules",
        "irregular dots-and-globules",
        "dots and globules +",
        "dots and globules",
        "dots and globules: present",
        "dots and globules seen",
        "dot and globule",
    ],
)
def test_what_is_affirmed_is_shared_by_a_case_with_it(text: str) -> None:
    assert _said(text) == ({GLOBULES}, set())
    assert _said(text, {GLOBULES: "absent"}) == (set(), {GLOBULES})
    assert _said(text, {GLOBULES: ""}) == (set(), set())


@pytest.mark.parametrize(
    ("text", "shared", "differing"),
    [
        ("no streaks or blue-whitish veil", {STREAKS}, {VEIL}),
        ("no streaks, dots and globules or blue-whitish veil", {STREAKS}, {GLOBULES, VEIL}),
        ("neither streaks nor a blue-whitish veil", {STREAKS}, {VEIL}),
        ("no streaks and no blue-whitish veil", {STREAKS}, {VEIL}),
        ("no streaks but a blue-whitish veil", {STREAKS, VEIL}, set()),
        ("no streaks; blue-whitish veil", {STREAKS, VEIL}, set()),
        ("no atypical pigment network, streaks absent", {STREAKS}, {NETWORK}),
        ("no atypical pigment network, absent streaks", {STREAKS}, {NETWORK}),
        ("no streaks. Blue-whitish veil.", {STREAKS, VEIL}, set()),
        ("streaks: none\nblue-whitish veil: present", {STREAKS, VEIL}, set()),
        ("streaks -, blue-whitish veil +", {STREAKS, VEIL}, set()),
        ("absent streaks, atypical pigment network", {STREAKS, NETWORK}, set()),
        ("typical pigment network, irregular streaks", set(), {NETWORK, STREAKS}),
        ("blue whitish veil and atypical pigment network", {VEIL, NETWORK}, set()),
        (
            "Lesion with atypical pigment network and a blue-whitish veil; no streaks.",
            {NETWORK, VEIL, STREAKS},
            set(),
        ),
        ("irregular streaks and dots and globules", set(), {STREAKS}),  # are the globules irregular too?
        ("flat lesion, female patient", {"elevation", "sex"}, set()),
        ("palpable lesion, male patient", set(), {"elevation", "sex"}),
        ("the patient is female; the lesion is not seen", {"sex"}, set()),
    ],
)
def test_lists_share_what_denies_them_as_far_as_it_is_sure(
    text: str, shared: set[str], differing: set[str]
) -> None:
    assert _said(text) == (shared, differing)


@pytest.mark.parametrize(
    ("text", "said"),
    [  # and what may be said
        ("no streaks, blue-whitish veil", {STREAKS}),  # is the veil denied too?
        ("no streaks, atypical pigment network", {STREAKS}),
        ("without streaks and blue-whitish veil", {STREAKS}),
        ("no streaks with blue-whitish veil", set()),
        ("absent streaks and dots and globules", {STREAKS}),  # are the globules absent too?
        ("streaks or a blue-whitish veil", set()),
        ("not seen: streaks", set()),
        ("v.a. blue-whitish veil", set()),
        ("atypical no pigment network", set()),
        ("irregular no dots and globules", set()),
        ("absent streaks: present", set()),
        ("absent streaks seen", set()),
        ("irregular dots and globules but", set()),
        ("atypical pigment network —\nblue-whitish veil", set()),
        ("atypical pigment network -", set()),
        ("pigment network no\nstreaks", set()),
        ("streaks lacking\npigment network", set()),
        ("blue-whitish veil. Both were ruled out.", set()),
        ("blue-whitish veil. Irregular streaks. Nothing else of note.", set()),
        ("blue-whitish veil, streaks absent", {STREAKS}),
        ("atypical pigment network and streaks not seen", {STREAKS}),
        *(
            (text, set())
            for text in (
                "possible blue-whitish veil",
                "blue-whitish veil?",
                "suspected blue-whitish veil",
                "maybe streaks",
                "rule out blue-whitish veil",
                "history of blue-whitish veil",
                "blue-whitish veil cannot be excluded",
                "not without streaks",
                "no absent streaks",
                "streaks are not absent",
                "no absence of streaks",
                "not only streaks",
                "no doubt: irregular streaks",
                "fewer streaks",
                "hardly any streaks",
                "negative pigment network",
                "subtle blue-whitish veil",
                "- blue-whitish veil",
                "-blue-whitish veil",
                "kein pigment network",
                "keine streaks",
                "ohne blue-whitish veil",
                "sans blue-whitish veil",
                "pas de streaks",
                "sin streaks",
                "senza streaks",
                "nessun pigment network",
                "nie ma streaks",
                "pigment network fehlt",
                "blue-whitish veil ausente",
                "streaks assenti",
                "streaks: keine",
                "kein pigment network, blue-whitish veil",
                "blue-whitish veil, pigment network fehlt",
                "blue-whitish veil\nfehlt",
                "kein\nblue-whitish veil",
                "Absent:\nblue-whitish veil\nstreaks",
                "Fehlt:\nblue-whitish veil\natypical pigment network",
                "Missing. Blue-whitish veil.",
                "blue-whitish veil. None of these.",
                "blue-whitish veil. Das fehlt.",
                "Blue-whitish veil? No.",
                "streaks, no streaks",
                "typical pigment network, atypical pigment network",
                "streaks streaks",
                "blue-whitish veil, absent",
                "irregular, blue-whitish veil",
                "blue-whitish veil:",
                "streaks and",
                "lesion",
                "no lesion",
                "patient",
                "an ulcer",
                "veil",
                "",
                "network, atypical",
                "streaksy",
                "blue-whitish veil (no streaks)",
                "no streaks: positive",
                "\N{PILE OF POO} blue-whitish veil",
            )
        ),
    ],
)
def test_nothing_is_said_where_it_is_not_sure(text: str, said: set[str]) -> None:
    shared, differing = _said(text)
    assert (shared, differing) == (said, set())


def test_a_value_outside_the_checklist_is_compared_by_its_words_alone() -> None:
    phrases = {"streaks": "{} streaks", "rosettes": "{} rosettes"}
    case = {"streaks": "branched", "rosettes": "four-dot", "other": 1}
    assert compare("branched streaks, four dot rosettes", case, phrases) == (
        {"streaks": "branched", "rosettes": "four-dot"},
        {},
    )
    assert compare("no branched streaks", case, phrases) == ({}, {"streaks": "branched"})
    assert compare("irregular streaks, streaks, no rosettes", case, phrases) == ({}, {})
    assert compare("irregular streaks", {"streaks": True}, phrases) == ({}, {})
    assert compare("rosettes", {"rosettes": "Present "}, phrases) == ({"rosettes": "Present "}, {})


def test_a_case_with_several_values_differs_from_none_of_them() -> None:
    """Combinations of regression structures have blue areas and white ones."""
    own = {"regression_structures": "combinations"}
    for value in ("blue areas", "white areas"):
        assert _said(f"{value} regression structures", own) == (set(), set())
    assert _said("no regression structures", own) == (set(), set(own))
    assert _said("combinations regression structures", own) == (set(own), set())


def test_the_words_of_a_case_are_shared_by_it_in_full(cases: list[Case]) -> None:
    for case in cases:
        shared, differing = compare(
            SEVEN_POINT.text_of(case.attributes), case.attributes, SEVEN_POINT.criteria
        )
        assert shared == {
            name: case.attributes[name] for name in SEVEN_POINT.criteria if case.attributes.get(name)
        }
        assert not differing


def test_the_words_of_a_case_differ_from_another_where_the_values_do(cases: list[Case]) -> None:
    for one, other in itertools.pairwise(cases):
        shared, differing = compare(
            SEVEN_POINT.text_of(one.attributes), other.attributes, SEVEN_POINT.criteria
        )
        both = [n for n in SEVEN_POINT.criteria if one.attributes.get(n) and other.attributes.get(n)]
        assert set(shared) == {n for n in both if one.attributes[n] == other.attributes[n]}
        assert set(differing) == set(both) - set(shared)


_CRITERION = st.sampled_from([name for name, c in SEVEN_POINT.criteria.items() if "absent" in c.values])
_DENIALS = [
    "no {}",
    "without {}",
    "absence of {}",
    "{} absent",
    "{} not seen",
    "{}: none",
    "{} -",
    "neither {}",
]


@QUICK
@given(name=_CRITERION, form=st.sampled_from(_DENIALS), data=st.data())
def test_no_case_with_a_thing_shares_its_denial(name: str, form: str, data: st.DataObject) -> None:
    thing = SEVEN_POINT.criteria[name].phrase.format("").strip()
    own = data.draw(st.sampled_from(sorted(SEVEN_POINT.criteria[name].values)))
    shared, differing = compare(
        reader_of(SEVEN_POINT).read(form.format(thing)).allowed, {name: own}, SEVEN_POINT
    )
    assert (set(shared), set(differing)) == (({name}, set()) if own == "absent" else (set(), {name}))


_WORDS = [
    "no",
    "not",
    "without",
    "nor",
    "absent",
    "none",
    "seen",
    "present",
    ",",
    ".",
    ";",
    ":",
    "-",
    "+",
    "and",
    "or",
    "but",
    "with",
    "a",
    "\n",
    "typical",
    "atypical",
    "pigment network",
    "streaks",
    "irregular",
    "lesion",
    "?",
    "kein",
    "(",
    ")",
    "neither",
    "lack",
    "of",
]


@QUICK
@given(
    words=st.lists(st.sampled_from(_WORDS), max_size=12),
    foreign=st.sampled_from(["ohne", "zzz", "不", "?", "7"]),
)
def test_an_unknown_word_in_a_sentence_takes_its_statements_away(words: list[str], foreign: str) -> None:
    """What is said with it is a part of what was said without it."""
    for place in range(len(words) + 1):
        with_it = " ".join([*words[:place], foreign, *words[place:]])
        for own in ({NETWORK: "atypical", STREAKS: "absent"}, {NETWORK: "absent", STREAKS: "irregular"}):
            (shared, differing), (more, fewer) = _said(with_it, own), _said(" ".join(words), own)
            assert shared <= more and differing <= fewer


@QUICK
@given(text=st.text(max_size=60) | st.lists(st.sampled_from(_WORDS), max_size=40).map(" ".join))
def test_any_text_is_read(text: str) -> None:
    shared, differing = _said(text)
    assert not shared & differing


@pytest.mark.parametrize(
    "text", ["no " * 666, "streaks, " * 222, "-" * 2000, "a-" * 1000, "streaks n't " * 166, "'" * 2000]
)
def test_a_long_text_is_read_at_once(text: str) -> None:
    began = time.perf_counter()
    _said(text)
    assert time.perf_counter() - began < 1  # it takes a few milliseconds
