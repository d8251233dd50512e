"""The report page: complete, self-contained, safe with any words, and rendered by a real browser."""

import base64
import dataclasses
import io
import os
import pickle
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from decimal import Decimal
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from skinret_infer import ArchiveError, Case, InputError, Results, Searcher, __version__
from skinret_infer.archive.filters import Range
from skinret_infer.descriptor import COSINES
from skinret_infer.evidence import Evidence, EvidenceMap
from skinret_infer.report.html import _bar, _round
from skinret_infer.results import Hit

WORDS = "atypical pigment network, irregular streaks"
VOID = {"meta", "input", "br"}
EVIL = (
    "x<script>alert(1)</script>\"'><img src=x onerror=alert(1)>{{7*7}}{% raw %}${7*7}]]></style></title>"
    "<!--\u202egnp.\u2066 https://evil.example/x.png javascript:alert(1) &lt;b&gt; url(http://evil)"
)


class Node:
    """An element of a page, as a browser would build it."""

    def __init__(self, tag: str, attributes: dict[str, str | None], parent: "Node | None") -> None:
        self.tag, self.attributes, self.parent = tag, attributes, parent
        self.content: list[Node | str] = []

    def all(self) -> Iterator["Node"]:
        yield self
        for child in self.content:
            if isinstance(child, Node):
                yield from child.all()

    def find(self, selector: str) -> list["Node"]:
        """Return the elements below of one tag, or of one .class."""
        name = selector.lstrip(".")
        return [
            node
            for node in self.all()
            if (
                name in (node.attributes.get("class") or "").split()
                if selector[0] == "."
                else node.tag == name
            )
        ]

    @property
    def text(self) -> str:
        return "".join(child if isinstance(child, str) else child.text for child in self.content)


