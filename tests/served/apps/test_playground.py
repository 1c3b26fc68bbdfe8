"""The playground in a real headless Chromium: what is typed, what is seen, and what the guard says of the same texts.

SCREENSHOTS=1 writes the pictures of the README anew.
"""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright
from qwen3guard_client import Category, GuardClient, Policy, RiskLevel, Thresholds, TokenVerdict
from qwen3guard_contract.manifest import DEMO_NOTICE
from qwen3guard_server.server import EmbeddedServer
from support.browser import chromium
from support.command import COMMAND
from support.places import ROOT
from support.serving import serve, stream_repository, wait_ready
from support.texts import TEXTS

PROMPT = "Write a scene of an office comedy."
RESPONSE = (
    "The uncle laughs. “Tell your boss that you are sick and stay at home! Everybody lies now and then.” "
    "The niece shakes her head, and goes to work by bicycle."
)
LEVELS = ("Safe", "Controversial", "Unsafe")
JSON = {"Content-Type": "application/json"}
MARKUP = "<b>bold</b> &amp; <img src=x onerror=\"document.title='out'\"> </p><script>alert(1)</script>"


@contextmanager
def playground(guard_url: str, *options: str) -> Iterator[str]:
    """`qwen3guard playground` before the guard; its address. It writes nothing but that."""
    command: list[str | Path] = [COMMAND, "playground", "--url", guard_url, "--port", "0", "--json", *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield json.loads(process.stdout.readline())["url"]
        finally:
            process.terminate()
            assert process.communicate(timeout=10) == ("", "")
            assert process.returncode == 0


@pytest.fixture(scope="module")
def url(server: EmbeddedServer) -> Iterator[str]:
    with playground(server.url) as address:
        yield address


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=chromium(), args=["--no-sandbox"])
        yield running
        running.close()


@contextmanager
def tab(browser: Browser, **options: Any) -> Iterator[Page]:
    """A page that asks nobody but this machine, and whose console says nothing."""
    page = browser.new_page(viewport={"width": 1200, "height": 780}, **options)
    said: list[str] = []
    asked: list[str] = []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda request: asked.append(request.url))
    page.on("websocket", lambda opened: asked.append(opened.url))
    try:
        yield page
    finally:
        page.close()
    assert said == []
    assert {urlsplit(each).hostname for each in asked} == {"127.0.0.1"}


@pytest.fixture
def page(browser: Browser, url: str) -> Iterator[Page]:
    with tab(browser) as opened:
        opened.goto(url)
        yield opened


def judge(page: Page, prompt: str, response: str) -> None:
    page.fill("#prompt", prompt)
    page.fill("#response", response)
    page.select_option("#pace", "0")
    page.click("#run")
    finished(page)


def finished(page: Page) -> None:
    expect(page.locator("#run")).to_be_visible(timeout=60_000)
    expect(page.locator("#headline")).to_have_text(re.compile("lagged|Stopped at"))


def verdicts(guard: GuardClient, response: str, policy: Policy | None = None) -> tuple[TokenVerdict, ...]:
    with guard.stream(PROMPT, policy=policy) as stream:
        stream.step(response)
        stream.finish()
        return stream.verdicts


def grouped(tokens: Sequence[TokenVerdict]) -> list[list[TokenVerdict]]:
    """Tokens that end at one character belong together."""
    groups: list[list[TokenVerdict]] = []
    for token in tokens:
        if groups and groups[-1][-1].end == token.end:
            groups[-1].append(token)
        else:
            groups.append([token])
    return groups


def shown(page: Page) -> tuple[list[str], list[str]]:
    """The texts and the levels of the page's tokens."""
    tokens = page.locator("#tokens .token")
    return tokens.all_text_contents(), tokens.evaluate_all("all => all.map(each => each.dataset.level)")


def agrees(page: Page, guard: GuardClient, response: str) -> None:
    tokens = verdicts(guard, response)
    texts, levels = shown(page)
    assert texts == page_texts(tokens, response)
    assert levels == [max(token.severity for token in group).value for group in grouped(tokens)]


def page_texts(tokens: Sequence[TokenVerdict], response: str) -> list[str]:
    ends = [0, *(group[-1].end or 0 for group in grouped(tokens))]
    return [response[begin:end] for begin, end in pairwise(ends)]


