"""Run skinret-export as `python -m skinret_export`; an error names the extra `export` if it is missing."""

from skinret_infer.cli.common import load_command


def main() -> None:
    """Run skinret-export."""
    load_command("skinret_export.cli", "skinret-export", "export")()


if __name__ == "__main__":
    main()
