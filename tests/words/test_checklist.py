"""The checklist as data: the file that ships, one of another site, and what is wrong with a file."""

import json
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from helpers import CHECKLIST, SEVEN_POINT

from skinret_infer import InputError
from skinret_infer.words.checklist import Checklist
from skinret_infer.words.reading import compare, reader_of

Data = dict[str, Any]

# A checklist of another site, in German: nail dermoscopy, two criteria.
NAILS = """
schema = 1
name = "Nagelbefund"
version = "2"
language = "de"

[sources]
haus = "how the clinic writes"

[criteria.bands]
phrase = "{} Streifen"
values = ["absent", "grau", "hellbraun", "dunkelbraun"]
groups.braun = ["hellbraun", "dunkelbraun"]
groups.farbig = ["braun", "grau"]

[criteria.nail]
phrase = "{} Nagel"
values = ["Daumen", "Finger", "Zehe"]
from_image = false

[languages.de]
name = "Deutsch"
endings = ["e", "en", "er", "es"]
deny = ["kein", "nicht"]
without = ["ohne"]
absent = ["fehlend", "absent"]
present = ["vorhanden"]
doubt_next = ["Verdacht auf"]
and = ["und"]
or = ["oder"]
plain = ["am", "ein", "der", "die", "sind", "ist"]
diagnoses = ["Melanom"]

[[ways.de]]
criterion = "bands"
source = "haus"
terms = ["Streifen", "Band", "Melanonychie"]
words.grau = ["grau"]
words.hellbraun = ["hellbraun"]
words.dunkelbraun = ["dunkelbraun", "schwarzbraun"]
words.braun = ["braun"]

[[ways.de]]
criterion = "nail"
source = "haus"
terms = ["Nagel"]
words.Daumen = ["Daumen"]
words.Finger = ["Finger"]
words.Zehe = ["Zehe"]
phrases.Daumen = ["Daumennagel"]
phrases.Zehe = ["Zehennagel", "Zehennägel"]
"""


@pytest.fixture(scope="module")
def nails(tmp_path_factory: pytest.TempPathFactory) -> Checklist:
    path = tmp_path_factory.mktemp("nails") / "nails.toml"
    path.write_text(NAILS, "utf-8")
    return Checklist.read(path)


# -- the checklist that ships --


def test_the_checklist_that_ships_has_the_values_of_the_derm7pt_table() -> None:
    criteria = SEVEN_POINT.criteria
    assert list(criteria) == [
        "pigment_network", "streaks", "pigmentation", "regression_structures", "dots_and_globules",
        "blue_whitish_veil", "vascular_structures", "elevation", "location", "sex",
    ]  # fmt: skip
    assert SEVEN_POINT.from_image == tuple(criteria)[:7]
    assert criteria["vascular_structures"].values == (
        "absent", "arborizing", "comma", "dotted", "hairpin", "linear irregular", "within regression",
        "wreath",
    )  # fmt: skip
    assert criteria["pigment_network"].values == ("absent", "typical", "atypical")
    assert criteria["regression_structures"].together == {"combinations": ("blue areas", "white areas")}
    assert criteria["pigmentation"].groups["irregular"] == ("diffuse irregular", "localized irregular")


def test_the_checklist_that_ships_has_five_languages_and_a_source_for_every_way() -> None:
    assert list(SEVEN_POINT.languages) == ["en", "de", "fr", "es", "it"]
    for language in SEVEN_POINT.languages.values():
        assert {way.criterion for way in language.ways} == set(SEVEN_POINT.criteria)
        assert {way.source for way in language.ways} <= set(SEVEN_POINT.sources)
        assert language.roles["deny"] and language.roles["doubt_next"] and language.roles["diagnoses"]
    assert "10.1016/j.jaad.2015.12.038" in SEVEN_POINT.sources["kittler2016"]


def test_the_checklist_that_ships_is_read_once() -> None:
    assert Checklist.seven_point() is Checklist.seven_point()


@pytest.mark.parametrize("which", ["seven-point", "nails"])
def test_a_checklist_is_the_same_after_its_way_through_json(which: str, nails: Checklist) -> None:
    original = CHECKLIST if which == "seven-point" else nails
    again = Checklist.from_dict(json.loads(json.dumps(original.to_dict())))
    assert again == original and hash(again) == hash(original)
    assert again.criteria == original.criteria and again.languages == original.languages
    assert reader_of(again) is reader_of(original)


