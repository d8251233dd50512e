"""Ways of writing: the recorded findings of a case in other words, to measure what the words still do."""

from pathlib import Path
from typing import Any

import pytest
from helpers import CHECKLIST, SEVEN_POINT

from skinret_infer import Case, InputError, Searcher
from skinret_infer.evaluation.evaluate import PARTS, evaluate, table
from skinret_infer.evaluation.ways import Way, read_ways
from skinret_infer.words.reading import reader_of

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
FILES = sorted(BENCHMARKS.glob("ways*.toml"))
CASE = Case(
    "1",
    b"",
    attributes={
        "pigment_network": "atypical", "streaks": "absent", "blue_whitish_veil": "present",
        "vascular_structures": "absent", "sex": "female", "age": 61,
    },
)  # fmt: skip
CANONICAL = SEVEN_POINT.text_of(CASE.attributes)


def _write(**fields: Any) -> str:
    return Way(name="a", **fields).write(CASE, SEVEN_POINT)[0]


def _cases(count: int) -> list[Case]:
    """Return cases with every criterion, and other values of them in each."""
    return [
        Case(
            str(n), b"", attributes={c: v.values[n % len(v.values)] for c, v in SEVEN_POINT.criteria.items()}
        )
        for n in range(count)
    ]


# -- the files that ship --


def test_the_benchmarks_have_eight_ways_and_three_more_that_training_never_saw() -> None:
    assert [path.name for path in FILES] == ["ways.toml", "ways_unseen.toml"]
    seen, unseen = (read_ways(path, SEVEN_POINT) for path in FILES)
    assert len(seen) >= 8 and len(unseen) >= 3
    assert not {way.name for way in seen} & {way.name for way in unseen}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_the_ways_that_ship_write_every_case_and_only_its_findings(path: Path) -> None:
    for way in read_ways(path, SEVEN_POINT):
        for case in _cases(20):
            text, said = way.write(case, SEVEN_POINT)
            assert "{" not in text
            own = SEVEN_POINT.values_of(case.attributes)
            assert all((own[name] not in values) == way.contradict for name, values in said.items())
            assert not (way.only_present and ("absent",) in said.values())


# -- fields --


def test_a_way_without_fields_writes_the_canonical_words() -> None:
    text, said = Way(name="a").write(CASE, SEVEN_POINT)
    assert text == CANONICAL
    assert said == {name: (value,) for name, value in SEVEN_POINT.values_of(CASE.attributes).items()}


def test_the_same_way_case_and_checklist_give_the_same_words() -> None:
    fields: dict[str, Any] = {
        "share": 0.5,
        "shuffled": True,
        "typos": 0.5,
        "text": ("{findings}", "A: {findings}"),
    }
    for case in _cases(10):
        written = Way(name="a", **fields).write(case, SEVEN_POINT)
        assert Way(name="a", **fields).write(case, SEVEN_POINT) == written
    others = [Way(name=name, **fields).write(_cases(1)[0], SEVEN_POINT) for name in "abcdef"]
    assert len({text for text, _ in others}) > 1, "ways with other names draw differently"


def test_text_puts_the_findings_into_one_of_its_templates() -> None:
    assert _write(text=("Seen: {findings}!",)) == f"Seen: {CANONICAL}!"
    way = Way(name="a", text=("A {findings}", "B {findings}"))
    drawn = {way.write(case, SEVEN_POINT)[0][0] for case in _cases(20)}
    assert drawn == {"A", "B"}


def test_a_template_without_a_place_writes_no_finding() -> None:
    assert Way(name="a", text=("growing",)).write(CASE, SEVEN_POINT) == ("growing", {})


def test_join_and_last_stand_between_findings() -> None:
    first, *between, last = SEVEN_POINT.phrases_of(CASE.attributes)
    assert _write(join="; ", last=" and ") == "; ".join([first, *between]) + f" and {last}"


