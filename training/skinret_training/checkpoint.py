"""ckpt.pt holds tensors and plain values only, so that it loads with weights_only=True."""

import pickle
import zipfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from skinret_infer._files import atomic_write
from skinret_infer.errors import InputError, SkinretError
from skinret_infer.imaging.recipe import ImageRecipe
from skinret_infer.text import TextRecipe
from skinret_infer.words.checklist import Checklist

from .model import ModelConfig, Skinret

FORMAT = "skinret-checkpoint-4"


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """A trained model with everything that the export needs, so that no hub is contacted again."""

    config: ModelConfig
    image: ImageRecipe
    text: TextRecipe
    checklist: Checklist
    tokenizer: str  # the text of tokenizer.json
    state: Mapping[str, torch.Tensor]
    name: str
    version: str
    origin: Mapping[str, Any] = field(default_factory=dict)
    metrics: Mapping[str, Any] = field(default_factory=dict)
    calibration: Mapping[str, Any] = field(default_factory=dict)  # the fields of bundle.Calibration

    def model(self) -> Skinret:
        """Build the model with its weights, in evaluation mode."""
        model = Skinret(self.config)
        model.load_state_dict(self.state)
        return model.eval()

    def save(self, path: str | Path) -> None:
        """Write the file; a killed process leaves the old file or none."""
        names = ("tokenizer", "name", "version", "origin", "metrics", "calibration")
        plain = {name: getattr(self, name) for name in names}
        tensors = {k: v.detach().cpu().contiguous() for k, v in self.state.items()}
        recipes = {
            "config": self.config.to_dict(),
            "image": asdict(self.image),
            "text": asdict(self.text),
            "checklist": self.checklist.to_dict(),
        }
        with atomic_write(path) as temporary:
            torch.save({"format": FORMAT, "state": tensors, **recipes, **plain}, temporary)

    @classmethod
    def load(cls, path: str | Path) -> "Checkpoint":
        """Read a file that `save` wrote. Raises InputError for any other file."""
        path = Path(path)
        try:
            data = torch.load(path, map_location="cpu", weights_only=True)
            if not isinstance(data, dict) or data.pop("format", None) != FORMAT:
                raise ValueError("a file of another kind or another version")
            recipes: dict[str, Any] = {
                "config": ModelConfig.from_dict(data.pop("config")),
                "image": ImageRecipe(**data.pop("image")),
                "text": TextRecipe(**data.pop("text")),
                "checklist": Checklist.from_dict(data.pop("checklist")),
            }
            return cls(**recipes, **data)
        except FileNotFoundError:
            raise InputError(
                f"checkpoint {path} does not exist", code="checkpoint-missing", cure="check the path"
            ) from None
        except SkinretError:
            raise
        except (
            OSError,
            ValueError,
            KeyError,
            TypeError,
            EOFError,
            RuntimeError,
            pickle.UnpicklingError,
            zipfile.BadZipFile,
        ) as error:
            raise InputError(
                f"{path} is not a skinret checkpoint",
                code="checkpoint-format",
                expected="a file that skinret-train wrote",
                found=(str(error).splitlines() or [type(error).__name__])[0],
                cure="train again, or give the right file",
            ) from None