def test_checklists_are_equal_if_their_files_say_the_same(nails: Checklist) -> None:
    other = Checklist.from_dict({**nails.to_dict(), "version": "3"})
    assert other != nails and nails != CHECKLIST and nails != "nails"
    assert repr(nails) == "Checklist('Nagelbefund' 2, bands, nail)"


def test_a_change_of_the_plain_values_does_not_change_the_checklist(nails: Checklist) -> None:
    nails.to_dict()["version"] = "changed"
    assert nails.to_dict()["version"] == "2"


# -- values and canonical words --


def test_allowed_gives_the_values_of_a_value_of_a_group_and_of_present(nails: Checklist) -> None:
    bands = nails.criteria["bands"]
    assert bands.allowed("grau") == ("grau",)
    assert bands.allowed("braun") == ("hellbraun", "dunkelbraun")
    assert bands.allowed("present") == ("grau", "hellbraun", "dunkelbraun")
    assert bands.allowed("farbig") == bands.allowed("present"), "a group may name others"
    for name in ("rot", "", "Braun"):
        with pytest.raises(KeyError):
            bands.allowed(name)
    with pytest.raises(KeyError):
        nails.criteria["nail"].allowed("present")


def test_without_leaves_the_other_values_and_not_what_a_denied_value_is_a_part_of() -> None:
    regression = SEVEN_POINT.criteria["regression_structures"]
    assert regression.without(["blue areas"]) == ("absent", "white areas")
    assert regression.without(["combinations"]) == ("absent", "blue areas", "white areas")
    assert regression.without(["absent"]) == ("blue areas", "white areas", "combinations")
    assert regression.without([]) == regression.values
    assert regression.without(regression.values) == ()


@pytest.mark.parametrize(
    ("criterion", "allowed", "words"),
    [
        ("pigment_network", ["atypical"], "atypical pigment network"),
        ("pigment_network", ["atypical", "typical"], "pigment network"),
        ("pigment_network", ["absent"], "absent pigment network"),
        ("pigment_network", ["absent", "atypical"], "not typical pigment network"),
        ("pigment_network", ["typical", "atypical", "absent"], ""),
        ("pigment_network", [], ""),
        ("pigmentation", ["diffuse irregular", "localized irregular"], "irregular pigmentation"),
        ("regression_structures", ["absent", "white areas"], "not blue areas regression structures"),
        ("vascular_structures", ["dotted", "comma"], "comma or dotted vascular structures"),
        ("blue_whitish_veil", ["present"], "blue-whitish veil"),
        ("location", ["abdomen", "back", "chest"], "trunk location"),
        ("location", ["chest", "acral"], "acral or chest location"),
        ("sex", ["female"], "female patient"),
    ],
)
def test_say_gives_the_shortest_canonical_words(criterion: str, allowed: list[str], words: str) -> None:
    assert SEVEN_POINT.criteria[criterion].say(allowed) == words


def test_text_joins_the_canonical_words_in_the_order_of_the_checklist() -> None:
    allowed = {
        "streaks": ["absent"],
        "pigment_network": ["typical"],
        "sex": ["male", "female"],
        "other": ["x"],
    }
    assert SEVEN_POINT.text(allowed) == "typical pigment network, absent streaks"
    assert SEVEN_POINT.text({}) == ""
    attributes = {"sex": "male", "blue_whitish_veil": "present", "age": 61, "streaks": "", "elevation": None}
    assert SEVEN_POINT.text_of(attributes) == "blue-whitish veil, male patient"
    assert SEVEN_POINT.phrases_of(attributes) == ["blue-whitish veil", "male patient"]
    assert SEVEN_POINT.values_of(attributes) == {"blue_whitish_veil": "present", "sex": "male"}


