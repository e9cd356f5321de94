"""Organisms in the browser: sizes, a pass of 68 tokens, and the time from a drag to the new picture.

Run: python tests/bench/bench_live.py
"""

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import browsing

from book.site import live, theme

ENGINE = ("hooks", "matmul", "model", "pictures", "text", "transformer", "weights", "worker")
PAGE = """<!DOCTYPE html><html lang="en"><title>{slug}</title>
<link rel="stylesheet" href="book.css"><link rel="stylesheet" href="live/live.css">
<script src="live/live.js" defer></script><main>{section}</main>"""

# A picture is 64 of the 68 tokens; the tower reads its 64 patches and the class token beforehand.
PASS = """async ([n, simd]) => {
    const { open } = await import("./live/model.js");
    const file = await (await fetch("./live/models/scenes-vlm.safetensors")).arrayBuffer();
    const model = open(file, undefined, { simd });
    const image = new Float32Array(3 * 64 * 64).map((_, i) => Math.sin(i));
    const ids = [...model.prompt("", 1), ...model.tokenizer.encode("colour star red")];
    const times = { tower: [], "language model": [] };
    const timed = (name, run) => {
        const start = performance.now();
        const result = run();
        times[name].push(performance.now() - start);
        return result;
    };
    for (let i = 0; i < n + 3; i++) {
        const features = timed("tower", () => model.features(image));
        timed("language model", () => model.forward({ ids, features }));
    }
    const median = (all) => all.slice(3).sort((a, b) => a - b)[n >> 1]; // the first runs are not compiled yet
    return [ids.length, Object.entries(times).map(([name, all]) => [name, median(all)])];
}"""
DRAG = """async (n) => {
    const section = document.querySelector(".live");
    const slider = section.querySelector("input[type=range]");
    const [low, high] = [Number(slider.min), Number(slider.max)];
    const times = [];
    for (let i = 0; i < n + 3; i++) {
        slider.value = low + ((i % 7) + 1) * (high - low) / 8;
        const start = performance.now();
        slider.dispatchEvent(new Event("input", { bubbles: true }));
        while (section.dataset.state !== "ready") await new Promise(requestAnimationFrame);
        times.push(performance.now() - start);
    }
    return times.slice(3).sort((a, b) => a - b)[n >> 1];
}"""


@contextmanager
def site() -> Iterator[tuple[Path, str]]:
    """A folder with the scripts, the models and a page for each widget; its address."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        live.write_scripts(folder / "live")
        live.write_models(folder / "live" / "models")
        shutil.copy(theme.STATIC / "book.css", folder)
        for slug in live.widgets():
            page = PAGE.format(slug=slug, section=live.section(slug))
            (folder / f"{slug}.html").write_text(page, encoding="utf-8")
        with browsing.served(folder) as address:
            yield folder, address


def size(*paths: Path) -> str:
    return f"{sum(path.stat().st_size for path in paths) / 1000:.1f} kB"


def print_sizes(folder: Path) -> None:
    scripts = folder / "live"
    print(f"engine, without comments and indentation: {size(*(scripts / f'{name}.js' for name in ENGINE))}")
    print(f"loaded with the page: {size(scripts / 'live.js', scripts / 'live.css')}")
    for slug in live.widgets():
        megabytes = sum(file.bytes for file in live.files(slug)) / 1e6
        print(f"  {slug:<24}{size(scripts / 'widgets' / f'{slug}.js'):>9} and {megabytes:.2f} MB of weights")


def print_times(browser: Any, address: str) -> None:
    page = browser.new_page()
    page.goto(f"{address}simignore.html")
    for simd in (True, False):
        n_tokens, times = page.evaluate(PASS, [15 if simd else 5, simd])
        kind = "WebAssembly" if simd else "plain JavaScript"
        shown = ", ".join(f"{name} {milliseconds:.0f} ms" for name, milliseconds in times)
        print(f"{n_tokens} tokens of scenes-vlm in {kind}: {shown}")
    page.close()
    print("from a drag of the first slider to the new picture, median:")
    for slug in live.widgets():
        page = browser.new_page()
        page.goto(f"{address}{slug}.html")
        page.locator(".live > button").click()
        page.wait_for_selector(".live[data-state=ready]", timeout=120_000)
        if page.locator(".live input[type=range]").count():
            print(f"  {slug:<24}{page.evaluate(DRAG, 9):.0f} ms")
        page.close()


def main() -> None:
    with site() as (folder, address), browsing.chromium() as browser:
        print_sizes(folder)
        print_times(browser, address)


if __name__ == "__main__":
    main()
