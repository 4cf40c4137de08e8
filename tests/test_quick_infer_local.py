"""quick_infer_local.py on a real tiny MiniCPM."""

import quick_infer_local


def test_quick_infer_streams_one_answer(tiny_minicpm, capsys, monkeypatch, tmp_path):
    flags = ["--prompt", "你好", "--max-new-tokens", "5", "--temperature", "0"]
    assert quick_infer_local.main(["--model", str(tiny_minicpm), *flags]) == 0
    assert capsys.readouterr().out.strip(), "the answer is on stdout"
    monkeypatch.setattr(quick_infer_local, "DEFAULT_MODEL", tmp_path / "none")
    assert quick_infer_local.main(["--prompt", "你好"]) == 2
    assert "data/download.py" in capsys.readouterr().err
