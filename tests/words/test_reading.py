"""The reader states nothing false, stays silent where it is not sure, and reports what it did not use."""

import itertools
import unicodedata

import pytest
from helpers import QUICK, SEVEN_POINT
from hypothesis import assume, given
from hypothesis import strategies as st

from skinret_infer import Case, InputError
from skinret_infer.text import TextRecipe, check_text
from skinret_infer.words.checklist import Checklist
from skinret_infer.words.reading import Reading, compare, reader_of

CASE = {
    "pigment_network": "atypical", "streaks": "absent", "dots_and_globules": "irregular",
    "blue_whitish_veil": "present", "regression_structures": "absent", "vascular_structures": "absent",
    "elevation": "flat", "sex": "female",
}  # fmt: skip


def _read(text: str) -> Reading:
    return reader_of(SEVEN_POINT).read(text)


def _allowed(text: str) -> dict[str, tuple[str, ...]]:
    return dict(_read(text).allowed)


def _codes(text: str) -> list[str]:
    return [note.code for note in _read(text).notes]


def _said(text: str, case: dict[str, str] = CASE) -> tuple[set[str], set[str]]:
    """Return the names of the criteria in which a case matches a text, and of those in which it does not."""
    matching, conflicting = compare(_read(text).allowed, case, SEVEN_POINT)
    assert all(case[name] == value for name, value in {**matching, **conflicting}.items())
    return set(matching), set(conflicting)


NETWORK, STREAKS, GLOBULES, VEIL = "pigment_network", "streaks", "dots_and_globules", "blue_whitish_veil"
REGRESSION, VESSELS = "regression_structures", "vascular_structures"
THERE = {  # the values of a thing that is there
    NETWORK: ("typical", "atypical"), STREAKS: ("regular", "irregular"), GLOBULES: ("regular", "irregular"),
}  # fmt: skip


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
        ("irregular streaks and dots and globules", {GLOBULES}, {STREAKS}),  # they are there, in any case
        ("no streaks, atypical pigment network", {STREAKS, NETWORK}, set()),  # a word of its own ends "no"
        ("without streaks and blue-whitish veil", {STREAKS}, {VEIL}),  # "without" reaches over "and"
        ("no streaks with blue-whitish veil", {STREAKS}, set()),
        ("not seen: streaks", {STREAKS}, set()),
        ("no streaks nor a blue-whitish veil", {STREAKS}, {VEIL}),
        ("blue-whitish veil (no streaks)", {STREAKS, VEIL}, set()),
        ("atypical pigment network —\nblue-whitish veil", {NETWORK, VEIL}, set()),
        ("- no streaks\n- blue-whitish veil", {STREAKS, VEIL}, set()),
        ("not only streaks", set(), {STREAKS}),
        ("network, atypical", {NETWORK}, set()),
        ("irregular, blue-whitish veil", {VEIL}, set()),
        ("irregular dots and globules but", {GLOBULES}, set()),
        ("streaks streaks", set(), {STREAKS}),
        ("veil", {VEIL}, set()),
        ("\N{PILE OF POO} blue-whitish veil", {VEIL}, set()),
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
        ("absent streaks and dots and globules", {STREAKS}),  # are the globules absent too?
        ("blue-whitish veil, streaks absent", {STREAKS}),
        ("atypical pigment network and streaks not seen", {STREAKS}),
        *(
            (text, set())
            for text in (
                "streaks or a blue-whitish veil",
                "atypical no pigment network",
                "irregular no dots and globules",
                "absent streaks: present",
                "absent streaks seen",
                "atypical pigment network -",
                "blue-whitish veil. Both were ruled out.",
                "blue-whitish veil. Irregular streaks. Nothing else of note.",
                "possible blue-whitish veil",
                "suspected blue-whitish veil",
                "maybe streaks",
                "probably streaks",
                "streaks unlikely",
                "rule out blue-whitish veil",
                "history of blue-whitish veil",
                "blue-whitish veil cannot be excluded",
                "I am not sure about streaks",
                "no definite streaks",
                "no clear blue-whitish veil",
                "not without streaks",
                "no absent streaks",
                "streaks are not absent",
                "no absence of streaks",
                "no doubt: irregular streaks",
                "fewer streaks",
                "hardly any streaks",
                "no more streaks than before",
                "negative pigment network",
                "white network",
                "-blue-whitish veil",
                "blue-whitish veil\nfehlt",
                "Absent:\nblue-whitish veil\nstreaks",
                "Fehlt:\nblue-whitish veil\natypical pigment network",
                "Missing. Blue-whitish veil.",
                "blue-whitish veil. None of these.",
                "blue-whitish veil. Das fehlt.",
                "Blue-whitish veil? No.",
                "streaks, no streaks",
                "streaks and no streaks",
                "typical pigment network, atypical pigment network",
                "blue-whitish veil, absent",
                "blue-whitish veil:",
                "no streaks: positive",
                "her mother has a blue-whitish veil",
                "other lesion: irregular streaks",
                "a veil was seen last year",
                "nie ma streaks",
                "нет streaks",
                "没有 streaks",
                "lesion",
                "no lesion",
                "patient",
                "an ulcer",
                "milia-like cysts",
                "",
            )
        ),
    ],
)
def test_nothing_is_said_where_it_is_not_sure(text: str, said: set[str]) -> None:
    shared, differing = _said(text)
    assert (shared, differing) == (said, set())


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("possible streaks", "words-unsure"),
        ("streaks, no streaks", "words-contradiction"),
        ("melanoma?", "words-diagnosis"),
        ("zzyzx streaks", "words-unknown"),
        ("irregular streks", "words-corrected"),
    ],
)
def test_what_is_not_used_is_reported_with_its_place_and_its_code(text: str, code: str) -> None:
    reading = _read(text)
    notes = [note for note in reading.notes if note.code == code]
    assert notes and all(text[note.start : note.end] == note.words for note in notes)
    [warning] = [warning for warning in reading.warnings if warning.code == code]
    assert all(repr(note.words) in warning for note in notes)


