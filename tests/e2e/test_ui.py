"""
The page in a browser, and what it asks for, on a real database with the real model.
"""

import re
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest
from installs import Install
from pages import Stack, chromium, stack, tab
from playwright.sync_api import Browser, BrowserContext, Page, expect
from workers import drain

from nv_embed.client import Client
from nv_embed.credentials import Credentials

pytestmark = [pytest.mark.minilm, pytest.mark.slow]

DIMS = [384, 256, 128]


@pytest.fixture(scope="module")
def shown(make_install: Callable[[str], Install]) -> Iterator[Stack]:
    with stack(make_install("extension"), "--model", "minilm", "--dims", "256,128") as running:
        yield running


@pytest.fixture(scope="module")
def http(shown: Stack) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=shown.address, headers={"Authorization": f"Bearer {shown.token}"}, timeout=60) as client:
        yield client


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as running:
        yield running


@pytest.fixture
def context(browser: Browser) -> Iterator[BrowserContext]:
    with tab(browser) as opened:
        yield opened


def search(http: httpx.Client, **asked: Any) -> httpx.Response:
    return http.post("/search", json={"relation": "public.docs", "target": "embedding", "question": "what turns motion into current?", **asked})


def enter(page: Page, shown: Stack) -> None:
    page.goto(shown.address)
    page.get_by_label("Token of this sidecar").fill(shown.token)
    page.get_by_role("button", name="Show").click()
    expect(page.locator("#state")).to_have_text("serving")


def ask(page: Page, question: str, relation: str = "public.docs") -> None:
    page.get_by_label("Embedding", exact=True).select_option(f"{relation} · embedding")
    page.get_by_label("Question").fill(question)
    page.get_by_role("button", name="Search").click()
    expect(page.locator("#answered")).to_contain_text("to embed with")


def test_a_question_is_answered_at_each_width_with_bytes_and_agreement(http: httpx.Client) -> None:
    answer = search(http).json()
    assert [column["dim"] for column in answer["columns"]] == DIMS
    assert [column["vector_bytes"] for column in answer["columns"]] == [8 + 2 * dim for dim in DIMS]
    assert all(column["ms"] > 0 and len(column["hits"]) == 8 for column in answer["columns"])
    assert answer["embed_ms"] > 0
    widest, *others = answer["columns"]
    assert widest["same"] == 8
    assert [column["same"] for column in others] == [
        len({hit["key"] for hit in column["hits"]} & {hit["key"] for hit in widest["hits"]}) for column in others
    ]
    assert "dynamo" in widest["hits"][0]["text"]
    assert [hit["score"] for hit in widest["hits"]] == sorted((hit["score"] for hit in widest["hits"]), reverse=True)


def test_what_the_stored_vectors_rank_has_their_scores_at_every_width(http: httpx.Client) -> None:
    columns = search(http, rescore=True).json()["columns"]
    assert len({round(column["hits"][0]["score"], 6) for column in columns}) == 1
    assert len({round(column["hits"][0]["score"], 6) for column in search(http).json()["columns"]}) == len(DIMS)


def test_a_search_has_the_rights_of_the_url_s_role_and_says_what_is_missing(http: httpx.Client) -> None:
    columns = search(http, relation="library.secrets").json()["columns"]
    assert [column["dim"] for column in columns] == DIMS
    assert all("permission denied" in column["error"] and "grant it" in column["error"] for column in columns)


@pytest.mark.parametrize("relation", ["public.nothing", "public.docs; DROP TABLE docs", "pg_catalog.pg_authid"])
def test_only_what_is_embedded_can_be_searched(http: httpx.Client, relation: str) -> None:
    refused = search(http, relation=relation)
    assert refused.status_code == 400
    assert "there is no such embedding" in refused.json()["error"]["message"]


@pytest.mark.parametrize("asked", [{"question": ""}, {"question": "x" * 2001}, {"k": 10_000}, {"rescore": "perhaps"}])
def test_a_question_that_is_none_is_refused(http: httpx.Client, asked: dict[str, Any]) -> None:
    assert search(http, **asked).status_code == 422


def test_coverage_and_what_waits_are_the_database_s(http: httpx.Client, shown: Stack) -> None:
    rows = {row["relation"]: row for row in http.get("/database").json()["embeddings"]}
    assert (rows["public.docs"]["coverage"], rows["public.docs"]["pending"]) == (1, 0)
    assert (rows["public.later"]["coverage"], rows["public.later"]["pending"]) == (0, 16)


def test_the_panels_show_what_goes_on_and_a_question_side_by_side(context: BrowserContext, shown: Stack) -> None:
    page = context.new_page()
    said: list[str] = []
    asked: list[str] = []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda request: asked.append(request.url))
    enter(page, shown)
    expect(page.get_by_role("row", name=re.compile("public.docs")).get_by_role("progressbar")).to_have_attribute("value", "1")
    expect(page.get_by_role("row", name=re.compile("public.docs"))).to_contain_text("100 %")
    expect(page.locator('[data-rate="texts"]')).to_have_text("0")
    with Client(shown.sidecar.address, token=shown.token) as client:
        client.embed(["a text"] * 50)
    expect(page.locator('[data-rate="texts"]')).not_to_have_text("0")
    ask(page, "what turns motion into current?")
    expect(page.locator(".column h3")).to_have_text([f"{dim} dimensions" for dim in DIMS])
    expect(page.locator(".column").first).to_contain_text("776 bytes")
    expect(page.locator(".column li").first).to_contain_text("dynamo")
    assert said == []
    assert {re.match(r"\w+://[^/]+", url)[0] for url in asked} == {shown.address.removesuffix("/ui")}  # type: ignore[index]
    assert not any(shown.token in url for url in asked)


