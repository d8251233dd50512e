"""TIFFs of every depth, byte order and layout, written by hand: they give the right pixels or a refusal."""

import io
import itertools
import struct
from typing import Any

import numpy as np
import pytest
from helpers import CODES, PICTURE, WIDE_PROFILE, exif_bytes, image_refusal, saved_image, tiff, wide_to_srgb
from PIL import Image

from skinret_infer.errors import InputError
from skinret_infer.imaging import tiff as tiff_module
from skinret_infer.imaging.decode import decode

HEIGHT, WIDTH, _ = PICTURE.shape
GREY = PICTURE[..., 1:2]


# Builds of Pillow differ in their compressions
CODES |= {name: code for name, code in (("lzma", 34925), ("zstd", 50000)) if tiff_module.is_configured(code)}


def _deep(samples: np.ndarray, bits: int) -> np.ndarray:
    """Convert samples of 8 bits to samples of more or fewer bits."""
    top = (1 << bits) - 1
    return samples.astype(np.int64) * top // 255 if bits > 8 else samples.astype(np.int64) >> (8 - bits)


def _check_pixels(source: Any, expected: np.ndarray, levels: int = 0) -> None:
    warnings: list[str] = []
    pixels = decode(source, warnings=warnings)
    assert pixels.shape == PICTURE.shape and not warnings
    assert np.abs(pixels.astype(int) - expected).max() <= levels


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("bits", [1, 2, 4, 8, 12, 16])
@pytest.mark.parametrize("white_is_zero", [False, True])
def test_grey_of_every_depth_keeps_its_levels(white_is_zero: bool, bits: int, order: str) -> None:
    top = (1 << bits) - 1
    stored = _deep(GREY, bits)
    expected = stored * 255 // top if bits < 8 else GREY
    for reverse in (False, True):
        data = tiff(
            top - stored if white_is_zero else stored,
            bits,
            int(not white_is_zero),
            order=order,
            reverse=reverse,
        )
        _check_pixels(data, expected, 1 if bits == 12 else 0)


@pytest.mark.parametrize("compression", CODES)
@pytest.mark.parametrize("planar", [False, True])
@pytest.mark.parametrize("bits", [8, 12, 16])
def test_rgb_comes_back_from_every_layout(bits: int, planar: bool, compression: str) -> None:
    for order, tiled, differences in itertools.product("<>", (False, True), (False, True)):
        if differences and (bits == 12 or compression in ("", "packbits")):
            continue
        data = tiff(
            _deep(PICTURE, bits), bits, 2, order=order, planar=planar, compression=compression,
            differences=differences, tiled=tiled, big=tiled,
        )  # fmt: skip
        _check_pixels(data, PICTURE, 1 if bits == 12 else 0)


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("kind", [0, 1, 2], ids=["unspecified", "associated", "unassociated"])
def test_alpha_is_laid_over_white_and_another_channel_is_ignored(kind: int, bits: int) -> None:
    alpha = np.full_like(GREY, 255)
    alpha[:, 30:] = 102
    for colours, photometric in ((PICTURE, 2), (GREY, 1), (255 - GREY, 0)):
        picture = 255 - colours if photometric == 0 else colours
        weighted = (colours.astype(int) * alpha / 255).round().astype(np.uint8) if kind == 1 else colours
        expected = picture if kind == 0 else 255 - (255 - picture.astype(int)) * (alpha / 255)
        if kind == 1 and photometric == 0:
            continue  # no program writes that
        samples = _deep(np.concatenate([weighted, alpha], axis=2), bits)
        for planar in (False, True):
            _check_pixels(
                tiff(samples, bits, photometric, planar=planar, tags={338: (3, [kind])}), expected, 2
            )


def test_a_channel_without_a_meaning_is_transparency_with_a_warning() -> None:
    samples = np.concatenate([PICTURE, np.full_like(GREY, 255)], axis=2)
    warnings: list[Any] = []
    np.testing.assert_array_equal(decode(tiff(samples, 8, 2), warnings=warnings), PICTURE)
    assert [warning.code for warning in warnings] == ["image-colour"]


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_a_palette_of_8_or_16_bits_gives_its_colours(bits: int) -> None:
    colours = np.random.default_rng(bits).integers(0, 256, (1 << bits, 3))
    index = _deep(GREY, bits)
    for factor, compression in ((257, ""), (256, "lzw"), (1, "deflate")):
        table = (colours * factor).T.ravel().tolist()
        _check_pixels(
            tiff(index, bits, 3, compression=compression, tags={320: (3, table)}), colours[index[..., 0]]
        )


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("planar", [False, True])
def test_cmyk_is_converted_at_every_depth(bits: int, planar: bool) -> None:
    inks = np.concatenate([255 - PICTURE, np.zeros_like(GREY)], axis=2)
    _check_pixels(tiff(_deep(inks, bits), bits, 5, planar=planar), PICTURE)


