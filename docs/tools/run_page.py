"""Full-size run of a documentation page.

    python docs/tools/run_page.py conditional_vae.md

The program runs in the folder of the page, so figures saved under images/ replace the page's.
"""

import os
import re
import sys
from pathlib import Path


def program(page: str) -> str:
    """Python blocks of a page on their original lines, so that tracebacks match the page."""
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
