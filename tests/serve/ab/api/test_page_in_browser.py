"""The page in headless Chromium, before the real proxy and two fake engines.

Every test also fails on a request to another host, a message of the policy, an error in the console, or a dialog.
"""

from __future__ import annotations

import json
import random
import re
import shutil
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from serve.ab.verdict.collector import EventCollector
from serve.ab.verdict.event import Event, Outcome

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium: apt-get install chromium")
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]
FLAGS += ["--disable-component-update", "--disable-sync"]
FLAGS += ["--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"]
PATIENCE_MS = 60_000
WIDE = {"width": 1280, "height": 900}
PHONE = {"width": 390, "height": 844}
HOSTILE = [
    "<img src=x onerror=\"window.pwned=1;alert('img')\">",
    " <script>window.pwned=1;alert('script')</script>",
    " </div></main><style>*{display:none}</style>",
    ' <svg onload="window.pwned=1"> <a href="javascript:window.pwned=1">here</a> &lt;b&gt; {{7*7}} \u202e',
]
PRUNING = {
    "pruned": True,
    "dropped_blocks": [2, 3, 7],
    "kept_blocks": [0, 1, 4, 5, 6, 8, 9, 10, 11],
    "parameter_ratio": 0.2,
    "method": "by hand",
    "weight_bytes": 14_000_000,
    "dense_weight_bytes": 17_800_000,
    "healing": {
        "method": "fit + lora",
        "text": "wiki.txt",
        "tokens": 81920,
        "fit_tokens": 16384,
        "seed": 0,
        "quality": [{"text": "books", "dense_perplexity": 46.4, "pruned_perplexity": 86.0, "healed_perplexity": 56.25}],
    },
}


@pytest.fixture(scope="module")
def proxy(
    proxy_class: Callable[..., Any], shared_fakes: list[Any], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Any]:
    """Another than the shared one: its split is changed here."""
    arms = [word for fake in shared_fakes for word in ("--arm", f"{fake.name}={fake.url}")]
    started = proxy_class(tmp_path_factory.mktemp("page"), *arms, "--model-name", "the-model")
    try:
        started.wait_ready()
        yield started
    finally:
        started.group.stop()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from playwright.sync_api import expect, sync_playwright

    expect.set_options(timeout=PATIENCE_MS)
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield started
        started.close()


@pytest.fixture
def open_page(browser: Any, proxy: Any) -> Iterator[Callable[..., Any]]:
    """`open_page(url="", **context options)`: what goes wrong on it is found at the end of the test."""
    contexts, wrong = [], []

    def make(url: str = "", **options: Any) -> Any:
        home = url or proxy.url
        context = browser.new_context(**{"viewport": WIDE, **options})
        contexts.append(context)
        context.set_default_timeout(PATIENCE_MS)

        context.on("request", lambda asked: asked.url.startswith((home + "/", "data:")) or wrong.append(asked.url))
        page = context.new_page()
        page.on("pageerror", lambda error: wrong.append(f"error {error}"))
        page.on("dialog", lambda dialog: (wrong.append(f"dialog {dialog.message}"), dialog.dismiss()))
        page.on(
            "console",
            lambda said: (
                said.type in ("error", "warning")
                and not said.text.startswith("Failed to load resource: the server responded with a status of")
                and wrong.append(f"console {said.text}")
            ),
        )
        page.goto(home)
        return page

    yield make
    for context in contexts:
        context.close()
    assert wrong == []


@pytest.fixture
def unlocked(open_page: Callable[..., Any], admin: dict[str, str]) -> Any:
    page = open_page()
    unlock(page, admin)
    return page


@pytest.fixture(autouse=True)
def as_it_was(proxy: Any, shared_fakes: list[Any]) -> Iterator[None]:
    proxy.experiment(weights={"dense": 90, "pruned": 10}, shadow_share=0, paused=False)
    yield
    for fake in shared_fakes:
        fake.set()