@pytest.mark.parametrize("shared", [(1, 1), (2, 1), (2, 2), (4, 2), None], ids=str)
def test_subsampled_ycbcr_is_converted(shared: tuple[int, int] | None) -> None:
    across, down = shared or (2, 2)  # the default of TIFF
    soft = np.asarray(
        Image.fromarray(PICTURE).resize((9, 6)).resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC)
    )
    colours = np.asarray(Image.fromarray(soft).convert("YCbCr")).astype(int)
    high, wide = HEIGHT // down, WIDTH // across
    luma = colours[..., 0].reshape(high, down, wide, across).swapaxes(1, 2).reshape(high, wide, -1)
    chroma = colours[..., 1:].reshape(high, down, wide, across, 2).mean(axis=(1, 3)).round().astype(int)
    rows = np.concatenate([luma, chroma], axis=2).reshape(high, -1)
    if (across, down) == (1, 1):
        data = tiff(colours, 8, 6, tags={530: (3, [1, 1])})
    else:
        body, tags = rows.astype(np.uint8).tobytes(), {530: (3, [across, down])} if shared else {}
        data = tiff(colours, 8, 6, tags={**tags, 273: (4, [8]), 278: (3, [HEIGHT]), 279: (4, [len(body)])})
        data = data[:8] + body + data[8 + len(body) :]
    _check_pixels(data, soft, 24 if (across, down) != (1, 1) else 3)
    assert np.abs(decode(data).astype(int) - soft).mean() < 3


@pytest.mark.parametrize("bits", [8, 16])
def test_lab_is_converted(bits: int) -> None:
    levels = np.zeros((HEIGHT, WIDTH, 3), np.int64)
    levels[..., 0] = np.linspace(0, 255, WIDTH)  # L from black to white, a and b of 0
    stored = levels * (257 if bits == 16 else 1)
    for photometric, middle in ((8, 0), (9, 1 << (bits - 1))):
        grey = decode(tiff(stored + np.array([0, middle, middle]), bits, photometric)).astype(int)
        assert np.ptp(grey, axis=2).max() <= 2 and grey[0, 0].max() <= 1 and grey[0, -1].min() >= 254
        assert (np.diff(grey[0, :, 1]) >= 0).all()


@pytest.mark.parametrize(
    ("found", "bits", "tags"),
    [
        ("floating-point", 32, {339: (3, [3])}),
        ("signed", 8, {339: (3, [2])}),
        ("signed", 16, {339: (3, [2])}),
        ("values of", 32, {}),
        ("64 bits", 64, {}),
        ("5 bits", 8, {258: (3, [5])}),
        ("a mask", 8, {262: (3, [4])}),
        ("camera's raw", 16, {262: (3, [32803])}),
    ],
)
def test_pixels_of_other_kinds_are_refused_by_name(found: str, bits: int, tags: dict[int, Any]) -> None:
    samples = np.broadcast_to(np.int64((1 << bits - 1) - 5 if bits < 64 else 7), GREY.shape)
    assert found in image_refusal(tiff(samples, bits, 1, tags=tags), "image-mode")


def test_32_bits_with_values_of_16_are_read_with_a_warning() -> None:
    warnings: list[Any] = []
    pixels = decode(tiff(_deep(GREY, 16), 32, 1), warnings=warnings)
    assert (pixels == GREY).all() and [warning.code for warning in warnings] == ["image-depth"]


@pytest.mark.parametrize(
    ("code", "name"), [(34712, "JPEG 2000"), (50002, "JPEG XL"), (34887, "LERC"), (7777, "7777")]
)
def test_a_compression_that_is_not_read_is_named(code: int, name: str) -> None:
    message = image_refusal(tiff(PICTURE, 8, 2, tags={259: (3, [code])}), "image-unreadable")
    assert "a TIFF" in message and name in message and "is not an image" not in message


