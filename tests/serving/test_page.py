"""The page at `/` in a real browser: photos in, answers out, with keyboard, on a phone, and for hostile texts."""

from __future__ import annotations

import base64
import csv
import io
import json
import re
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import pytest
from PIL import Image

from tests.browser import FAINT, complaints

if TYPE_CHECKING:
    from selenium.webdriver.chrome.webdriver import WebDriver

PAGE = Path(__file__).resolve().parents[2] / "serving" / "page"
FILES = {
    "/": ("index.html", "text/html; charset=utf-8"),
    "/page/page.css": ("page.css", "text/css; charset=utf-8"),
    "/page/page.js": ("page.js", "text/javascript; charset=utf-8"),
}
POLICY = "default-src 'self'; img-src 'self' blob: data:; object-src 'none'; base-uri 'none'; frame-ancestors 'none'"
CLASSES = ["daisy", "dandelion", "roses", "sunflowers", "tulips"]
HOSTILE = "<img src=x onerror=alert(1)>"
CARDS = """
return [...document.querySelectorAll(".card")].map((card) => {
  const text = (selector) => card.querySelector(selector)?.textContent ?? null;
  return {
    name: text("h3"), state: text(".state"), label: text(".best b"), score: text(".best span"), facts: text(".facts"),
    wrong: text(".wrong"), code: text("code"), pictures: card.querySelectorAll("img").length,
    blank: !card.querySelector(".blank").hidden, toggle: card.querySelector(".toggle:not([hidden])") !== null,
    lines: [...card.querySelectorAll("ol li")].map((line) => line.textContent),
    alt: card.querySelector("canvas").getAttribute("aria-label"),
    role: card.querySelector("canvas").getAttribute("role"),
  };
});
"""
PIXEL = """
const canvas = document.querySelectorAll(arguments[0])[arguments[1]];
const at = (share, size) => Math.floor(share * size);
const [x, y] = [at(arguments[2], canvas.width), at(arguments[3], canvas.height)];
const probe = new OffscreenCanvas(1, 1).getContext("2d", {willReadFrequently: true});
probe.drawImage(canvas, x, y, 1, 1, 0, 0, 1, 1);
return [...probe.getImageData(0, 0, 1, 1).data];
"""
SEND = """
const transfer = new DataTransfer();
for (const [name, type, data] of arguments[1]) {
  transfer.items.add(new File([Uint8Array.from(atob(data), (c) => c.charCodeAt(0))], name, {type}));
}
const options = {bubbles: true, cancelable: true};
const event = arguments[0] === "paste"
  ? new ClipboardEvent("paste", {...options, clipboardData: transfer})
  : new DragEvent(arguments[0], {...options, dataTransfer: transfer});
document.body.dispatchEvent(event);
return event.defaultPrevented;
"""


