"""Tables of cases: what a CASES.csv and a Derm7pt folder give, and how a faulty one is refused."""

import csv
import os
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from skinret_infer import Case, Searcher, SkinretError
from skinret_infer._files import find_file, resolve_inside
from skinret_infer.errors import InputError
from skinret_infer.tables import CaseTable, derm7pt_group, read_cases, read_ids
from skinret_infer.words.checklist import Checklist

SEVEN_POINT = Checklist.seven_point()

HEADER = "case_id,image,diagnosis\n"


@pytest.fixture
def table(tmp_path: Path) -> Callable[..., Path]:
    """A function that writes a CASES.csv beside the images a.jpg, b.jpg and Deep/C.JPG."""
    (tmp_path / "Deep").mkdir()
    for name in ("a.jpg", "b.jpg", "Deep/C.JPG"):
        (tmp_path / name).write_bytes(b"read later")

    def write(text: str | bytes) -> Path:
        path = tmp_path / "CASES.csv"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    return write


@pytest.fixture
def derm(data: Path, tmp_path: Path) -> Path:
    """A copy of the drawn Derm7pt folder that may be changed."""
    return shutil.copytree(data, tmp_path / "release_v0")


def _edit(folder: Path, change: Callable[[list[dict[str, str]]], list[dict[str, str]] | None]) -> Path:
    """Change the rows of a Derm7pt folder's meta.csv, of which row 0 stands in line 2."""
    path = folder / "meta" / "meta.csv"
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    rows = change(rows) or rows
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def _refusal(source: Any, code: str | None = None, **options: Any) -> str:
    with pytest.raises(InputError) as caught:
        read_cases(source, **options)
    assert code in (None, caught.value.code), caught.value
    return str(caught.value)


# -- CASES.csv --


def test_a_table_gives_its_cases_in_its_order(table: Callable[..., Path]) -> None:
    path = table(HEADER + "7,b.jpg,clark nevus\n1017,a.jpg,melanoma\n")
    read = read_cases(path)
    assert [(c.case_id, c.diagnosis, c.image) for c in read.cases] == [
        ("7", "clark nevus", path.parent / "b.jpg"),
        ("1017", "melanoma", path.parent / "a.jpg"),
    ]
    assert read.notes == []
    assert read_cases(str(path)) == read


def test_further_columns_become_attributes_and_empty_cells_none(table: Callable[..., Path]) -> None:
    path = table(
        "sex,case_id,image,age,diagnosis,streaks\n"
        "female,1,a.jpg,63,melanoma,irregular\n"
        ",2,b.jpg,  ,nevus, regular \n"
    )
    one, two = read_cases(path).cases
    assert one.attributes == {"sex": "female", "age": "63", "streaks": "irregular"}
    assert two.attributes == {"streaks": "regular"}


def test_group_and_confirmed_by_are_taken_as_such(table: Callable[..., Path]) -> None:
    path = table(
        "case_id,image,diagnosis,group,confirmed_by\n"
        "1,a.jpg,lentigo maligna,mel,histopathology\n"
        "2,b.jpg,clark nevus,,\n"
    )
    one, two = read_cases(path).cases
    assert (one.group, one.confirmed_by, one.attributes) == ("mel", "histopathology", {})
    assert (two.group, two.confirmed_by, two.attributes) == ("clark nevus", "unknown", {})


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda t: b"\xef\xbb\xbf" + t, id="byte order mark"),
        pytest.param(lambda t: t.replace(b"\n", b"\r\n"), id="CRLF"),
        pytest.param(lambda t: t.replace(b"1,a.jpg", b"\n1,a.jpg") + b"\n\n", id="blank lines"),
        pytest.param(lambda t: t.replace(b"a.jpg", b'"a.jpg"'), id="quotes"),
        pytest.param(lambda t: t.rstrip(), id="no last newline"),
        pytest.param(lambda t: t.replace(b",a.jpg,", b", a.jpg ,"), id="spaces"),
    ],
)
def test_a_table_reads_the_same_however_it_was_saved(
    change: Callable[[bytes], bytes], table: Callable[..., Path]
) -> None:
    plain = (HEADER + "1,a.jpg,nævus\n2,b.jpg,melanoma\n").encode()
    expected = read_cases(table(plain))
    assert read_cases(table(change(plain))) == expected


