"""skinret-train, also as `python -m skinret_training`. It names the extra `train` if that is missing."""

from skinret_infer.cli.common import load_command


def main() -> None:
    """Run skinret-train."""
    load_command("skinret_training.cli", "skinret-train", "train")()


if __name__ == "__main__":
    main()
