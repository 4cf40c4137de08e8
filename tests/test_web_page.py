"""The chat page in a real headless Chromium, over a real tiny MiniCPM: run by scripts/test_web_page.sh.

Without the playwright package this file is left out (the script installs it); without a browser it fails and says so.
"""

import asyncio
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import urllib.request
from pathlib import Path

import pytest

sync_api = pytest.importorskip("playwright.sync_api", reason="runs by itself: bash scripts/test_web_page.sh")
expect = sync_api.expect
expect.set_options(timeout=30_000)  # a busy machine is slow, not wrong

ROOT = Path(__file__).resolve().parent.parent
WIDE, PHONE = {"width": 1200, "height": 800}, {"width": 390, "height": 844}
HOSTILE = """<script>window.hacked = 1</script><img src=x onerror="window.hacked = 2"> **粗** `a<b>`
[点我](javascript:window.hacked=3)

```html
<script>window.hacked = 4</script>
```
- 一
- <b>二</b>

| 甲 | 乙 |
| --- | --- |
| 1 | <i>2</i> |
"""


@pytest.fixture(scope="module")
def browser():
    with sync_api.sync_playwright() as playwright:
        installed = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
        path = None if Path(playwright.chromium.executable_path).exists() else installed
        if path is None and not Path(playwright.chromium.executable_path).exists():
            pytest.fail("没有浏览器：请 python -m playwright install chromium，或 apt-get install chromium。")
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"] if os.getuid() == 0 else [])
        yield browser
        browser.close()


@pytest.fixture
def open_page(browser):
    """Return a function that opens the page; what the page did wrong by itself (errors, other addresses) fails the test."""
    wrong: list[str] = []
    contexts = []

    def open_page(url: str, viewport: dict = WIDE):
        context = browser.new_context(viewport=viewport, permissions=["clipboard-read", "clipboard-write"])
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(30_000)
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("console", lambda message: wrong.append(message.text) if message.type == "error" else None)
        page.on(
            "request", lambda request: None if request.url.startswith((url, "data:")) else wrong.append(request.url)
        )
        page.goto(url)
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert not wrong


@pytest.fixture(scope="module")
def url(tiny_minicpm):
    """The page as users start it, with two models; Ctrl-C must end it at once, whatever is being generated."""
    models = [f"base={tiny_minicpm}", f"stage1={tiny_minicpm}"]
    command = [sys.executable, str(ROOT / "inference_with_transformers.py"), "--web", "--web-models", *models]
    command += ["--port", "0", "--temperature", "0", "--system", "你是小工。"]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    url = server.stdout.readline().strip()
    yield url
    question = {
        "model": "base",
        "messages": [{"role": "user", "content": "你好"}],
        "settings": {"max_new_tokens": 30_000},
    }
    headers = {"Content-Type": "application/json"}
    with urllib.request.urlopen(urllib.request.Request(f"{url}/api/chat", json.dumps(question).encode(), headers)):
        server.send_signal(signal.SIGINT)
        assert server.wait(15) == 0
    said = server.stderr.read()
    assert "聊天页已关闭" in said
    assert "Traceback" not in said


def ask(page, question: str, tokens: int) -> None:
    if not page.locator("#settings").get_attribute("open"):
        page.evaluate("document.getElementById('settings').open = true")
    page.fill("#max_new_tokens", str(tokens))
    page.evaluate("document.getElementById('settings').open = false")
    page.fill("#question", question)
    page.keyboard.press("Enter")


def only(page, name: str) -> None:
    for other in page.locator("#models label").all():
        other.get_by_role("checkbox").set_checked(other.inner_text().strip() == name)


def test_send_stream_go_on_copy_reload_clear(open_page, url):
    page = open_page(url)
    only(page, "base")
    sent: list[dict] = []
    page.on("request", lambda request: sent.append(request.post_data_json) if request.method == "POST" else None)
    ask(page, "你是谁？", 100)
    text = page.locator(".answer .text")
    lengths = set()
    while page.locator("#stop").is_visible():
        lengths.add(len(text.inner_text()))
        page.wait_for_timeout(30)
    assert len(lengths) > 3, "it grew while we watched"
    expect(page.locator(".answer footer span")).to_contain_text(re.compile(r"100 token · .* 秒 · 种子 \d+"))
    ask(page, "再说一遍", 4)
    expect(page.locator(".answer footer")).to_have_count(2)
    messages = sent[1]["messages"]
    assert [message["role"] for message in messages] == ["system", "user", "assistant", "user"]
    assert messages[0]["content"] == "你是小工。"
    assert messages[3]["content"] == "再说一遍"
    assert sent[1]["settings"].keys() == {"max_new_tokens", "seed"}
    page.get_by_role("button", name="复制").first.click()
    expect(page.get_by_role("button", name="已复制")).to_be_visible()
    assert page.evaluate("navigator.clipboard.readText()").strip() == messages[2]["content"].strip()
    page.reload()
    expect(page.locator(".question")).to_have_text(["你是谁？", "再说一遍"])
    again = page.get_by_role("button", name="重新生成")
    expect(again).to_have_count(1)
    again.click()
    expect(page.locator(".answer footer")).to_have_count(2)
    assert sent[-1]["messages"] == messages, "the same question with the same history"
    page.get_by_role("button", name="清空").click()
    expect(page.locator(".turn")).to_have_count(0)