def unlock(page: Any, admin: dict[str, str]) -> None:
    from playwright.sync_api import expect

    page.get_by_label("Admin key", exact=True).fill(admin["Authorization"].removeprefix("Bearer "))
    page.get_by_label("Admin key", exact=True).press("Enter")
    expect(page.get_by_role("heading", name="Split")).to_be_visible()
    expect(page.get_by_role("slider", name="Share of pruned")).to_be_visible()


def stream(url: str, model: str, headers: dict[str, str], **body: Any) -> str:
    data = json.dumps({"model": model, "prompt": "It was", "stream": True, **body}).encode()
    request = urllib.request.Request(f"{url}/v1/completions", data, {"Content-Type": "application/json", **headers})
    with urllib.request.urlopen(request, timeout=30) as answer:
        return str(answer.read().decode())


def run(page: Any, prompt: str = "It was") -> None:
    page.get_by_label("Prompt", exact=True).fill(prompt)
    page.get_by_role("button", name="Run both").click()


def answers(page: Any) -> tuple[Any, Any]:
    return page.get_by_role("region", name="Answer of dense"), page.get_by_role("region", name="Answer of pruned")


def ran(page: Any) -> None:
    from playwright.sync_api import expect

    expect(page.locator(".answer[aria-busy=true]")).to_have_count(0)
    expect(page.get_by_role("button", name="Stop")).to_be_disabled()


# --- the key


def test_a_wrong_key_opens_nothing_and_is_not_kept(open_page: Callable[..., Any], admin: dict[str, str]) -> None:
    from playwright.sync_api import expect

    page = open_page()
    page.get_by_label("Admin key", exact=True).fill("another-key")
    page.get_by_role("button", name="Show the experiment").click()
    expect(page.get_by_role("alert").filter(has_text="That admin key was not accepted.")).to_be_visible()
    expect(page.get_by_role("heading", name="Split")).to_be_hidden()
    assert page.evaluate("sessionStorage.length + localStorage.length") == 0
    unlock(page, admin)
    assert page.evaluate("[sessionStorage.length, localStorage.length]") == [1, 0]
    assert "key" not in page.url
    page.reload()
    expect(page.get_by_role("heading", name="Split")).to_be_visible()  # this tab still has it
    page.get_by_role("button", name="Forget it").click()
    expect(page.get_by_role("heading", name="Split")).to_be_hidden()
    expect(page.get_by_label("Admin key", exact=True)).to_be_focused()
    assert page.evaluate("sessionStorage.length") == 0


def test_a_server_without_an_admin_key_says_so(
    shared_fakes: list[Any], start_proxy: Callable[..., Any], open_page: Callable[..., Any]
) -> None:
    from playwright.sync_api import expect

    page = open_page(start_proxy(shared_fakes, env={"MI_PRUN_AB_ADMIN_KEY": ""}).url)
    page.get_by_label("Admin key", exact=True).fill("whatever-it-is")
    page.get_by_label("Admin key", exact=True).press("Enter")
    expect(page.get_by_role("alert").filter(has_text="no admin key is set on this server")).to_be_visible()


# --- live figures, verdict, blocks


def test_figures_appear_after_traffic(
    unlocked: Any, proxy: Any, admin: dict[str, str], shared_fakes: list[Any]
) -> None:
    from playwright.sync_api import expect

    for fake in shared_fakes:
        fake.set(token_s=0.01)
    for _ in range(4):
        stream(proxy.url, "the-model@dense", admin, max_tokens=6)
        stream(proxy.url, "the-model@pruned", admin, max_tokens=6)
    for title in ("Time to first token", "Inter-token latency", "Speed of one answer", "Requests"):
        values = (
            unlocked.locator("figure")
            .filter(has=unlocked.get_by_role("heading", name=title, exact=True))
            .locator(".value")
        )
        expect(values).to_have_count(2)
        for value in values.all():
            expect(value).to_have_text(re.compile(r"^[0-9.,]+$"))
    expect(unlocked.get_by_role("heading", name="Verdict")).to_be_visible()
    expect(unlocked.locator("#verdict-words")).to_contain_text("pruned")
    expect(unlocked.get_by_role("row", name=re.compile("^Time to first token"))).to_be_visible()
    chart = unlocked.get_by_role("img", name=re.compile("^Time to first token, ms, .* Now: dense [0-9.]+, p99"))
    expect(chart).to_be_visible()