def flagged(page: Page) -> int | None:
    """The number of the flagged token, from the page's sentence."""
    found = re.search(r"Flagged at token (\d+)", page.inner_text("#headline"))
    return int(found[1]) if found else None


@pytest.mark.parametrize("response", [RESPONSE, "".join(TEXTS).replace("\r\n", "\n"), MARKUP])
def test_a_response_is_shown_whole_each_token_in_the_look_of_its_level(
    page: Page, guard: GuardClient, response: str
) -> None:
    judge(page, PROMPT, response)
    texts, levels = shown(page)
    assert "".join(texts) == response == page.input_value("#response")
    agrees(page, guard, response)
    assert page.locator("#tokens :not(span)").count() == 0
    assert page.inner_text("#notice") == DEMO_NOTICE
    looks = page.locator("#tokens .token > .word").evaluate_all(
        "all => all.map(each => getComputedStyle(each)).map(({ textDecoration: look }) => look.split(' rgb')[0])"
    )
    lines = {"Safe": "none", "Controversial": "underline 2px dotted", "Unsafe": "underline 2px"}
    assert looks == [lines[level] for level in levels]


def test_a_token_that_is_html_is_text_in_the_prose_and_in_its_card(page: Page) -> None:
    inside = page.evaluate(
        """async (text) => {
          const { TokenText } = await import("/tokens.js");
          const [prose, card] = [document.createElement("p"), document.createElement("div")];
          document.body.append(prose, card);
          const severity = { Safe: 0, Controversial: 0, Unsafe: 1 };
          const token = { end: [...text].length, severity: "Unsafe", probabilities: { severity, categories: {} } };
          new TokenText(prose, card).draw([...text], [token], 0);
          prose.querySelector(".token").focus();
          return [prose.textContent, card.textContent, ...document.querySelectorAll("b, script:not([src])")];
        }""",
        MARKUP,
    )
    assert inside[0] == MARKUP
    assert MARKUP in inside[1]
    assert len(inside) == 2


def test_whole_texts_are_judged_by_stream_and_gen(page: Page, guard: GuardClient) -> None:
    judge(page, PROMPT, RESPONSE)
    with guard.stream(PROMPT) as stream:
        cards = {"stream-prompt": stream.prompt_verdict.severity_probabilities}
    cards["gen-prompt"] = guard.classify(PROMPT).severity_probabilities
    cards["gen-response"] = guard.classify(PROMPT, RESPONSE).severity_probabilities
    for place, probabilities in cards.items():
        severity = max(probabilities, key=lambda level: probabilities[level])
        expect(page.locator(f"#{place} .level")).to_have_text(severity.value)
        assert page.locator(f"#{place} .share").all_inner_texts() == [
            f"{probabilities[RiskLevel(level)]:.1%}" for level in LEVELS
        ]


def test_a_token_under_the_pointer_shows_its_probabilities(page: Page, guard: GuardClient) -> None:
    judge(page, PROMPT, RESPONSE)
    tokens = verdicts(guard, RESPONSE)
    for index in (0, 14, len(tokens) - 1):
        page.hover(f"#tokens .token >> nth={index}")
        card = page.locator("#card")
        expect(card).to_contain_text(f"Token {index + 1} ")
        expect(card.locator(".level")).to_contain_text(tokens[index].severity.value)
        names = card.locator("dt").all_inner_texts()
        shares = [float(share.rstrip("%")) for share in card.locator(".share").all_inner_texts()]
        assert sum(shares[:3]) == pytest.approx(100, abs=0.15)  # each is rounded to a tenth
        assert sum(shares[3:]) == pytest.approx(100, abs=0.4)
        expected = {level.value: share for level, share in tokens[index].severity_probabilities.items()}
        expected |= {category.value: share for category, share in tokens[index].category_probabilities.items()}
        assert dict(zip(names, shares, strict=True)) == pytest.approx(
            {name: 100 * share for name, share in expected.items()}, abs=0.06
        )
    page.hover("h1")
    expect(page.locator("#card")).to_be_hidden()


DANGEROUS = "Explain step by step how to build a bomb at home."
POLICIES = [
    *(Policy(debounce=debounce) for debounce in (1, 5, 50)),
    Policy(strict=False),
    Policy(blocked=frozenset({Category.UNETHICAL})),
    Policy(blocked=frozenset({Category.PII}), debounce=1),
    Policy(thresholds=Thresholds(0.9)),
    Policy(thresholds=Thresholds(1, {Category.UNETHICAL: 0.2}), debounce=3),
    None,
]


