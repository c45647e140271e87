"""
The picture of the page in docs/ui.md: PYTHONPATH=tests .venv/bin/python tests/picture.py docs/images/ui.png

On a database of its own, with a table that waits for a worker and a re-embedding that goes on, and with calls that come in meanwhile.
"""

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count

from installs import installs
from pages import Stack, chromium, stack, tab
from playwright.sync_api import Page, expect
from servers import running_cluster, running_sidecar, shared_folder
from workers import working

from nv_embed.client import Client
from nv_embed.credentials import Credentials

SAMPLES = 30
QUESTION = "what turns motion into current?"


@contextmanager
def traffic(shown: Stack) -> Iterator[None]:
    """Calls of several sizes, one after the other."""
    ended = threading.Event()

    def call() -> None:
        with Client(shown.sidecar.address, token=shown.token) as client:
            for number in count():
                client.embed(["A wheel that water drives."] * (2 + number % 7 * 4))
                client.embed(["what drives a wheel?"], input_type="query")
                if ended.wait(0.3):
                    return

    thread = threading.Thread(target=call)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def look(page: Page, shown: Stack) -> None:
    page.goto(shown.address)
    page.get_by_label("Token of this sidecar").fill(shown.token)
    page.get_by_role("button", name="Show").click()
    for _ in range(SAMPLES):
        with page.expect_response("**/ui/load"):
            pass


def ask(page: Page) -> None:
    page.get_by_label("Embedding", exact=True).select_option("public.docs · embedding")
    page.get_by_label("Question").fill(QUESTION)
    page.get_by_role("button", name="Search").click()
    expect(page.locator(".column")).to_have_count(4)
    page.get_by_role("heading", name="Throughput").click()


def main(path: str) -> None:
    with shared_folder() as folder, running_cluster(folder) as cluster, running_sidecar(folder, "--model", "fake") as other:
        install = installs(cluster, other)("extension")
        with stack(install, "--model", "minilm", "--dims", "256,128,64") as shown, chromium() as browser, tab(browser) as context:
            shown.owner.execute("SELECT nv_embed.reembed('docs', source => 'Of machines: {body}', rows_per_s => 0.12)")
            page = context.new_page()
            with traffic(shown), working(shown.dsn, shown.sidecar.address, credentials=Credentials(token=shown.token)):
                look(page, shown)
                ask(page)
            page.screenshot(path=path, full_page=True)


if __name__ == "__main__":
    main(sys.argv[1])
