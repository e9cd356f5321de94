"""Find a Chromium for the browser tests; as a script, install one where that needs no questions.

`BROWSER=skip` leaves the browser tests out; `BROWSER=/path/to/chromium` names the program to use.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

PROGRAMS = ["chromium", "chromium-browser", "google-chrome", "google-chrome-stable"]
CHOICE = os.environ.get("BROWSER", "")
SKIPPED = CHOICE == "skip"


def find() -> str | None:
    """Path of the browser to drive, or None if there is none."""
    if CHOICE and not SKIPPED:
        return CHOICE if Path(CHOICE).is_file() else None
    return next(filter(None, map(shutil.which, PROGRAMS)), None)


def apt_command() -> list[str] | None:
    """How to call apt-get without being asked for a password; None if that is impossible."""
    if not shutil.which("apt-get"):
        return None
    if os.geteuid() == 0:
        return ["apt-get"]
    if shutil.which("sudo") and subprocess.run(["sudo", "-n", "true"], capture_output=True).returncode == 0:
        return ["sudo", "-n", "apt-get"]
    return None


def main() -> int:
    """Make sure that a browser is there; the exit status says whether it is."""
    if SKIPPED:
        print("BROWSER=skip: the tests of the site in a browser are left out; the summary names them.")
        return 0
    if CHOICE and not find():
        print(f"BROWSER={CHOICE}: no such file; give a Chromium's path, or BROWSER=skip.", file=sys.stderr)
        return 1
    apt = apt_command()
    if not find() and apt:
        print("No Chromium for the browser tests: installing it with apt-get …", flush=True)
        for step in (["update", "-qq"], ["install", "-y", "-qq", "chromium"]):
            subprocess.run([*apt, *step], stdout=subprocess.DEVNULL, check=False)
    if find():
        return 0
    print(
        "The browser tests need Chromium: install the package 'chromium' (or Google Chrome), "
        "or leave them out with: make test BROWSER=skip",
        file=sys.stderr,
    )
    return 1


if __name__ == "__main__":
    sys.exit(main())