def test_images_are_found_below_the_folder_given_and_whatever_the_case_of_their_names(
    table: Callable[..., Path], tmp_path: Path
) -> None:
    path = table(HEADER + "1,deep/c.jpg,x\n2,A.JPG,y\n3,Deep/../b.jpg,z\n")
    one, two, three = read_cases(path).cases
    assert (one.image, two.image) == (tmp_path / "Deep" / "C.JPG", tmp_path / "a.jpg")
    assert Path(three.image).samefile(tmp_path / "b.jpg")  # type: ignore[arg-type]
    assert one.image_ref == "deep/c.jpg"
    path = table(HEADER + "1,C.JPG,x\n")
    assert read_cases(path, tmp_path / "Deep").cases[0].image == tmp_path / "Deep" / "C.JPG"
    assert read_cases(path, str(tmp_path / "Deep")) == read_cases(path, tmp_path / "Deep")


def test_missing_columns_are_named_with_the_line_and_what_is_there(table: Callable[..., Path]) -> None:
    path = table("case_id,picture\n1,a.jpg\n")
    message = _refusal(path, "table-columns")
    assert f"{path}, line 1: columns are missing: image, diagnosis" in message
    assert "found case_id, picture" in message


@pytest.mark.parametrize("text", [HEADER.replace(",", ";") + "1;a.jpg;x\n", "1,a.jpg,nevus\n"])
def test_another_separator_and_a_lost_header_show_in_the_message(
    text: str, table: Callable[..., Path]
) -> None:
    message = _refusal(table(text), "table-columns")
    assert text.splitlines()[0].replace(",", ", ") in message


def test_a_column_that_stands_twice_is_refused(table: Callable[..., Path]) -> None:
    path = table("case_id,image,diagnosis,sex,sex\n1,a.jpg,x,female,male\n")
    assert "sex" in _refusal(path)


def test_a_case_id_that_stands_twice_is_named_with_both_lines(table: Callable[..., Path]) -> None:
    path = table(HEADER + "1,a.jpg,x\n2,b.jpg,y\n1 ,b.jpg,y\n")
    message = _refusal(path, "table-duplicate")
    assert f"{path}, line 4" in message and "'1'" in message and "line 2" in message


@pytest.mark.parametrize("empty", ["", "  "])
def test_an_empty_case_id_is_named_with_its_line(empty: str, table: Callable[..., Path]) -> None:
    path = table(HEADER + f"1,a.jpg,x\n{empty},b.jpg,y\n")
    assert f"{path}, line 3: case_id is empty" in _refusal(path, "table-value")


@pytest.mark.parametrize(("row", "found"), [("2,b.jpg", "fewer"), ("2,b.jpg,x,y", "more"), ("2", "fewer")])
def test_a_ragged_row_is_named_with_its_line(row: str, found: str, table: Callable[..., Path]) -> None:
    path = table(HEADER + f"1,a.jpg,x\n{row}\n")
    message = _refusal(path, "table-row")
    assert f"{path}, line 3" in message and "expected 3 cells" in message and f"found {found}" in message


def test_all_missing_images_are_named_at_once_with_their_lines(table: Callable[..., Path]) -> None:
    path = table(HEADER + "1,a.jpg,x\n2,no.jpg,y\n3,b.jpg,y\n4,,y\n5,Deep,y\n6,gone/d.jpg,y\n")
    message = _refusal(path, "table-image")
    assert f"{path} names 4 image files that do not exist" in message
    for named in ("line 3: no.jpg", "line 5: (empty)", "line 6: Deep", "line 7: gone/d.jpg"):
        assert named in message
    assert "--images" in message and str(path.parent) in message


def test_of_many_missing_images_the_first_and_the_number_are_named(table: Callable[..., Path]) -> None:
    path = table(HEADER + "".join(f"{n},no{n}.jpg,x\n" for n in range(1000)))
    message = _refusal(path, "table-image")
    assert "1000 image files" in message and "line 2: no0.jpg" in message and "995 more" in message
    assert len(message) < 1000


def test_a_folder_of_images_that_does_not_exist_is_named(table: Callable[..., Path], tmp_path: Path) -> None:
    message = _refusal(table(HEADER + "1,a.jpg,x\n"), "table-image", images=tmp_path / "nowhere")
    assert str(tmp_path / "nowhere") in message


