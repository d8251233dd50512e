"""The report of the measurements: a table for terminal and README, JSON with the environment, a picture."""

import dataclasses
import datetime
import importlib.metadata
import json
import os
import platform
import statistics
import textwrap
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
from PIL import Image, ImageDraw, ImageFont

from skinret_infer._files import atomic_write

GRAPHS, QUERY, INDEX, COLD, MEMORY = SECTIONS = (
    "Each graph",
    "A composed query, from a 768 x 512 JPEG to the ten best of 10,000 cases",
    "Indexing JPEG files of 768 x 512",
    "Cold start: a new process, its files in the page cache, to its first answer",
    "Memory of a serving process, after 20 queries",
)
TORCH, NUMPY = BASES = ("PyTorch eager", "numpy fp32")
THIRD_PARTY = (TORCH, "torch.compile", "PyTorch bf16", NUMPY, "faiss Flat", "faiss SQ8", "faiss IVF")
_FLAGS = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "avx_vnni", "amx_tile", "amx_bf16", "amx_int8")
_PACKAGES = (
    "skinret-infer", "numpy", "pillow", "tokenizers", "torch", "transformers", "onnx", "onnxscript",
    "onnxruntime", "onnxruntime-gpu", "openvino", "tensorrt", "tensorrt-rtx-cu13", "faiss-cpu",
)  # fmt: skip
_INK, _FAINT = "#1a1a1a", "#666666"
_GREYS = {
    "torch.compile": "#c4c4c4", "PyTorch bf16": "#8c8c8c",
    "faiss Flat": "#d4d4d4", "faiss SQ8": "#b0b0b0", "faiss IVF": "#8c8c8c",
}  # fmt: skip
_PALETTE = ("#E69F00", "#56B4E9", "#0072B2", "#009E73", "#CC79A7", "#D55E00")  # Okabe and Ito's
_COLUMN, _LABEL, _UNIT, _TITLE, _BAR = 720, 170, 320, 26, 20  # pixels; _UNIT: length of ratio 1
_QUIET = 0.05  # share of the CPUs that other processes may take
_MAX_RATIO = 1.5  # where longer bars are cut off


@dataclass(frozen=True)
class Row:
    """One measure of every competitor.

    samples : by competitor, the result of each round, or the reason why there is none.
    goal : the required ratio to the baseline; with `absolute`, the required median.
    """

    section: str
    name: str
    unit: str
    samples: dict[str, list[float] | str]
    goal: float | None = None
    absolute: bool = False
    more_is_better: bool = False
    ratios: bool = True  # show ratios
    drawn: bool = True  # draw it in the picture
    label: str = ""  # in the picture, instead of the name
    place: int = 0  # order in its section
    detail: dict[str, Any] = field(default_factory=dict)  # only in the JSON
    attention: str = ""  # the faster of PyTorch eager's two attentions

    def median(self, competitor: str) -> float | None:
        values = self.samples.get(competitor)
        return statistics.median(values) if isinstance(values, list) else None

    @property
    def baseline(self) -> str:
        """PyTorch eager, or numpy; without either, the first competitor in fp32, or the first."""
        measured = [c for c in self.samples if self.median(c) is not None]
        bases = [c for c in measured if c in BASES]
        fp32 = [c for c in measured if c.endswith("fp32")]
        return [*bases, *fp32, *measured][0]

    def ratio(self, competitor: str) -> float | None:
        value, base = self.median(competitor), self.median(self.baseline)
        return value / base if value is not None and base else None

    def best(self, refused: dict[str, str]) -> str | None:
        """Return the best of skinret's competitors, without the refused ones."""
        ours = {
            c: m
            for c in self.samples
            if c not in (*THIRD_PARTY, *refused) and (m := self.median(c)) is not None
        }
        return (max if self.more_is_better else min)(ours, key=lambda c: ours[c]) if ours else None

    def goal_text(self, refused: dict[str, str]) -> str:
        """Return the goal with a mark that says if the best reaches it; "" without a goal."""
        best = self.best(refused)
        if self.goal is None or best is None or not (self.absolute or self.baseline in BASES):
            return ""
        value = self.median(best) if self.absolute else self.ratio(best)
        assert value is not None
        met = value >= self.goal if self.more_is_better else value <= self.goal
        sign, unit = "≥" if self.more_is_better else "≤", f" {self.unit}" if self.absolute else ""
        return f"{sign} {self.goal:g}{unit} {'✓' if met else '✗'}"


