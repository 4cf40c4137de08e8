"""Ollama's Modelfile: the template is only written when it renders what the model was trained on."""

import json

import pytest

from Firefly.component.checkpoint import load_tokenizer
from Firefly.component.modelfile import CHATML, read_chatml, sampling, write_modelfile
from Firefly.component.template import use_template


def fill(template: str, messages: list[tuple[str, str]]) -> str:
    """What Go's text/template makes of CHATML, whose only actions are one range and two fields."""
    head, rest = template.split("{{- range .Messages }}")
    body, tail = rest.split("{{ end }}")
    return (
        head.rstrip()
        + "".join(body.replace("{{ .Role }}", role).replace("{{ .Content }}", text) for role, text in messages)
        + tail
    )


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        (None, (True, "")),  # the tiny model's own
        ("minicpm4", (True, "You are a helpful assistant.")),
        ("qwen", (True, "You are a helpful assistant.")),
        ("yi", (True, "")),
        ("minicpm5", (False, "")),  # closes a thought in its prompt
        ("default", (False, "")),
    ],
)
def test_chatml_is_recognised_by_what_it_renders(tiny_minicpm, template, expected):
    tokenizer = load_tokenizer(tiny_minicpm)
    if template:
        use_template(tokenizer, template)
    assert read_chatml(tokenizer) == expected
    if expected[0]:
        messages = [("system", "系统"), ("user", "一问"), ("assistant", " 一答 "), ("user", "二问")]
        rendered = tokenizer.apply_chat_template(
            [{"role": role, "content": text} for role, text in messages], tokenize=False, add_generation_prompt=True
        )
        assert fill(CHATML, messages) == rendered.removeprefix("<s>")


def test_other_formats_get_no_template(tiny_minicpm, tmp_path):
    tokenizer = load_tokenizer(tiny_minicpm)
    use_template(tokenizer, "default")
    assert write_modelfile(tmp_path / "Modelfile", "x.gguf", tiny_minicpm, tokenizer) is False
    assert "TEMPLATE" not in (tmp_path / "Modelfile").read_text()


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (
            {"do_sample": True, "temperature": 0.8, "top_p": 0.9},
            {"temperature": 0.8, "top_p": 0.9, "repeat_penalty": 1},
        ),
        ({"temperature": 0.8}, {"temperature": 0, "repeat_penalty": 1}),
        ({"do_sample": True, "top_k": 20, "repetition_penalty": 1.05}, {"top_k": 20, "repeat_penalty": 1.05}),
    ],
)
def test_sampling_is_the_models_own(tmp_path, given, expected):
    (tmp_path / "generation_config.json").write_text(json.dumps(given))
    assert sampling(tmp_path) == expected