# -- values, groups and canonical words --


@pytest.mark.parametrize(
    ("text", "criterion", "values"),
    [
        ("uniform reticular lines", NETWORK, ["typical"]),
        ("broadened network", NETWORK, ["atypical"]),
        ("radial lines", STREAKS, THERE[STREAKS]),
        ("starburst pattern", STREAKS, ["regular"]),
        ("segmental pseudopods", STREAKS, ["irregular"]),
        ("peppering", REGRESSION, ["blue areas"]),
        ("scar-like depigmentation", REGRESSION, ["white areas"]),
        ("peppering and scar-like depigmentation", REGRESSION, ["combinations"]),
        ("brown clods of varying size", GLOBULES, ["irregular"]),
        ("structureless blue area", VEIL, ["present"]),
        ("red dots", VESSELS, ["dotted"]),
        ("tree-like vessels", VESSELS, ["arborizing"]),
        ("crown vessels", VESSELS, ["wreath"]),
        ("comma or dotted vessels", VESSELS, ["comma", "dotted"]),
        ("irregular pigmentation", "pigmentation", ["diffuse irregular", "localized irregular"]),
        ("macule", "elevation", ["flat"]),
        ("slightly raised lesion", "elevation", ["palpable"]),
        ("upper back", "location", ["back"]),
        ("lower leg", "location", ["lower limbs"]),
        ("trunk", "location", ["abdomen", "back", "chest"]),
        ("woman", "sex", ["female"]),
    ],
)
def test_both_vocabularies_of_dermoscopy_are_read(text: str, criterion: str, values: list[str]) -> None:
    assert _allowed(text) == {criterion: tuple(values)}


