"""The page in a real browser: mouse and keyboard, phone, light and dark, and no other hosts."""

from __future__ import annotations

import json
import re

import pytest
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import WebDriverWait

from tests.serving.browser import browser
from tests.serving.conftest import serving, until
from tests.serving.fake import OVERLONG, FakeEngine, steps_of
from tpdm.serving.engine.interface import ImageRequest
from tpdm.serving.http.app import load_page
from tpdm.serving.http.settings import ModelCard, Settings

EXAMPLES = (("one", "red circle"), ("two", "red circle and blue ring"))
CARD = ModelCard("tinyworld", learned=True, gamma_conditioned=False, default_steps=28, examples=EXAMPLES)
FIELDS = ("prompt", "quality", "seed", "token", "draw", "stop", "other-seed")


@pytest.fixture(scope="module")
def chromium():
    with browser() as driver:
        yield driver


class Page:
    def __init__(self, driver, address):
        self.driver, self.address = driver, address
        for kind in ("browser", "performance"):
            driver.get_log(kind)  # forgets what other tests did
        driver.get(address)

    def __getitem__(self, name):
        return self.driver.find_element(By.ID, name.replace("_", "-"))

    def all(self, css):
        return self.driver.find_elements(By.CSS_SELECTOR, css)

    def wait(self, condition):
        return WebDriverWait(self.driver, 60, 0.02).until(lambda _: condition())

    def style(self, element, name):
        return self.driver.execute_script("return getComputedStyle(arguments[0])[arguments[1]]", element, name)

    def ready(self):
        self.wait(lambda: self.all("#examples button"))
        return self

    def summary(self):
        self.wait(lambda: self["summary"].text)
        return self["summary"].text


@pytest.fixture
def open_page(chromium):
    stack = []

    def open_it(engine=None, card=CARD, settings=None, width=1280, dark=False):
        metrics = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": width < 600}
        chromium.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        chromium.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})
        server = serving(engine or FakeEngine(pace=0.005), card, settings or Settings())
        stack.append(server)
        return Page(chromium, server.__enter__())

    yield open_it
    chromium.get("about:blank")
    for server in stack:
        server.__exit__(None, None, None)


def asked_addresses(page):
    entries = [json.loads(entry["message"])["message"] for entry in page.driver.get_log("performance")]
    sent = [one["params"]["request"]["url"] for one in entries if one["method"] == "Network.requestWillBeSent"]
    return [address for address in sent if not address.startswith(("data:", "about:"))]


def test_an_image_next_to_the_fixed_schedule(open_page):
    engine = FakeEngine(pace=0.1)
    page = open_page(engine).ready()
    page["seed"].clear()
    page["seed"].send_keys("7")
    page.all("#examples button")[1].click()
    page.wait(lambda: page.all("#learned img:not([hidden])"))
    assert page["summary"].text == ""  # the picture is seen before it is done
    page.wait(lambda: len(page.all("#curve .learned circle")) > 2)
    words = page.summary()
    steps = steps_of(ImageRequest("red circle and blue ring", 7))
    share = round(100 * steps / 28)
    shape = rf"Learned: {steps} steps in [\d.]+ s\. Fixed: 28 steps in [\d.]+ s\. {share} % of the steps\."
    assert re.fullmatch(shape, words)
    learned, fixed = engine.requests
    assert (learned.prompt, learned.seed, learned.num_inference_steps) == ("red circle and blue ring", 7, None)
    assert (fixed.prompt, fixed.seed, fixed.num_inference_steps) == ("red circle and blue ring", 7, 28)
    assert len(page.all("#curve .learned circle")) == steps + 1
    assert len(page.all("#curve .fixed rect")) == 29
    image = page.all("#fixed img")[0]
    assert image.get_attribute("alt") == "red circle and blue ring"
    assert page.style(image, "imageRendering") == "pixelated"
    assert page.driver.get_log("browser") == []  # nothing was refused by the policy, no script failed
    addresses = asked_addresses(page)
    assert len(addresses) > 5
    assert all(address.startswith(page.address) for address in addresses)


def test_the_page_works_with_the_keyboard(open_page):
    engine = FakeEngine(pace=0.01)
    page = open_page(engine).ready()
    seen = []
    for _ in range(12):
        page.driver.switch_to.active_element.send_keys(Keys.TAB)
        focused = page.driver.switch_to.active_element
        seen.append(focused.get_attribute("id") or focused.text)
        if focused.tag_name != "body":
            assert page.style(focused, "outlineStyle") == "solid"
    order = [name for name in seen if name in ("prompt", "draw", "stop", "seed", "other-seed")]
    assert order[:5] == ["prompt", "draw", "stop", "seed", "other-seed"]
    assert "Skip to the pictures" in seen
    page["prompt"].clear()
    page["prompt"].send_keys("endless", Keys.ENTER)
    page.wait(lambda: page.all("#learned img:not([hidden])"))
    page.driver.switch_to.active_element.send_keys(Keys.ESCAPE)
    assert page.summary() == "Stopped."
    until(lambda: engine.status().cancelled == 1)
    assert page.driver.switch_to.active_element.get_attribute("id") == "prompt"