def test_settled_counts_a_criterion_with_one_value_as_one_and_with_more_as_less() -> None:
    assert SEVEN_POINT.settled({}) == 0
    assert SEVEN_POINT.settled({"streaks": ["absent"], "sex": ["male"]}) == pytest.approx(1.25)
    assert 0 < SEVEN_POINT.settled({"streaks": ["regular", "irregular"]}) < 1
    every = {name: criterion.values for name, criterion in SEVEN_POINT.criteria.items()}
    assert SEVEN_POINT.settled(every) == pytest.approx(0)
    few, more = ({"location": SEVEN_POINT.criteria["location"].values[:n]} for n in (2, 5))
    assert SEVEN_POINT.settled(few) > SEVEN_POINT.settled(more)
    assert SEVEN_POINT.settled({"other": ["x"]}) == 0


def test_a_recorded_value_that_the_checklist_lacks_is_named() -> None:
    assert SEVEN_POINT.check_values({"streaks": "some", "sex": "male", "age": 5}) == ["streaks 'some'"]
    assert SEVEN_POINT.check_values({"streaks": "absent"}) == []


# -- a checklist of another site --


@pytest.mark.parametrize(
    ("text", "allowed"),
    [
        ("dunkelbraune Streifen am Zehennagel", {"bands": ["dunkelbraun"], "nail": ["Zehe"]}),
        ("braunes Band", {"bands": ["hellbraun", "dunkelbraun"]}),
        ("Melanonychie", {"bands": ["grau", "hellbraun", "dunkelbraun"]}),
        ("keine Streifen, Daumennagel", {"bands": ["absent"], "nail": ["Daumen"]}),
        ("Streifen fehlend", {"bands": ["absent"]}),
        ("Die Streifen sind nicht grau", {"bands": ["absent", "hellbraun", "dunkelbraun"]}),
        ("Zehennaegel", {"nail": ["Zehe"]}),
        ("Verdacht auf Streifen", {}),
        ("Melanom?", {}),
        ("kein Nagel", {}),
        ("irregular streaks, no blue-whitish veil", {}),
    ],
)
def test_a_checklist_of_another_site_is_read_with_its_own_words(
    nails: Checklist, text: str, allowed: dict[str, list[str]]
) -> None:
    reading = reader_of(nails).read(text)
    assert reading.allowed == {name: tuple(values) for name, values in allowed.items()}
    if "not" not in reading.canonical:  # which this German has not
        assert reader_of(nails).read(reading.canonical).allowed == reading.allowed


def test_the_words_of_another_site_are_compared_with_its_cases(nails: Checklist) -> None:
    allowed = reader_of(nails).read("braune Streifen, Daumennagel").allowed
    case = {"bands": "hellbraun", "nail": "Zehe", "streaks": "irregular"}
    assert compare(allowed, case, nails) == ({"bands": "hellbraun"}, {"nail": "Zehe"})


# -- what is wrong with a file --


def _set(*path: Any, to: Any) -> Callable[[Data], None]:
    def change(data: Data) -> None:
        place: Any = data
        for key in path[:-1]:
            place = place[key]
        place[path[-1]] = to

    return change


def _drop(*path: Any) -> Callable[[Data], None]:
    def change(data: Data) -> None:
        place: Any = data
        for key in path[:-1]:
            place = place[key]
        del place[path[-1]]

    return change


