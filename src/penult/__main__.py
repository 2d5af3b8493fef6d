"""Entry point of `python -m penult`, the same command as `penult`."""

import sys


def main() -> None:
    """Run the command line. SIGINT prints one line and no traceback, also while the command line is being imported."""
    try:
        from penult.cli import app  # noqa: PLC0415

        app()
    except KeyboardInterrupt:
        print("penult: interrupted", file=sys.stderr)  # noqa: T201
        sys.exit(130)
    except ImportError as error:
        from penult.cli_words import sentence_of  # noqa: PLC0415

        if not isinstance(error, ModuleNotFoundError) or sentence_of(error) == str(error):
            raise  # a bug, or a broken installation
        print(f"penult: {sentence_of(error)}", file=sys.stderr)  # noqa: T201
        sys.exit(1)


if __name__ == "__main__":
    main()