def test_the_stop_button_and_a_second_draw(open_page):
    engine = FakeEngine(pace=0.01)
    page = open_page(engine).ready()
    page["prompt"].clear()
    page["prompt"].send_keys("endless")
    page["draw"].click()
    page.wait(lambda: page.all("#learned img:not([hidden])"))
    page["draw"].click()  # starts over
    until(lambda: engine.status().cancelled == 1)
    page["stop"].click()
    assert page.summary() == "Stopped."
    until(lambda: engine.status().cancelled == 2)


@pytest.mark.parametrize("width", [320, 390])
def test_on_a_phone(open_page, width):
    page = open_page(width=width).ready()
    page.all("#examples button")[0].click()
    page.summary()
    assert page.driver.execute_script("return document.documentElement.scrollWidth") <= width
    left, right = (
        page.driver.execute_script("return arguments[0].getBoundingClientRect()", f) for f in page.all("figure")
    )
    assert left["y"] == right["y"]
    assert left["y"] < 800  # scrolled into view
    assert min(button.size["height"] for button in page.all("button")) >= 44


def luminance(color):
    channels = [int(c) / 255 for c in re.findall(r"\d+", color)[:3]]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("dark", [False, True])
def test_text_has_enough_contrast_in_light_and_dark(open_page, dark):
    """Contrast of at least 4.5 (WCAG AA), measured on what the browser computed."""
    page = open_page(dark=dark).ready()
    paper = page.style(page.all("body")[0], "backgroundColor")
    assert (luminance(paper) < 0.1) is dark
    for css in ("h1", "#lead", ".hint", "#error", "#examples small", ".level", "button.main", "#examples button"):
        element = page.all(css)[0]
        own = page.style(element, "backgroundColor")
        behind = paper if own == "rgba(0, 0, 0, 0)" else own
        low, high = sorted([luminance(page.style(element, "color")), luminance(behind)])
        assert (high + 0.05) / (low + 0.05) >= 4.5, css


def test_every_control_has_an_accessible_name(open_page):
    page = open_page(settings=Settings(token="s3cret"))
    page.wait(lambda: page["token"].is_displayed())
    names = {name: page[name].accessible_name for name in FIELDS}
    assert names["prompt"] == "Prompt"
    assert all(names.values())
    assert page["summary"].get_attribute("aria-live") == "polite"
    assert page.all("html")[0].get_attribute("lang") == "en"


def test_the_quality_setting(open_page):
    engine = FakeEngine()
    page = open_page(engine, ModelCard("m", True, True, 28, EXAMPLES)).ready()
    assert page["quality"].is_enabled()
    page["quality"].send_keys(Keys.HOME, Keys.ARROW_RIGHT)
    assert page["quality-value"].text == "0.05"
    page["draw"].click()
    page.summary()
    assert [request.quality for request in engine.requests] == [0.05, None]


def test_without_a_quality_setting_the_page_gives_the_reason(open_page):
    page = open_page().ready()
    assert not page["quality"].is_enabled()
    assert "trained for one balance" in page["quality-hint"].text


def test_without_a_tpm_there_is_one_image(open_page):
    engine = FakeEngine()
    page = open_page(engine, ModelCard("m", False, False, 28, EXAMPLES)).ready()
    page["draw"].click()
    assert page.summary().startswith("Done: 28 steps")
    assert not page["learned"].is_displayed()
    assert "--tpm" in page["lead"].text
    assert [request.num_inference_steps for request in engine.requests] == [28]


def test_a_truncated_text_is_reported_once(open_page):
    page = open_page(FakeEngine()).ready()
    page["prompt"].clear()
    page["prompt"].send_keys("overlong circle")
    page["draw"].click()
    assert page.summary().endswith(f"% of the steps. {OVERLONG}.")


def test_an_image_flagged_by_the_safety_checker_is_marked(open_page):
    page = open_page(FakeEngine(), settings=Settings(response_format="url")).ready()  # the page reads b64_json anyway
    page["prompt"].clear()
    page["prompt"].send_keys("flagged circle")
    page["draw"].click()
    assert page.summary().endswith("% of the steps. Flagged by the safety checker: Learned, Fixed.")
    assert len(page.all(".pair img:not([hidden])")) == 2


def test_the_page_asks_for_the_token_and_sends_it(open_page):
    page = open_page(settings=Settings(token="s3cret"))
    page.wait(lambda: page["token"].is_displayed())
    assert "token is missing or wrong" in page["error"].text
    page["token"].send_keys("s3cret", Keys.TAB)
    page.ready()
    assert page["error"].text == ""
    page["draw"].click()
    assert page.summary().startswith("Learned: ")


def test_errors_are_shown(open_page):
    page = open_page().ready()
    for prompt, words in (
        ("refuse", "an option that the pipeline lacks"),
        ("explode", "The log of the server gives the reason"),
    ):
        page["prompt"].clear()
        page["prompt"].send_keys(prompt)
        page["draw"].click()
        page.wait(lambda words=words: words in page["error"].text)


def test_prompts_are_not_interpreted_as_html(open_page):
    page = open_page().ready()
    page["prompt"].clear()
    page["prompt"].send_keys("<img src=x onerror=alert(1)>")
    page["draw"].click()
    page.summary()
    assert page.all("#learned img")[0].get_attribute("alt") == "<img src=x onerror=alert(1)>"
    assert len(page.all("img")) == 2


def test_the_files_name_no_other_host():
    for name, file in load_page().items():
        found = re.findall(rb"https?://[^\s\"'<>)]+", file.content)
        assert set(found) <= {b"http://www.w3.org/2000/svg"}, name  # the name of a language, not an address
