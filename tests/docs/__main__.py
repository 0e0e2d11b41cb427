"""`make docs`: write the pages that the code decides."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from tests.docs import cli_page, settings_page
from tests.docs.markdown import ROOT

PAGES: dict[Path, Callable[[], str]] = {
    ROOT / "docs" / "settings.md": settings_page.render,
    ROOT / "docs" / "cli.md": cli_page.render,
}


def main() -> None:
    for path, render in PAGES.items():
        path.write_text(render(), encoding="utf-8")
        print(f"Wrote {path.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