@pytest.mark.parametrize("text", ["pigmentation", "lesion", "erythema", "milia-like cysts", "62-year-old m"])
def test_a_name_that_needs_a_value_and_a_structure_of_no_criterion_state_nothing(text: str) -> None:
    assert _allowed(text) == {}


def _of_one_word(name: str) -> list[tuple[str, ...]]:
    """Return the sets of values of a criterion that the canonical words name without a list."""
    criterion = SEVEN_POINT.criteria[name]
    names = [*criterion.values, *criterion.groups, *(["present"] if "absent" in criterion.values else [])]
    sets = {criterion.allowed(n) for n in names} | {criterion.without(criterion.allowed(n)) for n in names}
    return sorted(chosen for chosen in sets if 0 < len(chosen) < len(criterion.values))


_SETS = [
    (name, chosen)
    for name in SEVEN_POINT.criteria
    for chosen in _of_one_word(name)
    # "pigmentation" alone states nothing, and what is not palpable is flat
    if SEVEN_POINT.criteria[name].say(chosen) not in ("pigmentation", "not palpable lesion")
]


@pytest.mark.parametrize(("name", "chosen"), _SETS)
def test_the_canonical_words_of_a_set_are_read_as_that_set(name: str, chosen: tuple[str, ...]) -> None:
    words = SEVEN_POINT.criteria[name].say(chosen)
    assert _allowed(words) == {name: chosen}
    assert _read(words).canonical == words


@QUICK
@given(drawn=st.permutations(_SETS), count=st.integers(1, 8))
def test_the_canonical_words_of_several_criteria_are_read_as_they_were_meant(
    drawn: list[tuple[str, tuple[str, ...]]], count: int
) -> None:
    """After a comma a name alone may be denied too, as in "not regular streaks, blue-whitish veil"."""
    chosen = dict(drawn[:count])
    meant = {name: chosen[name] for name in SEVEN_POINT.criteria if name in chosen}
    said = [SEVEN_POINT.text({name: values}) for name, values in meant.items()]
    assert _allowed("; ".join(said)) == meant and not _codes("; ".join(said))
    assert _allowed(SEVEN_POINT.text(meant)).items() <= meant.items()
    if not any(words.startswith("not ") for words in said):
        assert _read(SEVEN_POINT.text(meant)).canonical == SEVEN_POINT.text(meant)


_VALUE = st.sampled_from(
    [
        (name, value)
        for name, criterion in SEVEN_POINT.criteria.items()
        for value in criterion.values
        if criterion.from_image and value not in ("absent", "present")
    ]
)
_AFFIRMED = ["{v} {t}", "{t}: {v}", "{t} ({v})", "the {t} are {v}", "there are {v} {t}", "{v} {t} present"]
_DENIED = [
    "no {v} {t}",
    "not {v} {t}",
    "{v} {t} absent",
    "{v} {t} not seen",
    "without {v} {t}",
    "{t} not {v}",
]


def _thing(name: str) -> str:
    return SEVEN_POINT.criteria[name].phrase.replace("{}", "").strip()


@QUICK
@given(of=_VALUE, form=st.sampled_from(_AFFIRMED))
def test_a_value_is_read_before_and_after_the_name(of: tuple[str, str], form: str) -> None:
    name, value = of
    assert _allowed(form.format(v=value, t=_thing(name))) == {name: (value,)}


@QUICK
@given(of=_VALUE, form=st.sampled_from(_DENIED))
def test_a_denied_value_leaves_every_other_value(of: tuple[str, str], form: str) -> None:
    name, value = of
    left = SEVEN_POINT.criteria[name].without([value])
    assert _allowed(form.format(v=value, t=_thing(name))) == {name: left}


# -- denials --

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
def test_no_case_with_a_thing_matches_its_denial(name: str, form: str, data: st.DataObject) -> None:
    own = data.draw(st.sampled_from(SEVEN_POINT.criteria[name].values))
    said = _said(form.format(_thing(name)), {name: own})
    assert said == (({name}, set()) if own == "absent" else (set(), {name}))


