"""The store keeps complete rows with their images, and no rows of another TPM."""

import json
import threading

import numpy as np
import pytest
from PIL import Image

from tpdm.core.errors import ConfigError
from tpdm.evaluation.result_store import Store


def rows(first: int, count: int) -> list[dict]:
    return [{"index": i, "score": i / 10} for i in range(first, first + count)]


def test_rows_and_images_are_stored(tmp_path):
    store = Store(tmp_path, {"tpm": "a"})
    images = np.arange(2 * 4 * 4 * 3, dtype=np.uint8).reshape(2, 4, 4, 3)
    store.add("tpdm, quality 0.5", rows(0, 2), images)
    store.add("tpdm, quality 0.5", rows(2, 1), None)
    again = Store(tmp_path, {"tpm": "a"})
    assert again.rows("tpdm, quality 0.5") == rows(0, 3)
    assert again.rows("tpdm") == []
    kept = np.asarray(Image.open(tmp_path / "pictures" / "tpdm, quality 0.5" / "0001.png"))
    assert (kept == images[1]).all()


def test_an_incomplete_line_is_measured_again(tmp_path):
    store = Store(tmp_path, {"tpm": "a"})
    store.add("p", rows(0, 2), None)
    path = next((tmp_path / "rows").glob("p.jsonl"))
    with path.open("a", encoding="utf-8") as file:
        file.write('{"index": 2, "sco')
    assert store.rows("p") == rows(0, 2)
    store.add("p", rows(2, 2), None)
    assert store.rows("p") == rows(0, 4)
    assert all(json.loads(line) for line in path.read_text().splitlines())


@pytest.mark.parametrize("fingerprint", [{"tpm": "b"}, {"tpm": "a", "judges": ["clip"]}])
def test_rows_of_another_tpm_are_deleted(tmp_path, fingerprint):
    Store(tmp_path, {"tpm": "a"}).add("p", rows(0, 2), np.zeros((2, 2, 2, 3), np.uint8))
    assert Store(tmp_path, fingerprint).rows("p") == []
    assert not (tmp_path / "pictures").exists()


def test_a_shared_folder_with_other_rows_is_refused(tmp_path):
    Store(tmp_path, {"prompts": "a", "reward": "r"}, shared=True).add("p", rows(0, 2), None)
    with pytest.raises(ConfigError, match=r"differ in prompts\. They must"):
        Store(tmp_path, {"prompts": "b", "reward": "r"}, shared=True)
    assert Store(tmp_path, {"prompts": "a", "reward": "r"}, shared=True).rows("p") == rows(0, 2)


def test_a_second_process_waits_and_uses_the_rows(tmp_path):
    first, second = Store(tmp_path, {}, shared=True), Store(tmp_path, {}, shared=True)
    found, begun = [], threading.Event()

    def wait():
        begun.set()
        with second.held("best grid 4"):
            found.extend(second.rows("best grid 4"))

    with first.held("best grid 4"):
        thread = threading.Thread(target=wait)
        thread.start()
        begun.wait()
        with second.held("best grid 5"):  # nobody has that one
            first.add("best grid 4", rows(0, 3), None)
        assert not found
    thread.join(timeout=10)
    assert found == rows(0, 3)