@dataclass
class Report:
    """All rows, by section.

    left : the sections in the left column of the picture.
    """

    threads: int
    bundle: str = ""
    name: str = "latency"
    title: str = "Time and memory beside PyTorch eager fp32"
    sections: Sequence[str] = SECTIONS
    left: Collection[str] = (GRAPHS,)
    rows: list[Row] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    refused: dict[str, str] = field(default_factory=dict)
    began: float = field(default_factory=time.monotonic)
    _busy: float = field(default_factory=lambda: _busy_seconds())

    def add(self, section: str, name: str, unit: str, samples: dict[str, Any], **options: Any) -> None:
        """Add a row. PyTorch eager gets the samples of the faster of its two attentions."""
        samples, attention = dict(samples), ""
        if fused := samples.pop("PyTorch sdpa", None):
            plain, choose = samples["PyTorch eager"], max if options.get("more_is_better") else min
            samples["PyTorch eager"] = choose(plain, fused, key=statistics.median)
            attention = "fused" if samples["PyTorch eager"] is fused else "written out"
        self.rows.append(Row(section, name, unit, samples, attention=attention, **options))
        self.rows.sort(key=lambda row: (self.sections.index(row.section), row.place))

    def note(self, text: str) -> None:
        if text not in self.notes:
            self.notes.append(text)

    def refuse(self, competitor: str, reason: str) -> None:
        """Mark a competitor that is measured although it may not run."""
        self.refused[competitor] = reason
        self.note(f"* {competitor} may not run with this bundle: {reason}.")

    @property
    def competitors(self) -> list[str]:
        names = list(dict.fromkeys(name for row in self.rows for name in row.samples))
        return [c for c in THIRD_PARTY if c in names] + [c for c in names if c not in THIRD_PARTY]

    def others(self) -> float:
        """Return the share of the CPUs that other processes have used since the report began."""
        share = (_busy_seconds() - self._busy) / (time.monotonic() - self.began) / (os.cpu_count() or 1)
        return max(share, 0.0)

    def text(self) -> str:
        """Return the table for a terminal."""
        lines = [self._headline(), *textwrap.wrap(self._legend(), 110), ""]
        table = self._table()
        heads = [cell.rpartition(" ") if cell.count(" ") else ("", "", cell) for cell in table.pop(0)[1]]
        table[:0] = [(None, [head for head, _, _ in heads]), (None, [last for _, _, last in heads])]
        widths = [max(map(len, column)) for column in zip(*(r for _, r in table), strict=True)]
        section = None
        for row, cells in table:
            if row and row.section != section:
                section = row.section
                lines.append(f"\n{section}")
            lines.append(
                "  ".join(
                    c.ljust(w) if i == 0 else c.rjust(w)
                    for i, (c, w) in enumerate(zip(cells, widths, strict=True))
                ).rstrip()
            )
        for note in self.notes:
            lines += ["", *textwrap.wrap(note, 110)]
        return "\n".join(lines)

    def markdown(self) -> str:
        """Return the table for a README, the best of skinret in bold."""
        table = self._table(mark="**")
        header = table[0][1]
        lines = [f"| {' | '.join(header)} |", f"|---|{'---:|' * (len(header) - 1)}"]
        section = None
        for row, cells in table[1:]:
            if row and row.section != section:
                section = row.section
                lines.append(f"| *{section}* |{' |' * (len(header) - 1)}")
            lines.append(f"| {' | '.join(cells)} |")
        return (
            "\n".join(
                [*lines, "", f"{self._headline()} {self._legend()}", "", *(f"- {n}" for n in self.notes)]
            )
            + "\n"
        )

    def to_dict(self) -> dict[str, Any]:
        """Return everything, with each sample."""
        rows = []
        for row in self.rows:
            figures = {c: _figures(row, c) for c in row.samples}
            plain = {f.name: getattr(row, f.name) for f in dataclasses.fields(row) if f.name != "samples"}
            rows.append(
                {
                    **plain,
                    "baseline": row.baseline,
                    "goal_text": row.goal_text(self.refused),
                    "competitors": figures,
                }
            )
        return {
            "environment": environment(), "threads": self.threads, "bundle": self.bundle,
            "seconds": round(time.monotonic() - self.began, 1), "others": round(self.others(), 3),
            "notes": self.notes, "refused": self.refused, "rows": rows,
        }  # fmt: skip

    def write(self, folder: Path) -> list[Path]:
        """Write NAME.json, NAME.md and NAME.png; return their paths."""
        paths = [folder / f"{self.name}.{kind}" for kind in ("json", "md", "png")]
        with atomic_write(paths[0]) as temporary:
            temporary.write_text(json.dumps(self.to_dict(), indent=1, ensure_ascii=False) + "\n", "utf-8")
        with atomic_write(paths[1]) as temporary:
            temporary.write_text(self.markdown(), "utf-8")
        with atomic_write(paths[2]) as temporary:
            self.picture().save(temporary, "PNG")
        return paths

    def picture(self) -> Image.Image:
        """Draw the ratios to the baseline as bars; rates are inverted, so that shorter is better."""
        ours = [c for c in self.competitors if c not in THIRD_PARTY]
        colours = _GREYS | {c: _PALETTE[n % len(_PALETTE)] for n, c in enumerate(ours)}
        drawn = [row for row in self.rows if row.drawn and row.median(row.baseline)]
        columns = [[r for r in drawn if (r.section in self.left) is left] for left in (True, False)]
        heights = [sum(_TITLE + _BAR * (len(_compared(r)) + 1) for r in column) for column in columns]
        page = Image.new("RGB", (2 * _COLUMN + 40, max(heights) + 110), "#ffffff")
        pen = ImageDraw.Draw(page)
        big, normal = (ImageFont.load_default(size) for size in (24, 15))
        pen.text((24, 16), f"{self.title} (the line at 1): shorter is better", _INK, big)
        pen.text((24, 50), f"{self._headline()} Grey: other software. Dotted: the goal.", _FAINT, normal)
        for x, column in zip((24, 24 + _COLUMN), columns, strict=True):
            y = 86
            for row in column:
                y = self._draw_row(pen, row, x, y, colours)
        return page

    def _draw_row(self, pen: ImageDraw.ImageDraw, row: Row, x: int, y: int, colours: dict[str, str]) -> int:
        """Draw the bars of a row from (x, y) down; return the y of the next row."""
        bold, normal = (ImageFont.load_default(size) for size in (17, 15))
        base, top = f"{_format(row.median(row.baseline) or 0.0)} {row.unit}", y + _TITLE - 4
        pen.text((x, y), row.label or row.name, _INK, bold)
        pen.text((x + _COLUMN - 40, y + 2), f"1 = {base}", _FAINT, normal, anchor="ra")
        numbers: list[tuple[tuple[int, int], str]] = []
        for competitor in _compared(row):
            y_bar, ratio = y + _TITLE, row.ratio(competitor) or 0.0
            ratio = 1 / ratio if row.more_is_better else ratio
            star = " *" if competitor in self.refused else ""
            pen.text((x + _LABEL - 8, y_bar), competitor + star, _INK, normal, anchor="ra")
            end = x + _LABEL + round(min(ratio, _MAX_RATIO) * _UNIT)
            pen.rectangle((x + _LABEL, y_bar + 1, end, y_bar + _BAR - 4), colours[competitor])
            more = "+" if ratio > _MAX_RATIO else ""
            numbers.append(((end + 6, y_bar), f"{ratio:.2f}{more}"))
            y += _BAR
        y += _TITLE + _BAR
        bottom, at_one = y - _BAR - 2, x + _LABEL + _UNIT
        pen.line((x + _LABEL, top, x + _LABEL, bottom), _FAINT)
        pen.line((at_one, top, at_one, bottom), _INK, 2)
        if row.goal and not row.absolute:
            at = x + _LABEL + round(_UNIT * (1 / row.goal if row.more_is_better else row.goal))
            for dot in range(top, bottom, 6):
                pen.line((at, dot, at, dot + 2), _INK)
        for position, number in numbers:  # on top of the lines
            pen.rectangle(pen.textbbox(position, number, normal), "#ffffff")
            pen.text(position, number, _INK, normal)
        return y

    def _headline(self) -> str:
        env = environment()
        flags = (
            ", ".join(f for f in env["flags"] if f.startswith(("amx", "avx512"))) or "neither AVX-512 nor AMX"
        )
        return f"{env['cpu']} ({flags}), {self.threads} threads, {self.bundle}, {env['date']}."

    def _legend(self) -> str:
        others, base = self.others(), self.rows[0].baseline
        attention = " in fp32, with the faster of transformers' own and PyTorch's fused attention"
        warning = "" if others < _QUIET else ": figures NOT to be quoted"
        return (
            "Medians of rounds in which all take turns. In brackets: the ratio to "
            f"{base}{attention if base == TORCH else ''}. "
            f"Other processes took {others:.0%} of the CPUs meanwhile{warning}."
        )

    def _table(self, mark: str = "") -> list[tuple[Row | None, list[str]]]:
        competitors = self.competitors
        starred = [f"{c}*" if c in self.refused else c for c in competitors]
        table: list[tuple[Row | None, list[str]]] = [(None, ["", *starred, "goal"])]
        for row in self.rows:
            best = row.best(self.refused)
            cells = [self._cell(row, c) for c in competitors]
            cells = [f"{mark}{x}{mark}" if c == best else x for c, x in zip(competitors, cells, strict=True)]
            table.append((row, [f"{row.name}, {row.unit}", *cells, row.goal_text(self.refused)]))
        return table

    @staticmethod
    def _cell(row: Row, competitor: str) -> str:
        value, ratio = row.median(competitor), row.ratio(competitor)
        if value is None:
            reason = row.samples.get(competitor, "")
            return reason if isinstance(reason, str) else ""
        with_ratio = row.ratios and ratio is not None and competitor != row.baseline
        return _format(value) + (f" ({ratio:.2f})" if with_ratio else "")


