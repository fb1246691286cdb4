"""Find the Chromium that opens the report: `python -m tests.browser` installs one if there is none."""

import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

from playwright.sync_api import sync_playwright

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


def executable() -> str | None:
    """Return the machine's own Chromium, else Playwright's; None if there is neither."""
    found = next((path for path in map(shutil.which, NAMES) if path is not None), None)
    if found is not None:
        return found
    with sync_playwright() as playwright:
        path = playwright.chromium.executable_path
    return path if Path(path).exists() else None


def install() -> None:
    """Install Debian's package if this user may, else Playwright's build."""
    debian = platform.freedesktop_os_release()["ID"] == "debian" if sys.platform == "linux" else False
    if debian and os.geteuid() == 0:
        subprocess.run(["apt-get", "-qq", "update"], check=True)
        subprocess.run(["apt-get", "-qq", "install", "--no-install-recommends", "-y", "chromium"], check=True)
    else:
        subprocess.run([sys.executable, "-m", "playwright", "install", "chromium"], check=True)


if __name__ == "__main__":
    if executable() is None:
        install()
    print(f"Chromium: {executable()}")