def judged(page: Any, collector: EventCollector) -> None:
    """The page is given this verdict, whatever the proxy's own traffic was."""
    body = collector.verdict().model_dump_json()
    page.route("**/admin/verdict", lambda route: route.fulfill(body=body, content_type="application/json"))


def test_the_verdict_is_said_in_words_and_figures(
    open_page: Callable[..., Any], admin: dict[str, str], attempt: Callable[..., Event]
) -> None:
    from playwright.sync_api import expect

    collector = EventCollector("default", "dense", {"dense": 50.0, "pruned": 50.0}, guardrails=["error_rate<5%"])
    for number in range(4000):
        collector.observe(attempt(number, ttft_s=0.1 if number % 2 else 0.05))
    page = open_page()
    judged(page, collector)
    unlock(page, admin)
    expect(page.locator("#verdict-words")).to_have_text(
        re.compile(r"^pruned: first token 50(\.0)?\s% sooner, tokens [0-9.]+\s% faster, errors no different\.$")
    )
    row = page.get_by_role("row", name=re.compile("^Time to first token"))
    expect(row.get_by_role("cell").last).to_have_text("better")
    expect(row).to_contain_text(re.compile(r"−\d.* % to −\d.* %"))
    expect(page.get_by_role("columnheader")).to_have_text(
        ["Mean of", "dense", "pruned", "Difference", "95 % interval", "Result"]
    )
    expect(page.get_by_text("Guardrails of pruned: error_rate<5% holds (now 0 %).")).to_be_visible()


def test_a_broken_guardrail_is_the_first_thing_said(
    open_page: Callable[..., Any], admin: dict[str, str], attempt: Callable[..., Event]
) -> None:
    from playwright.sync_api import expect

    collector = EventCollector(
        "default",
        "dense",
        {"dense": 50.0, "pruned": 50.0},
        guardrails=["error_rate<5%"],
        drain=lambda arm, reason: True,
    )
    for number in range(400):
        collector.observe(attempt(number, outcome="ok" if number % 2 else "upstream_error"))
    page = open_page()
    judged(page, collector)
    unlock(page, admin)
    expect(page.locator("#verdict-words")).to_have_text("pruned broke error_rate<5% and gets no more traffic.")
    expect(page.locator("#verdict-notes .bad")).to_contain_text("Its weight was set to 0.")


@pytest.fixture
def attempt(observed: Callable[..., Event]) -> Callable[..., Event]:
    """`attempt(number)`: an answer of dense where the number is odd, else of pruned, with a spread of seven speeds."""

    def make(number: int, ttft_s: float = 0.1, outcome: Outcome = "ok") -> Event:
        ttft_s *= 1 + 0.1 * (number % 7)
        fields = {"ttft_s": ttft_s, "itl_s": (ttft_s / 10,) * 9, "e2e_s": 2 * ttft_s, "output_tokens": 10}
        return observed("dense" if number % 2 else "pruned", time=time.time(), outcome=outcome, **fields)

    return make


def test_looking_back_reads_all_charts_at_one_moment(unlocked: Any, proxy: Any) -> None:
    from playwright.sync_api import expect

    slider = unlocked.get_by_role("slider", name="Look back")
    expect(slider).to_have_attribute("aria-valuetext", "Now")
    slider.press("ArrowLeft")
    expect(slider).to_have_attribute("aria-valuetext", re.compile(r"\d+:\d\d.* to .*\d+:\d\d"))
    expect(unlocked.locator(".cursor")).to_have_count(6)
    slider.press("End")
    expect(unlocked.locator(".cursor")).to_have_count(0)
    plot = unlocked.locator(".plot").first
    plot.hover()
    expect(unlocked.locator(".cursor")).to_have_count(6)


