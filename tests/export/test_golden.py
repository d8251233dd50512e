"""Golden numbers: what a picture and a text become, in figures that no release of a library may move unseen.

Picture, vocabulary and weights follow from arithmetic alone. If a release of a library moves a number, find
in its notes what it changed. If the new values are right, such as those of a mended decoder, take them from
the message of the failed test, and say in CHANGELOG.md that archives must be indexed again, for the cases in
them have the old ones. If they are not, exclude that release in pyproject.toml.
"""

import base64
import io
import math
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import CHECKLIST, tiny_config
from PIL import Image
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

from skinret_export import export
from skinret_export.export import export_bundle
from skinret_infer import Searcher
from skinret_infer.imaging.decode import decode
from skinret_infer.imaging.recipe import ImageRecipe, Pixels, preprocess
from skinret_infer.text import TextEncoderInput, TextRecipe
from skinret_training.checkpoint import Checkpoint
from skinret_training.model import Skinret

# drawn(40, 48), written by libjpeg-turbo 3 at quality 50 with chroma of half the resolution
JPEG = base64.b64decode("""
/9j/4AAQSkZJRgABAQAAAQABAAD/2wBDABALDA4MChAODQ4SERATGCgaGBYWGDEjJR0oOjM9PDkzODdASFxOQERXRTc4UG1RV19iZ2hn
Pk1xeXBkeFxlZ2P/2wBDARESEhgVGC8aGi9jQjhCY2NjY2NjY2NjY2NjY2NjY2NjY2NjY2NjY2NjY2NjY2NjY2NjY2NjY2NjY2NjY2Nj
Y2P/wAARCAAoADADASIAAhEBAxEB/8QAGgAAAQUBAAAAAAAAAAAAAAAAAAECAwUGBP/EACYQAAICAQMEAgIDAAAAAAAAAAECABEDEiEx
BAVBURMiYXGRodH/xAAYAQADAQEAAAAAAAAAAAAAAAABAwQFAv/EABkRAAMBAQEAAAAAAAAAAAAAAAABAiERMf/aAAwDAQACEQMRAD8A
0GMHVweJKSNBFi64iXp3bYTj6zqfjf6/zIZ1mi8OrHtd7R7ZEZCAwJ9XM3m7ocZOtqviQYe4O2YkHYknmVTDei3a8NXjB08HmOykMtA3
v4lf0PcFKhchomd2NTfHiNlb1h70YzDIKH73lN3EOpZjwLMuUSjzOTr8PyBlC3Yq5DD3iOqWGM6tzlP1sV7hg1YwGPAHiWr9ra2/yMTo
2YnHo/Fy+aXiJXL71k/Qs2VlZdhxvNUp0IC3qtpU9s7doQFj59S01fINNVULfXg6U0tEc6BY/uNUayGPMITNjwaGRVWvqDfuJj6fFq1a
dzvCEonwBKzHGaUCoqIAfMIR8+AP/9k=
""")
PLACES = (0, 0), (3, 17), (16, 16), (28, 9)  # row and column of the pixels below
VOCABULARY = [
    *("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", ",", "-", "absent", "atypical", "au", "blue", "cafe"),
    *("dots", "irregular", "lait", "network", "pattern", "pigment", "regular", "streaks", "veil", "whit"),
    *("##e", "##ish", "##s"),
]
FINDINGS = "atypical pigment network, irregular streaks, irregular dots and globules, blue-whitish veil"
TEXT = "ATYPICAL pigment networks, caf\u00e9-au-lait pattern, blue-whitish glow"

SWIN: dict[str, Any] = {}  # and words that attend: what tiny_config builds by itself
RESNET = {  # and words that shift: it is exported in half the time
    "vision": {
        "model_type": "resnet",
        "embedding_size": 16,
        "hidden_sizes": [16, 24, 32],
        "depths": [1, 1, 1],
        "layer_type": "basic",
        "out_features": ["stage1", "stage2", "stage3"],
    },
    "fusion": "additive",
}
# Of a descriptor the first number of each part: e^L, e^M, e^H, g^L, g^M, g^H, then p^c of each concept
SWIN_ALONE = [0.37081, -0.12250, -0.02121, 0.39288, -0.12091, -0.01068, 0.92668, 0.00016]
SWIN_COMPOSED = [0.28839, -0.07445, -0.09817, 0.23142, -0.03285, -0.08978, 0.00000, 0.00001]
RESNET_ALONE = [0.29940, 0.08572, 0.32377, 0.21255, 0.08152, 0.36714, 0.36147, 0.07144]
RESNET_COMPOSED = [0.05273, 0.09078, 0.29099, -0.02113, 0.08829, 0.32915, 0.99826, 0.98075]
RESNET_SEARCHED = [0.04962, 0.08319, 0.29592, -0.02331, 0.07972, 0.33481, 0.99870, 0.0]  # streaks are stated
CLOSE = 1e-4  # runtimes differ from PyTorch by 1e-6 here


