"""Words on the command line: `parse`, a query by words alone, recorded findings, ways of writing."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from helpers import SEVEN_POINT

from skinret_infer import Case, Searcher
from skinret_infer.cli.main import main
from skinret_infer.words.reading import reader_of

TEXT = "atypical network, no streeks, possible veil, melanoma?"
NAILS = """
schema = 1
name = "nails"
version = "1"
language = "de"
[sources]
haus = "the clinic"
[criteria.bands]
phrase = "{} Streifen"
values = ["absent", "grau", "braun"]
[languages.de]
name = "Deutsch"
endings = ["e", "en"]
deny = ["kein"]
absent = ["absent"]
[[ways.de]]
criterion = "bands"
source = "haus"
terms = ["Streifen"]
words.grau = ["grau"]
words.braun = ["braun"]
"""


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(a) for a in arguments])


@pytest.fixture(scope="module")
def stated(bundle: Path, cases: list[Case], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An archive of ten cases with recorded findings."""
    path = tmp_path_factory.mktemp("stated") / "cases.skinret"
    with Searcher(bundle, path, recorded_findings=True) as searcher:
        searcher.add(cases[:10])
    return path


# -- skinret parse --


def test_parse_shows_each_finding_and_what_is_not_used() -> None:
    shown = run("parse", TEXT)
    assert shown.exit_code == 0 and not shown.stderr
    lines = shown.stdout.splitlines()
    assert lines[0].split(maxsplit=2) == ["pigment_network", "atypical", "atypical network"]
    assert lines[1].split(maxsplit=2) == ["streaks", "absent", "no streeks"]
    assert lines[-1] == "canonical words: atypical pigment network, absent streaks"
    for code, words in (
        ("unsure", "veil"),
        ("diagnosis", "melanoma"),
        ("corrected", "'streeks' as 'streaks'"),
    ):
        [line] = [line for line in lines if line.endswith(f"[words-{code}]")]
        assert words in line


def test_parse_writes_the_reading_as_json() -> None:
    plain = json.loads(run("parse", TEXT, "--json").stdout)
    assert plain == reader_of(SEVEN_POINT).read(TEXT).to_dict()
    assert set(plain) == {"text", "language", "findings", "allowed", "canonical", "warnings"}
    assert plain["language"] == "en"
    assert plain["allowed"] == {"pigment_network": ["atypical"], "streaks": ["absent"]}
    assert [w["code"] for w in plain["warnings"]] == ["words-unsure", "words-diagnosis", "words-corrected"]
    for finding in plain["findings"]:
        assert TEXT[finding["start"] : finding["end"]] == finding["words"]


def test_parse_reads_the_languages_of_the_checklist() -> None:
    plain = json.loads(run("parse", "atypisches Pigmentnetz, keine Streifen", "--json").stdout)
    assert plain["language"] == "de"
    assert plain["canonical"] == "atypical pigment network, absent streaks"


@pytest.mark.parametrize("text", ["growing for six months", "", "zyzzyva"])
def test_parse_says_that_no_finding_is_understood(text: str) -> None:
    shown = run("parse", text)
    assert shown.exit_code == 0
    assert shown.stdout.splitlines()[0] == "no finding is understood"
    assert shown.stdout.splitlines()[-1] == "canonical words: -"


def test_parse_reads_with_the_checklist_of_a_bundle_or_a_file(bundle: Path, tmp_path: Path) -> None:
    german = "atypisches Pigmentnetz"
    assert json.loads(run("parse", german, "--json").stdout)["allowed"] == {"pigment_network": ["atypical"]}
    of_bundle = json.loads(run("parse", german, "--bundle", bundle, "--json").stdout)
    assert of_bundle["allowed"] == {}, "the bundle of the tests reads English alone"
    path = tmp_path / "nails.toml"
    path.write_text(NAILS, "utf-8")
    shown = run("parse", "braune Streifen", "--checklist", path)
    assert "canonical words: braun Streifen" in shown.stdout
    assert run("parse", "x", "--checklist", path, "--bundle", bundle).exit_code == 2


@pytest.mark.parametrize(
    ("change", "code"),
    [
        (("schema = 1", "schema = 7"), "checklist-schema"),
        (('"Streifen"]', '"kein"]'), "checklist-duplicate"),
        (("[languages.de]", 'groups = { a = ["b"], b = ["a"] }\n[languages.de]'), "checklist-cycle"),
        (('values = ["absent", "grau", "braun"]', ""), "checklist-field"),
        (('words.grau = ["grau"]', ""), "checklist-phrase"),
        (("schema", "schema schema"), "checklist-unreadable"),
    ],
)
def test_parse_refuses_a_checklist_with_a_fault(change: tuple[str, str], code: str, tmp_path: Path) -> None:
    path = tmp_path / "nails.toml"
    path.write_text(NAILS.replace(*change), "utf-8")
    refused = run("parse", "Streifen", "--checklist", path)
    assert refused.exit_code == 1 and f"[{code}]" in refused.stderr and not refused.stdout


