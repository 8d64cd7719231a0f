"""Takes the pictures of the page that docs/images holds:  python -m tests.serving.screenshots"""

from __future__ import annotations

import base64
from pathlib import Path

from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait

from tests.serving.browser import browser
from tests.serving.conftest import serving
from tpdm.serving.engine.engine import make_engine
from tpdm.serving.http.settings import describe_model

IMAGES = Path(__file__).parents[2] / "docs" / "images"
VIEWS = {"light": (1180, 860, False), "dark": (1180, 860, True), "phone": (390, 844, False)}


def main() -> None:
    engine = make_engine("tinyworld", "tinyworld", slots=4, queue_limit=8)
    with serving(engine, describe_model("tinyworld", "tinyworld")) as address:
        for name, (width, height, dark) in VIEWS.items():
            with browser(width, height, dark) as driver:
                driver.get(address)
                wait = WebDriverWait(driver, 20)
                wait.until(lambda driver: len(driver.find_elements(By.CSS_SELECTOR, "#examples button")) == 4)
                driver.find_elements(By.CSS_SELECTOR, "#examples button")[1].click()
                wait.until(lambda driver: "steps in" in driver.find_element(By.ID, "summary").text)
                shot = driver.execute_cdp_cmd("Page.captureScreenshot", {"captureBeyondViewport": True})
                (IMAGES / f"serve-{name}.png").write_bytes(base64.b64decode(shot["data"]))


if __name__ == "__main__":
    main()
