"""Run a page's program at full size, as a reader would: `python docs/tools/run_page.py conditional_vae.md`.

It runs in the folder of the page, so that pictures it saves under images/ are the page's own.
"""

import os
import re
import sys
from pathlib import Path


def program(page: str) -> str:
    """The page's python blocks, one after the other, on the lines where they stand."""
    lines, inside = [], False
    for line in page.splitlines():
        fence = re.match(r"```(\w*)", line)
        lines.append("" if fence or not inside else line)
        if fence:
            inside = fence[1] == "python"
    return "\n".join(lines)


if __name__ == "__main__":
    page = Path(sys.argv[1])
    if not page.exists():
        page = Path(__file__).parents[1] / page
    code = compile(program(page.read_text()), str(page), "exec")
    os.chdir(page.parent)
    exec(code, {"__name__": "__main__"})
