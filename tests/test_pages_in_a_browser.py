"""The HTML pages in headless Chromium, opened from the file system, on a desktop and on a phone: no error, no request,
and what is clicked does what it should."""

import shutil
from contextlib import contextmanager
from importlib.util import find_spec

import pytest

from ds_stage2ab.cli import main
from tests.unit.run_report.folders import run_folder

pytestmark = pytest.mark.soak

NO_BROWSER = "no chromium on PATH; install it: apt-get install chromium"
NO_DRIVER = "playwright is missing; install it: pip install playwright (no browser of its own is needed)"
DESKTOP = {"viewport": {"width": 1280, "height": 900}}
PHONE = {"viewport": {"width": 390, "height": 844}, "has_touch": True, "is_mobile": True}


@pytest.fixture(scope="module")
def browser():
    executable = shutil.which("chromium") or shutil.which("google-chrome")
    assert executable, NO_BROWSER
    assert find_spec("playwright"), NO_DRIVER
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        # Chromium has no sandbox where it runs as root.
        opened = driver.chromium.launch(executable_path=executable, args=["--no-sandbox"])
        yield opened
        opened.close()


@contextmanager
def opened(browser, file, form):
    """The page, once its charts are drawn; afterwards it must have said nothing and asked for nothing."""
    said = []
    context = browser.new_context(**form)
    page = context.new_page()
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda request: said.append(request.url) if request.url.startswith("http") else None)
    page.goto(f"file://{file}")
    if page.query_selector("#charts"):
        page.wait_for_selector("body[data-drawn]", timeout=60_000)
    yield page
    context.close()
    assert said == []


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """One run, and two."""
    folder = tmp_path_factory.mktemp("pages")
    first, second = run_folder(folder, "first"), run_folder(folder, "second", with_b=False)
    assert main(["report", str(first), "--html", str(folder / "one.html")]) == 0
    assert main(["report", str(first), str(second), "--html", str(folder / "two.html")]) == 0
    return {"one": folder / "one.html", "two": folder / "two.html"}


@pytest.mark.parametrize("form", [DESKTOP, PHONE], ids=["desktop", "phone"])
@pytest.mark.parametrize("name", ["one", "two"])
def test_it_fits_and_every_chart_is_drawn(browser, pages, name, form):
    with opened(browser, pages[name], form) as page:
        assert page.evaluate("document.documentElement.scrollWidth") == form["viewport"]["width"]
        places = page.locator("[data-chart]").count()
        assert places > 8 and page.locator("[data-chart] .main-svg").count() >= places
        sizes = page.evaluate("[...document.querySelectorAll('.main-svg')].map(one => one.clientWidth)")
        assert min(sizes) > 250
        # an image behind each picture, with its own shape
        shapes = page.evaluate(
            "[...document.querySelectorAll('.shot .picture')].filter(one => one.clientWidth)"
            ".map(one => [one.clientWidth / one.clientHeight, getComputedStyle(one).backgroundImage.slice(0, 15)])"
        )
        assert len(shapes) >= 8
        assert all(abs(ratio - 64 / 48) < 0.05 and image == 'url("data:image' for ratio, image in shapes)


def test_a_chart_is_zoomed_by_dragging_and_goes_back(browser, pages):
    with opened(browser, pages["one"], DESKTOP) as page:
        chart = page.locator("[data-chart='0']")
        chart.scroll_into_view_if_needed()
        area = chart.locator(".nsewdrag").first.bounding_box()
        across = "document.querySelector(\"[data-chart='0']\").layout.xaxis.range"
        before = page.evaluate(across)
        page.mouse.move(area["x"] + area["width"] / 4, area["y"] + 20)
        page.mouse.down()
        page.mouse.move(area["x"] + area["width"] / 2, area["y"] + area["height"] - 20, steps=5)
        page.mouse.up()
        after = page.evaluate(across)
        assert after[1] - after[0] == pytest.approx((before[1] - before[0]) / 4, rel=0.1)
        page.mouse.dblclick(area["x"] + 30, area["y"] + 30)
        page.wait_for_function(f"Math.abs({across}[1] - {before[1]}) < 0.01")


def test_a_line_is_hidden_by_its_name(browser, pages):
    with opened(browser, pages["two"], DESKTOP) as page:
        chart = page.locator("[data-chart='0']")
        chart.locator(".legendtoggle").first.click()
        seen = "document.querySelector(\"[data-chart='0']\").data.filter(one => one.visible === 'legendonly').length"
        page.wait_for_function(f"{seen} > 0")


@pytest.mark.parametrize("form", [DESKTOP, PHONE], ids=["desktop", "phone"])
def test_pictures_open_and_boxes_are_hidden(browser, pages, form):
    with opened(browser, pages["one"], form) as page:
        shown = "[...document.querySelectorAll('.shot .box.truth')].filter(one => one.clientWidth).length"
        assert page.evaluate(shown) >= 8
        page.locator("#truth").click()
        assert page.evaluate(shown) == 0
        small = page.locator(".shot .picture").first
        small.click()
        assert page.locator("dialog[open] .picture").bounding_box()["width"] > small.bounding_box()["width"]
        page.locator("dialog").click()
        assert page.locator("dialog[open]").count() == 0
        worst = page.locator("td.wide details").first
        assert not worst.locator(".picture").first.is_visible()
        worst.locator("summary").click()
        assert worst.locator(".picture").first.is_visible()


@pytest.mark.parametrize("form", [DESKTOP, PHONE], ids=["desktop", "phone"])
def test_the_page_of_data_fits(browser, quickstart, tmp_path, form):
    file = tmp_path / "data.html"
    assert main(["data", str(quickstart.data / "train.jsonl"), "--html", str(file)]) == 0
    with opened(browser, file, form) as page:
        assert page.evaluate("document.documentElement.scrollWidth") == form["viewport"]["width"]
        loaded = page.evaluate("[...document.images].every(one => one.complete && one.naturalWidth > 0)")
        assert loaded and page.locator("svg").count() > 5
        assert min(page.evaluate("[...document.querySelectorAll('.box')].map(one => one.clientWidth)")) > 0