def test_say_gives_other_words_for_a_value_and_leaves_out_what_is_empty() -> None:
    say = {"pigment_network": {"atypical": ["PN ATP"], "typical": ["PN TYP"]}, "sex": {"female": [""]}}
    text, said = Way(name="a", say=say).write(CASE, SEVEN_POINT)
    assert text.startswith("PN ATP, absent streaks") and "female" not in text
    assert "sex" not in said and said["pigment_network"] == ("atypical",)
    drawn = {
        Way(name="a", say={"streaks": {"absent": ["x", "y"]}}).write(c, SEVEN_POINT)[0].split(", ")[1]
        for c in _cases(30)[::3]
    }
    assert drawn == {"x", "y"}


def test_what_is_absent_is_denied_in_one_list_after_the_others() -> None:
    names = {"streaks": "streaks", "vascular_structures": "vessels"}
    text = _write(denied="no {}", names=names, join="; ", last="; ")
    assert text == "atypical pigment network; blue-whitish veil; female patient; no streaks or vessels"
    assert _write(denied="no {}", names={"streaks": "streaks"}).endswith("female patient, no streaks")
    assert "no streaks nor vessels" in _write(denied="no {}", names=names, denied_last=" nor ")
    assert _write(names=names) == CANONICAL, "without denied, the names are not used"


def test_only_present_leaves_out_what_is_absent() -> None:
    text, said = Way(name="a", only_present=True).write(CASE, SEVEN_POINT)
    assert text == "atypical pigment network, blue-whitish veil, female patient"
    assert list(said) == ["pigment_network", "blue_whitish_veil", "sex"]


def test_share_draws_some_of_the_findings() -> None:
    counts = [len(Way(name="a", share=0.5).write(case, SEVEN_POINT)[1]) for case in _cases(100)]
    assert 3 < sum(counts) / len(counts) < 7 and len(set(counts)) > 3
    assert Way(name="a", share=0.0).write(CASE, SEVEN_POINT) == ("", {})


def test_shuffled_gives_the_same_findings_in_another_order() -> None:
    orders = {Way(name="a", shuffled=True).write(case, SEVEN_POINT)[0] for case in [CASE, *_cases(3)]}
    phrases = SEVEN_POINT.phrases_of(CASE.attributes)
    assert sorted(_write(shuffled=True).split(", ")) == sorted(phrases) and len(orders) == 4
    assert any(
        Way(name=name, shuffled=True).write(CASE, SEVEN_POINT)[0] != CANONICAL for name in ("b", "c", "d")
    )


def test_typos_change_long_words_by_one_error_and_no_short_ones() -> None:
    wrong = _write(typos=1.0).split(" ")
    for word, typed in zip(CANONICAL.split(" "), wrong, strict=True):
        letters = sum(c.isalpha() for c in word)
        assert abs(len(word) - len(typed)) <= 1
        assert letters >= 5 or typed == word
        assert typed[0] == word[0]
    assert wrong != CANONICAL.split(" ") and _write(typos=0.0) == CANONICAL


def test_contradict_says_another_value_of_every_criterion() -> None:
    for case in _cases(10):
        _, said = Way(name="a", contradict=True).write(case, SEVEN_POINT)
        own = SEVEN_POINT.values_of(case.attributes)
        assert set(said) == set(own)
        for name, values in said.items():
            assert len(values) == 1 and values[0] in SEVEN_POINT.criteria[name].values
            assert values[0] != own[name]


# -- what is wrong with a file --


