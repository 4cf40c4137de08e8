"""chat.py on a real tiny model: it remembers, forgets on /clear, and asks a running server the same way."""

import io

import pytest

from tests.conftest import load_script


@pytest.fixture
def talk(monkeypatch, capsys):
    def run(text, *flags):
        monkeypatch.setattr("sys.stdin", io.StringIO(text))
        code = load_script("Firefly/script/chat/chat.py").main([*flags, "--temperature", "0", "--max-new-tokens", "8"])
        out = capsys.readouterr()
        return code, out.out.splitlines(), out.err

    return run


def test_history_counts_until_it_is_cleared(talk, tiny_minicpm):
    code, answers, talk_text = talk("你是谁？\n你是谁？\n/clear\n你是谁？\n/exit\n", "--model", str(tiny_minicpm))
    assert code == 0
    first, second, third = answers
    assert first == third != second
    assert "历史已清空" in talk_text


def test_what_is_no_chat_is_refused(talk, tiny_minicpm):
    code, _, error = talk("", "--model", str(tiny_minicpm), "--prompt", "x")
    assert code == 2
    assert "只能给一个" in error
    assert talk("", "--client", "http://127.0.0.1:9")[0] == 2