def test_stop_ends_it_and_keeps_what_came(open_page, url):
    page = open_page(url)
    ask(page, "写一篇作文", 30_000)
    expect(page.locator(".answer .text").nth(1)).to_have_text(re.compile(".{10}"))
    page.get_by_role("button", name="停止").click()
    expect(page.locator(".answer footer span").filter(has_text="已停止")).to_have_count(2)
    kept = page.locator(".answer .text").all_inner_texts()
    ask(page, "你是谁？", 3)  # both models are free again
    expect(page.locator(".answer footer span").filter(has_text="3 token")).to_have_count(2)
    assert page.locator(".answer .text").all_inner_texts()[:2] == kept


@pytest.mark.parametrize("viewport", [WIDE, PHONE], ids=["wide", "phone"])
def test_two_models_side_by_side(open_page, url, viewport):
    page = open_page(url, viewport)
    ask(page, "介绍一下校训。" * 8, 60)
    expect(page.locator(".answer footer")).to_have_count(2)
    expect(page.locator(".answer h2")).to_have_text(["base", "stage1"])
    first, second = (card.bounding_box() for card in page.locator(".answer").all())
    if viewport is WIDE:
        assert first["y"] == second["y"]
        assert first["x"] + first["width"] < second["x"]
    else:
        assert first["x"] == second["x"]
        assert first["y"] + first["height"] < second["y"]
    page.evaluate("document.getElementById('settings').open = true")
    assert page.evaluate("document.documentElement.scrollWidth") == viewport["width"]
    for button in page.get_by_role("button").all():
        box = button.bounding_box()
        assert 0 <= box["x"] <= box["x"] + box["width"] <= viewport["width"]


@pytest.fixture
def hostile_url():
    import uvicorn

    from Firefly.component.web import build_app
    from Firefly.component.web_models import ChatModel

    async def answer(messages, settings):
        yield {"wait": "轮候"}
        await asyncio.sleep(0.5)
        for start in range(0, len(HOSTILE), 7):
            yield {"text": HOSTILE[start : start + 7]}
            await asyncio.sleep(0)
        yield {"done": {"text": HOSTILE, "finish_reason": "stop", "completion_tokens": 1}}

    listener = socket.create_server(("127.0.0.1", 0))
    app = build_app([ChatModel("<b>坏</b>", {}, answer)], "", only_here=True)
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning", lifespan="off"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    yield f"http://127.0.0.1:{listener.getsockname()[1]}/"
    server.should_exit = True
    thread.join(10)
    listener.close()


def test_what_a_model_says_is_text_and_never_html(open_page, browser, hostile_url):
    page = open_page(hostile_url)
    ask(page, "<script>window.hacked = 5</script>", 9)
    expect(page.locator(".wait")).to_have_text("轮候")
    expect(page.locator(".answer footer")).to_be_visible()
    expect(page.locator(".wait")).to_have_count(0)
    answer = page.locator(".answer .text")
    expect(answer.locator("p").first).to_contain_text('<script>window.hacked = 1</script><img src=x onerror="window.h')
    expect(answer.locator("pre")).to_have_text("<script>window.hacked = 4</script>")
    expect(answer.locator("li")).to_have_text(["一", "<b>二</b>"])
    expect(answer.locator("td")).to_have_text(["1", "<i>2</i>"])
    assert [answer.locator(tag).inner_text() for tag in ("strong", "p code")] == ["粗", "a<b>"]
    assert answer.locator("script, img, a, b, i").count() == 0
    expect(page.locator(".question")).to_have_text("<script>window.hacked = 5</script>")
    expect(page.locator(".answer h2")).to_have_text("<b>坏</b>")
    assert page.evaluate("window.hacked") is None
    page = browser.new_page()
    page.goto(hostile_url)
    page.evaluate("document.body.insertAdjacentHTML('beforeend', '<img src=/x onerror=\"window.hacked = 6\">')")
    page.wait_for_timeout(200)
    assert page.evaluate("window.hacked") is None, "even if something were inserted, the policy runs no inline script"


def test_long_and_odd_text_is_drawn_in_time_that_grows_with_its_length(open_page, hostile_url):
    """A line that is almost a table's rule, or a mark that never ends, must not freeze the page."""
    page = open_page(hostile_url)
    for text in ("a | b\n" + " " * 50_000 + "|x", "*a **b `c " * 5_000, "> " * 25_000, "|-" * 25_000, "- 一\n" * 5_000):
        took = page.evaluate(
            "(text) => { const start = performance.now(); markdown(text); return performance.now() - start; }", text
        )
        assert took < 3_000, text[:20]


def test_the_enter_of_an_input_method_sends_nothing_and_an_error_without_json_is_said(open_page, hostile_url):
    page = open_page(hostile_url)
    page.fill("#question", "ni hao")
    for extra in ({"isComposing": True}, {"keyCode": 229}):  # 229: Safari
        page.dispatch_event("#question", "keydown", {"key": "Enter", "bubbles": True, **extra})
    assert page.locator(".turn").count() == 0
    page.evaluate("window.fetch = async () => new Response('Internal Server Error', { status: 500 })")
    page.press("#question", "Enter")
    expect(page.locator(".answer .error")).to_have_text("服务出错（HTTP 500），原因见启动它的终端。")
