"""The text recipe of a bundle: from a query's words to token ids, and from a case's attributes to words."""

import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

from .checklist import DERM7PT_PHRASES
from .errors import BundleError, InputError, SkinretWarning

Tokens = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class TextRecipe:
    """How words become the input of the text encoder. It is in the manifest; training uses it too."""

    length: int = 64  # tokens; a full Derm7pt checklist takes 59 with its two special tokens
    phrases: Mapping[str, str] = field(default_factory=lambda: dict(DERM7PT_PHRASES))
    language: str = "en"  # the only one: a vocabulary for another would need another check of its script
    max_characters: int = 2000


def phrases_of(attributes: Mapping[str, Any], phrases: Mapping[str, str]) -> list[str]:
    """Return the phrase of each attribute that has one, in the order of `phrases`, without "present"."""
    values = {name: str(attributes[name]) for name in phrases if attributes.get(name) not in (None, "")}
    return [
        phrases[name].format("" if value == "present" else value).strip() for name, value in values.items()
    ]


def attributes_to_text(attributes: Mapping[str, Any], phrases: Mapping[str, str]) -> str:
    """Return the words of a case, such as "atypical pigment network, flat lesion"; "" if none."""
    return ", ".join(phrases_of(attributes, phrases))


def check_text(text: object, recipe: TextRecipe) -> str:
    """Return the text stripped of outer space, or raise InputError; "" means a query by image alone."""
    if text is None:
        return ""
    if not isinstance(text, str):
        raise InputError(
            "the query text cannot be used",
            code="text-type",
            expected="a str or None",
            found=f"a {type(text).__name__}",
        )
    text = text.encode("utf-8", "replace").decode("utf-8").strip()  # a lone surrogate is no character
    if len(text) > recipe.max_characters:
        raise InputError(
            "the query text is too long",
            code="text-too-long",
            expected=f"at most {recipe.max_characters:,} characters",
            found=f"{len(text):,}",
            cure=f"keep to the findings; the model reads {recipe.length} tokens",
        )
    letters = [c for c in text if c.isalpha()]
    if text and not any(unicodedata.name(c, "").startswith("LATIN") for c in letters):
        raise InputError(
            "the query text has no word that the model can read",
            code="text-script",
            expected="English words",
            found=repr(text[:40]),
            cure="write the findings in English, or leave the text out to search by image alone",
        )
    return text


class TextEncoderInput:
    """The tokenizer of a bundle, set to the recipe's fixed length."""

    def __init__(self, tokenizer_json: str | bytes, recipe: TextRecipe) -> None:
        try:
            text = tokenizer_json.decode("utf-8") if isinstance(tokenizer_json, bytes) else tokenizer_json
            self._tokenizer = Tokenizer.from_str(text)
            self._tokenizer.no_padding()  # the file may ask for any length
            self._tokenizer.no_truncation()
            self._tokenizer.encode("a trial")
        except (KeyboardInterrupt, SystemExit):
            raise
        except (
            BaseException
        ) as error:  # tokenizers raises a bare Exception, or PanicException, a BaseException
            raise BundleError(
                "tokenizer.json cannot be read",
                code="bundle-tokenizer",
                expected="a Hugging Face tokenizer file",
                found=str(error),
                cure="export the bundle again",
            ) from None
        pad = next((t for t in ("[PAD]", "<pad>") if self._tokenizer.token_to_id(t) is not None), None)
        self._unknown = self._tokenizer.token_to_id("[UNK]")
        self._tokenizer.enable_truncation(recipe.length)
        self._tokenizer.enable_padding(
            length=recipe.length,
            pad_id=self._tokenizer.token_to_id(pad) if pad else 0,
            pad_token=pad or "[PAD]",
        )
        if (tokens := len(self._tokenizer.encode("trial " * recipe.length).ids)) != recipe.length:
            raise BundleError(
                "tokenizer.json does not fit the manifest",
                code="bundle-tokenizer",
                expected=f"any text in {recipe.length} tokens",
                found=f"{tokens}, including those that belong to every text",
                cure="export the bundle again",
            )

    def __call__(self, texts: Sequence[str]) -> tuple[Tokens, Tokens, list[list[str]]]:
        """Return input_ids and attention_mask, int64 [B, n], and the warnings of each text."""
        encodings = self._tokenizer.encode_batch(list(texts))
        ids = np.array([e.ids for e in encodings], np.int64)
        mask = np.array([e.attention_mask for e in encodings], np.int64)
        return ids, mask, [self._warnings(t, e) for t, e in zip(texts, encodings, strict=True)]

    def _warnings(self, text: str, encoding: Any) -> list[str]:
        warnings: list[str] = []
        words = [
            text[slice(*o)] for i, o in zip(encoding.ids, encoding.offsets, strict=True) if i == self._unknown
        ]
        if words:
            message = f"words that the model does not know: {', '.join(words)}"
            warnings.append(SkinretWarning(message, "words-unknown"))
        if encoding.overflowing:
            end = max(end for _, end in encoding.offsets)
            message = (
                f"the text is longer than {len(encoding.ids)} tokens; not read: {text[end:].strip(' ,')!r}"
            )
            warnings.append(SkinretWarning(message, "words-cut"))
        return warnings