class Reader(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.here = self.root = Node("", {}, None)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert len({name for name, _ in attrs}) == len(attrs)
        node = Node(tag, dict(attrs), self.here)
        self.here.content.append(node)
        if tag not in VOID:
            self.here = node

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.here.content.append(Node(tag, dict(attrs), self.here))

    def handle_endtag(self, tag: str) -> None:
        assert self.here.tag == tag, f"</{tag}> closes <{self.here.tag}>"
        self.here = self.here.parent or self.root

    def handle_data(self, data: str) -> None:
        self.here.content.append(data)

    def handle_comment(self, data: str) -> None:
        raise AssertionError(f"a comment: {data}")


def read(path: Path) -> Node:
    reader = Reader()
    reader.feed(path.read_text("utf-8"))
    reader.close()
    assert reader.here is reader.root
    return reader.root


@dataclasses.dataclass(frozen=True)
class FixedExplainer:
    """An explainer of one picture and one map, which stand for the query and for the case."""

    side: EvidenceMap
    picture: npt.NDArray[np.uint8]
    score: float

    def query_picture(self, image: object) -> npt.NDArray[np.uint8]:
        return self.picture

    def model_input(self) -> npt.NDArray[np.uint8]:
        return self.picture

    def explain(self, hit: Hit, image: object, folder: object, with_case: bool) -> tuple[Evidence, object]:
        evidence = Evidence(
            case_id=hit.case_id, score=self.score, parts=dict.fromkeys(COSINES, self.score / 6),
            query=self.side, case=self.side, residual=0.0, matching_criteria={}, conflicting_criteria={},
        )  # fmt: skip
        return evidence, self.picture


def save_page(
    results: Results,
    path: Path,
    cells: npt.NDArray[np.float64],
    picture: npt.NDArray[np.uint8] | None = None,
    box: tuple[float, float, float, float] = (0, 0, 60, 60),
    score: float = 1.0,
    **facts: object,
) -> None:
    """Save the page of one hit, without concepts, each of whose six maps is `cells`."""
    picture = np.zeros((60, 60, 3), np.uint8) if picture is None else picture
    side = EvidenceMap(maps=dict.fromkeys(COSINES, cells), baseline={}, box=box)
    explainer = FixedExplainer(side, picture, score)
    hit = dataclasses.replace(results[0], concepts={}, concept_similarity=None, score=score, **facts)
    dataclasses.replace(results, hits=(hit,), gamma=0.0, explainer=explainer).to_html(path)


def numbers(nodes: list[Node]) -> list[Decimal]:
    return [Decimal(node.text) for node in nodes if node.text]


@pytest.fixture(scope="module")
def report(
    bundle: Path, archive: Path, cases: list[Case], data: Path, tmp_path_factory: pytest.TempPathFactory
):
    """The results of a query while its Searcher is open, and their page."""
    with Searcher(bundle, archive) as searcher:
        results = searcher.query(
            cases[50].image, f"{WORDS}, 黒い", k=5, where={"group": ["mel", "nevus", "bkl"]},
            exclude=[cases[0].case_id],
        )  # fmt: skip
        path = tmp_path_factory.mktemp("report") / "page.html"
        results.to_html(path, image_folder=data / "images")
        yield results, path


def test_the_page_shows_the_query_the_hits_and_what_ran(
    report: tuple[Results, Path], cases: list[Case]
) -> None:
    results, path = report
    page = read(path)
    text = " ".join(page.text.split())
    assert [node.tag for node in page.all() if re.fullmatch("h[1-6]", node.tag)] == [
        "h1", "h2", "h2", "h2", *["h3"] * 5, "h2",
    ]  # fmt: skip
    assert page.find("html")[0].attributes["lang"] == "en"
    for fact in (
        results.text, results.time, results.request_id, results.model, __version__, *results.hashes.values(),
        f"{results.runtime} in {results.precision}", "group: mel or nevus or bkl",
        f"Excluded{cases[0].case_id}",
        "a similarity, not a probability", "not for diagnosis by itself", *results.warnings,
        f"beta {results.beta:g}, gamma {results.gamma:g}", f"Cases searched{results.searched}",
    ):  # fmt: skip
        assert fact in text, fact
    assert len(results.warnings) == len(page.find(".warnings")[0].find("li")) == 1
    rows = page.find(".list")[0].find("tbody")[0].find("tr")
    for hit, row, article in zip(results, rows, page.find(".hit"), strict=True):
        for fact in (hit.case_id, hit.diagnosis, hit.group, hit.confirmed_by, f"{hit.score:.4f}"):
            assert fact in row.text and fact in article.text
        for name, value in hit.attributes.items():
            assert name.replace("_", " ") in article.text and str(value) in article.text
        for name in COSINES:
            assert f"{hit.cosines[name]:.4f}" in article.text
        evidence = hit.evidence(with_case=False)
        assert len(article.find(".matches")) == len(evidence.matching_criteria)
        assert len(article.find(".conflicts")) == len(evidence.conflicting_criteria)
        pictures = [node for node in article.find("svg") if node.attributes.get("role") == "img"]
        assert len(pictures) == 4 and all(node.attributes["aria-label"] for node in pictures)


def test_the_page_loads_nothing_and_runs_no_script(report: tuple[Results, Path]) -> None:
    _, path = report
    page = read(path)
    policy = next(m for m in page.find("meta") if m.attributes.get("http-equiv"))
    assert policy.attributes["content"] == (
        "default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
    )
    tags = {node.tag for node in page.all()}
    assert not tags & {"script", "link", "iframe", "object", "embed", "form", "img", "base", "foreignobject"}
    for node in page.all():
        assert not any(name.startswith("on") or name == "style" for name in node.attributes)
        for name in node.attributes.keys() & {"href", "src", "xlink:href"}:
            assert re.match(r"data:image/(jpeg|png);base64,|#", str(node.attributes[name]))
    style = "".join(node.text for node in page.find("style"))
    assert "url(" not in style and "@import" not in style
    ids = [node.attributes["id"] for node in page.all() if "id" in node.attributes]
    assert len(set(ids)) == len(ids)
    assert path.stat().st_size < 150_000 * 5


def test_no_text_of_a_query_or_case_becomes_markup(
    bundle: Path, cases: list[Case], data: Path, tmp_path: Path
) -> None:
    """The page of evil words has the same elements and attributes as that of harmless ones."""

    def make_page(word: str, folder: Path) -> Node:
        folder.mkdir()
        described = {"diagnosis": word, "group": word, "confirmed_by": word}
        with Searcher(bundle, folder / "cases.skinret") as searcher:
            attributes = {word: word, "streaks": word, "age": 3}
            searcher.add(
                [
                    Case(f"1 {word}", cases[0].image, attributes=attributes, image_ref=word, **described),
                    Case(
                        f"2 {word}", cases[1].image, attributes=attributes, image_ref="here.jpg", **described
                    ),
                ]
            )
            shutil.copy(cases[1].image, folder / "here.jpg")
            results = searcher.query(
                cases[50].image, f"a {word}", exclude=[word], where={word: word, "age": Range(1, 4)}, k=2
            )
            results = dataclasses.replace(
                results, model=word, runtime=word, precision=word, time=word, request_id=word, timings_ms={},
                warnings=(word,), hashes={word: word},
            )  # fmt: skip
            results.to_html(folder / "page.html", image_folder=folder)
        return read(folder / "page.html")

    evil, good = make_page(EVIL, tmp_path / "evil"), make_page("greebles", tmp_path / "good")
    shapes = [
        [(node.tag, {n: v for n, v in node.attributes.items() if n != "aria-label"}) for node in page.all()]
        for page in (evil, good)
    ]
    pictures = [{v for _, a in shape for v in a.values() if str(v).startswith("data:")} for shape in shapes]
    assert len(pictures[0]) == len(pictures[1])
    without_values = [
        [(tag, {n: v for n, v in a.items() if n not in ("href", "x", "width")}) for tag, a in shape]
        for shape in shapes
    ]
    assert without_values[0] == without_values[1]
    assert evil.find("style")[0].text == good.find("style")[0].text
    assert evil.text.count(EVIL) == good.text.count("greebles") > 20
    holders = [node for node in evil.all() if EVIL in "".join(c for c in node.content if isinstance(c, str))]
    assert {node.tag for node in holders} == {"bdi", "title"}, "each value is isolated from its surroundings"


def test_the_numbers_of_each_hit_add_up_to_its_score(report: tuple[Results, Path]) -> None:
    results, path = report
    for hit, article in zip(results, read(path).find(".hit"), strict=True):
        *parts, score = numbers(article.find(".sum")[0].find("b"))
        assert sum(parts) == score == Decimal(f"{hit.score:.4f}") and len(parts) == 3
        rows = [numbers(row.find("td")) for row in article.find(".visual")[0].find("tbody")[0].find("tr")]
        assert [sum(row[1] for row in rows), sum(row[3] for row in rows)] == parts[:2]
        foot = numbers(article.find(".visual")[0].find("tfoot")[0].find("td"))
        assert [foot[1], foot[3]] == parts[:2]
        table = article.find(".criteria")[0]
        assert sum(numbers([row.find("td")[-1] for row in table.find("tbody")[0].find("tr")])) == parts[2]
        sums = {}
        for layer in article.find(".map-note")[0].find(".layer"):
            name = str(layer.attributes["class"]).split()[1]
            sums[name] = Decimal(re.search(r"(-?\d\.\d{4})\.", layer.find("b")[0].text)[1])
        assert sums["map-0"] == score
        for caption in article.find("figcaption")[1:]:
            for layer in caption.find(".layer"):
                adds, takes, *baseline = map(Decimal, re.findall(r"-?\d\.\d{4}", layer.text))
                assert adds - takes + sum(baseline) == sums[str(layer.attributes["class"]).split()[1]]


@given(st.lists(st.floats(-1, 1), min_size=1, max_size=12))
def test_rounded_parts_add_up_and_stay_close(parts: list[float]) -> None:
    total = round(sum(parts) * 10_000)
    rounded = _round(parts, total)
    assert sum(rounded) == total
    assert all(abs(units - part * 10_000) <= 1 for units, part in zip(rounded, parts, strict=True))
    bar = _bar(parts)
    assert all(start >= -1e-9 and length >= 0 for start, length in bar["pieces"])


def test_pictures_of_the_page_hold_no_metadata(
    searcher: Searcher, cases: list[Case], data: Path, tmp_path: Path
) -> None:
    exif = Image.Exif()
    exif[0x010E] = "Jane Doe, born 1961"
    with Image.open(str(cases[50].image)) as picture:
        picture.save(tmp_path / "q.jpg", exif=exif, comment=b"Jane Doe", icc_profile=None)
    searcher.query(tmp_path / "q.jpg", k=2).to_html(tmp_path / "page.html", image_folder=data / "images")
    kinds = set()
    for url in re.findall(r'"data:image/\w+;base64,([^"]+)"', (tmp_path / "page.html").read_text("utf-8")):
        content = base64.b64decode(url)
        assert b"Jane" not in content
        with Image.open(io.BytesIO(content)) as image:
            kinds.add(image.format)
            assert not image.getexif() and image.info.keys() <= {
                "jfif", "jfif_version", "jfif_unit", "jfif_density",
            }  # fmt: skip
            assert max(image.size) <= 480
    assert kinds == {"JPEG", "PNG"}


def test_the_page_says_why_a_picture_is_missing(
    searcher: Searcher, cases: list[Case], data: Path, tmp_path: Path
) -> None:
    results = searcher.query(cases[50].image, WORDS, k=2)
    other = tmp_path / results[0].image_ref
    other.parent.mkdir(parents=True)
    shutil.copy(str(cases[50].image), other)
    without_picture = results.to_html(tmp_path / "page.html", image_folder=tmp_path)
    assert [line.partition(":")[0] for line in without_picture] == [
        f"case {hit.case_id!r}" for hit in results
    ]
    first, second = read(tmp_path / "page.html").find(".hit")
    assert "another picture than the one that was indexed [evidence-image]" in first.text
    assert "its file does not exist [image-missing]" in second.text
    for article in (first, second):
        assert not article.find(".without-map") and len(article.find("figure")) == 1
        assert article.find(".sum") and article.find(".criteria")
        assert str(tmp_path) not in article.text, "the page must not tell where the server keeps its pictures"


def test_the_square_that_the_model_saw_replaces_a_picture_without_a_path(
    searcher: Searcher, cases: list[Case], data: Path, tmp_path: Path
) -> None:
    with Image.open(str(cases[50].image)) as picture:
        pixels = np.asarray(picture)
    results = searcher.query(pixels, k=1)
    results.to_html(tmp_path / "square.html", image_folder=data / "images")
    results.to_html(tmp_path / "whole.html", image=pixels, image_folder=data / "images")
    square, whole = read(tmp_path / "square.html"), read(tmp_path / "whole.html")
    assert "The part of the picture that the model saw" in square.text and not square.find(".query")[0].find(
        ".box"
    )
    assert square.find(".query")[0].find(".photo")[0].attributes["viewbox"] == "0 0 64 64"
    assert whole.find(".query")[0].find(".photo")[0].attributes["viewbox"] == "0 0 120 80"
    assert (
        whole.find(".box")[0].attributes.items() >= {"x": "20.0", "width": "80.0", "height": "80.0"}.items()
    )
    with pytest.raises(InputError) as caught:
        results.to_html(tmp_path / "other.html", image=cases[51].image)
    assert caught.value.code == "evidence-image" and not (tmp_path / "other.html").exists()


def test_a_path_that_cannot_be_written_is_an_error_and_leaves_no_file(
    report: tuple[Results, Path], tmp_path: Path
) -> None:
    results, _ = report
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    for path in (tmp_path / "file" / "page.html", tmp_path / "folder", tmp_path / "a\0b"):
        with pytest.raises(InputError) as caught:
            results.to_html(path)
        assert caught.value.code == "report-path"
    assert {path.name for path in tmp_path.iterdir()} == {"file", "folder"}


def test_without_jinja2_the_error_names_the_extra(
    report: tuple[Results, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "jinja2", None)
    with pytest.raises(InputError, match=r'pip install "skinret-infer\[report\]"') as caught:
        report[0].to_html(tmp_path / "page.html")
    assert caught.value.code == "extra-missing"


def test_the_same_results_give_the_same_bytes(
    report: tuple[Results, Path], data: Path, tmp_path: Path
) -> None:
    results, path = report
    results.to_html(tmp_path / "again.html", image_folder=data / "images")
    assert (tmp_path / "again.html").read_bytes() == path.read_bytes()


def test_results_that_lost_their_searcher_have_no_page(
    bundle: Path, archive: Path, cases: list[Case], tmp_path: Path
) -> None:
    with Searcher(bundle, archive) as searcher:
        results = searcher.query(cases[50].image, k=1)
    with pytest.raises(ArchiveError):
        results.to_html(tmp_path / "page.html")
    with pytest.raises(InputError) as caught:
        pickle.loads(pickle.dumps(results)).to_html(tmp_path / "page.html")  # noqa: S301
    assert caught.value.code == "evidence-gone" and not list(tmp_path.iterdir())


def test_all_hits_are_in_the_list_and_the_first_twenty_have_evidence(
    searcher: Searcher, cases: list[Case], data: Path, tmp_path: Path
) -> None:
    results = searcher.query(cases[50].image, k=100, exclude=[f"not there {n}" for n in range(30)])
    results.to_html(tmp_path / "page.html", image_folder=data / "images")
    page = read(tmp_path / "page.html")
    text = " ".join(page.text.split())
    assert len(page.find(".list")[0].find("tbody")[0].find("tr")) == len(results) == 40
    assert len(page.find(".hit")) == 20 and "The first 20 follow with pictures and evidence" in text
    assert "40, of at most 100" in text and "No words: the image alone." in text
    assert "not there 19, and 10 more" in text and "not there 20" not in text


def test_a_page_without_hits_says_so(searcher: Searcher, cases: list[Case], tmp_path: Path) -> None:
    searcher.query(cases[50].image, where={"group": "none such"}).to_html(tmp_path / "page.html")
    page = read(tmp_path / "page.html")
    assert "No case was found" in page.text and not page.find(".hit") and page.find(".runtime")


def test_a_score_without_concepts_has_two_terms(report: tuple[Results, Path], tmp_path: Path) -> None:
    attributes = {"streaks": "absent", "stained": True, "age": 61}
    save_page(report[0], tmp_path / "page.html", np.full((8, 8), 1 / 384), attributes=attributes)
    page = read(tmp_path / "page.html")
    *parts, score = numbers(page.find(".sum")[0].find("b"))
    assert len(parts) == 2 and sum(parts) == score == 1
    assert "greement" not in page.find("body")[0].text
    assert len(page.find("input")) == 8, "none, everything, and the six"
    assert "streaks: absent; stained: yes; age: 61" in page.find(".rest")[0].text


@pytest.mark.parametrize("score", [1.0, 0.0, -0.25])
def test_the_page_shows_what_takes_away_and_no_shares_of_a_score_below_zero(
    score: float, report: tuple[Results, Path], tmp_path: Path
) -> None:
    cells = np.array([[-0.5, 0.25], [0.125, 0.125 + score / 6]])
    save_page(report[0], tmp_path / "page.html", cells, score=score)
    page = read(tmp_path / "page.html")
    assert [Decimal(b.text) for b in page.find(".sum")[0].find("b")][-1] == Decimal(f"{score:.4f}")
    assert "takes away 3.0000" in page.find("figcaption")[2].text
    assert ("% of the score" in page.find(".map-note")[0].text) == (score > 0)
    (url,) = {str(n.attributes["href"]) for n in page.find(".map-0") if n.tag == "image"}
    with Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2]))) as image:
        drawn = np.asarray(image.convert("RGBA")).astype(int)
    assert drawn[0, 0].tolist() == [230, 159, 0, 191], "orange, and the strongest cell in full colour"
    assert drawn[0, 1].tolist() == [0, 114, 178, 96], "blue, of half its size"