_OF_TWO = [
    "no {} or {}",
    "no {}, no {}",
    "neither {} nor {}",
    "without {} and {}",
    "{} and {} absent",
    "no {}; no {}",
]
_OF_THREE = ["no {}, {} or {}", "neither {} nor {} nor {}", "{}, {} and {} not seen", "without {}, {} and {}"]


@QUICK
@given(names=st.permutations(sorted(THERE)), form=st.sampled_from([*_OF_TWO, *_OF_THREE]))
def test_a_denial_over_a_list_denies_each_of_it_or_says_nothing_of_it(names: list[str], form: str) -> None:
    names = names[: form.count("{}")]
    allowed = _allowed(form.format(*map(_thing, names)))
    assert set(allowed.values()) <= {("absent",)} and set(allowed) <= set(names)
    assert len(allowed) == len(names) or "not seen" in form


@QUICK
@given(
    denial=st.sampled_from(["without", "absent", "absence of", "negative for", "lacking", "missing"]),
    thing=st.sampled_from(["streaks", "pigment network", "dots and globules"]),
    place=st.integers(1, 5),
    letter=st.sampled_from(["", "x", "q", "kk"]),
)
def test_a_typing_error_in_a_denial_never_makes_the_thing_present(
    denial: str, thing: str, place: int, letter: str
) -> None:
    written = f"{denial[:place]}{letter}{denial[place + 1 :]} {thing}"
    assert set(_allowed(written).values()) <= {("absent",)}, written


# -- what changes nothing --

_FINDINGS = ["irregular streaks, no veil", "atypical network", "no streaks", "flat lesion, back"]


@pytest.mark.parametrize("diagnosis", ["melanoma", "compound nevus", "seborrheic keratosis", "BCC"])
@pytest.mark.parametrize(
    "form",
    ["{f}. {d}?", "{f}, {d}?", "{d}? {f}", "{d}: {f}", "{f}, suspicious for {d}", "{f} suggestive of {d}",
     "{f}; DD {d}", "{f}. No {d}.", "no {d}, {f}", "suspicion of {d}. {f}", "rule out {d}; {f}"],
)  # fmt: skip
def test_a_diagnosis_is_reported_and_steers_nothing(form: str, diagnosis: str) -> None:
    for findings in _FINDINGS:
        reading = _read(form.format(f=findings, d=diagnosis))
        assert reading.allowed == _allowed(findings)
        notes = [note.words for note in reading.notes if note.code == "words-diagnosis"]
        assert notes == [diagnosis]
        [warning] = [w for w in reading.warnings if w.code == "words-diagnosis"]
        assert "a suspicion must not steer" in warning and diagnosis in warning


@pytest.mark.parametrize(
    "chatter",
    [
        "growing for six months",
        "65 years",
        "excised, review in three months",
        "itching and bleeding at times",
        "phototype II",
        "sunburns as a child",
    ],
)
def test_chatter_states_nothing_and_changes_no_finding(chatter: str) -> None:
    assert _allowed(chatter) == {}
    for findings in _FINDINGS:
        assert _allowed(f"{findings}. {chatter}.") == _allowed(findings)
        assert _allowed(f"{chatter.capitalize()}. {findings}") == _allowed(findings)


@pytest.mark.parametrize(
    "question", ["streaks?", "Does it have streaks?", "? streaks", "Are there any streaks?", "¿estrías?"]
)
def test_a_question_states_nothing_and_only_of_its_own_sentence(question: str) -> None:
    assert _allowed(question) == {}
    assert _allowed(f"{question}\n\nIrregular globules.") == {GLOBULES: ("irregular",)}


def test_a_contradiction_takes_away_its_criterion_alone_and_all_its_findings() -> None:
    text = "typical network, no streaks. Atypical network, pigment network seen."
    reading = _read(text)
    assert reading.allowed == {STREAKS: ("absent",)}
    assert [finding.criterion for finding in reading.findings] == [STREAKS]
    assert [note.words for note in reading.notes if note.code == "words-contradiction"] == [
        "typical network",
        "Atypical network",
        "pigment network seen",
    ]
    assert _allowed("streaks, irregular streaks. No regular streaks") == {STREAKS: ("irregular",)}