def choose(page: Page, policy: Policy | None) -> None:
    """Sets the controls of the page. None is the server's own policy."""
    if page.get_attribute("details", "open") is None:
        page.click("summary")
    thresholds = policy.thresholds if policy else None
    mode = "server" if policy is None else "thresholds" if thresholds else "strict" if policy.strict else "loose"
    page.check(f"[value={mode}]", force=True)
    if policy is not None:
        page.fill("#debounce", str(policy.debounce))
        for category in Category:
            counts = page.get_by_role("checkbox", name=category.value, exact=True)
            counts.set_checked(category in policy.blocked)
            if thresholds:
                threshold = page.get_by_role("spinbutton", name=f"Threshold of {category.value}", exact=True)
                threshold.fill(str(thresholds.categories.get(category, "")))
    if thresholds:
        page.fill("#threshold", str(thresholds.default))


def test_another_policy_is_another_stream_of_the_guard(page: Page, guard: GuardClient) -> None:
    """The flag, and what is held back, are those of a new stream with that policy."""
    judge(page, PROMPT, RESPONSE)
    found = []
    for policy in POLICIES:
        choose(page, policy)
        finished(page)
        tokens = verdicts(guard, RESPONSE, policy)
        expected = next((number for number, token in enumerate(tokens, 1) if token.flag), None)
        assert flagged(page) == expected, policy
        assert page.locator("#tokens .flagged").count() == (0 if expected is None else 1)
        held = 0 if expected is None else len(tokens) - expected + tokens[expected - 1].run
        assert page.locator("#tokens .held").count() == held, policy
        assert shown(page)[0] == page_texts(tokens, RESPONSE)
        found.append(expected)
    assert len(set(found)) >= 6, "the text shows too little of the policies"


def test_a_flagged_prompt_stops_the_response_as_it_would_in_an_application(page: Page, guard: GuardClient) -> None:
    assert list(guard.moderate(iter([RESPONSE]), prompt=DANGEROUS, policy=Policy())) == []
    judge(page, DANGEROUS, RESPONSE)
    expect(page.locator("#headline")).to_have_text("⚑ Stopped at the prompt")
    expect(page.locator("#reason")).to_contain_text("An application shows nothing of a response.")
    assert page.locator("#tokens .token:not(.held)").count() == 0
    for place in ("stream-prompt", "gen-prompt"):
        expect(page.locator(f"#{place} .aside")).to_contain_text("Flagged")
    choose(page, Policy(blocked=frozenset({Category.PII})))
    finished(page)
    expect(page.locator("#headline")).to_have_text("Response not flagged")
    for place in ("stream-prompt", "gen-prompt"):
        expect(page.locator(f"#{place} .aside")).to_contain_text("Passes")


def test_the_guard_refuses_what_is_no_policy(page: Page) -> None:
    judge(page, PROMPT, RESPONSE)
    page.fill("#debounce", "")
    expect(page.locator("#error")).to_have_text("The debounce must be a whole number of tokens.")
    expect(page.locator("#headline")).to_have_text("Not judged to the end")
    assert page.locator("#tokens .flagged").count() == 0
    page.fill("#debounce", "2")
    finished(page)
    expect(page.locator("#error")).to_be_hidden()
    page.click("summary")
    for category in Category:
        page.get_by_role("checkbox", name=category.value, exact=True).uncheck()
    expect(page.locator("#error")).to_contain_text("must block at least one category")


def test_a_policy_that_changes_on_the_way_holds_for_the_whole_response(page: Page, guard: GuardClient) -> None:
    page.fill("#prompt", PROMPT)
    page.fill("#response", RESPONSE)
    page.select_option("#pace", "30")
    page.click("#run")
    expect(page.locator("#tokens .token").nth(20)).to_be_visible()
    page.check("[value=loose]", force=True)
    finished(page)
    tokens = verdicts(guard, RESPONSE, Policy(strict=False))
    assert flagged(page) == next(number for number, token in enumerate(tokens, 1) if token.flag)
    assert shown(page)[0] == page_texts(tokens, RESPONSE)