def test_a_cell_too_long_for_a_file_name_is_a_missing_image(table: Callable[..., Path]) -> None:
    path = table(HEADER + f"1,{'a remark in the wrong column ' * 20},x\n")
    assert "line 2" in _refusal(path, "table-image")


OUTSIDE = [
    "../a.jpg", "..", "Deep/../../a.jpg", "./../x/../a.jpg", "/etc/passwd", "//host/share/a.jpg",
    "C:\\a.jpg", "C:/a.jpg", "c:a.jpg", "\\a.jpg", "\\\\host\\share\\a.jpg", "..\\a.jpg",
    "Deep\\..\\..\\a.jpg",
]  # fmt: skip


@pytest.mark.parametrize("name", OUTSIDE)
def test_an_image_outside_the_folder_is_refused_though_it_is_there(
    name: str, table: Callable[..., Path], tmp_path: Path
) -> None:
    path = table(HEADER + f"1,a.jpg,x\n2,{name},y\n3,no.jpg,y\n")
    (tmp_path / "inner").mkdir()
    for images in (None, tmp_path / "inner"):
        if images:
            (images / "a.jpg").write_bytes(b"read later")
        message = _refusal(path, "table-image-outside", images=images)
        assert f"line 3: {name}" in message and "1 image files" in message and "--images" in message
    with pytest.raises(InputError) as caught:
        resolve_inside(tmp_path, name)
    assert caught.value.code == "image-outside" and repr(name) in str(caught.value)


@pytest.mark.parametrize("name", ["a.jpg", "Deep/C.JPG", "./a.jpg", "Deep/../a.jpg", "..a/b..jpg", "é\n.jpg"])
def test_a_name_below_a_folder_is_a_path_in_it(name: str, tmp_path: Path) -> None:
    path = resolve_inside(tmp_path, name)
    assert ".." not in path.parts and path.is_relative_to(tmp_path)
    assert resolve_inside(str(tmp_path), name) == path


def test_links_in_the_folder_are_followed_and_their_parent_is_the_folder(
    table: Callable[..., Path], tmp_path: Path
) -> None:
    store = tmp_path / "store" / "scans"
    store.mkdir(parents=True)
    for path in (store / "d.jpg", store.parent / "a.jpg"):
        path.write_bytes(b"read later")
    (tmp_path / "linked").symlink_to(store)
    one, two = read_cases(table(HEADER + "1,linked/d.jpg,x\n2,linked/../a.jpg,x\n")).cases
    assert Path(one.image).samefile(store / "d.jpg")  # type: ignore[arg-type]
    assert two.image == tmp_path / "a.jpg"


def test_a_formula_is_text(table: Callable[..., Path]) -> None:
    [case] = read_cases(table("case_id,image,diagnosis,note\n=1+1,a.jpg,@x,=cmd|' /C calc'!A0\n")).cases
    assert (case.case_id, case.diagnosis) == ("=1+1", "@x")
    assert case.attributes == {"note": "=cmd|' /C calc'!A0"}