# -- spelling, abbreviations, languages --


@pytest.mark.parametrize(
    ("text", "right", "corrected"),
    [
        ("atypical pigmnt network", "atypical pigment network", {"pigmnt": "pigment"}),
        ("irregular streeks", "irregular streaks", {"streeks": "streaks"}),
        (
            "irrgular globuels, no streaks",
            "irregular globules, no streaks",
            {"irrgular": "irregular", "globuels": "globules"},
        ),
        ("unregelmäßige Globulli", "unregelmäßige Globuli", {"Globulli": "globuli"}),
    ],
)
def test_a_typing_error_is_read_as_the_word_and_reported(
    text: str, right: str, corrected: dict[str, str]
) -> None:
    reading = _read(text)
    assert reading.allowed == _allowed(right) != {}
    assert {n.words: n.read for n in reading.notes if n.code == "words-corrected"} == corrected
    [warning] = [w for w in reading.warnings if w.code == "words-corrected"]
    assert all(f"{word!r} as {read!r}" in warning for word, read in corrected.items())


def test_a_correction_needs_one_word_that_is_nearest_and_a_text_that_is_mostly_known() -> None:
    assert "words-corrected" not in _codes("pijmexx nitwurk")
    assert "words-corrected" not in _codes("strekas znamy rozany bylo")


@QUICK
@given(of=_VALUE, place=st.integers(1, 20), kind=st.sampled_from(["drop", "double", "swap", "change"]))
def test_a_typing_error_in_the_canonical_words_leads_to_the_same_finding_or_to_none(
    of: tuple[str, str], place: int, kind: str
) -> None:
    name, value = of
    words = SEVEN_POINT.criteria[name].say([value])
    assume(place < len(words) - 1 and words[place - 1 : place + 2].isalpha())
    a, b = words[place : place + 2]
    typed = {"drop": b, "double": a + a + b, "swap": b + a, "change": "x" + b}[kind]
    read = _allowed(words[:place] + typed + words[place + 2 :])
    assert set(read) <= {name} and all(value in values for values in read.values())


@pytest.mark.parametrize(
    ("text", "allowed"),
    [
        ("PN ATP, ST ABS, BWV PRS", {NETWORK: "atypical", STREAKS: "absent", VEIL: "present"}),
        ("atyp. PN, irreg. D&G", {NETWORK: "atypical", GLOBULES: "irregular"}),
        ("BWV +, RS -, VS -", {VEIL: "present", REGRESSION: "absent", VESSELS: "absent"}),
        ("PN TYP; no BWV; VS dotted", {NETWORK: "typical", VEIL: "absent", VESSELS: "dotted"}),
        ("APN, IDG", {NETWORK: "atypical", GLOBULES: "irregular"}),
    ],
)  # fmt: skip
def test_abbreviations_are_read(text: str, allowed: dict[str, str]) -> None:
    assert _allowed(text) == {n: (allowed[n],) for n in SEVEN_POINT.criteria if n in allowed}


def test_a_short_abbreviation_counts_in_capitals_only() -> None:
    assert _allowed("RS -") == {REGRESSION: ("absent",)}
    assert _allowed("rs -") == {}


def test_a_dot_after_an_abbreviation_ends_no_sentence() -> None:
    assert _allowed("no reg. streaks") == {STREAKS: ("absent", "irregular")}


_SAME = {  # the same findings: an atypical network, no streaks, irregular globules
    "en": "atypical pigment network, no streaks; irregular globules",
    "de": "atypisches Pigmentnetz, keine Streifen; unregelmäßige Globuli",
    "fr": "réseau pigmenté atypique, pas de stries ; globules irréguliers",
    "es": "retículo pigmentado atípico, sin estrías; glóbulos irregulares",
    "it": "reticolo pigmentato atipico, senza strie; globuli irregolari",
}