class Site(ThreadingHTTPServer):
    """Serves the three files and plays the server of the API; a test sets what goes wrong."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.reset()

    def reset(self) -> None:
        self.label: str | None = "daisy"
        self.heat = True
        self.token = ""
        self.busy = 0  # requests to refuse with 503
        self.most = 100  # files that a request may have
        self.version = 3
        self.reload_error: str | None = None
        self.keeps_photos = False
        self.expected: set[str] = set()  # what the browser may complain of
        self.requests: list[tuple[str, dict[str, str], list[str]]] = []

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def predictions(self, files: list[tuple[str, bytes]]) -> tuple[int, dict[str, Any]]:
        if self.busy:
            self.busy -= 1
            return 503, {"error": {"code": "overloaded", "detail": "too many photos are waiting"}}
        if len(files) > self.most:
            return 413, {"error": {"code": "too_large", "detail": f"{len(files)} files"}}
        return 200, {"items": [self.item(name, data) for name, data in files]}

    def item(self, name: str, data: bytes) -> dict[str, Any]:
        if not data.endswith((b"\xff\xd9", b"IEND\xaeB`\x82")):
            return {"filename": name, "error": {"code": "truncated", "detail": "the data ends early"}}
        scores = [0.9312, 0.05, 0.0123, 0.006, 0.0005]
        labels = [self.label or CLASSES[0], *CLASSES[1:]]
        answer: dict[str, Any] = {
            "filename": name,
            "label": self.label,
            "score": scores[0],
            "top": [{"label": label, "score": score} for label, score in zip(labels, scores, strict=True)],
            "model_version": str(self.version),
            "timing": {"queue_ms": 1.52, "decode_ms": 6.1, "infer_ms": 31.4},
        }
        if self.label is None:
            answer |= {"typicality": 0.001, "reason": f"none of these: {HOSTILE}"}
        if self.heat:
            answer["heatmap"] = [[1.0 if x < 2 and y < 2 else -0.5 for x in range(7)] for y in range(7)]
        return answer

    def model(self) -> dict[str, Any]:
        parameters = {"classes": CLASSES, "last_reload_error": self.reload_error, "keeps_photos": self.keeps_photos}
        return {"name": "flowers", "versions": [str(self.version)], "parameters": parameters}


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Site

    def log_message(self, format: str, *args: object) -> None:
        """Keeps the test's output clean."""

    def do_GET(self) -> None:
        path = urlsplit(self.path).path
        if path in FILES:
            name, kind = FILES[path]
            self.answer(200, (PAGE / name).read_bytes(), kind)
        elif path == "/v2/models/flowers" and self.allowed():
            self.answer(200, self.server.model())
        elif path != "/v2/models/flowers":
            self.answer(404, {})

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        boundary = b"--" + self.headers["Content-Type"].partition("boundary=")[2].encode()
        files = []
        for part in body.split(boundary)[1:-1]:
            head, _, data = part.partition(b"\r\n\r\n")
            found = re.search(rb'name="files"; filename="([^"]*)"', head)
            assert found, head
            files.append((found[1].decode(), data[:-2]))
        self.server.requests.append((self.path, dict(self.headers), [name for name, _ in files]))
        if self.allowed():
            self.answer(*self.server.predictions(files))

    def allowed(self) -> bool:
        wanted = f"Bearer {self.server.token}" if self.server.token else None
        if self.headers["Authorization"] == wanted:
            return True
        self.answer(401, {"error": {"code": "unauthorized", "detail": "a token is required"}})
        return False

    def answer(self, status: int, content: dict[str, Any] | bytes, kind: str = "application/json") -> None:
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        fields = {"Content-Type": kind, "Content-Length": str(len(data)), "Content-Security-Policy": POLICY}
        for name, value in {**fields, "X-Content-Type-Options": "nosniff", "Retry-After": "0"}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)


class Page:
    """The page in the browser, as a person has it before them."""

    def __init__(self, driver: WebDriver, site: Site) -> None:
        self.driver, self.site = driver, site

    def open(self) -> None:
        self.driver.get(self.site.address)
        self.until(lambda: self.js("return !document.getElementById('app').hidden"))

    def js(self, code: str, *arguments: object) -> Any:
        return self.driver.execute_script(code, *arguments)

    def cdp(self, command: str, **parameters: object) -> None:
        self.driver.execute_cdp_cmd(command, parameters)

    def until(self, true: Callable[[], object]) -> None:
        deadline = time.monotonic() + 30
        while not true():
            assert time.monotonic() < deadline, (self.status, self.cards())
            time.sleep(0.02)

    def find(self, selector: str) -> Any:
        return self.driver.find_element("css selector", selector)

    def choose(self, *paths: Path) -> None:
        self.find("#files").send_keys("\n".join(str(path) for path in paths))

    def send(self, event: str, *files: tuple[str, str, bytes]) -> bool:
        return bool(self.js(SEND, event, [(*file[:2], base64.b64encode(file[2]).decode()) for file in files]))

    def cards(self) -> list[dict[str, Any]]:
        return list(self.js(CARDS))

    def settled(self, count: int) -> list[dict[str, Any]]:
        """The cards, when there are `count` and none waits."""
        self.until(lambda: len(found := self.cards()) == count and not any(card["state"] for card in found))
        return self.cards()

    @property
    def status(self) -> str:
        return str(self.find("#status").text)

    def pixel(self, selector: str, x: float, y: float, number: int = 0) -> tuple[int, ...]:
        return tuple(self.js(PIXEL, selector, number, x, y))

    def complaints(self) -> list[str]:
        """What the console says against the page."""
        said = complaints(self.driver)
        return [text for text in said if not any(expected in text for expected in self.site.expected)]

    def strangers(self) -> list[str]:
        """Addresses outside the site that the page asked."""
        names = self.js("return performance.getEntriesByType('resource').map((entry) => entry.name)")
        return [name for name in names if not name.startswith((self.site.address, "blob:", "data:"))]


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    with Site() as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        yield server
        server.shutdown()


