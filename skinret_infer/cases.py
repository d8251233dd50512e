"""A case with its image and facts, checked when it is made."""

from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass, field
from pathlib import Path
from typing import Any

from ._values import AttributeValue, is_storable, nfc
from .errors import InputError
from .imaging.decode import ImageSource


@dataclass(frozen=True, slots=True)
class Case:
    """One confirmed case.

    Parameters
    ----------
    case_id :
        its key; unique in an archive.
    image :
        a path, bytes, a binary file object, a PIL image or an H x W x 3 uint8 array.
    diagnosis :
        in the words of the source; never shown to the model.
    group :
        the coarse diagnosis by which retrieval is judged; by default the diagnosis itself.
    confirmed_by :
        how the diagnosis was confirmed, such as "histopathology", or "unknown".
    attributes :
        other facts, such as {"streaks": "irregular"}.
    image_ref :
        where the image is, for the archive; by default its path.

    Notes
    -----
    Texts, except image_ref, are changed to Unicode's normal form C, in which equal texts have one spelling.
    """

    case_id: str
    image: ImageSource = field(repr=False)
    _: KW_ONLY
    diagnosis: str = ""
    attributes: Mapping[str, AttributeValue] = field(default_factory=dict)
    group: str = ""
    confirmed_by: str = "unknown"
    image_ref: str = ""

    def __post_init__(self) -> None:
        if not isinstance(self.case_id, str) or not self.case_id.strip():
            wrong = "a case has no id" if isinstance(self.case_id, str) else "a case id is not a str"
            raise InputError(
                wrong, code="case-id", expected="a str that is not empty", found=f"{self.case_id!r:.80}"
            )
        if not isinstance(self.attributes, Mapping):
            raise InputError(
                f"case {self.case_id!r}: the attributes cannot be stored",
                code="case-attribute",
                expected='a mapping such as {"streaks": "irregular"}',
                found=f"{self.attributes!r:.80}",
            )
        texts = ("case_id", "diagnosis", "group", "confirmed_by", "image_ref")
        facts: list[tuple[Any, Any, Any]] = [(name, getattr(self, name), str) for name in texts]
        facts += [(name, value, AttributeValue) for name, value in self.attributes.items()]
        for name, value, kind in facts:
            is_plain = isinstance(name, str) and isinstance(value, kind)
            if not is_plain or not is_storable(name) or not is_storable(value):
                raise InputError(
                    f"case {self.case_id!r}: {name!r} cannot be stored",
                    code="case-attribute",
                    expected="text in Unicode, or for an attribute also a bool or a finite number",
                    found=f"{value!r:.80}, a {type(value).__name__}",
                )
        for name in ("case_id", "diagnosis", "group", "confirmed_by"):
            object.__setattr__(self, name, nfc(getattr(self, name)))
        attributes = {nfc(n): nfc(v) if isinstance(v, str) else v for n, v in self.attributes.items()}
        if len(attributes) < len(self.attributes):
            raise InputError(
                f"case {self.case_id!r}: two attributes have the same name",
                code="case-attribute",
                expected="names that still differ in Unicode's normal form C",
                found=f"{sorted(self.attributes)!r:.200}",
            )
        object.__setattr__(self, "attributes", attributes)
        if not self.group:
            object.__setattr__(self, "group", self.diagnosis)
        if not self.image_ref and isinstance(self.image, str | Path):
            readable = str(self.image).encode("utf-8", "backslashreplace").decode("utf-8")
            object.__setattr__(self, "image_ref", readable)