@pytest.mark.parametrize("language", SEVEN_POINT.languages)
def test_each_language_is_recognised_and_read_as_the_same_findings(language: str) -> None:
    for text in (_SAME[language], _SAME[language].upper(), _SAME[language].replace(", ", " ,  ")):
        reading = _read(text)
        assert reading.language == language
        assert reading.allowed == {NETWORK: ("atypical",), STREAKS: ("absent",), GLOBULES: ("irregular",)}
        assert reading.canonical == "atypical pigment network, absent streaks, irregular dots and globules"


@pytest.mark.parametrize(
    "text",
    [
        "kein Pigmentnetz, keine Streifen",
        "weder Pigmentnetz noch Streifen",
        "Pigmentnetz und Streifen fehlen",
        "pas de réseau pigmenté ni de stries",
        "ni réseau pigmenté ni stries",
        "sin retículo pigmentado ni estrías",
        "no se observan retículo pigmentado ni estrías",
        "senza reticolo pigmentato né strie",
        "non si osservano reticolo pigmentato né strie",
    ],
)
def test_a_denial_of_each_language_is_read(text: str) -> None:
    assert _allowed(text) == {NETWORK: ("absent",), STREAKS: ("absent",)}


@pytest.mark.parametrize(
    "text",
    [
        "Verdacht auf Streifen",
        "V.a. Streifen",
        "Streifen?",
        "stries possibles",
        "stries à exclure",
        "estrías dudosas",
        "posibles estrías",
        "strie dubbie",
        "possibili strie",
    ],
)
def test_a_doubt_of_each_language_takes_the_finding_away(text: str) -> None:
    assert _allowed(text) == {} and "words-unsure" in _codes(text)


@pytest.mark.parametrize(
    ("text", "criterion"),
    [
        ("kein pigment network", NETWORK),
        ("keine streaks", STREAKS),
        ("ohne blue-whitish veil", VEIL),
        ("sans blue-whitish veil", VEIL),
        ("pas de streaks", STREAKS),
        ("senza streaks", STREAKS),
        ("nessun pigment network", NETWORK),
        ("pigment network fehlt", NETWORK),
        ("blue-whitish veil ausente", VEIL),
        ("streaks assenti", STREAKS),
        ("streaks: keine", STREAKS),
        ("kein\nblue-whitish veil", VEIL),
        ("kein pigment network, blue-whitish veil", NETWORK),
        ("blue-whitish veil, pigment network fehlt", NETWORK),
    ],
)
def test_a_denial_in_another_language_than_the_name_counts(text: str, criterion: str) -> None:
    assert _allowed(text) == {criterion: ("absent",)}


@pytest.mark.parametrize(
    "text",
    [
        "atypická pigmentová síť bez pruhů",
        "nietypowa siatka barwnikowa, brak smug",
        "нетипичная пигментная сеть, streaks",
        "非典型 色素 network",
        "epätyypillinen pigmenttiverkko ja streaks puuttuu täysin",
        "gyldig beskrivelse: streaks mangler altså helt",
    ],
)
def test_a_text_in_a_language_without_a_lexicon_states_nothing(text: str) -> None:
    """It may deny in its own way, also what has a name that is known."""
    reading = _read(text)
    assert reading.allowed == {} and reading.canonical == ""
    assert "words-unknown" in _codes(text)


def test_accents_and_case_make_no_difference_to_the_findings() -> None:
    for text in _SAME.values():
        bare = "".join(c for c in unicodedata.normalize("NFD", text) if not unicodedata.combining(c))
        assert _allowed(bare) == _allowed(text) == _allowed(text.upper())
    assert (
        _allowed("unregelmaessige Globuli") == _allowed("unregelmäßige Globuli") == {GLOBULES: ("irregular",)}
    )