# The tests below render the page in a browser.

Spot = tuple[int, int, int, int]
GREEN, BLUE = (0, 255, 0), (50, 136, 184)  # a lesion; the full colour of "adds" over that lesion in grey


@pytest.fixture(scope="module")
def browser() -> str:
    names = ("chromium", "chromium-browser", "google-chrome")
    program = os.environ.get("SKINRET_BROWSER") or next(filter(None, map(shutil.which, names)), None)
    if not program:
        message = "no browser: install Debian's chromium, or name one by SKINRET_BROWSER"
        if os.environ.get("SKINRET_BROWSER_REQUIRED"):
            pytest.fail(message)
        pytest.skip(message)
    return str(program)


def browse(browser: str, page: Path, *options: str, width: int = 1280, height: int = 1600) -> str:
    """Open a page offline and return the browser's output; a message on its console fails the test."""
    done = subprocess.run(
        [
            browser, "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking",
            "--no-first-run", "--hide-scrollbars", "--force-device-scale-factor=1",
            f"--user-data-dir={page.parent / 'profile'}", f"--window-size={width},{height}",
            "--enable-logging=stderr", *options, page.as_uri(),
        ],
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    assert "CONSOLE" not in done.stderr, done.stderr
    return done.stdout


def choose_map(path: Path, layer: str) -> Path:
    """Return a copy of a page with a chosen map."""
    page = path.read_text("utf-8")
    assert page.count(" checked>") == 1 and page.count(f'id="{layer}">') == 1
    copy = path.with_name(f"{path.stem}-{layer}.html")
    page = page.replace(" checked>", ">").replace(f'id="{layer}">', f'id="{layer}" checked>')
    copy.write_text(page, "utf-8")
    return copy


def screenshot(browser: str, page: Path, **size: int) -> npt.NDArray[np.int64]:
    browse(browser, page, f"--screenshot={page.with_suffix('.png')}", **size)
    with Image.open(page.with_suffix(".png")) as image:
        return np.asarray(image.convert("RGB")).astype(np.int64)


def spots(screen: npt.NDArray[np.int64], colour: tuple[int, int, int]) -> list[Spot]:
    """Return the areas of a colour, of more than 20 pixels a side: left, top, right, bottom."""
    mask = np.abs(screen - colour).max(2) < 60
    areas = [
        (left, top + above, right, top + below)
        for top, bottom in runs(mask.any(1))
        for left, right in runs(mask[top:bottom].any(0))
        for above, below in runs(mask[top:bottom, left:right].any(1))
    ]
    return [spot for spot in areas if min(spot[2] - spot[0], spot[3] - spot[1]) > 20]


def runs(line: npt.NDArray[np.bool_]) -> list[tuple[int, int]]:
    """Return the start and end of each run of True."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], line, [False]]).astype(int)))
    return [(int(a), int(b)) for a, b in edges.reshape(-1, 2)]


@pytest.mark.parametrize(
    ("size", "box", "grid", "cell"),
    [
        ((600, 400), (100, 0, 500, 400), (8, 8), (2, 5)),  # a central square
        ((400, 700), (0, 150, 400, 550), (7, 7), (6, 0)),  # upright, cells of a fractional number of pixels
        ((900, 300), (0, 0, 900, 300), (4, 6), (3, 5)),  # squashed: the whole picture
    ],
)
def test_the_map_lies_on_the_lesion_to_the_pixel(
    size: tuple[int, int], box: Spot, grid: tuple[int, int], cell: tuple[int, int],
    browser: str, report: tuple[Results, Path], tmp_path: Path,
) -> None:  # fmt: skip
    (width, height), (rows, columns) = size, grid
    picture = np.full((height, width, 3), 120, np.uint8)
    high, wide = (box[3] - box[1]) / rows, (box[2] - box[0]) / columns
    top, left = box[1] + cell[0] * high, box[0] + cell[1] * wide
    picture[round(top) : round(top + high), round(left) : round(left + wide)] = GREEN
    hot = np.zeros(grid)
    hot[cell] = 1 / 6
    path = tmp_path / "page.html"
    save_page(report[0], path, hot, picture, box)
    lesions = spots(screenshot(browser, path), GREEN)
    assert len(lesions) == 3, "the query at the top of the page, then the query and the case"
    cells = spots(screenshot(browser, choose_map(path, "map-0")), BLUE)
    assert len(cells) == 2
    assert np.abs(np.subtract(cells, lesions[1:])).max() <= 1


@pytest.mark.parametrize("width", [1280, 760, 400])
def test_nothing_is_wider_than_the_page(
    width: int, browser: str, report: tuple[Results, Path], data: Path, tmp_path: Path
) -> None:
    results = report[0]
    odd = "W" * 150 + "\u202e" + "gnol yrev " * 20 + "\u0645\u0644\u0627\u0646\u0648\u0645\u0627"
    results = dataclasses.replace(
        results, text=odd, model=odd, hashes={"archive": odd}, warnings=(odd,), where={odd: [odd]},
        hits=tuple(
            dataclasses.replace(hit, diagnosis=odd, confirmed_by=odd, group=odd, attributes={odd: odd})
            for hit in results
        ),
    )  # fmt: skip
    for path, page_results in ((tmp_path / "odd.html", results), (tmp_path / "page.html", report[0])):
        page_results.to_html(path, image_folder=data / "images")
        page = choose_map(path, "map-0").read_text("utf-8")
        page = re.sub(r"<meta http-equiv[^>]+>", f"<style>html {{ width: {width}px }}</style>", page)
        page += """<script>
            const wide = [...document.querySelectorAll("body *")].filter(
                e => e.getBoundingClientRect().right > WIDTH
                     || e.tagName == "TABLE" && e.offsetWidth > e.parentElement.clientWidth
            ).map(e => e.outerHTML.slice(0, 99));
            document.body.textContent = `wide: ${wide}`;
            </script>""".replace("WIDTH", str(width))
        path.write_text(page, "utf-8")
        body = re.search(r"<body>(.*)</body>", browse(browser, path, "--dump-dom", width=width), re.DOTALL)
        assert body and body[1].strip() == "wide:"


def test_a_printed_page_splits_no_hit_and_shows_its_map(
    browser: str, report: tuple[Results, Path], tmp_path: Path
) -> None:
    pdfium = pytest.importorskip("pypdfium2")
    results, path = report
    page = Path(shutil.copy(path, tmp_path))
    browse(browser, page, f"--print-to-pdf={tmp_path / 'page.pdf'}", "--no-pdf-header-footer")
    with pdfium.PdfDocument(tmp_path / "page.pdf") as paper:
        texts = [" ".join(sheet.get_textpage().get_text_bounded().split()) for sheet in paper]
        sheets = [np.asarray(sheet.render(scale=1).to_pil().convert("RGB")).astype(int) for sheet in paper]
    assert 3 <= len(texts) <= 5
    assert WORDS in texts[0] and "The cases, best first" in texts[0] and "What ran" in texts[-1]
    assert not any("none" in text.split() for text in texts), "the switches are not printed"
    for n, text in enumerate(texts, 1):
        assert f"{n} / {len(texts)}" in text and "not for diagnosis by itself" in text
    for hit in results:
        (sheet_number,) = [
            n for n, text in enumerate(texts) if f"{hit.rank}. {hit.diagnosis} Case {hit.case_id}" in text
        ]
        assert "Map of everything" in texts[sheet_number]
    for text, sheet in zip(texts, sheets, strict=True):
        hits = text.count("Case, without map")
        assert hits == text.count("Map of everything") == text.count("= score")
        blue = (sheet[..., 2] - sheet[..., 0] > 60).sum()
        assert not hits or blue > 300, "maps are printed even if none is chosen on the screen"