@pytest.fixture
def page(driver: WebDriver, site: Site) -> Iterator[Page]:
    """A fresh page; afterwards nothing may have been complained of and nothing asked elsewhere."""
    site.reset()
    page = Page(driver, site)
    page.open()
    yield page
    complaints, strangers = page.complaints(), page.strangers()
    page.js("sessionStorage.clear()")
    assert not complaints
    assert not strangers


def striped(path: Path, size: tuple[int, int] = (300, 100), orientation: int = 1) -> Path:
    """A JPEG of three stripes, red, green and blue from left to right."""
    image = Image.new("RGB", size)
    width = size[0] // 3
    for number, colour in enumerate(((220, 30, 30), (30, 180, 30), (30, 30, 220))):
        image.paste(colour, (number * width, 0, size[0], size[1]))
    exif = Image.Exif()
    exif[0x0112] = orientation
    image.save(path, "JPEG", quality=95, exif=exif)
    return path


def png() -> bytes:
    out = io.BytesIO()
    Image.new("RGBA", (40, 40), (200, 0, 0, 0)).save(out, "PNG")
    return out.getvalue()


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    return striped(tmp_path / "meadow.jpg")


@pytest.fixture
def broken(tmp_path: Path, photo: Path) -> Path:
    path = tmp_path / "half.jpg"
    path.write_bytes(photo.read_bytes()[:200])
    return path