# -- places --


def _check(text: str) -> Reading:
    """Check what holds of the reading of every text, and return it."""
    reading = _read(text)
    assert reading.text == text
    assert reading.language in ("", *SEVEN_POINT.languages)
    for place in (*reading.findings, *reading.notes):
        assert 0 <= place.start < place.end <= len(text)
        assert text[place.start : place.end] == place.words
    for finding in reading.findings:
        criterion = SEVEN_POINT.criteria[finding.criterion]
        assert 0 < len(finding.values) < len(criterion.values)
        assert finding.values == tuple(v for v in criterion.values if v in finding.values)
        assert set(reading.allowed[finding.criterion]) <= set(criterion.values)
    assert list(reading.allowed) == [
        name for name in SEVEN_POINT.criteria if name in {f.criterion for f in reading.findings}
    ]
    assert reading.canonical == SEVEN_POINT.text(reading.allowed)
    starts = [finding.start for finding in reading.findings]
    assert starts == sorted(starts)
    assert bool(reading.canonical) == bool(reading.findings)
    return reading


def test_a_finding_has_the_place_of_its_words() -> None:
    text = "Lady, 61. Atypical network; no streaks (biopsy)."
    assert [(f.criterion, f.words, f.start, f.end) for f in _check(text).findings] == [
        ("sex", "Lady", 0, 4),
        (NETWORK, "Atypical network", 10, 26),
        (STREAKS, "no streaks", 28, 38),
    ]
    [network] = [f for f in _read(text).findings if f.criterion == NETWORK]
    assert str(network) == "pigment network atypical ('Atypical network')"
    assert network.to_dict() == {
        "criterion": NETWORK, "values": ["atypical"], "start": 10, "end": 26, "words": "Atypical network",
    }  # fmt: skip


@pytest.mark.parametrize("text", [*_SAME.values(), "\N{PILE OF POO} atypical\N{NO-BREAK SPACE}network"])
def test_places_are_those_of_the_checked_text_also_where_accents_were_separate_characters(text: str) -> None:
    apart = unicodedata.normalize("NFD", text)
    checked = check_text(f"  {apart} ", TextRecipe())
    assert checked == text
    assert _check(checked).findings == _read(text).findings != ()


# -- any text --

_WORDS = [
    "no", "not", "without", "nor", "absent", "none", "seen", "present", ",", ".", ";", ":", "-", "+",
    "and", "or", "but", "with", "a", "\n", "typical", "atypical", "pigment network", "streaks",
    "irregular", "lesion", "?", "kein", "(", ")", "neither", "lack", "of", "melanoma", "possible",
    "mother", "both", "BWV", "réseau", "sin", "ß", "e\u0301", "arborizing", "red dots", "V.a.", "streks",
    "zzz", "不", "7", "\u202e",
]  # fmt: skip
_EXPRESSIONS = sorted(
    {
        expression
        for language in SEVEN_POINT.languages.values()
        for group in (
            *language.roles.values(),
            *(way.terms for way in language.ways),
            *(way.needs_value for way in language.ways),
            *(words for way in language.ways for words in (*way.words.values(), *way.phrases.values())),
        )
        for expression in group
    }
)
_MIXED = st.lists(st.sampled_from(_WORDS) | st.sampled_from(_EXPRESSIONS) | st.text(max_size=5), max_size=25)


@QUICK
@given(text=st.text(max_size=80))
def test_any_text_is_read(text: str) -> None:
    _check(text)


@QUICK
@given(words=_MIXED, joint=st.sampled_from([" ", "", ", ", "\n"]))
def test_any_row_of_known_words_and_signs_is_read_within_the_checklist(words: list[str], joint: str) -> None:
    _check(joint.join(words))


@QUICK
@given(words=_MIXED)
def test_the_same_text_is_read_in_the_same_way_by_a_reader_with_another_history(words: list[str]) -> None:
    text = " ".join(words)
    first = _read(text)
    _read("irregulr streks. " * 3)
    assert _read(text) == first
    assert _read(text).to_dict() == first.to_dict()


