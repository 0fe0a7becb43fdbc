"""/api/cost answers as `shoal cost` does, and the page at /cost shows it: real server, real planner, real Chromium."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import httpx
import pytest

from shoal.cost import hardware, planner, runs
from shoal.cost.planner import Job

V3 = {"model": "deepseek-v3", "device": "h800", "count": 2048, "tokens": 14.8e12, "stack": "tuned"}


def test_the_api_and_the_planner_say_the_same(client: httpx.Client) -> None:
    made = client.post("/api/cost/plan", json=V3).json()
    device = hardware.catalogue().get("h800")
    own = planner.plan(
        Job(runs.known_model("deepseek-v3"), device, "deepseek-v3", count=2048, tokens=14.8e12, stack="tuned")
    )
    assert made == own.to_dict()


def test_what_can_be_chosen(client: httpx.Client) -> None:
    found = client.get("/api/cost/options").json()
    assert {"deepseek-v3", "nano"} <= {model["name"] for model in found["models"]}
    h20 = next(device for device in found["devices"] if device["key"] == "h20")
    assert h20["export"]["2023-10"]["name"] == "not 3A090" and found["currencies"]["rates"]["JPY"] > 1


def test_other_devices_and_counts(client: httpx.Client) -> None:
    rows = client.post("/api/cost/compare", json=V3 | {"rule": "2022-10"}).json()["rows"]
    assert {row["device"]: row["export"]["name"] for row in rows}["h800"] == "not 3A090"
    points = client.post("/api/cost/scan", json=V3).json()["points"]
    assert [point["count"] for point in points] == sorted(point["count"] for point in points) and len(
        points
    ) > 4


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"device": "h80O"}, "Nearest: h800"),
        ({"tokens": 0}, "tokens"),
        ({"tokens": None}, "only one"),
        ({"model": "../../etc/passwd"}, "no known shape"),
        ({"device": "rtx4090", "count": 8}, "cannot hold the weights"),
        ({"kind": "magic"}, "kind"),
        ({"sharding": "x"}, "sharding"),
        ({"tokens": 1e300}, "tokens"),
    ],
)
def test_what_cannot_be_is_a_400_that_says_why(
    client: httpx.Client, change: dict[str, Any], says: str
) -> None:
    answer = client.post("/api/cost/plan", json=V3 | change)
    assert answer.status_code == 400 and says in answer.json()["error"]["message"]


def test_the_chain_of_nano_goes_down_to_its_first_run(client: httpx.Client) -> None:
    found = client.get("/api/cost/receipts/nano").json()
    assert len(found["links"]) >= 2 and found["links"][-1]["kind"] == "train"
    assert all(link["energy_basis"] in ("measured", "estimated") for link in found["links"])
    assert found["total_usd"] == pytest.approx(sum(link["usd"] for link in found["links"]))
    assert client.get("/api/cost/receipts/nobody").status_code == 404


@pytest.mark.browser
def test_the_page_shows_what_the_planner_says(open_page: Callable[..., Any], page_server: str) -> None:
    page = open_page()
    page.goto(f"{page_server}/cost#model=llama-3.1-8b&device=h100&count=64&by=tokens&value=1e12&currency=JPY")
    page.wait_for_selector(".plot canvas")
    asked = {"model": "llama-3.1-8b", "device": "h100", "count": 64, "tokens": 1e12, "stack": "tuned",
             "recompute": "selective"}  # fmt: skip
    made = page.request.post(
        f"{page_server}/api/cost/plan", data=asked, headers={"sec-fetch-site": "same-origin"}
    ).json()
    days = f"{made['hours'] / 24:.3g}"
    assert page.locator(".figure b").first.inner_text().startswith(days)
    assert "¥" in page.locator(".figure b").nth(1).inner_text()
    page.locator("input[type=range]").nth(1).fill("7")  # 128 devices
    page.wait_for_function("() => location.hash.includes('count=128')")
    page.wait_for_function(f"() => !document.querySelector('.figure b').innerText.startsWith('{days}')")
    half = page.locator(".figure b").first.inner_text()
    page.reload()  # the address is a link to what was seen
    page.wait_for_selector(".figure b")
    assert page.locator(".figure b").first.inner_text() == half
    page.get_by_role("combobox", name="Language").select_option("ja")
    page.wait_for_selector("h1:has-text('いくら')")


@pytest.mark.browser
def test_a_phone_scrolls_down_only_and_faults_are_told(
    open_page: Callable[..., Any], page_server: str
) -> None:
    page = open_page(viewport={"width": 320, "height": 700})
    page.goto(f"{page_server}/cost#receipts=nano")
    page.wait_for_selector(".chain li")
    assert page.evaluate("document.documentElement.scrollWidth") <= 320
    page.get_by_role("tab").first.click()
    page.wait_for_selector("table tbody tr")
    assert page.evaluate("document.documentElement.scrollWidth") <= 320
    open_page.troubles.clear()  # type: ignore[attr-defined]
    page.goto(f"{page_server}/cost#device=rtx4090&count=8")
    page.reload()
    page.wait_for_selector("[role=alert]:has-text('cannot hold')")
    assert all("400" in line for line in open_page.troubles)  # type: ignore[attr-defined]
    open_page.troubles.clear()  # type: ignore[attr-defined]