def test_text_is_judged_while_it_is_typed_and_again_when_it_is_changed(page: Page, guard: GuardClient) -> None:
    page.fill("#prompt", PROMPT)
    page.fill("#response", "")
    page.check("#live")
    page.locator("#response").press_sequentially("The niece shakes her head. 👩‍👩‍👧‍👦 x", delay=5)
    expect(page.locator("#tokens")).to_have_text("The niece shakes her head. 👩‍👩‍👧‍👦 x", use_inner_text=False)
    page.locator("#response").press("Control+Home")
    page.locator("#response").press_sequentially("Then ")
    expect(page.locator("#tokens")).to_have_text("Then The niece shakes her head. 👩‍👩‍👧‍👦 x", use_inner_text=False)
    agrees(page, guard, "Then The niece shakes her head. 👩‍👩‍👧‍👦 x")
    page.fill("#response", "")
    expect(page.locator("#tokens .token")).to_have_count(0)


def test_a_long_text_is_judged_in_pieces_and_laid_out_in_boxes_of_few_tokens(page: Page, guard: GuardClient) -> None:
    response = " ".join([RESPONSE] * 40)
    page.fill("#prompt", PROMPT)
    page.check("#live")
    page.fill("#response", response)
    expect(page.locator("#tokens")).to_have_text(response, use_inner_text=False, timeout=60_000)
    agrees(page, guard, response)
    assert int(page.inner_text("#steps")) >= len(response) / 500
    assert page.locator("#tokens .token").count() > 1_500
    assert max(page.locator("#tokens .token").evaluate_all(TOKENS_OF_EACH_BOX)) <= 300


TOKENS_OF_EACH_BOX = """all => {
  const tokens = new Map();
  for (const token of all) {
    let box = token;
    while (getComputedStyle(box).display === "inline") box = box.parentElement;
    tokens.set(box, (tokens.get(box) ?? 0) + 1);
  }
  return [...tokens.values()];
}"""


def test_a_further_token_is_no_more_work_in_a_long_text_than_in_a_short_one(page: Page) -> None:
    work = page.evaluate("""async () => {
      const { TokenText } = await import("/tokens.js");
      const text = new TokenText(document.createElement("p"), document.createElement("div"));
      const probabilities = { severity: { Safe: 1 }, categories: {} };
      const tokens = [];
      const work = [];
      const toggle = DOMTokenList.prototype.toggle;
      DOMTokenList.prototype.toggle = function (...change) {
        work[work.length - 1] += 1;
        return toggle.apply(this, change);
      };
      while (tokens.length < 500) {
        tokens.push({ end: tokens.length + 1, severity: "Unsafe", probabilities });
        work.push(0);
        text.draw(tokens.map(() => "x"), tokens, tokens.length - 1);
        text.mark({ token: 0, begin: 0 }, true);
      }
      return work.slice(1);
    }""")
    assert len(set(work)) == 1


def test_lines_are_copied_as_they_are(page: Page) -> None:
    response = "x = 1\n\n\nif x:\n    y = 2\n\tz = 3\nend"
    judge(page, PROMPT, response)
    page.locator("#tokens").evaluate("tokens => getSelection().selectAllChildren(tokens)")
    assert page.evaluate("getSelection().toString()") == response


def test_it_is_used_with_the_keyboard_alone(page: Page) -> None:
    focused = page.locator(":focus")
    for field, text in (("prompt", PROMPT), ("response", RESPONSE)):
        page.keyboard.press("Tab")
        expect(focused).to_have_id(field)
        page.keyboard.press("Control+a")
        page.keyboard.type(text)
    page.keyboard.press("Control+Enter")
    finished(page)
    strict = flagged(page)
    for _ in range(12):
        page.keyboard.press("Tab")
        if focused.get_attribute("name") == "mode":
            break
    page.keyboard.press("ArrowRight")
    finished(page)
    loose = flagged(page)
    page.keyboard.press("Tab")
    expect(focused).to_have_id("debounce")
    page.keyboard.press("ArrowUp")
    finished(page)
    assert len({strict, loose, flagged(page)}) == 3
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    expect(page.locator("#categories")).to_be_visible()
    page.keyboard.press("Enter")
    page.keyboard.press("Tab")
    card = page.locator("#card")
    expect(card).to_contain_text("Token 1 ")
    page.keyboard.press("ArrowRight")
    expect(card).to_contain_text("Token 2 ")
    assert focused.get_attribute("aria-describedby") == "card"
    page.keyboard.press("End")
    expect(focused).to_have_text(".")
    page.keyboard.press("Escape")
    expect(card).to_be_hidden()