@pytest.mark.parametrize(
    ("content", "names"),
    [
        ("", ["[[ways]]", "nothing"]),
        ("ways = []", ["[[ways]]"]),
        ("ways = 1", ["[[ways]]"]),
        ("other = 1\n[[ways]]\nname = 'a'", ["nothing else", "other"]),
        ("[[ways]]\ntypos = 0.1", ["a name"]),
        ("[[ways]]\nname = ''", ["a name"]),
        ("[[ways]]\nname = 1", ["a name"]),
        ("[[ways]]\nname = 'a'\n[[ways]]\nname = 'a'", ["'a' twice"]),
        ("ways = ['a']", ["a name"]),
        ("[[ways]]\nname = 'a'\ntypo = 0.1", ["typos", "'typo' in the way 'a'"]),
        ("[[ways]]\nname = 'a'\ntypos = 1.5", ["typos", "1.5"]),
        ("[[ways]]\nname = 'a'\nshare = true", ["share", "True"]),
        ("[[ways]]\nname = 'a'\nshare = nan", ["share", "nan"]),
        ("[[ways]]\nname = 'a'\nshuffled = 1", ["shuffled"]),
        ("[[ways]]\nname = 'a'\njoin = 1", ["join"]),
        ("[[ways]]\nname = 'a'\ntext = []", ["text"]),
        ("[[ways]]\nname = 'a'\ntext = [1]", ["text"]),
        ("[[ways]]\nname = 'a'\nnames.rosettes = 'x'", ["names", "rosettes"]),
        ("[[ways]]\nname = 'a'\nnames = 'x'", ["names"]),
        ("[[ways]]\nname = 'a'\nsay = 'x'", ["say"]),
        ("[[ways]]\nname = 'a'\nsay.rosettes.absent = 'x'", ["rosettes", "pigment_network, streaks"]),
        ("[[ways]]\nname = 'a'\nsay.streaks.some = 'x'", ["absent, regular, irregular", "some"]),
        ("[[ways]]\nname = 'a'\nsay.streaks = 'x'", ["streaks", "absent, regular, irregular"]),
        ("[[ways]]\nname = 'a'\nsay.streaks.absent = 1", ["a text or a list of texts"]),
        ("[[ways]]\nname = 'a'\nsay.streaks.absent = []", ["a text or a list of texts"]),
    ],
)  # fmt: skip
def test_a_fault_of_a_file_is_refused_and_named(content: str, names: list[str], tmp_path: Path) -> None:
    path = tmp_path / "ways.toml"
    path.write_text(content)
    with pytest.raises(InputError, match="cannot be used") as caught:
        read_ways(path, SEVEN_POINT)
    assert caught.value.code == "ways-field"
    assert all(name in str(caught.value) for name in [str(path), *names]), caught.value