def _format(value: float) -> str:
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def _compared(row: Row) -> list[str]:
    return [c for c in row.samples if c != row.baseline and row.median(c) is not None]


def _figures(row: Row, competitor: str) -> dict[str, Any]:
    values = row.samples[competitor]
    if isinstance(values, str):
        return {"none": values}
    quartiles = statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else values * 3
    figures = {
        "median": statistics.median(values),
        "q1": quartiles[0],
        "q3": quartiles[2],
        "min": min(values),
        "max": max(values),
    }
    figures["ratio"] = row.ratio(competitor)
    return {
        **{k: round(v, 4) for k, v in figures.items() if v is not None},
        "rounds": len(values),
        "samples": [round(v, 4) for v in values],
    }


def environment() -> dict[str, Any]:
    """Return processor, memory, load, system, versions and date, on which the figures depend."""
    info = _proc("cpuinfo")
    cpu_flags = info.get("flags", "").split()
    return {
        "cpu": info.get("model name") or platform.processor() or platform.machine(),
        "cpu_family_model": f"{info.get('cpu family')}/{info.get('model')}",
        "flags": [flag for flag in _FLAGS if flag in cpu_flags],
        "cores": os.cpu_count(),
        "memory_gb": round(int(_proc("meminfo").get("MemTotal", "0 kB").split()[0]) / 1e6, 1),
        "load": [round(x, 2) for x in os.getloadavg()],
        "system": platform.platform(),
        "python": platform.python_version(),
        "packages": {n: v for n in _PACKAGES if (v := _version(n))},
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
    }  # fmt: skip


def _busy_seconds() -> float:
    """Return the CPU seconds of the machine, without those of this process and its children."""
    machine, me = psutil.cpu_times(), psutil.Process()
    processes = [process.cpu_times() for process in (me, *me.children(recursive=True))]
    ours = sum(t.user + t.system + t.children_user + t.children_system for t in processes)
    return sum(machine) - machine.idle - getattr(machine, "iowait", 0.0) - ours


def _proc(name: str) -> dict[str, str]:
    """Return the fields of a file in /proc; {} without such a file."""
    path = Path("/proc") / name
    lines = path.read_text().splitlines() if path.is_file() else []
    pairs = (line.partition(":") for line in reversed(lines))
    return {key.strip(): value.strip() for key, _, value in pairs}


def _version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None