def test_a_table_or_list_of_too_many_bytes_is_refused_before_it_is_read(
    table: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = table(HEADER + "1,a.jpg,x\n" + "2,a.jpg,x\n" * 100)
    monkeypatch.setattr("skinret_infer.tables.MAX_BYTES", 500)
    assert str(path) in _refusal(path, "table-too-large")
    with pytest.raises(InputError) as caught:
        read_ids(path)
    assert caught.value.code == "table-too-large"


def test_cells_and_columns_beyond_the_limit_are_refused_with_their_line(table: Callable[..., Path]) -> None:
    message = _refusal(table(HEADER + f"1,a.jpg,x\n2,b.jpg,{'y' * 100_001}\n"), "table-value")
    assert "line 3" in message and "'diagnosis'" in message and len(message) < 500
    assert len(_refusal(table(HEADER + f"1,a.jpg,{'y' * 1_000_000}\n"))) < 500
    header = HEADER.strip() + "".join(f",c{n}" for n in range(1000)) + "\n"
    assert "1,003" in _refusal(table(header), "table-columns")
    assert len(_refusal(table(",".join(f"c{n}" for n in range(500)) + "\n"), "table-columns")) < 500


def test_a_nul_is_refused_with_its_line(table: Callable[..., Path], tmp_path: Path) -> None:
    assert "line 2: 'diagnosis'" in _refusal(table(HEADER + "1,a.jpg,a\0b\n"), "table-value")
    for content in (b"1\n2\0\n", b"1" * 100_001):
        (tmp_path / "ids.txt").write_bytes(content)
        with pytest.raises(InputError) as caught:
            read_ids(tmp_path / "ids.txt")
        assert caught.value.code == "table-unreadable"


def test_an_image_name_with_a_nul_is_refused(table: Callable[..., Path]) -> None:
    _refusal(table(HEADER + "1,a\0.jpg,x\n"))


@pytest.mark.parametrize(
    ("content", "code"),
    [
        pytest.param(b"", "table-columns", id="empty"),
        pytest.param(b"\xef\xbb\xbf", "table-columns", id="a byte order mark alone"),
        pytest.param(HEADER.encode(), "table-empty", id="the header alone"),
        pytest.param((HEADER + "\n\n").encode(), "table-empty", id="blank rows"),
        pytest.param((HEADER + "1,a.jpg,nævus\n").encode("latin-1"), "table-unreadable", id="latin-1"),
        pytest.param((HEADER + "1,a.jpg,x\n").encode("utf-16"), "table-unreadable", id="utf-16"),
        pytest.param((HEADER + '1,a.jpg,"x\n').encode(), "table-unreadable", id="an open quote"),
        pytest.param(b"\x89PNG\r\n\x1a\n" + bytes(range(256)), "table-unreadable", id="a picture"),
    ],
)
def test_a_file_that_is_no_table_is_refused_by_name(
    content: bytes, code: str, table: Callable[..., Path]
) -> None:
    path = table(content)
    assert str(path) in _refusal(path, code)


def test_a_table_that_does_not_exist_is_named(tmp_path: Path) -> None:
    assert str(tmp_path / "no.csv") in _refusal(tmp_path / "no.csv", "table-missing")


def test_a_path_that_cannot_be_one_is_refused(tmp_path: Path) -> None:
    _refusal(tmp_path / ("x" * 300))
    _refusal("CASES\0.csv")


# -- a Derm7pt folder --


def test_a_derm7pt_folder_gives_groups_words_and_no_claim_of_confirmation(data: Path) -> None:
    read = read_cases(data)
    with (data / "meta" / "meta.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [c.case_id for c in read.cases] == [row["case_num"] for row in rows]
    assert Counter(c.group for c in read.cases).keys() == {"mel", "nevus", "bkl"}
    for case, row in zip(read.cases, rows, strict=True):
        assert case.diagnosis == row["diagnosis"] and case.group == derm7pt_group(case.diagnosis)
        assert case.confirmed_by == "unknown"
        assert case.attributes == {name: row[name] for name in SEVEN_POINT.criteria if row[name]}
        assert case.image == data / "images" / row["derm"] and case.image_ref == row["derm"]
    assert read.notes == []


def test_the_folder_above_release_v0_is_read_too(data: Path) -> None:
    assert read_cases(data.parent) == read_cases(str(data)) == read_cases(data)


@pytest.mark.parametrize(
    ("diagnosis", "group"),
    [
        ("melanoma", "mel"),
        ("melanoma (in situ)", "mel"),
        ("melanoma (less than 0.76 mm)", "mel"),
        ("melanoma metastasis", "mel"),
        ("blue nevus", "nevus"),
        ("reed or spitz nevus", "nevus"),
        ("seborrheic keratosis", "bkl"),
        ("melanosis", "bkl"),
        ("basal cell carcinoma", None),
        ("vascular lesion", None),
        ("", None),
    ],
)
def test_the_groups_are_those_of_the_paper(diagnosis: str, group: str | None) -> None:
    assert derm7pt_group(diagnosis) == group


def test_derm7pt_images_are_found_though_their_names_differ_in_case(derm: Path) -> None:
    for path in sorted((derm / "images" / "SYN").iterdir())[::2]:
        path.rename(path.with_name(path.name.upper()))
    (derm / "images" / "SYN").rename(derm / "images" / "Syn")
    cases = read_cases(derm).cases
    assert len(cases) == 60 and all(Path(case.image).is_file() for case in cases)  # type: ignore[arg-type]
    assert cases[0].image_ref == "SYN/syn0001.jpg"


def test_a_diagnosis_that_derm7pt_does_not_know_is_named_and_counted(derm: Path) -> None:
    def change(rows: list[dict[str, str]]) -> None:
        rows[3]["diagnosis"] = rows[7]["diagnosis"] = "Melanoma"
        rows[5]["diagnosis"] = ""

    message = _refusal(_edit(derm, change) and derm, "table-value")
    assert "'Melanoma' (2, first in line 5)" in message and "'' (1, first in line 7)" in message


def test_known_diagnoses_outside_the_groups_are_left_out_with_a_note(derm: Path) -> None:
    def change(rows: list[dict[str, str]]) -> None:
        rows[0]["diagnosis"] = rows[1]["diagnosis"] = "basal cell carcinoma"
        rows[2]["diagnosis"] = "lentigo"

    _edit(derm, change)
    read = read_cases(derm)
    assert [case.case_id for case in read.cases] == [str(n) for n in range(4, 61)]
    [note] = read.notes
    assert "3 cases" in note and "basal cell carcinoma 2" in note and "lentigo 1" in note


def test_derm7pt_images_that_are_missing_are_named(derm: Path) -> None:
    (derm / "images" / "SYN" / "syn0002.jpg").unlink()
    (derm / "images" / "SYN" / "syn0009.jpg").unlink()
    message = _refusal(derm, "table-image")
    assert "line 3: SYN/syn0002.jpg" in message and "line 10: SYN/syn0009.jpg" in message


def test_a_derm7pt_column_that_is_missing_is_named(derm: Path) -> None:
    path = _edit(derm, lambda rows: [{k: v for k, v in r.items() if k != "blue_whitish_veil"} for r in rows])
    message = _refusal(derm, "table-columns")
    assert f"{path}, line 1" in message and "columns are missing: blue_whitish_veil" in message


def test_a_derm7pt_case_that_stands_twice_is_named_with_both_lines(derm: Path) -> None:
    path = _edit(derm, lambda rows: rows[:5] + rows[:1])
    message = _refusal(derm, "table-duplicate")
    assert str(path) in message and "line 7" in message and "line 2" in message


def test_a_derm7pt_case_without_a_number_is_named_with_its_line(derm: Path) -> None:
    path = _edit(derm, lambda rows: [*rows[:2], rows[2] | {"case_num": " "}])
    message = _refusal(derm)
    assert str(path) in message and "line 4" in message


def test_a_confirmed_by_column_of_derm7pt_is_believed(derm: Path) -> None:
    how = ["", *["histopathology"] * 59]
    _edit(derm, lambda rows: [r | {"confirmed_by": h} for r, h in zip(rows, how, strict=True)])
    assert [c.confirmed_by for c in read_cases(derm).cases[:2]] == ["unknown", "histopathology"]


def test_a_folder_without_meta_csv_is_refused_with_what_is_expected(tmp_path: Path) -> None:
    message = _refusal(tmp_path, "table-missing")
    assert str(tmp_path) in message and "meta/meta.csv" in message


def test_what_gives_the_answer_away_is_no_attribute(data: Path) -> None:
    for case in read_cases(data).cases:
        assert not case.attributes.keys() & {"diagnosis", "management", "seven_point_score", "notes"}
        assert "level_of_diagnostic_difficulty" not in case.attributes


# -- a file of case ids --


def test_ids_stand_one_a_line(tmp_path: Path) -> None:
    path = tmp_path / "ids.txt"
    path.write_text("1017\n  2 \n\nfall 3/ä\n1017\n", "utf-8")
    assert read_ids(path) == read_ids(str(path)) == {"1017", "2", "fall 3/ä"}
    path.write_bytes(b"1\r\n2\r\n")
    assert read_ids(path) == {"1", "2"}
    path.write_bytes(b"")
    assert read_ids(path) == set()


def test_a_byte_order_mark_is_no_part_of_the_first_id(tmp_path: Path) -> None:
    path = tmp_path / "ids.txt"
    path.write_text("1017\n2\n", "utf-8-sig")
    assert read_ids(path) == {"1017", "2"}


@pytest.mark.parametrize("content", [None, b"1\n\xff\n", "1\n".encode("utf-16")], ids=["no", "latin", "16"])
def test_a_file_of_ids_that_cannot_be_read_is_refused_by_name(content: bytes | None, tmp_path: Path) -> None:
    path = tmp_path / "ids.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=r"ids\.txt"):
        read_ids(path)


# -- a case --


def test_a_case_says_what_it_was_not_told() -> None:
    case = Case("1017", "a.jpg", diagnosis="melanoma")
    assert (case.group, case.confirmed_by, case.image_ref, case.attributes) == (
        "melanoma",
        "unknown",
        "a.jpg",
        {},
    )
    assert Case("1", Path("b/a.jpg")).image_ref == os.path.join("b", "a.jpg")  # noqa: PTH118
    assert Case("1", b"bytes").image_ref == "" and Case("1", b"", image_ref="pacs:7").image_ref == "pacs:7"
    assert "bytes" not in repr(Case("1", b"bytes"))


@pytest.mark.parametrize("case_id", ["", " ", "\n", None, 1017, 3.5, b"1017", ["1017"]], ids=repr)
def test_a_case_without_an_id_of_text_is_refused(case_id: Any) -> None:
    with pytest.raises(InputError) as caught:
        Case(case_id, b"")
    assert caught.value.code == "case-id" and repr(case_id) in str(caught.value)


@pytest.mark.parametrize("value", [None, ["a"], {"a": 1}, b"a", 1j, object()], ids=type)
def test_an_attribute_that_cannot_be_kept_is_refused_by_name_and_type(value: Any) -> None:
    with pytest.raises(InputError) as caught:
        Case("1017", b"", attributes={"sex": "female", "streaks": value})
    message = str(caught.value)
    assert caught.value.code == "case-attribute"
    assert "1017" in message and "'streaks'" in message and type(value).__name__ in message


def test_attributes_of_text_numbers_and_truth_values_are_kept() -> None:
    attributes = {"sex": "female", "age": 63, "size": 4.5, "biopsied": True, "": "", "naïve": "😀"}
    assert Case("1", b"", attributes=attributes).attributes == attributes


@pytest.mark.parametrize("name", [None, 1, ("a",)], ids=repr)
def test_an_attribute_whose_name_is_not_text_is_refused(name: Any) -> None:
    with pytest.raises(InputError, match="attribute"):
        Case("1", b"", attributes={name: "x"})


@pytest.mark.parametrize("attributes", [None, ["streaks"], "streaks", 7], ids=repr)
def test_attributes_that_are_no_mapping_are_refused(attributes: Any) -> None:
    with pytest.raises(SkinretError):
        Case("1", b"", attributes=attributes)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_an_attribute_that_is_no_finite_number_is_refused(value: float) -> None:
    """JSON has no word for it: an archive with one could not be filtered any more."""
    with pytest.raises(InputError):
        Case("1", b"", attributes={"thickness": value})


@pytest.mark.parametrize("field", ["diagnosis", "group", "confirmed_by", "image_ref"])
@pytest.mark.parametrize("value", [None, 7, ["nevus"], b"nevus"], ids=repr)
def test_a_field_of_a_case_is_text_or_the_case_is_refused(field: str, value: Any) -> None:
    try:
        case = Case("1", b"", **{field: value})
    except InputError:
        return
    assert isinstance(getattr(case, field), str)


def test_an_attribute_may_bear_the_name_of_a_field_and_hides_no_fault_of_it() -> None:
    case = Case("1", b"", diagnosis="melanoma", attributes={"diagnosis": "x", "group": 7})
    assert case.diagnosis == "melanoma" and case.attributes == {"diagnosis": "x", "group": 7}
    with pytest.raises(InputError):
        Case("1", b"", diagnosis=None, attributes={"diagnosis": "x"})  # type: ignore[arg-type]


@pytest.mark.parametrize("value", [2**62, -(2**62), 1e300, -1e300, 5e-324, 0.1])
def test_any_finite_number_is_kept(value: float) -> None:
    assert Case("1", b"", attributes={"n": value}).attributes == {"n": value}


@pytest.mark.parametrize(
    "option",
    [{"case_id": "\udcff"}, {"diagnosis": "\udcff"}, {"attributes": {"a": "\udcff"}}],
    ids=ascii,
)
def test_text_that_is_not_unicode_is_refused(option: dict[str, Any]) -> None:
    """Lone surrogates have no UTF-8: no archive can keep them."""
    with pytest.raises(InputError):
        Case(**({"case_id": "1", "image": b""} | option))


def test_reading_a_table_changes_nothing_on_disk(derm: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in derm.rglob("*")}
    assert isinstance(read_cases(derm), CaseTable)
    assert {path: path.stat().st_mtime_ns for path in derm.rglob("*")} == before


# -- spaces, spellings and separators --


def test_spaces_around_a_header_do_not_lose_the_words(table: Callable[..., Path]) -> None:
    header = "\ufeff case_id ,\xa0image\u200b, diagnosis , streaks,\tpigment_network \n"
    [case] = read_cases(table(header + "1,a.jpg,nevus, irregular\u200b,\xa0atypical\n")).cases
    assert SEVEN_POINT.text_of(case.attributes) == "atypical pigment network, irregular streaks"
    assert (case.case_id, case.diagnosis) == ("1", "nevus")


@pytest.mark.parametrize("other", ["streaks ", "\ufeffstreaks", "strea\u200bks"])
def test_columns_that_are_the_same_but_for_spaces_are_refused(other: str, table: Callable[..., Path]) -> None:
    text = f"case_id,image,diagnosis,streaks,{other}\n1,a.jpg,nevus,irregular,regular\n"
    if other == "strea\u200bks":  # within a word it is another name
        [note] = read_cases(table(text)).notes
        assert "'streaks'" in note
    else:
        assert "twice: streaks" in _refusal(table(text), "table-columns")


@pytest.mark.parametrize("name", ["Streaks", "Blue-Whitish veil", "pigment network", "Confirmed by", "GROUP"])
def test_a_column_that_is_nearly_one_that_is_known_is_noted(name: str, table: Callable[..., Path]) -> None:
    read = read_cases(table(f"case_id,image,diagnosis,{name}\n1,a.jpg,nevus,x\n"))
    [note] = read.notes
    assert repr(name) in note and repr(name.lower().replace(" ", "_").replace("-", "_")) in note
    assert read.cases[0].attributes == {name: "x"}


def test_empty_columns_of_a_spreadsheet_are_left_and_nameless_cells_refused(
    table: Callable[..., Path],
) -> None:
    [case] = read_cases(table("case_id,image,diagnosis,,\n1,a.jpg,nevus,, \n")).cases
    assert case.attributes == {}
    assert "line 2" in _refusal(table("case_id,image,diagnosis,\n1,a.jpg,nevus,irregular\n"), "table-columns")


@pytest.mark.parametrize("sign", [";", "\t", "|"])
def test_another_separator_is_named(sign: str, table: Callable[..., Path]) -> None:
    text = HEADER.replace(",", sign) + sign.join(["1", "a.jpg", "nevus"])
    assert repr(sign) in _refusal(table(text), "table-columns")


@pytest.mark.parametrize(
    ("encoding", "found"),
    [("utf-16", "UTF-16"), ("latin-1", "in line 3: 0xe4"), ("cp1252", "in line 3: 0xe4")],
)
def test_another_encoding_is_named_with_the_cure(
    encoding: str, found: str, table: Callable[..., Path]
) -> None:
    text = HEADER + "1,a.jpg,nevus\n2,b.jpg,Nävus\n"
    message = _refusal(table(text.encode(encoding)), "table-unreadable")
    assert found in message and "CSV UTF-8" in message


COMPOSED, DECOMPOSED = "L\xe4sion", "La\u0308sion"


@pytest.mark.parametrize(("said", "there"), [(COMPOSED, DECOMPOSED), (DECOMPOSED, COMPOSED)])
def test_files_of_a_mac_are_found_whatever_the_spelling(said: str, there: str, tmp_path: Path) -> None:
    (tmp_path / there).mkdir()
    (tmp_path / there / f"{there}.jpg").write_bytes(b"read later")
    (tmp_path / "CASES.csv").write_text(f"{HEADER}{said},{said}/{said}.jpg,{said}\n", "utf-8")
    [case] = read_cases(tmp_path / "CASES.csv").cases
    assert Path(str(case.image)).read_bytes() == b"read later"
    assert (case.case_id, case.diagnosis) == (COMPOSED, COMPOSED)
    assert find_file(tmp_path, f"{said}/{said}.jpg") == tmp_path / there / f"{there}.jpg"


def test_an_id_has_one_spelling_everywhere(bundle: Path, cases: list[Case], tmp_path: Path) -> None:
    with Searcher(bundle, tmp_path / "a.skinret", runtime="onnxruntime-cpu") as searcher:
        searcher.add(
            [
                Case(DECOMPOSED, cases[0].image, diagnosis=DECOMPOSED, attributes={DECOMPOSED: DECOMPOSED}),
                Case("2", cases[1].image),
            ]
        )
        assert searcher.add(
            [Case(COMPOSED, cases[0].image, diagnosis=COMPOSED, attributes={COMPOSED: COMPOSED})]
        ).unchanged == [COMPOSED]
        for spelling in (COMPOSED, DECOMPOSED):
            for where in ({"diagnosis": spelling}, {spelling: spelling}, {spelling: [spelling]}):
                assert [hit.case_id for hit in searcher.query(cases[0].image, where=where)] == [COMPOSED]
            assert [hit.case_id for hit in searcher.query(cases[0].image, exclude=[spelling])] == ["2"]
        assert searcher.remove([DECOMPOSED]) == 1
    with pytest.raises(InputError, match="two attributes have the same name"):
        Case("1", b"", attributes={COMPOSED: 1, DECOMPOSED: 2})


def test_files_that_differ_by_case_alone_are_ambiguous(tmp_path: Path) -> None:
    for name in ("a.JPG", "A.jpg", "b.jpg"):
        (tmp_path / name).write_bytes(name.encode())
    if len(list(tmp_path.iterdir())) < 3:
        pytest.skip("this file system does not tell a.JPG from A.jpg")
    table = tmp_path / "CASES.csv"
    table.write_text(f"{HEADER}1,a.jpg,nevus\n2,B.JPG,nevus\n")
    message = _refusal(table, "table-image-ambiguous")
    assert "line 2: a.jpg" in message and "B.JPG" not in message
    table.write_text(f"{HEADER}1,A.jpg,nevus\n2,B.JPG,nevus\n3,a.JPG,nevus\n")
    assert [Path(str(case.image)).read_bytes() for case in read_cases(table).cases] == [
        b"A.jpg",
        b"b.jpg",
        b"a.JPG",
    ]
    with pytest.raises(InputError) as caught:
        find_file(tmp_path, "a.jpg")
    assert caught.value.code == "image-ambiguous" and "'A.jpg', 'a.JPG'" in str(caught.value)


def test_two_spellings_beside_each_other_are_told_apart_or_ambiguous(tmp_path: Path) -> None:
    for name in (COMPOSED, DECOMPOSED):
        (tmp_path / f"{name}.jpg").write_bytes(name.encode())
    if len(list(tmp_path.iterdir())) < 2:
        pytest.skip("this file system does not tell the two spellings apart")
    for name in (COMPOSED, DECOMPOSED):
        assert find_file(tmp_path, f"{name}.jpg").read_bytes() == name.encode()
    with pytest.raises(InputError, match="one of several"):
        find_file(tmp_path, f"{COMPOSED.upper()}.jpg")


@pytest.mark.parametrize("name", [".. /a.jpg", "... /a.jpg", "a/.. ./../b.jpg", r"..\..\a.jpg", " ", ". ."])
def test_a_name_that_windows_reads_as_a_way_out_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        resolve_inside(tmp_path, name)
    assert caught.value.code == "image-outside"


def test_a_file_of_ids_is_read_in_any_spelling(tmp_path: Path) -> None:
    (tmp_path / "ids.txt").write_text(f"\ufeff{DECOMPOSED}\u200b\n\xa02 \n\n", "utf-8")
    assert read_ids(tmp_path / "ids.txt") == {COMPOSED, "2"}


def test_of_two_spellings_a_table_gets_the_file_that_it_names(tmp_path: Path) -> None:
    for name in (COMPOSED, DECOMPOSED):
        (tmp_path / f"{name}.jpg").write_bytes(name.encode())
    if len(list(tmp_path.iterdir())) < 2:
        pytest.skip("this file system does not tell the two spellings apart")
    table = tmp_path / "CASES.csv"
    table.write_text(f"{HEADER}1,{COMPOSED}.jpg,nevus\n2, {DECOMPOSED}.jpg ,nevus\n", "utf-8")
    found = [Path(str(case.image)).read_bytes().decode() for case in read_cases(table).cases]
    assert found == [COMPOSED, DECOMPOSED]