def test_the_block_map_is_what_the_arm_says(
    open_page: Callable[..., Any], admin: dict[str, str], shared_fakes: list[Any]
) -> None:
    from playwright.sync_api import expect

    shared_fakes[1].set(pruning=PRUNING)
    page = open_page()
    unlock(page, admin)
    expect(page.get_by_role("img", name="9 of 12 blocks kept; dropped: 2, 3, 7 (0-based).")).to_be_visible()
    assert page.locator(".block.dropped").all_inner_texts() == ["2", "3", "7"]
    expect(page.get_by_text("3 of 12 (25 %)")).to_be_visible()
    expect(page.get_by_text("fit + lora, 81,920 tokens trained on, 16,384 tokens of the closed form")).to_be_visible()
    expect(page.get_by_text("wiki.txt", exact=True)).to_be_visible()
    expect(page.get_by_text("46.4 dense, 86.0 pruned, 56.3 healed")).to_be_visible()


def test_an_arm_that_does_not_say_yet_is_asked_again(
    open_page: Callable[..., Any], admin: dict[str, str], shared_fakes: list[Any]
) -> None:
    from playwright.sync_api import expect

    shared_fakes[1].set(pruning={"pruned": "not yet"})
    page = open_page()
    page.clock.install()
    unlock(page, admin)
    expect(page.locator("#block-maps")).to_contain_text("not what mi-prun-serve says")
    shared_fakes[1].set(pruning=PRUNING)
    page.clock.fast_forward(11_000)
    expect(page.get_by_role("img", name=re.compile("^9 of 12 blocks kept"))).to_be_visible()


# --- the split


def test_the_slider_changes_the_weights(unlocked: Any, proxy: Any) -> None:
    from playwright.sync_api import expect

    before = proxy.experiment()["state"]["version"]
    slider = unlocked.get_by_role("slider", name="Share of pruned")
    expect(slider).to_have_attribute("aria-valuetext", "dense 90 %, pruned 10 %")
    slider.fill("35")
    expect(slider).to_have_attribute("aria-valuetext", "dense 65 %, pruned 35 %")
    expect(unlocked.get_by_text("Not applied yet: dense 90 % → 65 %, pruned 10 % → 35 %.")).to_be_visible()
    unlocked.get_by_label("Shadow share", exact=True).fill("2.5")
    unlocked.get_by_label("Why", exact=True).fill("a quiet hour")
    unlocked.get_by_role("button", name="Apply", exact=True).click()
    expect(unlocked.get_by_text("Now: dense 65 %, pruned 35 %.")).to_be_visible()
    expect(unlocked.get_by_role("status").filter(has_text="Applied: dense 65 %, pruned 35 %")).to_have_count(1)
    state = proxy.experiment()["state"]
    assert state["version"] == before + 1
    assert state["weights"] == {"dense": 65, "pruned": 35}
    assert (state["shadow_share"], state["why"]) == (0.025, "a quiet hour")
    unlocked.get_by_text("Last changes").click()
    expect(unlocked.locator("#change-list li").first).to_contain_text("(a quiet hour)")


