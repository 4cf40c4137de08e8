import pytest

from LLM_data_gen.settings import clean_base_url, is_local, map_model, resolve_teacher
from sft_data.errors import UserError

OFFICIAL = "https://api.deepseek.com"


@pytest.fixture
def clean(tmp_path, monkeypatch):
    """An empty current folder and script folder, and no key or address in the environment."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    (tmp_path / "script").mkdir()
    return tmp_path


def resolve(folder, api_key=None, base_url=None, model=None, mode="chat", constants=("", "")):
    said = []
    return resolve_teacher(api_key, base_url, model, mode, constants, folder / "script", said.append), "\n".join(said)


def test_each_place_wins_over_the_next(clean, monkeypatch):
    (clean / "script/.env").write_text("OPENAI_API_KEY=sk-beside\nOPENAI_BASE_URL=https://beside.example/v1\n")
    assert resolve(clean)[0].api_key == "sk-beside"
    (clean / ".env").write_text("# note\nexport OPENAI_API_KEY='sk-here' \n")
    teacher, _ = resolve(clean)
    assert (teacher.api_key, teacher.base_url) == ("sk-here", "https://beside.example/v1")
    monkeypatch.setenv("OPENAI_API_KEY", "sk-environment")
    assert resolve(clean)[0].api_key == "sk-environment"
    constants = ("sk-constant", "https://constant.example/v1")
    teacher, _ = resolve(clean, constants=constants)
    assert (teacher.api_key, teacher.base_url) == ("sk-constant", "https://constant.example/v1")
    teacher, said = resolve(clean, "sk-flag", "https://flag.example/v1/", constants=constants)
    assert (teacher.api_key, teacher.base_url) == ("sk-flag", "https://flag.example/v1")
    assert "--api-key" in said
    assert "sk-flag" not in said + repr(teacher)


def test_official_address_needs_a_key_and_a_local_one_does_not(clean):
    with pytest.raises(UserError, match="OPENAI_API_KEY"):
        resolve(clean)
    assert resolve(clean, base_url="http://127.0.0.1:8000/v1")[0].api_key == ""


def test_broken_key_is_refused_without_showing_it(clean):
    for key in ("sk-a b", "sk-密钥", "sk-a\nb"):
        with pytest.raises(UserError) as error:
            resolve(clean, api_key=key)
        assert key not in str(error.value)


def test_retired_names_are_mapped_and_said_in_one_line(clean):
    teacher, said = resolve(clean, "sk-x", OFFICIAL)
    assert (teacher.model, teacher.thinking) == ("deepseek-flash", False)
    assert sum("deepseek-chat" in line for line in said.splitlines()) == 1


@pytest.mark.parametrize(
    ("url", "model", "mode", "expected"),
    [
        (OFFICIAL, "deepseek-chat", "chat", ("deepseek-flash", False)),
        (OFFICIAL, "deepseek-chat", "reasoner", ("deepseek-flash", True)),
        (OFFICIAL, "deepseek-reasoner", "chat", ("deepseek-flash", True)),
        (OFFICIAL + "/v1", "deepseek-v4-pro", "chat", ("deepseek-v4-pro", False)),
        (OFFICIAL, "deepseek-v4-pro", "reasoner", ("deepseek-v4-pro", True)),
        ("http://localhost:8000/v1", "deepseek-chat", "chat", ("deepseek-chat", None)),
        ("http://localhost:8000/v1", "qwen", "reasoner", ("qwen", True)),
        ("https://api.deepseek.com.evil.example", "deepseek-chat", "chat", ("deepseek-chat", None)),
    ],
)
def test_model_and_thinking(url, model, mode, expected):
    assert map_model(url, model, mode) == expected


def test_addresses():
    assert clean_base_url(" https://a.example/v1/chat/completions/ ") == "https://a.example/v1"
    for bad in ("api.deepseek.com", "ftp://a.example", "https://", "https://a.example:port/v1", "http://a..b/v1"):
        with pytest.raises(UserError):
            clean_base_url(bad)
    for secret in ("https://me:sk-secret@a.example/v1", "https://a.example/v1?key=sk-secret"):
        with pytest.raises(UserError) as error:
            clean_base_url(secret)
        assert "sk-secret" not in str(error.value)
    assert is_local("http://192.168.1.5:8000/v1")
    assert is_local("http://gpu-box:8000/v1")
    assert not is_local("https://8.8.8.8/v1")
