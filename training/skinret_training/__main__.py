"""The commands skinret-train, skinret-adapt and skinret-average, which need the extra `train`."""

from skinret_infer.cli.common import load_command


def main() -> None:
    """Run skinret-train."""
    load_command("skinret_training.cli", "skinret-train", "train")()


def adapt() -> None:
    """Run skinret-adapt."""
    load_command("skinret_training.adaptation.cli", "skinret-adapt", "train")()


def average() -> None:
    """Run skinret-average."""
    load_command("skinret_training.adaptation.average", "skinret-average", "train")()


if __name__ == "__main__":
    main()