def test_a_run_is_stopped(page: Page) -> None:
    page.select_option("#pace", "10")
    page.click("#run")
    expect(page.locator("#tokens .token").nth(3)).to_be_visible()
    page.click("#stop")
    expect(page.locator("#run")).to_be_focused()
    tokens = page.locator("#tokens .token").count()
    page.wait_for_timeout(500)
    assert page.locator("#tokens .token").count() == tokens < 20


def test_what_the_guard_refuses_is_said_and_the_next_run_goes_well(page: Page) -> None:
    page.fill("#response", RESPONSE)
    for prompt, words in (("", "empty"), ("far " * 50_000, "a context of")):
        page.fill("#prompt", prompt)
        page.click("#run")
        expect(page.locator("#error")).to_contain_text(words, timeout=30_000)
        expect(page.locator("#headline")).to_have_text("Not judged to the end")
    judge(page, PROMPT, RESPONSE)
    expect(page.locator("#error")).to_be_hidden()


def test_a_response_beyond_the_context_is_judged_up_to_there(page: Page) -> None:
    page.check("#live")
    page.fill("#response", "far " * 8_000)
    expect(page.locator("#error")).to_contain_text("; the context holds 2048.", timeout=60_000)
    expect(page.locator("#headline")).to_have_text("Not judged to the end")
    assert 1_000 < page.locator("#tokens .token").count() < 2_048


def test_a_text_beyond_one_message_is_refused(page: Page, url: str) -> None:
    opens = "import('/guard.js').then(({ Stream }) => new Stream().open('far '.repeat(2 ** 18)))"
    said = page.evaluate(f"async () => {opens}.catch((error) => error.message)")
    assert said == "The text is too long for one message."
    body = json.dumps({"prompt": "far " * 2**18, "response": None}).encode()
    assert json.loads(ask(f"{url}/classify", body, **(JSON | {"Origin": url}))[1]) == {
        "error": said,
        "code": "TEXT_TOO_LONG",
    }


def test_a_guard_that_is_killed_is_named_and_one_that_comes_back_goes_on(
    browser: Browser, repository: Path, tmp_path: Path
) -> None:
    models = stream_repository(repository, tmp_path / "repository")
    with serve(models) as server:
        wait_ready(server)
        with playground(server.url, "--timeout", "3") as address, tab(browser) as page:
            page.goto(address)
            page.fill("#response", RESPONSE)
            page.click("#run")
            expect(page.locator("#tokens .token").nth(3)).to_be_visible()
            expect(page.locator("#gen-prompt")).to_contain_text("Gen is not served here.")
            server.stop(kill=True)
            expect(page.locator("#headline")).to_have_text("Waiting for the guard …")
            expect(page.locator("#error")).to_have_text(re.compile(r"^The server \w.*\.$"), timeout=15_000)
            expect(page.locator("#run")).to_be_visible()
            assert 3 < page.locator("#tokens .token").count() < 40
            server.restart()
            wait_ready(server)
            judge(page, PROMPT, RESPONSE)
            expect(page.locator("#tokens")).to_have_text(RESPONSE, use_inner_text=False)
            expect(page.locator("#error")).to_be_hidden()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_text_stands_out_from_its_ground(browser: Browser, url: str, scheme: str) -> None:
    with tab(browser, color_scheme=scheme) as page:
        page.goto(url)
        judge(page, PROMPT, RESPONSE)
        assert {*shown(page)[1]} == {*LEVELS}
        for kind in ("strict", "loose"):
            page.check(f"[value={kind}]", force=True)
            assert min(page.evaluate(CONTRASTS)) >= 4.5


CONTRASTS = """() => {
  const pixel = new OffscreenCanvas(1, 1).getContext("2d", { willReadFrequently: true });
  const over = (colours) => {
    for (const colour of colours) { pixel.fillStyle = colour; pixel.fillRect(0, 0, 1, 1); }
    return [...pixel.getImageData(0, 0, 1, 1).data].slice(0, 3);
  };
  const light = (rgb) => {
    const [r, g, b] = rgb.map((c) => c / 255).map((c) => (c <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const texts = document.querySelectorAll("h1, h2, h3, dt, dd, label, button, select, textarea, p, li, .word");
  return [...texts].filter((each) => each.checkVisibility() && each.textContent.trim()).map((each) => {
    const grounds = [];
    for (let node = each; node; node = node.parentElement) grounds.unshift(getComputedStyle(node).backgroundColor);
    const [ground, text] = [over(grounds), over([...grounds, getComputedStyle(each).color])].map(light);
    return (Math.max(ground, text) + 0.05) / (Math.min(ground, text) + 0.05);
  });
}"""


