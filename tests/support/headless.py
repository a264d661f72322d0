"""Headless Chromium, from the PATH or from PPL_LVM_CHROMIUM."""

import os
import shutil
import subprocess
from pathlib import Path

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
FLAGS = [
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
    *("--no-first-run", "--enable-logging=stderr", "--virtual-time-budget=10000"),
]


def browser() -> str | None:
    names = (os.environ.get("PPL_LVM_CHROMIUM", ""), *NAMES)
    return next((path for name in names if name and (path := shutil.which(name))), None)


def chromium(tmp_path: Path, *words: str) -> subprocess.CompletedProcess[str]:
    path = browser()
    assert path is not None
    profile = f"--user-data-dir={tmp_path / 'profile'}"
    done = subprocess.run(
        [path, *FLAGS, profile, *words], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done
