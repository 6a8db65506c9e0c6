"""Pictures of a run's page for the documents, as headless Chromium shows it: python docs/screenshots.py RUN (Debian: apt install chromium)."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image

IMAGES = Path(__file__).parent / "images"
SHOTS: dict[str, tuple[int, int, str, bool]] = {
    "page": (1280, 1500, "", False),
    "page-neighbours": (1280, 1000, "neighbours", False),
    "page-map": (1280, 860, "map", False),
    "page-phone": (390, 1250, "", True),
}
"""Width and height of the window in pixels, the one section that is shown, if not all, and whether it is dark."""


def shoot(page: Path, name: str) -> Path:
    """One picture, as a WebP of images/."""
    width, height, only, dark = SHOTS[name]
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        raise SystemExit("docs/screenshots.py needs Chromium; Debian: apt install chromium")
    with tempfile.TemporaryDirectory() as folder:
        shot = Path(folder) / "shot.png"
        shown = Path(folder) / "page.html"
        hidden = f"<style>header, nav, footer, section:not(#{only}) {{ display: none }}</style>" if only else ""
        shown.write_text(page.read_text(encoding="utf-8") + hidden, encoding="utf-8")
        options = [
            "--headless=new",
            "--no-sandbox",
            "--disable-gpu",
            "--hide-scrollbars",
            "--virtual-time-budget=3000",
            f"--user-data-dir={folder}/home",
        ]
        options += [f"--window-size={width},{height}", f"--blink-settings=preferredColorScheme={0 if dark else 1}", f"--screenshot={shot}"]
        subprocess.run([chromium, *options, shown.as_uri()], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        IMAGES.mkdir(exist_ok=True)
        path = IMAGES / f"{name}.webp"
        with Image.open(shot) as image:
            image.convert("RGB").save(path, quality=82, method=6)
    return path


if __name__ == "__main__":
    for shot in SHOTS:
        print(shoot(Path(sys.argv[1]) / "report.html", shot))
