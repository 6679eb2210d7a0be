"""Each deployable in a fresh environment with only its extra: it imports, and carries nothing of others."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parents[2]
PIP: Final = (sys.executable, "-m", "pip", "--disable-pip-version-check")
# extra: (what must import, what must not be there)
SLICES: Final = {
    "ingest": ("services.ingest.__main__", ("cv2", "sqlalchemy", "torch", "typer")),
    "router": ("services.router.__main__", ("aiohttp", "av", "fastapi", "sqlalchemy", "torch")),
    "session-manager": (
        "services.session_manager.__main__",
        ("aiohttp", "av", "fastapi", "numpy", "sqlalchemy"),
    ),
    "billing": ("services.billing.__main__", ("aiohttp", "av", "fastapi", "numpy", "torch")),
    "inference": ("services.inference.__main__", ("fastapi", "sqlalchemy", "torch", "typer")),
    "cli": ("sluice.cli", ("cv2", "fastapi", "sqlalchemy", "torch")),
}
CHECK: Final = """
import importlib, importlib.util, sys
importlib.import_module(sys.argv[1])
carried = [name for name in sys.argv[2:] if importlib.util.find_spec(name)]
sys.exit(f"carries {carried}" if carried else 0)
"""


def check(extra: str, wheel: Path) -> str:
    """Build the environment of one extra of `wheel`; return what is wrong with it, or nothing."""
    module, absent = SLICES[extra]
    with tempfile.TemporaryDirectory(prefix=f"slice-{extra}-") as directory:
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", directory], check=True, timeout=120)
        python = str(Path(directory) / "bin" / "python")
        pins = ("-c", str(ROOT / "constraints.txt"))
        install = [*PIP, "--python", python, "install", "-q", "--no-compile", *pins, f"{wheel}[{extra}]"]
        for command in (install, [python, "-c", CHECK, module, *absent]):
            # Away from the source tree: what is not packaged must not be found.
            done = subprocess.run(
                command, cwd=directory, capture_output=True, text=True, timeout=600, check=False
            )
            if done.returncode:
                return f"{extra}: {done.stdout[-2000:]}{done.stderr[-2000:]}"
    return ""


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="wheel-") as directory, ThreadPoolExecutor(2) as pool:
        subprocess.run(
            [*PIP, "wheel", "-q", "--no-deps", "-w", directory, str(ROOT)], check=True, timeout=300
        )
        (wheel,) = Path(directory).glob("*.whl")
        problems = [problem for problem in pool.map(lambda extra: check(extra, wheel), SLICES) if problem]
    sys.stdout.write("\n".join(problems) + "\n" if problems else f"{len(SLICES)} slices stand alone\n")
    sys.exit(1 if problems else 0)


if __name__ == "__main__":
    main()