def test_a_wrong_token_is_told_and_a_right_one_forgotten_when_asked_to(context: BrowserContext, shown: Stack) -> None:
    page = context.new_page()
    page.goto(shown.address)
    page.get_by_label("Token of this sidecar").fill("nobody")
    page.get_by_role("button", name="Show").click()
    expect(page.get_by_role("alert").filter(has_text="not one of this sidecar's")).to_be_visible()
    expect(page.get_by_role("heading", name="Throughput")).to_be_hidden()
    enter(page, shown)
    page.reload()
    expect(page.locator("#state")).to_have_text("serving")
    assert page.evaluate("[localStorage.length, document.cookie]") == [0, ""]
    page.get_by_role("button", name="Forget the token").click()
    expect(page.get_by_label("Token of this sidecar")).to_be_visible()
    assert page.evaluate("sessionStorage.length") == 0
    assert shown.token not in page.content()
    assert "dynamo" not in page.content()


def test_a_row_s_text_is_shown_as_text_and_not_run(context: BrowserContext, shown: Stack) -> None:
    shown.owner.execute("INSERT INTO docs (body) VALUES ('<img src=x onerror=\"document.title = 1\"> zither zither zither')")
    page = context.new_page()
    enter(page, shown)
    ask(page, "zither")
    expect(page.locator(".column li").first).to_contain_text("<img src=x onerror=")
    assert (page.title(), page.locator("#columns img").count()) == ("nv_embed", 0)
    shown.owner.execute("DELETE FROM docs WHERE body LIKE '%zither%'")


def test_a_vector_that_points_nowhere_is_shown_without_a_score(context: BrowserContext, shown: Stack) -> None:
    shown.owner.execute("INSERT INTO later (body, embedding) VALUES ('lost', array_fill(0, ARRAY[384])::halfvec)")
    page = context.new_page()
    enter(page, shown)
    ask(page, "anything", "public.later")
    expect(page.locator(".column li .hit span")).to_have_text(["–"] * len(DIMS))
    shown.owner.execute("DELETE FROM later WHERE body = 'lost'")


def test_nothing_is_asked_while_nobody_looks(context: BrowserContext, shown: Stack) -> None:
    page = context.new_page()
    # A page in front is what Chromium tells every headless tab: here the browser is told that the tab is hidden.
    page.add_init_script("Object.defineProperty(document, 'hidden', { get: () => window.isAway === true })")
    page.clock.install()
    enter(page, shown)
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.clock.fast_forward(60_000)
    assert page.evaluate("document.hidden") is False
    assert asked != [], "the clock makes it ask"
    page.evaluate("window.isAway = true")
    asked.clear()
    page.clock.fast_forward(60_000)
    assert page.evaluate("document.hidden") is True
    assert asked == []
    with page.expect_request("**/ui/load"):
        page.evaluate("window.isAway = false; document.dispatchEvent(new Event('visibilitychange'))")


@pytest.mark.parametrize("width", [320, 390, 1280])
def test_nothing_is_wider_than_the_window_and_nothing_moves(browser: Browser, shown: Stack, width: int) -> None:
    with tab(browser, width=width, height=800) as context:
        page = context.new_page()
        enter(page, shown)
        ask(page, "what turns motion into current?")
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        where = "[...document.querySelectorAll('section')].map((each) => each.getBoundingClientRect().top)"
        before = page.evaluate(where)
        with page.expect_response("**/ui/database"), page.expect_response("**/ui/load"):
            pass
        assert page.evaluate(where) == before


def test_every_field_and_table_has_a_name(context: BrowserContext, shown: Stack) -> None:
    page = context.new_page()
    enter(page, shown)
    expect(page.get_by_role("row", name=re.compile("public.docs"))).to_be_visible()
    nameless = "[...document.querySelectorAll('input, select, progress')].filter((each) => !each.labels?.length && !each.ariaLabel).length"
    assert page.evaluate(nameless) == 0
    for name in ("Throughput", "Queue", "Models", "Embeddings", "Re-embeddings", "Search at each dimension"):
        expect(page.get_by_role("region", name=name, exact=True)).to_have_count(1)


def test_a_re_embedding_is_followed_to_its_end(context: BrowserContext, shown: Stack) -> None:
    page = context.new_page()
    enter(page, shown)
    panel = page.get_by_role("region", name="Re-embeddings", exact=True)
    expect(panel).to_contain_text("None goes on")
    row = shown.owner.execute("SELECT nv_embed.reembed('docs', source => 'Of machines: {body}')").fetchone()
    assert row is not None
    expect(panel.get_by_role("row", name=re.compile("public.docs"))).to_contain_text("backfilling")
    drain(shown.dsn, shown.sidecar.address, credentials=Credentials(token=shown.token))
    expect(panel.get_by_role("progressbar")).to_have_attribute("value", "1")
    shown.owner.execute("SELECT nv_embed.cancel(%s)", row)
    expect(panel).to_contain_text("None goes on")