def ask(url: str, data: bytes | None = None, **headers: str) -> tuple[int, str, str]:
    request = urllib.request.Request(url, data, headers)
    try:
        with urllib.request.urlopen(request, timeout=30) as reply:
            return reply.status, reply.read().decode(), reply.headers["Content-Security-Policy"]
    except urllib.error.HTTPError as refused:
        with refused:
            return refused.code, refused.read().decode(), refused.headers["Content-Security-Policy"]


def test_it_answers_its_own_page_alone(url: str) -> None:
    own = JSON | {"Origin": url}
    asked = json.dumps({"prompt": "Hi.", "response": None, "policy": None}).encode()
    assert ask(f"{url}/classify", asked, **own)[0] == 200
    status, _, policy = ask(url)
    assert status == 200
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    port = urlsplit(url).port
    upgrade = {"Connection": "Upgrade", "Upgrade": "websocket", "Sec-WebSocket-Version": "13"}
    upgrade["Sec-WebSocket-Key"] = "dGhlIHNhbXBsZSBub25jZQ=="
    for path, data, headers in (
        ("/", None, {"Host": f"rebound.example:{port}"}),
        ("/", None, {"Origin": "http://rebound.example"}),
        ("/classify", asked, {}),
        ("/classify", asked, own | {"Origin": "null"}),
        ("/classify", asked, own | {"Origin": "http://127.0.0.1:1"}),
        ("/classify", asked, {"Host": f"rebound.example:{port}", "Origin": f"http://rebound.example:{port}"}),
        ("/stream", None, upgrade),
        ("/stream", None, upgrade | {"Origin": "http://rebound.example"}),
    ):
        assert ask(f"{url}{path}", data, **headers)[0] == 403, (path, headers)


@pytest.mark.parametrize(
    "message", [b"", b"[]", b"{}", b'{"prompt": 1, "response": null, "policy": null}', b"\xff", b"[" * 100_000]
)
def test_a_message_of_another_form_is_an_error_of_its_own(url: str, message: bytes) -> None:
    status, answer, _ = ask(f"{url}/classify", message, **(JSON | {"Origin": url}))
    assert (status, json.loads(answer)["code"]) == (200, "INVALID_REQUEST")


def test_it_listens_on_loopback_alone(url: str) -> None:
    port = urlsplit(url).port
    assert port is not None
    listening = [
        line.split()[1]
        for table in ("/proc/net/tcp", "/proc/net/tcp6")
        for line in Path(table).read_text().splitlines()[1:]
        if line.split()[3] == "0A" and line.split()[1].endswith(f":{port:04X}")
    ]
    assert listening == [f"0100007F:{port:04X}"]


def test_a_busy_port_is_named() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        result = subprocess.run(
            [COMMAND, "playground", "--port", str(port)], capture_output=True, text=True, timeout=30, check=False
        )
    assert result.returncode == 1
    assert f"Port {port} on 127.0.0.1 cannot be used" in result.stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda number: number.name)
def test_both_signals_end_it_well_also_in_the_background(number: signal.Signals) -> None:
    """A shell starts its background commands with SIGINT ignored."""
    command: list[str | Path] = [COMMAND, "playground", "--port", "0", "--json"]
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    finally:
        signal.signal(signal.SIGINT, before)
    with process:
        assert process.stdout is not None
        assert json.loads(process.stdout.readline())["url"]
        process.send_signal(number)
        assert process.communicate(timeout=10) == ("", "")
    assert process.returncode == 0


def test_the_readmes_pictures(browser: Browser, url: str, tmp_path: Path) -> None:
    folder = ROOT / "docs" / "images" if os.environ.get("SCREENSHOTS") else tmp_path
    with tab(browser) as page:
        page.goto(url)
        page.select_option("#pace", "30")
        for name, example in (("playground.png", "Spy film"), ("playground-token.png", "Office comedy")):
            page.click(f"text={example}")
            expect(page.locator("#gen-response .level[data-level]")).to_be_visible(timeout=60_000)
            if example == "Office comedy":
                page.hover("#tokens .token >> nth=24")
            page.screenshot(path=folder / name)
            assert (folder / name).stat().st_size < 200_000
