"""Convert the picture of a decoder to 8-bit sRGB: ICC profiles, CMYK, palettes, 16 bits, alpha over white."""

import io

import numpy as np
from PIL import Image, ImageCms

from ..errors import InputError, SkinretWarning
from .metadata import MAX_PROFILE


def to_rgb(image: Image.Image, icc: bytes | None, name: str, warnings: list[str]) -> Image.Image:
    if image.mode == "RGB" and not image.has_transparency_data:
        return _to_srgb(image, icc, warnings)
    if image.mode == "F":
        raise InputError(
            f"{name} has floating-point pixels",
            code="image-mode",
            expected="8 or 16 bits a channel",
            cure="save it with 8 bits a channel",
        )
    if image.mode.startswith("I"):  # 16-bit grey; mode I holds the same numbers in 32 bits
        grey = np.asarray(image).astype(np.int64)
        if grey.min() < 0 or grey.max() > 65535:
            raise InputError(
                f"{name} has more than 16 bits a channel",
                code="image-mode",
                expected="values of 0 to 65535",
                found=f"{grey.min()} to {grey.max()}",
                cure="save it with 8 bits a channel",
            )
        transparency = image.info.get("transparency")  # the grey level that is transparent
        image = Image.fromarray((grey // 257).astype(np.uint8))
        if isinstance(transparency, int):
            image.putalpha(Image.fromarray(np.where(grey == transparency, 0, 255).astype(np.uint8)))
    if image.has_transparency_data:
        if image.mode == "La":
            image = image.convert("LA")
        image = _to_srgb(image.convert("RGBA"), icc, warnings)
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image).convert("RGB")
    return _to_srgb(image if image.mode in ("L", "CMYK") else image.convert("RGB"), icc, warnings)


def _to_srgb(image: Image.Image, icc: bytes | None, warnings: list[str]) -> Image.Image:
    """Convert an L, CMYK, RGB or RGBA image to RGB or RGBA, by its ICC profile if it has one."""
    if icc:
        try:
            return _apply_profile(image, icc)
        except MemoryError:
            raise
        except Exception:  # any fault of a profile: viewers then show the picture without it
            text = "the ICC profile of the picture cannot be used: its colours are taken as sRGB"
            warnings.append(SkinretWarning(text, "image-profile"))
    return image if image.mode in ("RGB", "RGBA") else image.convert("RGB")


def _apply_profile(image: Image.Image, icc: bytes) -> Image.Image:
    if len(icc) > MAX_PROFILE:
        raise ValueError("the profile has too many bytes")
    profile = ImageCms.ImageCmsProfile(io.BytesIO(icc))
    space = profile.profile.xcolor_space.strip()
    if space == "RGB" and image.mode == "L":
        image = image.convert("RGB")
    if {"GRAY": "L", "RGB": "RGB", "CMYK": "CMYK"}.get(space) != image.mode.removesuffix("A"):
        raise ValueError("the profile is for other colours than those of the picture")
    out = "RGBA" if image.mode == "RGBA" else "RGB"
    transform = ImageCms.buildTransform(profile, ImageCms.createProfile("sRGB"), image.mode, out)
    if space == "RGB":
        # sRGB has many profiles: one that moves no colour by more than rounding is not applied
        levels = np.linspace(0, 255, 16).astype(np.uint8)
        grid = np.stack(np.meshgrid(levels, levels, levels), axis=-1).reshape(64, 64, 3)
        chart = Image.fromarray(grid).convert(image.mode)
        shift = np.asarray(transform.apply(chart)).astype(int) - np.asarray(chart)
        if np.abs(shift).max() <= 1:
            return image
    return transform.apply(image)
