"""The pages of reports in a browser: what it complains of, pictures, colours, keyboard, paper, and a phone."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from flowers.report.check import ClassCounts, DataCheck
from flowers.report.check_html import render_check
from flowers.report.evaluation_html import render_evaluation
from flowers.report.html import render_html
from tests.browser import FAINT, complaints
from tests.report.samples import HOSTILE, evaluation, left_out
from tests.report.test_report import FLOWERS, full_report

if TYPE_CHECKING:
    from selenium.webdriver.chrome.webdriver import WebDriver

LONG = "Gewöhnliche-Wegwarte-mit-einem-sehr-langen-Namen-ohne-Leerzeichen-" * 2
NAMES = ("report", "evaluation", "check")
OPEN = "document.querySelectorAll('details').forEach((one) => { one.open = true; })"
SHOWN = "return [...document.querySelectorAll(arguments[0])].filter((one) => one.checkVisibility()).length"
# What sticks out of the window and does not scroll in a box of its own, and what scrolls but not by keyboard.
OUTSIDE = """
return [...document.querySelectorAll("body *")]
  .filter((one) => one.checkVisibility() && !one.closest(".scroll *, nav ul *"))
  .filter((one) => one.getBoundingClientRect().right > innerWidth + 0.5).map((one) => one.outerHTML.slice(0, 120));
"""
STUCK = """
return [...document.querySelectorAll("main *")]
  .filter((one) => one.scrollWidth > one.clientWidth + 1 && getComputedStyle(one).overflowX === "auto")
  .filter((one) => one.tabIndex < 0).map((one) => one.outerHTML.slice(0, 120));
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The three pages, with names that are hostile, long and in other scripts."""
    folder = tmp_path_factory.mktemp("pages")
    files = left_out(folder)
    check = DataCheck(
        source=f"/photos/{LONG}",
        command="python -m jobs.check",
        files=9,
        notes=("a split on disk",),
        warnings=(HOSTILE[0],),
        refusal=None,
        classes=[ClassCounts(LONG, 5, {"train": 3, "validation": 1, "test": 1}, 2)],
        formats={"JPEG": 5},
        sides=([90, 90, 90], [120, 120, 120]),
        reasons=files,
        near_duplicates=files[0],
    )
    pages = {
        "report": render_html(full_report(folder, [*FLOWERS[:3], LONG, "雛菊"])),
        "evaluation": render_evaluation(evaluation(folder, [*HOSTILE, *(f"class {number}" for number in range(12))])),
        "check": render_check(check),
    }
    for name, page in pages.items():
        (folder / f"{name}.html").write_text(page, encoding="utf-8")
    return folder


class Tab:
    """The browser with one of the pages."""

    def __init__(self, driver: WebDriver, folder: Path) -> None:
        self.driver, self.folder = driver, folder

    def open(self, name: str) -> None:
        self.driver.get("about:blank")
        self.driver.get((self.folder / f"{name}.html").as_uri())

    def js(self, code: str, *arguments: object) -> Any:
        return self.driver.execute_script(code, *arguments)

    def cdp(self, command: str, **parameters: object) -> None:
        self.driver.execute_cdp_cmd(command, parameters)

    def media(self, media: str = "", scheme: str = "light") -> None:
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self.cdp("Emulation.setEmulatedMedia", media=media, features=features)

    def press(self, key: str) -> None:
        from selenium.webdriver.common.action_chains import ActionChains
        from selenium.webdriver.common.keys import Keys

        ActionChains(self.driver).send_keys(getattr(Keys, key)).perform()

    def focused(self) -> Any:
        return self.driver.switch_to.active_element


@pytest.fixture
def tab(driver: WebDriver, folder: Path) -> Iterator[Tab]:
    """Afterwards nothing may have been complained of and nothing asked elsewhere."""
    complaints(driver)
    tab = Tab(driver, folder)
    yield tab
    asked = tab.js("return performance.getEntriesByType('resource').map((entry) => entry.name)")
    tab.cdp("Emulation.setEmulatedMedia", media="", features=[])
    tab.cdp("Emulation.clearDeviceMetricsOverride")
    assert complaints(driver) == []
    assert [name for name in asked if not name.startswith("data:")] == []


@pytest.mark.parametrize("name", NAMES)
def test_pictures_colours_keyboard_and_paper(tab: Tab, name: str) -> None:
    tab.open(name)
    pictures = tab.js("return [...document.images].map((one) => one.complete && one.naturalWidth)")
    assert len(pictures) > {"report": 100, "evaluation": 100, "check": 1}[name]
    assert all(pictures)

    tab.press("TAB")
    assert tab.focused().text == "Skip to the content"
    tab.press("ENTER")
    assert tab.js("return document.activeElement.id") == "main"
    if name != "check":
        look_into_the_matrix(tab)

    tables = tab.js("return document.querySelectorAll('table').length")
    tab.media("print", scheme="dark")
    assert tab.js(SHOWN, "table") == tables  # also those that are folded on the screen
    assert tab.js(SHOWN, "nav, .skip, .cell") == 0
    assert tab.js("return getComputedStyle(document.body).color") == "rgb(29, 36, 33)"
    tab.js(OPEN)
    for scheme in ("light", "dark"):
        tab.media(scheme=scheme)
        assert tab.js(FAINT) == []


def look_into_the_matrix(tab: Tab) -> None:
    """Follows numbers of the confusion matrix to their photos and back, with the mouse and by keyboard."""
    assert tab.js(SHOWN, ".cell") == 0
    numbers = tab.driver.find_elements("css selector", ".matrix td:not(.d) a")
    for number in numbers[:2]:
        tab.js("arguments[0].scrollIntoView({block: 'center'})", number)
        number.click()
        assert tab.js(SHOWN, ".cell") == 1
        panel = tab.driver.find_element("css selector", ".cell:target")
        assert str(number.get_attribute("href")).endswith(f"#{panel.get_attribute('id')}")
        assert panel.find_element("css selector", "h3").text.endswith(f": {number.text}")
        assert 0 < tab.js(SHOWN, ".cell:target img") <= int(number.text)
    tab.js("arguments[0].focus({focusVisible: true})", numbers[0])
    assert numbers[0].value_of_css_property("outline-style") == "solid"
    tab.press("ENTER")
    assert str(numbers[0].get_attribute("href")).endswith(tab.js("return document.querySelector('.cell:target').id"))
    tab.press("TAB")
    assert tab.focused().text == "Back to the table"
    tab.press("ENTER")
    assert tab.js(SHOWN, ".cell") == 0


@pytest.mark.parametrize("name", NAMES)
def test_nothing_is_wider_than_a_phone(tab: Tab, name: str) -> None:
    tab.cdp("Emulation.setDeviceMetricsOverride", width=360, height=740, deviceScaleFactor=2, mobile=True)
    tab.open(name)
    tab.js(OPEN)
    if panels := tab.js("return [...document.querySelectorAll('.cell')].map((one) => one.id)"):
        tab.js("location.hash = arguments[0]", panels[0])
        assert tab.js(SHOWN, ".cell") == 1
    assert tab.js("return document.documentElement.scrollWidth") <= 360
    assert tab.js(OUTSIDE) == []
    assert tab.js(STUCK) == []