@QUICK
@given(name=st.sampled_from(sorted(THERE)), words=_MIXED)
def test_a_plain_denial_is_read_as_absent_or_not_at_all_whatever_stands_before(
    name: str, words: list[str]
) -> None:
    text = f"{' '.join(words)}.\n\nThere are no {_thing(name)}."
    assert _allowed(text).get(name, ("absent",)) == ("absent",)


@pytest.mark.parametrize(
    "text", ["...", "!!!", "?", "- - -", "()", ",;:", "\N{PILE OF POO}", "12 34", "§$%&/"]
)
def test_a_text_of_signs_alone_states_nothing_and_has_no_language(text: str) -> None:
    reading = _check(text)
    assert reading.findings == () and reading.language == "" and reading.canonical == ""


@pytest.mark.parametrize(
    "text",
    ["no " * 666, "streaks, " * 222, "-" * 2000, "a-" * 1000, "streaks n't " * 166, "'" * 2000, "( " * 1000,
     "streaks or " * 180, "x" * 2000, "streaxs " * 250, "pigment " * 250, "no streaks with " * 125],
)  # fmt: skip
def test_a_text_of_2000_characters_is_read(text: str) -> None:
    _check(text)


# -- a text and a case --


def test_a_value_outside_the_checklist_is_neither_matching_nor_conflicting() -> None:
    allowed = {STREAKS: ("irregular",), "rosettes": ("present",)}
    assert compare(allowed, {STREAKS: "branched", "rosettes": "present"}, SEVEN_POINT) == ({}, {})
    assert compare(allowed, {STREAKS: True, "other": 1}, SEVEN_POINT) == ({}, {})
    assert (
        compare(allowed, {STREAKS: None}, SEVEN_POINT)
        == compare(allowed, {STREAKS: ""}, SEVEN_POINT)
        == ({}, {})
    )
    assert compare({}, {STREAKS: "irregular"}, SEVEN_POINT) == ({}, {})


def test_a_case_with_several_values_differs_from_none_of_them() -> None:
    """Combinations of regression structures have blue areas and white ones."""
    own = {REGRESSION: "combinations"}
    for value in ("blue areas", "white areas"):
        assert _said(f"{value} regression structures", own) == (set(), set())
    assert _said("no regression structures", own) == (set(), set(own))
    assert _said("combinations regression structures", own) == (set(own), set())


def test_the_words_of_a_case_match_it_in_full(cases: list[Case]) -> None:
    for case in cases:
        allowed = _allowed(SEVEN_POINT.text_of(case.attributes))
        matching, conflicting = compare(allowed, case.attributes, SEVEN_POINT)
        assert matching == SEVEN_POINT.values_of(case.attributes)
        assert not conflicting


def test_the_words_of_a_case_conflict_with_another_where_the_values_do(cases: list[Case]) -> None:
    for one, other in itertools.pairwise(cases):
        matching, conflicting = compare(
            _allowed(SEVEN_POINT.text_of(one.attributes)), other.attributes, SEVEN_POINT
        )
        own, others = (SEVEN_POINT.values_of(case.attributes) for case in (one, other))
        both = own.keys() & others.keys()
        assert set(matching) == {n for n in both if own[n] == others[n]}
        combined = {
            n for n in both if others[n] == "combinations" and own[n] in ("blue areas", "white areas")
        }
        assert set(conflicting) == both - set(matching) - combined


def test_a_checklist_that_cannot_read_its_own_phrases_is_refused() -> None:
    data = SEVEN_POINT.to_dict()
    only = {part: {"de": data[part]["de"]} for part in ("languages", "ways")}
    with pytest.raises(InputError, match="is not read as") as caught:
        reader_of(Checklist.from_dict({**data, **only, "language": "de"}))
    assert caught.value.code == "checklist-phrase"
