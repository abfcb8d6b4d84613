"""The top of a report as a picture, for README.md.

    python -m benchmarks.picture results/quick_single_turn/report.html docs/report.png

Drawn by the browser that the tests use (Chromium); two machines draw the same but for their fonts.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from alp.reproducibility import write_bytes
from tests.browser import Browser, program

WIDTH, HEIGHT = 1400, 1240  # CSS pixels


def main(words: list[str]) -> int:
    """The exit code: 2 where there is no browser, or no such page."""
    if len(words) != 2:
        print(__doc__, file=sys.stderr)
        return 2
    page, picture = (Path(word) for word in words)
    if program() is None or not page.is_file():
        print(
            f"picture: {'no Chromium on this machine' if program() is None else f'{page} is no file'}", file=sys.stderr
        )
        return 2
    with tempfile.TemporaryDirectory() as profile, Browser(Path(profile)) as browser:
        browser.open(page.resolve(), width=WIDTH, height=HEIGHT)
        write_bytes(picture, browser.screenshot())
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
