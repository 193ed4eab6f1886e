"""``python -m neuralcache_plugins`` and the console script ``neuralcache-plugins``."""

from __future__ import annotations

import sys

from neuralcache_plugins.errors import MissingExtraError


def main() -> None:
    """Run the command line; without its extra, say how to install it."""
    try:
        from neuralcache_plugins.cli import app
    except MissingExtraError as error:
        sys.stderr.write(f"{error}\n")
        raise SystemExit(2) from error
    app(prog_name="neuralcache-plugins")


if __name__ == "__main__":
    main()