def test_a_conflict_is_shown_and_either_way_out_works(unlocked: Any, proxy: Any) -> None:
    from playwright.sync_api import expect

    slider = unlocked.get_by_role("slider", name="Share of pruned")
    conflict = unlocked.get_by_role("alert").filter(has_text="Yours is not applied.")
    slider.fill("50")
    proxy.experiment(weights={"dense": 80, "pruned": 20}, why="somebody else")
    unlocked.get_by_role("button", name="Apply", exact=True).click()
    expect(conflict).to_contain_text("Changed meanwhile by admin (somebody else): dense 80 %, pruned 20 %")
    assert proxy.experiment()["state"]["weights"] == {"dense": 80, "pruned": 20}
    unlocked.get_by_role("button", name="Take theirs").click()
    expect(slider).to_have_value("20")
    expect(conflict).to_be_hidden()
    slider.fill("60")
    proxy.experiment(weights={"dense": 70, "pruned": 30})
    expect(conflict).to_contain_text("dense 70 %, pruned 30 %")  # seen before anything is applied
    unlocked.get_by_role("button", name="Apply", exact=True).click()
    expect(unlocked.get_by_text("Not applied yet")).to_be_visible()
    expect(conflict).to_be_visible()
    assert proxy.experiment()["state"]["weights"] == {"dense": 70, "pruned": 30}
    unlocked.get_by_role("button", name="Apply mine over it").click()
    expect(unlocked.get_by_text("Now: dense 40 %, pruned 60 %.")).to_be_visible()
    assert proxy.experiment()["state"]["weights"] == {"dense": 40, "pruned": 60}


def test_a_change_of_somebody_else_is_taken_over_where_nothing_was_touched(unlocked: Any, proxy: Any) -> None:
    from playwright.sync_api import expect

    proxy.experiment(weights={"dense": 55, "pruned": 45})
    expect(unlocked.get_by_role("slider", name="Share of pruned")).to_have_value("45")
    expect(unlocked.get_by_role("alert").filter(has_text="Yours is not applied.")).to_be_hidden()


def test_pause_and_resume(unlocked: Any, proxy: Any) -> None:
    from playwright.sync_api import expect

    slider = unlocked.get_by_role("slider", name="Share of pruned")
    slider.fill("44")  # not applied
    unlocked.get_by_role("button", name="Pause").click()
    expect(unlocked.get_by_text("paused", exact=True)).to_be_visible()
    assert proxy.experiment()["state"]["paused"]
    assert proxy.experiment()["state"]["weights"] == {"dense": 90, "pruned": 10}
    expect(slider).to_have_value("44")
    unlocked.get_by_role("button", name="Resume").click()
    expect(unlocked.get_by_text("running", exact=True)).to_be_visible()
    assert not proxy.experiment()["state"]["paused"]


def test_a_share_that_cannot_be_is_not_sent(unlocked: Any) -> None:
    from playwright.sync_api import expect

    for share in ("150", "-1", ""):
        unlocked.get_by_label("Share of pruned in percent", exact=True).fill(share)
        expect(unlocked.get_by_role("button", name="Apply", exact=True)).to_be_disabled()
        expect(unlocked.locator("#split-change")).to_contain_text("must be")


# --- the playground


def test_both_answers_stream_side_by_side_and_their_differences_are_marked(
    unlocked: Any, shared_fakes: list[Any]
) -> None:
    from playwright.sync_api import expect

    shared_fakes[0].set(text=["The old", " man", " saw", " her", " face", "."], token_s=1)
    shared_fakes[1].set(text=["The old", " dog", " saw", " her", "."], token_s=1)
    page = unlocked
    run(page)
    dense, pruned = answers(page)
    expect(dense).to_contain_text("The old")
    expect(pruned).to_contain_text("The old")
    assert page.locator(".answer[aria-busy=true]").count() == 2
    ran(page)
    assert (dense.text_content(), pruned.text_content()) == ("The old man saw her face.", "The old dog saw her.")
    assert dense.locator("mark").all_inner_texts() == ["man", "face"]
    assert pruned.locator("mark").all_inner_texts() == ["dog"]
    assert "underline" in str(dense.locator("mark").first.evaluate("mark => getComputedStyle(mark).textDecorationLine"))
    expect(page.locator("#difference")).to_have_text("5 of 7 words are the same (71 %). What differs is marked.")
    for answer in page.get_by_role("article").all():
        expect(answer).to_contain_text(re.compile(r"TTFT\s*[0-9.,]+ ms"))
        expect(answer).to_contain_text(re.compile(r"Speed\s*[0-9.]+ tokens/s"))
        expect(answer).to_contain_text(re.compile(r"Length\s*[56] tokens, stop"))