WAY, ROLE = ("ways", "de", 0), ("languages", "de")
BANDS = ("criteria", "bands")
FAULTS: dict[str, tuple[Callable[[Data], None], str, list[str]]] = {
    "no schema": (_drop("schema"), "checklist-schema", ["schema = 1", "None"]),
    "another schema": (_set("schema", to=2), "checklist-schema", ["schema = 1", "found 2"]),
    "a schema of true": (_set("schema", to=True), "checklist-schema", ["True"]),
    "an unknown field": (_set("criterias", to={}), "checklist-field", ["criterias"]),
    "no name": (_drop("name"), "checklist-field", ["name", "a text"]),
    "an empty version": (_set("version", to=" "), "checklist-field", ["version"]),
    "a version that is a number": (_set("version", to=1), "checklist-field", ["version"]),
    "no criteria": (_set("criteria", to={}), "checklist-field", ["criteria", "at least one"]),
    "criteria that are a list": (_set("criteria", to=[]), "checklist-field", ["criteria", "a table"]),
    "a language that is not there": (
        _set("language", to="en"),
        "checklist-field",
        ["language", "de", "'en'"],
    ),
    "ways of a language that is not there": (
        lambda data: data["ways"].update(en=[]),
        "checklist-field",
        ["ways.en", "de"],
    ),
    "a source that is no text": (_set("sources", "haus", to=1), "checklist-field", ["sources.haus"]),
    "a phrase without a place": (
        _set(*BANDS, "phrase", to="Streifen"),
        "checklist-field",
        ["bands.phrase", "{}"],
    ),
    "a phrase with two places": (_set(*BANDS, "phrase", to="{} a {}"), "checklist-field", ["bands.phrase"]),
    "a phrase with a bracket": (_set(*BANDS, "phrase", to="{} a {x}"), "checklist-field", ["bands.phrase"]),
    "no phrase": (_drop(*BANDS, "phrase"), "checklist-field", ["bands.phrase"]),
    "no values": (_drop(*BANDS, "values"), "checklist-field", ["bands.values"]),
    "one value": (_set(*BANDS, "values", to=["grau"]), "checklist-field", ["bands.values", "two or more"]),
    "a value twice": (
        _set("criteria", "nail", "values", to=["Daumen", "Finger", "Zehe", "Zehe"]),
        "checklist-field",
        ["nail.values", "Zehe, Zehe"],
    ),
    "an empty value": (_set(*BANDS, "values", to=["absent", ""]), "checklist-field", ["bands.values"]),
    "values that are a text": (_set(*BANDS, "values", to="grau"), "checklist-field", ["bands.values"]),
    "from_image that is a text": (
        _set(*BANDS, "from_image", to="no"),
        "checklist-field",
        ["bands.from_image"],
    ),
    "a field that criteria lack": (_set(*BANDS, "colour", to="x"), "checklist-field", ["bands.colour"]),
    "a group of a value that is not there": (
        _set(*BANDS, "groups", "braun", to=["rot"]),
        "checklist-field",
        ["bands.groups.braun", "'rot'"],
    ),
    "an empty group": (_set(*BANDS, "groups", "braun", to=[]), "checklist-field", ["bands.groups.braun"]),
    "a group with the name of a value": (
        _set(*BANDS, "groups", "grau", to=["hellbraun"]),
        "checklist-field",
        ["bands.groups.grau"],
    ),
    "a group that is called present": (
        _set(*BANDS, "groups", "present", to=["grau"]),
        "checklist-field",
        ["bands.groups.present"],
    ),
    "a group that names itself": (
        _set(*BANDS, "groups", "braun", to=["braun"]),
        "checklist-cycle",
        ["bands.groups.braun", "braun > braun"],
    ),
    "groups that name each other": (
        _set(*BANDS, "groups", to={"a": ["b"], "b": ["c", "grau"], "c": ["a"]}),
        "checklist-cycle",
        ["a > b > c > a"],
    ),
    "together of a value that is not there": (
        _set(*BANDS, "together", to={"rot": ["grau", "hellbraun"]}),
        "checklist-field",
        ["bands.together.rot"],
    ),
    "together of one part": (
        _set(*BANDS, "together", to={"grau": ["hellbraun"]}),
        "checklist-field",
        ["bands.together.grau"],
    ),
    "together of itself": (
        _set(*BANDS, "together", to={"grau": ["grau", "hellbraun"]}),
        "checklist-field",
        ["bands.together.grau"],
    ),
    "a language without a name": (_drop(*ROLE, "name"), "checklist-field", ["languages.de.name"]),
    "a role that is not known": (_set(*ROLE, "denies", to=["x"]), "checklist-field", ["languages.de.denies"]),
    "a role that is a text": (_set(*ROLE, "deny", to="kein"), "checklist-field", ["languages.de.deny"]),
    "a role with a number": (_set(*ROLE, "deny", to=["kein", 1]), "checklist-field", ["languages.de.deny"]),
    "a role with an empty word": (_set(*ROLE, "deny", to=[""]), "checklist-field", ["languages.de.deny"]),
    "ways that are a table": (_set("ways", "de", to={}), "checklist-field", ["ways.de", "array of tables"]),
    "a way that is a text": (_set(*WAY, to="x"), "checklist-field", ["ways.de[0]", "a table"]),
    "a way without a criterion": (_drop(*WAY, "criterion"), "checklist-field", ["ways.de[0].criterion"]),
    "a way of a criterion that is not there": (
        _set(*WAY, "criterion", to="streaks"),
        "checklist-field",
        ["ways.de[0].criterion", "bands, nail", "streaks"],
    ),
    "a way without a source": (_drop(*WAY, "source"), "checklist-field", ["ways.de[0].source"]),
    "a way of a source that is not there": (
        _set(*WAY, "source", to="buch"),
        "checklist-field",
        ["ways.de[0].source", "haus", "'buch'"],
    ),
    "a field that ways lack": (_set(*WAY, "word", to={}), "checklist-field", ["ways.de[0].word"]),
    "words of a value that is not there": (
        _set(*WAY, "words", "rot", to=["rot"]),
        "checklist-field",
        ["ways.de[0].words.rot", "dunkelbraun", "braun"],
    ),
    "phrases of a value that is not there": (
        _set(*WAY, "phrases", to={"rot": ["rot"]}),
        "checklist-field",
        ["ways.de[0].phrases.rot"],
    ),
    "terms that are no list": (_set(*WAY, "terms", to="Band"), "checklist-field", ["ways.de[0].terms"]),
    "a term of two criteria": (
        _set("ways", "de", 1, "terms", to=["Nagel", "Band"]),
        "checklist-duplicate",
        ["'Band'", "bands", "nail"],
    ),
    "a phrase of two values": (
        _set("ways", "de", 1, "phrases", "Finger", to=["daumen-nagel", "Daumennagel"]),
        "checklist-duplicate",
        ["Daumennagel", "nail Daumen", "nail Finger"],
    ),
    "a term that is a denial too": (
        _set(*ROLE, "deny", to=["kein", "Band"]),
        "checklist-duplicate",
        ["'Band'", "the role deny"],
    ),
    "a word of two roles": (
        _set(*ROLE, "present", to=["FEHLEND"]),
        "checklist-duplicate",
        ["FEHLEND", "role absent", "role present"],
    ),
    "a word of two values": (
        _set(*WAY, "words", "hellbraun", to=["schwarz-braun", "Dunkelbraun"]),
        "checklist-duplicate",
        ["beside a name of bands", "hellbraun", "dunkelbraun"],
    ),
}


