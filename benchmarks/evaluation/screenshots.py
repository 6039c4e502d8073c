"""What a browser makes of a report's page: a picture at two widths in both colour schemes, and a table.

    make test-browser  # installs the extra `browser`; the machine has Chromium or Chrome
    python benchmarks/evaluation/screenshots.py PAGE FOLDER [--height 1500]

For each width (a laptop's 1280 and a phone's 390 pixels) and scheme: milliseconds until it is loaded, requests but the
page itself, messages on the console, and by how many pixels it is wider than the window. The pictures show the top of
the page.
"""

import argparse
import io
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.support.browser import Scheme, browser, opened

SCHEMES: tuple[Scheme, ...] = ("light", "dark")


def main() -> None:
    """Take the pictures and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("page", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--height", type=int, default=1500, help="pixels of the page that a picture shows")
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    print("| width | scheme | loaded, ms | other requests | console messages | wider by, px | picture, kB |")
    print("|---:|---|---:|---:|---:|---:|---:|")
    with browser() as launched:
        for width in (1280, 390):
            for scheme in SCHEMES:
                started = time.perf_counter()
                with opened(launched, arguments.page.absolute(), width=width, scheme=scheme) as found:
                    loaded = 1000 * (time.perf_counter() - started)
                    clip = {"x": 0, "y": 0, "width": width, "height": arguments.height}
                    size = save(found.page.screenshot(full_page=True, clip=clip), width, scheme, arguments.folder)
                    others = len(found.requests) - 1
                    print(
                        f"| {width} | {scheme} | {loaded:.0f} | {others} | {len(found.messages)} "
                        f"| {found.overflow()} | {size / 1000:.0f} |"
                    )


def save(picture: bytes, width: int, scheme: str, folder: Path) -> int:
    """Write a picture with 256 colours; gives its bytes."""
    from PIL import Image

    path = folder / f"report-{width}-{scheme}.png"
    # By coverage: the median cut gives small marks the colour of their neighbours.
    few = Image.open(io.BytesIO(picture)).convert("RGB").quantize(256, method=Image.Quantize.MAXCOVERAGE)
    few.save(path, optimize=True)
    return path.stat().st_size


if __name__ == "__main__":
    main()