@pytest.mark.parametrize("content", [b"ways =", b"\xff"])
def test_a_file_that_is_no_toml_is_refused(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "ways.toml"
    path.write_bytes(content)
    for unreadable in (path, tmp_path, tmp_path / "none.toml"):
        with pytest.raises(InputError) as caught:
            read_ways(unreadable, SEVEN_POINT)
        assert caught.value.code == "ways-unreadable" and str(unreadable) in str(caught.value)


def test_a_text_may_stand_where_a_list_of_one_would(tmp_path: Path) -> None:
    path = tmp_path / "ways.toml"
    say = "say.streaks.absent = 'keine Streifen'"
    path.write_text(f"[[ways]]\nname = 'a'\ntext = 'So: {{findings}}'\n{say}\nshare = 1")
    [way] = read_ways(path, SEVEN_POINT)
    assert way == Way(name="a", text=("So: {findings}",), say={"streaks": {"absent": ("keine Streifen",)}})


# -- measured --


@pytest.fixture(scope="module")
def report(bundle: Path, archive: Path, cases: list[Case]) -> dict[str, Any]:
    unknown = {value: ["zyzzyva"] for value in ("absent", "regular", "irregular")}
    misleading = {"absent": ["regular streaks"], "regular": ["irregular streaks"]}
    ways = [
        Way(name="canonical"),
        Way(name="chatter", text=("growing for six months",)),
        Way(name="unknown words", say={"streaks": unknown}),
        Way(name="misleading", say={"streaks": misleading}),
        Way(name="contradicting", contradict=True),
    ]
    with Searcher(bundle, archive) as searcher:
        return evaluate(searcher, cases[34:46], ways=ways)


def test_a_way_has_the_figures_of_a_kind_of_query_and_the_gain_it_keeps(
    report: dict[str, Any],
) -> None:
    words, image = report["image_words"], report["image_only"]
    assert list(report["ways"]) == ["canonical", "chatter", "unknown words", "misleading", "contradicting"]
    for of_way in report["ways"].values():
        assert {"mAP", "Acc@1", "nDCG@10", "shared@5", "gain_kept", "read_precision", "read_recall"} <= set(
            of_way
        )
        gain = words["shared@5"] - image["shared@5"]
        assert of_way["gain_kept"] == pytest.approx(
            100 * (of_way["shared@5"] - image["shared@5"]) / gain, abs=0.06
        )
    canonical = report["ways"]["canonical"]
    assert canonical["gain_kept"] == 100
    assert {name: canonical[name] for name in without_parts(words)} == without_parts(words)
    assert report["words_alone"]["queries"] == 12


def without_parts(figures: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in figures.items() if name not in PARTS}


def test_words_that_state_nothing_keep_nothing_and_lose_nothing(report: dict[str, Any]) -> None:
    chatter = report["ways"]["chatter"]
    assert chatter["gain_kept"] == 0 and "agree" not in chatter
    image = without_parts(report["image_only"])
    assert {name: chatter[name] for name in image} == image
    assert (chatter["read_precision"], chatter["read_recall"]) == (100, 100)


def test_precision_and_recall_are_of_what_is_read(report: dict[str, Any], cases: list[Case]) -> None:
    canonical, unknown, misleading = (
        report["ways"][name] for name in ("canonical", "unknown words", "misleading")
    )
    assert canonical["read_precision"] == canonical["read_recall"] == 100
    assert unknown["read_precision"] == 100 and 0 < unknown["read_recall"] < 100
    stated = [CHECKLIST.values_of(case.attributes) for case in cases[34:46]]
    wrong = sum(values.get("streaks") in ("absent", "regular") for values in stated)
    share = 100 * (1 - wrong / sum(map(len, stated)))
    assert wrong and misleading["read_precision"] == misleading["read_recall"] == pytest.approx(
        share, abs=0.01
    )


def test_agreement_is_with_what_the_words_state(
    report: dict[str, Any], bundle: Path, cases: list[Case], tmp_path: Path
) -> None:
    canonical, contradicting = (report["ways"][name] for name in ("canonical", "contradicting"))
    assert canonical["agree"] == canonical["shared@5"]
    assert canonical["agree_image"] == report["image_only"]["shared@5"]
    assert contradicting["read_precision"] == contradicting["read_recall"] == 100
    ways = [Way(name="contradicting", contradict=True)]
    with Searcher(bundle, tmp_path / "recorded.skinret", recorded_findings=True) as searcher:
        searcher.add(cases[:34])
        moved = evaluate(searcher, cases[34:46], ways=ways, gamma=1.0)["ways"]["contradicting"]
    assert moved["agree"] > moved["agree_image"], "the words move the hits to what they state"


def test_the_table_has_a_line_for_each_way(report: dict[str, Any]) -> None:
    shown = table(report)
    assert "way of writing" in shown and "words alone" in shown
    line = next(line for line in shown.splitlines() if line.startswith("canonical"))
    assert "100 %" in line and f"{report['ways']['canonical']['agree']:.2f}" in line
    chatter = next(line for line in shown.splitlines() if line.startswith("chatter"))
    assert chatter.rstrip().endswith("-")


def test_the_ways_that_ship_are_read_without_a_false_finding() -> None:
    """Of 60 cases with every value, in the ways without errors."""
    for path in FILES:
        for way in read_ways(path, SEVEN_POINT):
            if way.typos:
                continue
            for case in _cases(60):
                text, said = way.write(case, SEVEN_POINT)
                for name, values in reader_of(SEVEN_POINT).read(text).allowed.items():
                    assert name in said and set(said[name]) <= set(values), (way.name, text)