def drawn(height: int, width: int) -> Pixels:
    """Return a dark disc with a coarse net on skin, of whole numbers throughout."""
    y, x = np.mgrid[:height, :width]
    far = ((x - width // 2) * height // width) ** 2 + (y - height // 2) ** 2
    skin = np.minimum(255, 60 + 1500 * far // height**2)
    net = 24 * ((x // 5 + y // 7) % 3)
    rgb = skin + net - 20, 2 * skin // 3 + net // 2, skin // 2 + 96 * x // width
    return np.clip(np.stack(rgb, -1), 0, 255).astype(np.uint8)


def png(pixels: Pixels) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def weights(name: str, like: torch.Tensor) -> torch.Tensor:
    """Return a parameter whose i-th number is sin((i^2 + c) mod 1000003), scaled; c: the CRC-32 of its name.

    Squares, for sin(i + c) would make every matrix one of rank two.
    """
    i = np.arange(like.numel(), dtype=np.int64)
    wave = np.sin((i * i + zlib.crc32(name.encode())) % 1_000_003).reshape(like.shape)
    if like.ndim == 1:  # a bias, or the factor of a norm
        return torch.from_numpy(0.1 * wave + name.endswith("weight")).float()
    return torch.from_numpy(2 / math.sqrt(like[0].numel()) * wave).float()


def golden(**options: Any) -> Checkpoint:
    """Return a tiny model with weights by that formula, and a tokenizer of the words above."""
    words = Tokenizer(models.WordPiece({word: n for n, word in enumerate(VOCABULARY)}, unk_token="[UNK]"))
    words.normalizer = normalizers.BertNormalizer()
    words.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    words.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    model = Skinret(tiny_config(**options))
    of_formula = {
        name: weights(name.replace("backbone.model.", "backbone."), parameter)  # as it was called at first
        for name, parameter in model.named_parameters()
    }
    return Checkpoint(
        config=model.config, image=ImageRecipe(size=64), text=TextRecipe(), checklist=CHECKLIST,
        tokenizer=words.to_str(), state=model.state_dict() | of_formula, name="golden", version="1",
    )  # fmt: skip


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("golden")
    golden(**RESNET).save(folder / "ckpt.pt")
    probe = export.make_probe
    with pytest.MonkeyPatch.context() as patch:  # proven on 16 images, not 64, as conftest's full_bundle is
        patch.setattr(export, "make_probe", lambda loaded, images: probe(loaded, images, count=16))
        return export_bundle(folder / "ckpt.pt", folder / "bundle", check_precision=False).path


@pytest.mark.parametrize(
    ("recipe", "expected"),
    [
        (ImageRecipe(size=32), [[244, 181, 141], [255, 193, 177], [41, 41, 78], [248, 178, 160]]),
        (
            ImageRecipe(size=32, fit="squash", resample="bilinear"),
            [[235, 170, 128], [248, 185, 178], [46, 43, 78], [248, 184, 154]],
        ),
    ],
    ids=["crop", "squash"],
)
def test_a_png_becomes_these_pixels(recipe: ImageRecipe, expected: list[list[int]]) -> None:
    prepared = preprocess(decode(png(drawn(72, 100))), recipe)
    assert [prepared[place].tolist() for place in PLACES] == expected


def test_a_jpeg_becomes_these_pixels_give_or_take_one() -> None:
    prepared = preprocess(decode(JPEG), ImageRecipe(size=32))
    found = np.array([prepared[place] for place in PLACES], int)
    expected = [[237, 174, 133], [255, 189, 178], [49, 44, 74], [253, 188, 159]]
    assert np.abs(found - expected).max() <= 1, found.tolist()


def test_a_text_becomes_these_tokens() -> None:
    ids, mask, (warnings,) = TextEncoderInput(golden().tokenizer, TextRecipe())([TEXT])
    expected = [2, 8, 17, 15, 24, 5, 11, 6, 9, 6, 14, 16, 5, 10, 6, 21, 23, 1, 3]
    assert ids.shape == (1, 64)
    assert ids[0][mask[0] == 1].tolist() == expected
    assert mask[0].tolist() == [1] * len(expected) + [0] * (64 - len(expected))
    assert warnings == ["words that the model does not know: glow"]


@pytest.mark.parametrize(
    ("options", "image_alone", "image_and_words"),
    [(SWIN, SWIN_ALONE, SWIN_COMPOSED), (RESNET, RESNET_ALONE, RESNET_COMPOSED)],
    ids=["swin", "resnet"],
)
def test_pytorch_gives_these_descriptors(
    options: dict[str, Any], image_alone: list[float], image_and_words: list[float]
) -> None:
    checkpoint = golden(**options)
    model = checkpoint.model()
    pixels = torch.from_numpy(preprocess(drawn(72, 100), checkpoint.image).copy())[None]
    ids, mask, _ = TextEncoderInput(checkpoint.tokenizer, checkpoint.text)([TEXT])
    with torch.inference_mode():
        alone = model(pixels)[0].numpy()
        composed = model(pixels, torch.from_numpy(ids), torch.from_numpy(mask))[0].numpy()
    starts = model.similarity_head.layout.starts
    assert alone[starts] == pytest.approx(image_alone, abs=CLOSE)
    assert composed[starts] == pytest.approx(image_and_words, abs=CLOSE)


def test_a_search_in_fp32_gives_these_descriptors(exported: Path, tmp_path: Path) -> None:
    file = png(drawn(72, 100))
    with Searcher(exported, tmp_path / "a.skinret", runtime="onnxruntime-cpu", precision="fp32") as searcher:
        alone, composed = searcher.embed(file), searcher.embed(file, FINDINGS)
        starts = searcher.manifest.layout.starts
    assert alone[starts] == pytest.approx(RESNET_ALONE, abs=CLOSE)
    assert composed[starts] == pytest.approx(RESNET_SEARCHED, abs=CLOSE)