def test_the_page_is_small_and_needs_nothing_from_elsewhere() -> None:
    texts = {name: (PAGE / name).read_text("utf-8") for name, _ in FILES.values()}
    assert sum(len(text.encode()) for text in texts.values()) < 32_000
    for name, text in texts.items():
        assert not re.findall(r"https?:(?!//www\.w3\.org/2000/svg)", text), name
    assert not re.findall(r"<script(?![^>]*\bsrc=)|<style|\sstyle=|\son\w+=", texts["index.html"])
    assert not re.findall(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(|Function\(", texts["page.js"])


def test_answers_and_a_broken_file(page: Page, photo: Path, broken: Path, tmp_path: Path) -> None:
    second = striped(tmp_path / ("a very long name " * 8 + ".jpg"), (99, 300), orientation=6)
    page.choose(photo, broken, second)
    cards = page.settled(3)

    assert [card["name"] for card in cards] == [photo.name, broken.name, second.name]
    good, bad = cards[0], cards[1]
    assert (good["label"], good["score"]) == ("daisy", "93.1 %")
    assert good["lines"][:2] == ["daisy 93.1 %", "dandelion 5.0 %"]
    assert len(good["lines"]) == 5
    assert good["lines"][4] == "tulips < 0.1 %"
    assert good["facts"] == "version 3 · 1.5 ms waiting, 6.1 ms decoding, 31 ms in the model"
    assert (good["role"], good["alt"]) == ("img", "photo meadow.jpg, middle square")
    assert bad["label"] is None
    assert "cut off" in bad["wrong"]
    assert bad["code"] == "truncated"
    assert page.status == "2 of 3 photos answered, 1 could not be read"
    assert page.find("#status").get_attribute("aria-live") == "polite"
    assert page.find("#model").text == f"flowers · version 3 · 5 classes: {', '.join(CLASSES)}"
    [(path, _, names)] = page.site.requests
    assert path == "/predict?heatmap=true&top=5"
    assert names == [photo.name, broken.name, second.name]


def test_the_middle_square_is_shown_upright(page: Page, tmp_path: Path) -> None:
    # As stored 300 x 100 in three stripes; turned by a quarter, the stripes lie above each other.
    page.choose(striped(tmp_path / "flat.jpg"), striped(tmp_path / "turned.jpg", (120, 100), orientation=6))
    page.settled(2)
    page.until(lambda: page.js("return [...document.querySelectorAll('canvas')].every((canvas) => canvas.width)"))
    for x in (0.05, 0.5, 0.95):
        red, green, blue, _ = page.pixel("canvas", x, 0.5)
        assert green > 120 > max(red, blue)
    colours = [page.pixel("canvas", 0.5, y, 1)[:3] for y in (0.05, 0.5, 0.95)]
    assert [colour.index(max(colour)) for colour in colours] == [0, 1, 2]


def test_a_file_that_the_browser_cannot_show_is_sent_all_the_same(page: Page) -> None:
    page.send("drop", ("odd.jpg", "image/jpeg", b"no picture, says the browser\xff\xd9"))
    [card] = page.settled(1)
    page.until(lambda: page.cards()[0]["blank"])
    assert card["label"] == "daisy"


def test_drop_and_paste(page: Page, photo: Path) -> None:
    meadow = (photo.name, "image/jpeg", photo.read_bytes())
    assert page.send("dragover", meadow)
    assert page.find("#curtain").is_displayed()
    assert page.send("drop", meadow, ("second.png", "image/png", png()))
    assert not page.find("#curtain").is_displayed()
    assert [card["name"] for card in page.settled(2)] == ["meadow.jpg", "second.png"]
    page.until(lambda: page.js("return document.querySelectorAll('canvas')[1].width"))
    assert page.pixel("canvas", 0.5, 0.5, 1) == (255, 255, 255, 255)  # transparent lies over white

    assert page.send("paste", ("image.png", "image/png", png()))
    cards = page.settled(3)
    assert [card["name"] for card in cards] == ["pasted 1.png", "meadow.jpg", "second.png"]  # the newest first
    assert all(card["label"] == "daisy" for card in cards)
    assert not page.send("paste")
    assert page.status == "3 of 3 photos answered"


def test_a_folder_can_be_dropped(page: Page, photo: Path, tmp_path: Path) -> None:
    folder = tmp_path / "trip" / "day 1"
    folder.mkdir(parents=True)
    for name in ("10.jpg", "9.jpg", "notes.txt"):
        shutil.copy(photo, folder / name)
    data = {"items": [], "files": [str(tmp_path / "trip"), str(photo)], "dragOperationsMask": 1}
    for event in ("dragEnter", "dragOver", "drop"):  # what the browser gets from a file manager
        page.cdp("Input.dispatchDragEvent", type=event, x=100, y=700, data=data)
    cards = page.settled(3)
    assert [card["name"] for card in cards] == ["trip/day 1/9.jpg", "trip/day 1/10.jpg", "meadow.jpg"]


def test_keyboard(page: Page, photo: Path) -> None:
    from selenium.webdriver import ActionChains, Keys

    page.js(
        "window.opened = 0;"
        "document.getElementById('files').addEventListener('click', (e) => { e.preventDefault(); opened += 1; })"
    )

    def press(key: str) -> Any:
        ActionChains(page.driver).send_keys(key).perform()
        return page.driver.switch_to.active_element

    focused = press(Keys.TAB)
    assert focused.get_attribute("id") == "pick"
    assert focused.value_of_css_property("outline-style") == "solid"
    assert float(focused.value_of_css_property("outline-width").removesuffix("px")) >= 2
    press(Keys.ENTER)
    press(Keys.SPACE)
    assert page.js("return opened") == 2

    page.send("drop", *[(name, "image/jpeg", photo.read_bytes()) for name in ("1.jpg", "2.jpg")])
    page.settled(2)
    page.js("document.getElementById('pick').focus()")
    names = [press(Keys.TAB).accessible_name for _ in range(4)]
    assert names == ["Download CSV", "Clear all", "Remove 1.jpg", "Show where the model looked"]
    press(Keys.SPACE)
    assert page.find(".toggle").get_attribute("aria-pressed") == "true"
    ActionChains(page.driver).key_down(Keys.SHIFT).send_keys(Keys.TAB).key_up(Keys.SHIFT).perform()
    assert press(Keys.ENTER).accessible_name == "Remove 2.jpg"
    assert press(Keys.ENTER).get_attribute("id") == "pick"
    assert page.cards() == []


def test_heat_map(page: Page, photo: Path) -> None:
    page.choose(photo)
    page.settled(1)
    page.until(lambda: page.js("return document.querySelector('canvas').width"))
    before = page.find(".photo").screenshot_as_png
    page.find(".toggle").click()
    hot, cold = page.pixel(".heat", 0.1, 0.1), page.pixel(".heat", 0.8, 0.8)
    assert hot[3] > 150
    assert hot[0] > 200 > hot[2]
    assert cold[3] == 0
    steps = [page.pixel(".heat", 0.1 + step / 50, 0.1)[3] for step in range(15)]
    assert len(set(steps)) > 4  # interpolated, no blocks
    assert page.find(".legend").text == "Orange marks what spoke for daisy, most of all at the top left."
    assert page.find(".photo").screenshot_as_png != before
    page.find(".toggle").click()
    assert page.find(".toggle").get_attribute("aria-pressed") == "false"
    assert not page.driver.find_elements("css selector", ".heat")
    assert not page.find(".legend").is_displayed()


def test_a_photo_of_none_of_the_classes(page: Page, photo: Path) -> None:
    page.site.label = None
    page.choose(photo)
    (card,) = page.settled(1)
    assert (card["label"], card["score"], len(card["lines"])) == ("None of these", "", 5)
    assert page.find(".none").text == f"{HOSTILE}. The nearest classes are:"
    page.find(".toggle").click()
    page.until(lambda: "what spoke for daisy" in page.find(".legend").text)


def test_an_answer_without_a_heat_map(page: Page, photo: Path) -> None:
    page.site.heat = False
    page.choose(photo)
    [card] = page.settled(1)
    assert card["label"] == "daisy"
    assert not card["toggle"]


def test_hostile_texts_stay_texts(page: Page, photo: Path) -> None:
    page.site.label = HOSTILE
    page.send("drop", (HOSTILE, "image/jpeg", photo.read_bytes()))
    [card] = page.settled(1)
    assert (card["name"], card["label"], card["pictures"]) == (HOSTILE, HOSTILE, 0)
    assert card["lines"][0].startswith(HOSTILE)
    page.find(".toggle").click()
    assert HOSTILE in page.find(".legend").text
    assert card["alt"] == f"photo {HOSTILE}, middle square"


def test_a_hundred_photos(page: Page, photo: Path) -> None:
    data = photo.read_bytes()
    page.send("drop", *[(f"{number}.jpg", "image/jpeg", data) for number in range(100)])
    cards = page.settled(100)
    assert [card["name"] for card in cards] == [f"{number}.jpg" for number in range(100)]
    assert all(card["label"] == "daisy" for card in cards)
    assert page.status == "100 of 100 photos answered"
    sizes = [len(names) for _, _, names in page.site.requests]
    assert sum(sizes) == 100
    assert max(sizes) == 8
    held = "return [...document.querySelectorAll('canvas')].filter((canvas) => canvas.width).length"
    page.until(lambda: page.js(held))
    assert page.js(held) < 60  # the others lie far below the window
    page.js("window.scrollTo(0, document.body.scrollHeight)")
    page.until(lambda: page.js("return [...document.querySelectorAll('canvas')].at(-1).width"))
    page.until(lambda: page.js("return document.querySelector('canvas').width") == 0)
    page.find("#clear").click()
    assert page.cards() == []
    assert page.status == "All photos are removed"


def test_a_token_is_asked_for_and_kept_in_the_tab_only(page: Page, photo: Path) -> None:
    page.site.token = "sesame-1"
    page.site.expected = {"status of 401"}
    page.choose(photo)
    page.until(lambda: page.find("#gate").is_displayed())
    assert page.cards()[0]["state"] == "waiting…"
    page.find("#token").send_keys("wrong")
    page.find("#gate button").click()
    page.until(lambda: "did not accept" in page.find("#gate-note").text)
    page.until(lambda: page.find("#gate").is_displayed())
    page.find("#token").send_keys("sesame-1")
    page.find("#gate button").click()
    assert page.settled(1)[0]["label"] == "daisy"
    assert not page.find("#gate").is_displayed()
    assert page.site.requests[-1][1]["Authorization"] == "Bearer sesame-1"
    assert page.find("#token").get_attribute("value") == ""
    kept = page.js("return [Object.values(sessionStorage), localStorage.length, document.cookie]")
    assert kept == [["sesame-1"], 0, ""]


def test_a_busy_server_is_asked_again(page: Page, photo: Path) -> None:
    page.site.expected = {"status of 503"}
    page.site.busy = 2
    page.choose(photo)
    assert page.settled(1)[0]["label"] == "daisy"
    assert len(page.site.requests) == 3

    page.site.busy = 3
    page.choose(photo)
    card, _ = page.settled(2)
    assert (card["wrong"], card["code"]) == ("The server has too much to do at the moment.", "overloaded")
    assert page.status == "1 of 2 photos answered, 1 got no answer"
    page.find("#again").click()
    assert page.settled(2)[0]["label"] == "daisy"
    assert not page.find("#again").is_displayed()


def test_a_server_that_is_gone(page: Page, photo: Path) -> None:
    page.site.expected = {"ERR_INTERNET_DISCONNECTED"}
    conditions = {"latency": 0, "downloadThroughput": -1, "uploadThroughput": -1}
    page.until(lambda: page.find("#model").text)
    page.cdp("Network.enable")
    page.cdp("Network.emulateNetworkConditions", offline=True, **conditions)
    try:
        page.send("drop", *[(f"{number}.jpg", "image/jpeg", photo.read_bytes()) for number in range(10)])
        cards = page.settled(10)
    finally:
        page.cdp("Network.emulateNetworkConditions", offline=False, **conditions)
    assert {(card["wrong"], card["code"]) for card in cards} == {("The server did not answer.", "unreachable")}
    page.find("#again").click()
    assert all(card["label"] == "daisy" for card in page.settled(10))


def test_requests_that_are_too_large_are_cut(page: Page, photo: Path) -> None:
    page.site.expected = {"status of 413"}
    page.site.most = 2
    page.send("drop", *[(f"{number}.jpg", "image/jpeg", photo.read_bytes()) for number in range(5)])
    assert all(card["label"] == "daisy" for card in page.settled(5))
    page.site.most = 0
    page.find("#clear").click()
    page.choose(photo)
    [card] = page.settled(1)
    assert (card["wrong"], card["code"]) == ("The file is too large for this server.", "too_large")


def test_a_new_version_is_noticed(page: Page, photo: Path) -> None:
    page.until(lambda: "version 3" in page.find("#model").text)
    page.site.version = 4
    page.site.reload_error = "version 5: weights.npz is missing"
    page.choose(photo)
    page.settled(1)
    page.until(lambda: "version 4" in page.find("#model").text)
    assert "version 5: weights.npz is missing" in page.find("#reload").text


def test_it_says_that_photos_are_kept(page: Page, photo: Path) -> None:
    page.until(lambda: "version 3" in page.find("#model").text)
    assert not page.find("#kept").is_displayed()
    page.site.version, page.site.keeps_photos = 4, True
    page.choose(photo)
    page.settled(1)
    page.until(lambda: "keeps some of the photos" in page.find("#kept").text)


def test_csv(page: Page, photo: Path, broken: Path, tmp_path: Path) -> None:
    page.cdp("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(tmp_path))
    page.site.label = '=1+1,"x"'
    page.choose(photo, broken)
    page.settled(2)
    page.find("#csv").click()
    path = tmp_path / "answers.csv"
    page.until(path.exists)
    rows = list(csv.reader(io.StringIO(path.read_text("utf-8-sig"))))
    assert rows == [
        ["filename", "label", "score", "error", "reason"],
        ["meadow.jpg", '\'=1+1,"x"', "0.9312", "", ""],
        ["half.jpg", "", "", "truncated: the data ends early", ""],
    ]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_contrast_and_calm(page: Page, photo: Path, broken: Path, scheme: str) -> None:
    features = [
        {"name": "prefers-color-scheme", "value": scheme},
        {"name": "prefers-reduced-motion", "value": "reduce"},
    ]
    page.cdp("Emulation.setEmulatedMedia", features=features)
    try:
        page.site.reload_error = "weights.npz is missing"
        page.open()
        page.choose(photo, broken)
        page.settled(2)
        page.find(".toggle").click()
        page.js("document.getElementById('gate').hidden = document.getElementById('again').hidden = false")
        paper = page.find("body").value_of_css_property("background-color")
        assert (int(re.findall(r"\d+", paper)[0]) < 80) == (scheme == "dark")
        assert page.js(FAINT) == []
        page.js("document.querySelector('.card').classList.add('waiting')")
        assert page.find(".waiting .photo").value_of_css_property("animation-name") == "none"
    finally:
        page.cdp("Emulation.setEmulatedMedia", features=[])


def test_phone(page: Page, photo: Path, broken: Path) -> None:
    page.cdp("Emulation.setDeviceMetricsOverride", width=360, height=740, deviceScaleFactor=2, mobile=True)
    page.cdp("Emulation.setTouchEmulationEnabled", enabled=True)
    try:
        page.site.label = "Gewöhnliche-Wegwarte-mit-einem-sehr-langen-Namen-ohne-Leerzeichen"
        page.open()
        assert page.find("#snap").is_displayed()
        assert page.find("#camera").get_attribute("capture") == "environment"
        name = "IMG_" + "1234567890" * 8 + ".jpg"
        page.send("drop", (name, "image/jpeg", photo.read_bytes()), ("half.jpg", "image/jpeg", broken.read_bytes()))
        page.settled(2)
        assert page.js("return document.documentElement.scrollWidth") <= 360
        wide = "return [...document.querySelectorAll('.card')].map((card) => card.getBoundingClientRect().left)"
        assert len(set(page.js(wide))) == 1
        sizes = page.js(
            "return [...document.querySelectorAll('button')].filter((button) => button.checkVisibility())"
            ".map((button) => [button.getBoundingClientRect().width, button.getBoundingClientRect().height])"
        )
        assert len(sizes) == 7
        assert all(width >= 44 and height >= 44 for width, height in sizes)
    finally:
        page.cdp("Emulation.clearDeviceMetricsOverride")
        page.cdp("Emulation.setTouchEmulationEnabled", enabled=False)


def test_without_scripts_the_page_says_what_to_do(page: Page) -> None:
    page.cdp("Emulation.setScriptExecutionDisabled", value=True)
    try:
        page.driver.get(page.site.address)
        assert "curl -F files=@photo.jpg" in page.find("body").text
        assert not page.find("#app").is_displayed()
    finally:
        page.cdp("Emulation.setScriptExecutionDisabled", value=False)