@pytest.mark.parametrize(
    ("text", "code"), [("色素", "text-script"), ("...", "text-script"), ("streaks, " * 300, "text-too-long")]
)
def test_parse_refuses_a_text_that_cannot_be_a_query(text: str, code: str) -> None:
    refused = run("parse", text)
    assert refused.exit_code == 1 and f"[{code}]" in refused.stderr


def test_parse_prints_no_sign_that_moves_the_cursor() -> None:
    shown = run("parse", "streaks\x1b[2J seen. zyz\x07zy")
    assert "\x1b" not in shown.stdout and "\x07" not in shown.stdout


# -- skinret query --


def test_a_query_shows_what_was_understood_and_its_warnings(
    bundle: Path, archive: Path, cases: list[Case]
) -> None:
    arguments = ("query", bundle, archive, "--image", cases[40].image, "--text", TEXT, "-k", 2)
    shown = run(*arguments)
    assert shown.exit_code == 0
    assert "understood: pigment network atypical ('atypical network'); streaks absent" in shown.stdout
    assert "warning: not used, because a suspicion must not steer" in shown.stdout
    plain = json.loads(run(*arguments, "--json").stdout)
    assert [finding["criterion"] for finding in plain["findings"]] == ["pigment_network", "streaks"]
    assert len(plain["warnings"]) == 3 and plain["has_image"] and not plain["recorded_findings"]


def test_words_alone_are_a_query(bundle: Path, archive: Path, tmp_path: Path) -> None:
    page, log = tmp_path / "page.html", tmp_path / "audit.jsonl"
    found = run(
        "query", bundle, archive, "--text", "irregular streaks", "-k", 3, "--json", "--report", page,
        "--audit", log,
    )  # fmt: skip
    assert found.exit_code == 0, found.stderr
    plain = json.loads(found.stdout)
    assert len(plain["hits"]) == 3 and not plain["has_image"] and "image" not in plain["hashes"]
    assert page.read_text("utf-8").count('<article class="hit"') == 3
    assert "streaks" not in log.read_text("ascii")


@pytest.mark.parametrize("text", [(), ("--text", "growing for six months"), ("--text", "melanoma?")])
def test_neither_an_image_nor_a_finding_is_an_error(
    bundle: Path, archive: Path, text: tuple[str, ...]
) -> None:
    refused = run("query", bundle, archive, *text)
    assert refused.exit_code == 1 and "[query-empty]" in refused.stderr and not refused.stdout


def test_a_figure_needs_a_picture(bundle: Path, archive: Path, tmp_path: Path) -> None:
    figure = tmp_path / "hits.png"
    refused = run("query", bundle, archive, "--text", "irregular streaks", "--figure", figure)
    assert refused.exit_code == 2 and "no picture to draw" in refused.stderr
    assert not figure.exists()


# -- recorded findings --


def test_an_archive_with_recorded_findings_is_opened_with_the_option_only(
    bundle: Path, archive: Path, stated: Path
) -> None:
    text = ("--text", "irregular streaks", "--json")
    plain = json.loads(run("query", bundle, stated, *text, "--recorded-findings").stdout)
    assert plain["recorded_findings"] and len(plain["hits"]) == 10
    for path, option in ((stated, ()), (archive, ("--recorded-findings",))):
        refused = run("query", bundle, path, *text, *option)
        assert refused.exit_code == 1 and "recorded findings" in refused.stderr


def test_index_makes_an_archive_with_recorded_findings(bundle: Path, data: Path, tmp_path: Path) -> None:
    ids, path = tmp_path / "ids.txt", tmp_path / "cases.skinret"
    ids.write_text("1\n2\n")
    made = run("index", bundle, path, data, "--ids", ids, "--recorded-findings")
    assert made.exit_code == 0, made.stderr
    assert run("query", bundle, path, "--text", "no streaks", "--recorded-findings").exit_code == 0
    assert run("query", bundle, path, "--text", "no streaks").exit_code == 1


# -- skinret evaluate --ways --


def test_evaluate_reports_each_way_of_writing(
    bundle: Path, archive: Path, data: Path, cases: list[Case], tmp_path: Path
) -> None:
    ids, ways = tmp_path / "ids.txt", tmp_path / "ways.toml"
    ids.write_text("\n".join(case.case_id for case in cases[36:44]))
    ways.write_text('[[ways]]\nname = "plain"\n[[ways]]\nname = "chatter"\ntext = "growing"\n')
    arguments = ("evaluate", bundle, archive, data, "--ids", ids, "--ways", ways)
    report = json.loads(run(*arguments, "--json").stdout)
    assert list(report["ways"]) == ["plain", "chatter"]
    assert report["ways"]["plain"]["gain_kept"] == 100 and report["ways"]["chatter"]["gain_kept"] == 0
    assert report["words_alone"]["queries"] == 8
    shown = run(*arguments).stdout
    assert "words alone" in shown and "way of writing" in shown and "\nchatter" in shown
    ways.write_text('[[ways]]\nname = "plain"\ntypo = 1\n')
    refused = run(*arguments)
    assert refused.exit_code == 1 and "[ways-field]" in refused.stderr