def test_what_a_model_says_stays_text(unlocked: Any, shared_fakes: list[Any]) -> None:
    from playwright.sync_api import expect

    shared_fakes[0].set(text=HOSTILE)
    shared_fakes[1].set(text=[*HOSTILE, " and more"])
    run(unlocked, "".join(HOSTILE))
    ran(unlocked)
    dense, pruned = answers(unlocked)
    assert dense.text_content() == "".join(HOSTILE)
    assert pruned.text_content() == "".join(HOSTILE) + " and more"
    assert unlocked.locator("#answers").locator("img, script, style, a, div div").count() == 0
    assert unlocked.evaluate("'pwned' in window") is False
    expect(unlocked.get_by_role("heading", name="Playground")).to_be_visible()


def test_what_an_operator_or_an_engine_says_stays_text(
    open_page: Callable[..., Any], admin: dict[str, str], proxy: Any, shared_fakes: list[Any]
) -> None:
    from playwright.sync_api import expect

    proxy.experiment(weights={"dense": 75, "pruned": 25}, why=HOSTILE[0])
    shared_fakes[1].set(pruning={**PRUNING, "method": HOSTILE[0]})
    page = open_page()
    unlock(page, admin)
    page.get_by_text("Last changes").click()
    expect(page.locator("#change-list li").first).to_contain_text(HOSTILE[0])
    expect(page.locator("#block-maps")).to_contain_text(HOSTILE[0])
    assert page.locator("#unlocked img").count() == 0


def test_the_policy_would_stop_markup_that_got_through(open_page: Callable[..., Any], browser: Any, proxy: Any) -> None:
    """That no test above meets it shows nothing of the policy itself."""
    context = browser.new_context()
    page = context.new_page()
    page.goto(proxy.url)
    refused = page.evaluate("try { document.body.innerHTML = '<img src=x onerror=1>'; '' } catch (e) { e.name }")
    assert refused == "TypeError"
    blocked = page.evaluate(
        """new Promise((resolve) => {
            document.addEventListener("securitypolicyviolation", (event) => resolve(event.effectiveDirective));
            fetch("http://192.0.2.1/").catch(() => {});
        })"""
    )
    assert blocked == "connect-src"
    context.close()


def test_an_arm_that_fails_does_not_stop_the_other(unlocked: Any, shared_fakes: list[Any]) -> None:
    from playwright.sync_api import expect

    shared_fakes[1].set(status=400)
    run(unlocked)
    ran(unlocked)
    expect(unlocked.get_by_role("article").nth(1).get_by_role("alert")).to_have_text("as told (status 400)")
    expect(answers(unlocked)[0]).not_to_be_empty()


def test_an_engine_that_dies_while_it_answers_is_said(
    admin: dict[str, str],
    start_fakes: Callable[..., list[Any]],
    start_proxy: Callable[..., Any],
    open_page: Callable[..., Any],  # after what it looks at, so that it is closed before that is gone
) -> None:
    from playwright.sync_api import expect

    fakes = start_fakes("dense", "pruned")
    page = open_page(start_proxy(fakes).url)
    unlock(page, admin)
    fakes[1].set(die_after=3, tokens=8, token_s=0.05)
    run(page)
    ran(page)
    dense, pruned = answers(page)
    expect(page.get_by_role("article").nth(1).get_by_role("alert")).not_to_be_empty()
    assert dense.text_content()
    assert 0 < len(str(pruned.text_content())) < len(str(dense.text_content()))