@pytest.mark.parametrize("code", [50000, 50001, 34925])
def test_a_compression_that_pillow_was_built_without_is_named(
    code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = tiff(PICTURE, 8, 2, tags={259: (3, [code])})  # the strips are not compressed
    monkeypatch.setattr("skinret_infer.imaging.tiff.is_configured", lambda _: False)
    assert "was built without" in image_refusal(data, "image-unreadable")


def test_jpeg_in_planes_is_read() -> None:
    grey = [
        saved_image(Image.fromarray(np.ascontiguousarray(PICTURE[..., n])), "JPEG", quality=95)
        for n in range(3)
    ]
    places = list(itertools.accumulate(map(len, grey), initial=8))
    tags = {259: (3, [7]), 273: (4, places[:3]), 278: (3, [HEIGHT]), 279: (4, list(map(len, grey)))}
    plain = tiff(PICTURE, 8, 2, planar=True, tags=tags)
    data = plain[:8] + b"".join(grey) + plain[places[3] :]
    assert np.abs(decode(data).astype(int) - PICTURE).max() <= 9


@pytest.mark.parametrize(
    "tags",
    [
        {282: (5, [1, 0])},  # a resolution of 1/0
        {282: (3, [1])},
        {282: (0, [])},
        {305: (7, [255] * 90)},
        {306: (3, [9] * 40)},
        {270: (2, [200] * 50)},
        {700: (7, [60] * 30)},
        {33723: (4, [7])},
        {34377: (1, [1] * 31)},
        {34665: (4, [99_999_999])},  # an EXIF directory that is not there
        {34665: (4, [8])},
        {330: (4, [99_999_999])},
        {254: (2, [65])},
    ],
    ids=str,
)
def test_a_broken_tag_beside_the_pixels_costs_no_picture(
    tags: dict[int, Any], recwarn: pytest.WarningsRecorder
) -> None:
    for order, planar in itertools.product("<>", (False, True)):
        _check_pixels(tiff(_deep(PICTURE, 16), 16, 2, order=order, planar=planar, tags=tags), PICTURE)
    assert not list(recwarn)


@pytest.mark.parametrize("kind", [2, 5, 7])
def test_an_orientation_that_cannot_be_read_gives_a_warning(kind: int) -> None:
    for value in ([6, 6],) if kind == 5 else ([6], [6, 6, 6, 6, 6]):
        warnings: list[Any] = []
        data = tiff(PICTURE, 8, 2, tags={274: (kind, value)})
        np.testing.assert_array_equal(decode(data, warnings=warnings), PICTURE)
        assert [warning.code for warning in warnings] == ["image-orientation"]


def test_directories_in_a_circle_are_one_picture() -> None:
    data = bytearray(tiff(PICTURE, 8, 2, big=False))
    start = int.from_bytes(data[4:8], "little")
    after = start + 2 + 12 * int.from_bytes(data[start : start + 2], "little")
    data[after : after + 4] = start.to_bytes(4, "little")
    _check_pixels(bytes(data), PICTURE)


@pytest.mark.parametrize("tag", [256, 257, 258, 262, 273, 277, 278, 284])
def test_a_broken_tag_of_the_pixels_is_damage(tag: int) -> None:
    data = bytearray(tiff(PICTURE, 8, 2))
    start = int.from_bytes(data[4:8], "little")
    for at in range(start + 2, len(data) - 12, 12):
        if int.from_bytes(data[at : at + 2], "little") == tag:
            data[at + 2 : at + 12] = struct.pack("<HLL", 4, 1 << 20, 1 << 30)  # far outside of the file
            break
    image_refusal(bytes(data), "image-truncated")


@pytest.mark.parametrize("compression", CODES)
def test_a_tiff_cut_short_is_refused_in_every_layout(compression: str) -> None:
    noise = np.random.default_rng(0).integers(0, 65536, PICTURE.shape)
    for planar, big in itertools.product((False, True), (False, True)):
        data = tiff(noise, 16, 2, planar=planar, compression=compression, big=big, ahead=True)
        np.testing.assert_array_equal(decode(data), noise >> 8)
        for cut in (len(data) // 2, len(data) - 200):
            image_refusal(data[:cut], "image-truncated")


def test_a_missing_strip_is_damage() -> None:
    image_refusal(tiff(PICTURE, 8, 2, tags={273: (4, [8, 0, 8, 8, 8, 8, 8])}), "image-truncated")
    image_refusal(tiff(PICTURE, 8, 2, tags={273: (4, [8, 8])}), "image-truncated")


def test_too_many_tiles_are_refused_before_they_are_decoded() -> None:
    tags = {256: (4, [7000]), 257: (4, [9000]), 322: (4, [1]), 323: (4, [1])}
    image_refusal(tiff(GREY, 8, 1, tiled=True, tags=tags), "image-scans")


def test_a_tiff_that_unpacks_to_too_many_bytes_is_refused_before_it_is_unpacked() -> None:
    samples = np.zeros((HEIGHT, WIDTH, 16), np.int64)
    image_refusal(tiff(samples, 16, 2, tags={256: (4, [7000]), 257: (4, [9000])}), "image-too-large")
    image_refusal(
        tiff(GREY, 8, 1, tiled=True, tags={322: (4, [40_000]), 323: (4, [40_000])}), "image-truncated"
    )


@pytest.mark.parametrize("raw", ["dng", "nef", "cr2"])
def test_the_preview_of_a_camera_raw_file_is_not_taken_for_the_picture(raw: str) -> None:
    tags = {"dng": {50706: (1, [1, 4, 0, 0])}, "nef": {254: (4, [1]), 330: (4, [8])}, "cr2": {}}[raw]
    data = tiff(PICTURE, 8, 2, tags=tags)
    if raw == "cr2":  # its mark stands where a strip would start
        data = data[:8] + b"CR\2\0" + data[12:]
    assert "camera raw" in image_refusal(data, "image-unreadable")


def test_a_smaller_copy_that_comes_first_is_skipped() -> None:
    first = bytearray(tiff(255 - PICTURE, 8, 2, tags={254: (4, [1])}))
    start = int.from_bytes(first[4:8], "little")
    after = start + 2 + 12 * int.from_bytes(first[start : start + 2], "little")
    second = tiff(PICTURE, 8, 2, base=len(first))
    first[after : after + 4] = second[4:8]
    _check_pixels(bytes(first) + second, PICTURE)


@pytest.mark.parametrize(
    "data",
    [
        tiff(_deep(PICTURE, 16), 16, 2, planar=True),
        tiff(65535 - _deep(GREY, 16), 16, 0),
        tiff(_deep(GREY, 12), 12, 1),
    ],
    ids=["planes", "white is zero", "12 bits"],
)
def test_a_pil_image_of_a_tiff_is_read_from_its_file_or_refused(data: bytes) -> None:
    with Image.open(io.BytesIO(data)) as image:
        np.testing.assert_array_equal(decode(image), decode(data))
    with Image.open(io.BytesIO(data)) as image:
        image.load()  # Pillow has misread it
        assert "by its path" in image_refusal(image, "image-mode")


def test_orientation_and_profile_are_applied_in_planes_too() -> None:
    stored = _deep(np.ascontiguousarray(PICTURE[::-1]), 16)
    tags = {274: (3, [4]), 34675: (7, list(WIDE_PROFILE))}
    _check_pixels(tiff(stored, 16, 2, planar=True, tags=tags), wide_to_srgb(PICTURE), 2)


def test_colours_named_without_a_profile_give_a_warning() -> None:
    for tags, codes in (
        ({318: (5, [3127, 10000, 3290, 10000])}, []),
        ({319: (5, [64, 100, 33, 100, 21, 100, 71, 100, 15, 100, 6, 100])}, ["image-colour"]),
        ({318: (5, [3457, 10000, 3585, 10000])}, ["image-colour"]),
    ):
        warnings: list[Any] = []
        np.testing.assert_array_equal(decode(tiff(PICTURE, 8, 2, tags=tags), warnings=warnings), PICTURE)
        assert [warning.code for warning in warnings] == codes


def test_a_tiff_that_names_no_colours_is_read_as_rgb_or_grey_with_a_warning() -> None:
    for samples in (PICTURE, GREY):
        warnings: list[Any] = []
        pixels = decode(tiff(samples, 8, 2, tags={262: (0, [])}), warnings=warnings)
        assert (pixels == samples).all() and [warning.code for warning in warnings] == ["image-colour"]


def test_damaged_bytes_of_any_layout_give_an_input_error_or_a_picture() -> None:
    draw = np.random.default_rng(5)
    files = [
        tiff(_deep(PICTURE, bits), bits, 2, planar=planar, compression=compression, tiled=tiled, big=big)
        for bits, planar, compression, tiled, big in (
            (16, True, "", False, False), (16, False, "lzw", True, True),
            (12, False, "deflate", False, False), (8, True, "packbits", True, False),
        )
    ]  # fmt: skip
    for n in range(400):
        data = bytearray(files[n % len(files)])
        start = int.from_bytes(data[8:16] if data[2] == 43 else data[4:8], "little")
        for place in draw.integers(start, len(data), 1 + n % 3):
            data[place] = draw.choice([0, 1, 2, 127, 255, int(draw.integers(256))])
        try:
            pixels = decode(bytes(data), max_pixels=1_000_000)
        except InputError as error:
            assert error.code.startswith("image-")
        else:
            assert pixels.dtype == np.uint8 and pixels.shape[2] == 3


def test_files_that_pillow_writes_give_the_pixels_of_pillow() -> None:
    for options in (
        {},
        {"compression": "tiff_lzw"},
        {"compression": "jpeg"},
        {"exif": exif_bytes(6)},
        {"big_tiff": True},
    ):
        saved = saved_image(Image.fromarray(PICTURE), "TIFF", **options)
        with Image.open(io.BytesIO(saved)) as image:
            image.load()
            np.testing.assert_array_equal(decode(saved), np.asarray(image))
