"""What a model learns to call unlike its training pictures, and how its limits are set."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import SWIN, tiny_config
from PIL import Image

from skinret_infer import InputError
from skinret_training.model import Skinret, apply_dihedral
from skinret_training.typicality import MIN_PICTURES, Typicality, read_others

D = 24
NONE = torch.empty(0, D)


def drawn(count: int, seed: int) -> torch.Tensor:
    """Return low maps (count, 1, 1, D) of pictures of one kind: most of their variance in few directions."""
    rng = np.random.default_rng(seed)
    mixing = np.random.default_rng(99).standard_normal((D, D)) * np.geomspace(1, 0.03, D)
    x = rng.standard_normal((count, D)) @ mixing.T
    return torch.from_numpy(x).float()[:, None, None, :]


def shifted(count: int, seed: int, by: float) -> torch.Tensor:
    """Return maps of another kind of pictures: shifted in one direction."""
    way = torch.from_numpy(np.random.default_rng(3).standard_normal(D)).float()
    return drawn(count, seed) + by * way


def fitted(others: torch.Tensor = NONE, count: int = 600) -> Typicality:
    typicality = Typicality(D)
    typicality.fit(Typicality.pool(drawn(count, 1)), others, seed=0)
    return typicality


def share(typicality: Typicality, maps: torch.Tensor) -> float:
    """Return the share of pictures that get a warning."""
    return float((typicality(maps) > 1).float().mean())


@pytest.mark.parametrize("others", [NONE, Typicality.pool(shifted(100, 2, 0.5))], ids=["alone", "others"])
def test_at_most_two_in_a_hundred_pictures_of_the_same_kind_are_beyond_the_limit(
    others: torch.Tensor,
) -> None:
    assert share(fitted(others), drawn(4000, 5)) <= 0.02


def test_pictures_of_another_kind_are_beyond_the_limit() -> None:
    assert share(fitted(), shifted(200, 6, 3.0)) > 0.95


def test_other_pictures_in_the_training_sharpen_the_limit() -> None:
    near = shifted(500, 7, 0.3)
    sharper = fitted(Typicality.pool(shifted(200, 8, 0.3)))
    assert share(sharper, near) > share(fitted(), near) + 0.1


def test_the_same_pictures_give_the_same_limit() -> None:
    maps = drawn(5, 9)
    assert torch.equal(fitted()(maps), fitted()(maps))


def test_too_few_pictures_are_an_error() -> None:
    with pytest.raises(InputError) as caught:
        fitted(count=MIN_PICTURES - 1)
    assert caught.value.code == "data-few"
    assert share(fitted(count=MIN_PICTURES), drawn(10, 1)) >= 0  # the smallest number is enough


def test_the_distance_is_of_the_upright_picture_and_the_maps_are_those_without_it() -> None:
    torch.manual_seed(0)
    model = Skinret(tiny_config(typicality=True, tta=2)).eval()
    model.visual_encoder.typicality.whitening.copy_(torch.eye(SWIN["embed_dim"] * 2))
    pixels = torch.randint(0, 256, (3, 64, 64, 3), dtype=torch.uint8)
    with torch.inference_mode():
        *maps, distance = model.visual_encoder.with_distance(pixels)
        plain = model.visual_encoder(pixels)
        alone = model.visual_encoder.typicality(model.visual_encoder.backbone_maps(pixels)[0])
        mirrored = model.visual_encoder.with_distance(apply_dihedral(pixels, 1))[-1]
    assert all(torch.equal(x, y) for x, y in zip(maps, plain, strict=True))
    torch.testing.assert_close(distance, alone)
    assert not torch.allclose(distance, mirrored)


# -- the other pictures --


def test_other_pictures_are_all_of_a_folder(tmp_path: Path) -> None:
    (tmp_path / "deeper").mkdir()
    for name in ("b.PNG", "a.jpg", "deeper/c.tif"):
        Image.new("RGB", (40, 40)).save(tmp_path / name)
    (tmp_path / "notes.txt").write_text("no picture")
    found = read_others(tmp_path)
    assert [(other.case_id, other.path.name) for other in found] == [
        ("", "a.jpg"),
        ("", "b.PNG"),
        ("", "c.tif"),
    ]


def test_of_derm7pt_they_are_the_clinical_photographs_that_are_no_dermoscopy(
    data: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(data, tmp_path / "release_v0")
    with pytest.raises(InputError) as caught:
        read_others(folder)  # the table of the drawn cases names the dermoscopy again
    assert caught.value.code == "unlike-missing"
    meta = folder / "meta" / "meta.csv"
    header, first, *rest = meta.read_text("utf-8").splitlines()
    name = first.split("SYN/")[1].split(",")[0]
    Image.new("RGB", (40, 40)).save(folder / "images" / "SYN" / "Photo.JPG")
    first = first.replace(f"SYN/{name}", "SYN/photo.jpg", 1)
    meta.write_text("\n".join([header, first, *rest]) + "\n", "utf-8")
    [other] = read_others(folder)
    assert other.path.name == "Photo.JPG" and other.case_id == first.split(",")[0]


def test_a_folder_without_pictures_is_an_error(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "none"):
        with pytest.raises(InputError) as caught:
            read_others(folder)
        assert caught.value.code == "unlike-missing"