def test_stop_ends_both_and_the_engines_hear_of_it(unlocked: Any, shared_fakes: list[Any]) -> None:
    from playwright.sync_api import expect

    before = [fake.seen()["cancelled"] for fake in shared_fakes]
    for fake in shared_fakes:
        fake.set(tokens=400, token_s=0.1)
    run(unlocked)
    for answer in answers(unlocked):
        expect(answer).not_to_be_empty()
    unlocked.get_by_role("button", name="Stop").click()
    ran(unlocked)
    expect(unlocked.get_by_role("article").first).to_contain_text("stopped")
    expect(unlocked.get_by_role("button", name="Run both")).to_be_focused()
    gone = threading.Event()
    for _ in range(100):
        if all(fake.seen()["cancelled"] > count for fake, count in zip(shared_fakes, before, strict=True)):
            break
        gone.wait(0.1)
    else:
        pytest.fail("an engine goes on after the page stopped")


def test_one_after_the_other(unlocked: Any, shared_fakes: list[Any]) -> None:
    from playwright.sync_api import expect

    for fake in shared_fakes:
        fake.set(tokens=3, token_s=1)
    unlocked.get_by_label("One after the other", exact=True).check()
    run(unlocked)
    dense, pruned = answers(unlocked)
    expect(dense).not_to_be_empty()
    assert pruned.text_content() == ""
    ran(unlocked)
    assert dense.text_content()
    assert pruned.text_content()


# --- its parts, which nothing but a browser can run


def test_an_event_stream_may_be_cut_anywhere(open_page: Callable[..., Any]) -> None:
    text = ': ping\n\ndata: {"é": 1}\r\n\r\ndata: a\ndata: b\n\nevent: x\ndata:c\n\ndata: [DONE]'
    found = open_page().evaluate(
        """async (text) => {
            const { events } = await import("/web/sse.js");
            const bytes = new TextEncoder().encode(text);
            const seen = new Set();
            for (let cut = 0; cut <= bytes.length; cut += 1) {
                const body = new ReadableStream({ start(to) {
                    to.enqueue(bytes.slice(0, cut)); to.enqueue(bytes.slice(cut)); to.close();
                } });
                const all = [];
                for await (const data of events(body)) all.push(data);
                seen.add(JSON.stringify(all));
            }
            return [...seen].map((one) => JSON.parse(one));
        }""",
        text,
    )
    assert found == [['{"é": 1}', "a\nb", "c", "[DONE]"]]


def test_differing_words_are_what_the_longest_common_subsequence_leaves(open_page: Callable[..., Any]) -> None:
    draw = random.Random(5)
    words = ["the", "old", "man", "sea", "boat", "he"]
    pairs = [[" ".join(draw.choice(words) for _ in range(draw.randrange(14))) for _ in range(2)] for _ in range(300)]
    found = open_page().evaluate(
        """async (pairs) => {
            const { diff } = await import("/web/diff.js");
            return pairs.map(([left, right]) => diff(left, right));
        }""",
        pairs,
    )
    for (left, right), told in zip(pairs, found, strict=True):
        assert "".join(span["text"] for span in told["left"]) == left
        assert "".join(span["text"] for span in told["right"]) == right
        assert told["same"] == longest_common(left.split(), right.split())
        for side in ("left", "right"):
            same = [word for span in told[side] if span["same"] for word in span["text"].split()]
            assert len(same) == told["same"]
            assert not any(span["text"] != span["text"].strip() for span in told[side] if not span["same"])


def longest_common(left: list[str], right: list[str]) -> int:
    row = [0] * (len(right) + 1)
    for word in left:
        row = next_row(row, word, right)
    return row[-1]


def next_row(row: list[int], word: str, right: list[str]) -> list[int]:
    new = [0]
    for place, other in enumerate(right):
        new.append(row[place] + 1 if word == other else max(row[place + 1], new[place]))
    return new


# --- for everybody