def _nails(change: Callable[[Data], None]) -> Data:
    data = tomllib.loads(NAILS)
    change(data)
    return data


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_of_a_file_is_refused_with_its_code_and_its_place(fault: str) -> None:
    change, code, names = FAULTS[fault]
    with pytest.raises(InputError) as caught:
        Checklist.from_dict(_nails(change))
    assert caught.value.code == code, caught.value
    assert all(name in str(caught.value) for name in names), caught.value
    assert "To cure it" in str(caught.value)


@pytest.mark.parametrize("data", [None, [], "schema", 1, {}])
def test_what_is_no_table_is_refused(data: Any) -> None:
    with pytest.raises(InputError) as caught:
        Checklist.from_dict(data)
    assert caught.value.code == "checklist-schema"


@pytest.mark.parametrize("content", [b"schema = ", b"\xff\xfe", b"schema = 1\nschema = 1"])
def test_a_file_that_is_no_toml_is_refused(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "list.toml"
    path.write_bytes(content)
    for unreadable in (path, tmp_path, tmp_path / "none.toml"):
        with pytest.raises(InputError, match="cannot be read") as caught:
            Checklist.read(unreadable)
        assert caught.value.code == "checklist-unreadable" and str(unreadable) in str(caught.value)


def test_a_checklist_without_the_words_of_its_canonical_phrases_is_refused_by_the_reader() -> None:
    data = _nails(_set("ways", "de", 0, "words", "grau", to=["aschfarben"]))
    with pytest.raises(InputError, match="'grau Streifen' is not read as bands 'grau'") as caught:
        reader_of(Checklist.from_dict(data))
    assert caught.value.code == "checklist-phrase"


def test_the_same_expression_may_have_a_meaning_in_each_language() -> None:
    data = _nails(lambda data: None)
    data["languages"]["en"] = {**data["languages"]["de"], "name": "English"}
    data["ways"]["en"] = [{**row, "criterion": other} for row, other in ((data["ways"]["de"][0], "bands"),)]
    assert list(Checklist.from_dict(data).languages) == ["de", "en"]
