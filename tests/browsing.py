"""Opens a built site in Chromium with the network blocked, and notes what each page does."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import browser as program
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, BrowserContext, Page, expect, sync_playwright

__all__ = [
    "OVERFLOW",
    "SCHEMES",
    "Axe",
    "Visit",
    "chromium",
    "expect",
    "offline",
    "served",
    "tour",
    "watch",
]

FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking"]
WIDTHS, SCHEMES = (1280, 390), ("light", "dark")

# What a reader sees as text, without code and without formulas.
PROSE = """() => {
    const copy = document.querySelector("main, article, body").cloneNode(true);
    copy.querySelectorAll("pre, code, math, mjx-container, script, style, dt").forEach((e) => e.remove());
    return copy.textContent;
}"""
LINKS = "() => [...document.querySelectorAll('a[href]')].map((a) => a.href)"
IDS = "() => [...document.querySelectorAll('[id]')].map((e) => e.id)"
FIGURES = """() => [...document.querySelectorAll('main img')].map((img) => ({
    alt: img.alt,
    caption: img.closest('figure')?.querySelector('figcaption')?.innerText || '',
    drawn: img.naturalWidth > 0,
}))"""
WEIGHT = """async () => {
    await document.fonts.ready;
    const loaded = ['navigation', 'resource'].flatMap((kind) => performance.getEntriesByType(kind));
    return loaded.reduce((sum, e) => sum + (e.initiatorType === 'img' ? 0 : e.decodedBodySize), 0);
}"""
META = """() => Object.fromEntries(
    [...document.querySelectorAll('meta[name], meta[property], link[rel=canonical]')]
        .map((e) => [e.name || e.getAttribute('property') || 'canonical', e.content || e.href])
)"""
# Pixels of code that do not fit into their blocks, and a page's height before everything folded is opened.
CODE = """() => [...document.querySelectorAll('pre')]
    .reduce((sum, pre) => sum + pre.scrollWidth - pre.clientWidth, 0)"""
HEIGHT = "() => document.documentElement.scrollHeight"
UNFOLD = "document.querySelectorAll('details').forEach((e) => { e.open = true; })"
OVERFLOW = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
ASKED = {"prose": PROSE, "links": LINKS, "ids": IDS, "figures": FIGURES, "meta": META, "code": CODE}


@dataclass
class Visit:
    """What one page did when it was opened."""

    page: str
    console: list[str] = field(default_factory=list)
    foreign: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    bytes: int = 0
    """Everything but figures, not compressed."""
    violations: dict[tuple[int, str], list[str]] = field(default_factory=dict)
    """Axe's, by width and colour scheme."""
    overflow: int = 0
    """Pixels by which the page is wider than a phone."""
    seen: dict[str, Any] = field(default_factory=dict)
    """Prose, links, ids, figures and meta data; the page's height before all that is folded was opened."""


class _Handler(SimpleHTTPRequestHandler):
    """Serves a site below a path as GitHub Pages does: an unknown address gives 404.html."""

    def __init__(self, *args: Any, path: str, **options: Any) -> None:
        self.below = path
        super().__init__(*args, **options)

    def translate_path(self, path: str) -> str:
        inside = path.removeprefix(self.below) if path.startswith(self.below) else "nothing is here"
        return super().translate_path(f"/{inside}")

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        page = Path(self.directory, "404.html")
        if code != 404 or not page.is_file():
            return super().send_error(code, message, explain)
        body = page.read_bytes()
        self.send_response(404)
        self.send_header("Content-Type", "text/html; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)
        return None


@contextmanager
def served(folder: Path, path: str | None = None) -> Iterator[str]:
    """The address of a local server with the site of a folder at a path; by default that is its name."""
    path = path or f"/{folder.name}/"
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Handler, directory=str(folder), path=path))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}{path}"
    finally:
        server.shutdown()
        server.server_close()


@contextmanager
def chromium() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        yield playwright.chromium.launch(executable_path=program.find(), args=FLAGS)


def offline(context: BrowserContext, base: str, foreign: list[str]) -> None:
    """Let through what begins with `base`, block the rest and note it."""

    def decide(route: Any) -> None:
        if route.request.url.startswith((base, "data:", "blob:")):
            route.continue_()
        else:
            foreign.append(route.request.url)
            route.abort()

    context.route("**/*", decide)


def watch(page: Page, visit: Visit) -> None:
    """Note a page's errors and what it asked for and did not get."""

    def console(message: Any) -> None:
        if message.type == "error" and "Failed to load resource" not in message.text:  # noted elsewhere
            visit.console.append(message.text)

    page.on("console", console)
    page.on("pageerror", lambda error: visit.console.append(str(error)))
    page.on("response", lambda r: visit.missing.append(r.url) if r.status >= 400 else None)


def tour(browser: Browser, base: str, pages: list[str], judged: set[str]) -> dict[str, Visit]:
    """Open every page of a site at both widths; axe looks at those to be judged in light and in dark."""
    axe = Axe()
    visits = {name: Visit(name) for name in pages}
    for width in WIDTHS:
        foreign: list[str] = []
        context = browser.new_context(viewport={"width": width, "height": 844}, reduced_motion="reduce")
        offline(context, base, foreign)
        for name, visit in visits.items():
            foreign.clear()
            page = context.new_page()
            watch(page, visit if width == WIDTHS[0] else Visit(name))
            page.goto(base + name, wait_until="load")
            height = page.evaluate(HEIGHT)
            page.evaluate(UNFOLD)
            if width == WIDTHS[0]:
                visit.foreign, visit.bytes = list(foreign), page.evaluate(WEIGHT)
                visit.seen = {key: page.evaluate(script) for key, script in ASKED.items()}
                visit.seen["height"] = height
            else:
                visit.overflow = page.evaluate(OVERFLOW)
            for scheme in SCHEMES if name in judged else ():
                page.emulate_media(color_scheme=scheme)
                visit.violations[width, scheme] = [
                    f"{rule['id']}: {node['html'][:160]}"
                    for rule in axe.run(page).response["violations"]
                    for node in rule["nodes"]
                ]
            page.close()
        context.close()
    return visits