def test_with_the_keyboard_alone(open_page: Callable[..., Any], admin: dict[str, str], proxy: Any) -> None:
    from playwright.sync_api import expect

    page = open_page()
    press = page.keyboard.press
    press("Tab")
    expect(page.get_by_role("link", name="Skip to the content")).to_be_focused()
    press("Enter")
    press("Tab")
    expect(page.get_by_label("Admin key", exact=True)).to_be_focused()
    page.keyboard.type(admin["Authorization"].removeprefix("Bearer "))
    press("Enter")
    slider = page.get_by_role("slider", name="Share of pruned")
    expect(slider).to_be_visible()
    tab_to(page, slider)
    assert slider.evaluate("node => getComputedStyle(node).outlineStyle") == "solid"
    for _ in range(5):
        press("ArrowRight")
    tab_to(page, page.get_by_role("button", name="Apply", exact=True))
    press("Enter")
    expect(page.get_by_text("Now: dense 85 %, pruned 15 %.")).to_be_visible()
    assert proxy.experiment()["state"]["weights"] == {"dense": 85, "pruned": 15}
    tab_to(page, page.get_by_label("Prompt", exact=True))
    page.keyboard.type("It was")
    press("Control+Enter")
    ran(page)
    expect(answers(page)[1]).not_to_be_empty()
    tab_to(page, answers(page)[1])  # long answers can be scrolled


def tab_to(page: Any, target: Any) -> None:
    for _ in range(40):
        page.keyboard.press("Tab")
        if target.evaluate("node => node === document.activeElement"):
            return
    pytest.fail(f"{target} is not reached by Tab")


@pytest.mark.parametrize(("scheme", "viewport"), [("light", WIDE), ("dark", PHONE)], ids=["light", "dark phone"])
def test_axe_finds_nothing(
    open_page: Callable[..., Any],
    admin: dict[str, str],
    shared_fakes: list[Any],
    scheme: str,
    viewport: dict[str, int],
) -> None:
    from axe_playwright_python.sync_playwright import Axe

    shared_fakes[1].set(pruning=PRUNING)
    # The checker is injected, which the page's policy would not have.
    page = open_page(color_scheme=scheme, viewport=viewport, bypass_csp=True)
    found = [Axe().run(page).response["violations"]]
    unlock(page, admin)
    run(page)
    ran(page)
    page.get_by_role("slider", name="Share of pruned").fill("40")
    page.get_by_text("Last changes").click()
    page.locator(".block").first.wait_for()
    found.append(Axe().run(page).response["violations"])
    assert [(one["id"], [node["html"] for node in one["nodes"]]) for violations in found for one in violations] == []


def test_a_phone_need_not_scroll_sideways(
    open_page: Callable[..., Any], admin: dict[str, str], shared_fakes: list[Any]
) -> None:
    shared_fakes[0].set(text=["word ", "x" * 400, " end"])
    shared_fakes[1].set(pruning=PRUNING)
    page = open_page(viewport=PHONE, has_touch=True, is_mobile=True)
    page.wait_for_function(f"document.documentElement.scrollWidth <= {PHONE['width']}")
    unlock(page, admin)
    run(page)
    ran(page)
    page.locator(".block").first.wait_for()
    for width in (390, 320):
        page.set_viewport_size({"width": width, "height": 800})
        page.locator("#charts svg").first.wait_for()
        page.wait_for_function(f"innerWidth === {width} && document.documentElement.scrollWidth <= {width}")


def test_motion_is_left_out_where_it_is_not_wanted(open_page: Callable[..., Any], admin: dict[str, str]) -> None:
    moves = "(node) => parseFloat(getComputedStyle(node).transitionDuration) > 0"
    count = f"[...document.querySelectorAll('*')].filter({moves}).length"

    def moving(motion: str) -> int:
        page = open_page(reduced_motion=motion)
        unlock(page, admin)
        page.locator(".split-bar span").first.wait_for()
        return int(page.evaluate(count))

    assert moving("no-preference") > 0
    assert moving("reduce") == 0
