"""The text recipe of a bundle: the check of a query's text, and from words to token ids."""

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

from ._values import nfc
from .errors import BundleError, InputError, SkinretWarning

Tokens = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class TextRecipe:
    """How words become the input of the text encoder. It is in the manifest; training uses it too."""

    length: int = 64  # tokens; a full Derm7pt checklist takes 59 with its two special tokens
    max_characters: int = 2000


def check_text(text: object, recipe: TextRecipe) -> str:
    """Return the text in Unicode's form NFC, stripped of outer space; "" means a query by image alone.

    Raises InputError for a text that is too long or has no Latin letter.
    """
    if text is None:
        return ""
    if not isinstance(text, str):
        raise InputError(
            "the query text cannot be used",
            code="text-type",
            expected="a str or None",
            found=f"a {type(text).__name__}",
        )
    text = nfc(text.encode("utf-8", "replace").decode("utf-8")).strip()  # a lone surrogate is no character
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
            "the query text has no word that can be read",
            code="text-script",
            expected="words in Latin letters",
            found=repr(text[:40]),
            cure="write the findings in a language of the checklist, "
            "or leave the text out to search by image alone",
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
