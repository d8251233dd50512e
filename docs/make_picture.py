"""Make docs/images/report.png from what `make demo` left: the hits of its first query beside their report page.

Needs chromium. The query is the demo's first: the first held-out melanoma with three findings.
"""

import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image

WIDTH, HEIGHT, GAP = 1000, 1240, 24


def main(demo: Path, target: Path) -> None:
    with tempfile.TemporaryDirectory() as folder:
        shot = Path(folder) / "page.png"
        subprocess.run(
            [
                "chromium", "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars",
                f"--window-size={WIDTH},{HEIGHT}", f"--screenshot={shot}",
                (demo / "report.html").absolute().as_uri(),
            ],
            check=True,
            capture_output=True,
        )  # fmt: skip
        page = Image.open(shot).convert("RGB")
    row = Image.open(demo / "results.png").convert("RGB")
    row = row.crop((0, 0, row.width, 282))
    row = row.resize((WIDTH, round(row.height * WIDTH / row.width)), Image.Resampling.LANCZOS)
    both = Image.new("RGB", (WIDTH, row.height + GAP + HEIGHT), "white")
    both.paste(row, (0, 0))
    both.paste(page, (0, row.height + GAP))
    target.parent.mkdir(exist_ok=True)
    both.quantize(128, Image.Quantize.MEDIANCUT).save(target, optimize=True)


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "demo"), Path(__file__).parent / "images" / "report.png")
