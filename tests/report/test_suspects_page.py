"""The page of suspects in a real browser: decided by keyboard and mouse, it downloads what --relabel takes."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from flowers.data.corrections import read_corrections, written
from flowers.report.suspects import Picture, Suspect, SuspectsFound, render_suspects
from tests.browser import FAINT

if TYPE_CHECKING:
    from selenium.webdriver.chrome.webdriver import WebDriver

HOSTILE = '</script><img src=x onerror="document.title=1">'
CLASSES = ["=daisy", 'a "rose", or two', HOSTILE]
DOT = "data:image/gif;base64,R0lGODlhAQABAAAAACH5BAEKAAEALAAAAAABAAEAAAICTAEAOw=="


def suspect(number: int, label: str, suggested: str, action: str = "") -> Suspect:
    picture = Picture(f"{label}/{number}.jpg", DOT)
    return Suspect(
        path=f"/photos/{label}/{number}.jpg", sha256=f"{number:064x}", subset="train", label=label, now=label,
        suggested=suggested, score=0.01 * number, suggested_score=0.9, picture=picture, like_now=[picture] * 3,
        action=action,
    )  # fmt: skip


def found(*suspects: Suspect) -> SuspectsFound:
    earlier = Suspect("/photos/x.jpg", f"{99:064x}", "quarantined", "gone", "gone", action="relabel", new_label=HOSTILE)
    return SuspectsFound("one", "/photos", CLASSES, 50, 50, 4, 0.9, list(suspects), [earlier])


def until(true: Callable[[], bool]) -> None:
    for _ in range(200):
        if true():
            return
        time.sleep(0.05)
    pytest.fail("never came true")


def test_decisions_become_the_file(driver: WebDriver, tmp_path: Path) -> None:
    from selenium.webdriver import ActionChains, Keys

    suspects = [
        suspect(1, CLASSES[0], CLASSES[1]),
        suspect(2, CLASSES[1], CLASSES[0]),
        suspect(3, CLASSES[2], CLASSES[0]),
        suspect(4, CLASSES[0], CLASSES[2], action="keep"),
        suspect(5, CLASSES[0], CLASSES[1]),
    ]
    page = tmp_path / "suspects.html"
    page.write_text(render_suspects(found(*suspects)))
    driver.execute_cdp_cmd("Browser.setDownloadBehavior", {"behavior": "allow", "downloadPath": str(tmp_path)})
    driver.get(page.as_uri())
    status = "return document.querySelector('[role=status]').textContent"
    assert driver.execute_script(status) == "1 of 5 decided"
    press = ActionChains(driver).send_keys
    press(Keys.ARROW_DOWN, "r", "d", "d", "u").perform()  # the fourth is decided already: on to the fifth
    assert driver.execute_script("return document.activeElement.id") == "card4"
    driver.execute_script(
        "const select = document.querySelectorAll('select')[2]; select.focus(); select.value = arguments[0];"
        "select.dispatchEvent(new Event('change', {bubbles: true}))",
        CLASSES[1],
    )
    assert driver.execute_script(status) == "4 of 5 decided"
    driver.find_element("id", "download").click()
    file = tmp_path / "suspects.csv"
    until(lambda: file.exists() and file.stat().st_size > 0)
    decisions = read_corrections(str(file)).decisions
    assert {int.from_bytes(sha256): (one.label, *one.says) for sha256, one in decisions.items()} == {
        1: (CLASSES[0], "relabel", CLASSES[1]),
        2: (CLASSES[1], "drop", ""),
        3: (CLASSES[2], "relabel", CLASSES[1]),
        4: (CLASSES[0], "keep", ""),
        99: ("gone", "relabel", HOSTILE),
    }
    expected = [list(one.row) for one in found(*suspects).rows]
    for row, (action, label) in zip(
        expected, [("relabel", CLASSES[1]), ("drop", ""), ("relabel", CLASSES[1])], strict=False
    ):
        row[-2:] = [action, label]
    assert file.read_bytes() == written(expected)
    driver.get(page.as_uri())  # what was decided is still there
    assert driver.execute_script(status) == "4 of 5 decided"
    assert driver.execute_script("return document.querySelectorAll('select')[2].value") == CLASSES[1]

    assert driver.title == "Suspects of one"
    assert driver.execute_script("return document.querySelectorAll('img:not(figure img, .card > img)').length") == 0
    for scheme in ("light", "dark"):
        media = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
        driver.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
        assert driver.execute_script(FAINT) == []
    size = {"width": 360, "height": 740, "deviceScaleFactor": 1, "mobile": True}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    assert driver.execute_script("return document.documentElement.scrollWidth") <= 360
    assert not driver.get_log("browser")  # type: ignore[no-untyped-call]
