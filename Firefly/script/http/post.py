"""Ask serve.py one question the old Firefly way; standard library only, to be copied into other programs.

python Firefly/script/http/post.py --inputs 背诵李白的将进酒
"""

import argparse
import http.client
import json
import os
import sys
import urllib.error
import urllib.request
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # Firefly/, wherever this is called from

from component.errors import UserError, exit_cleanly
from component.listening import reach_here_directly


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="用旧 Firefly 服务的请求向 serve.py 提一个问题。")
    parser.add_argument("--url", default="http://127.0.0.1:8877/firefly", help="默认 %(default)s")
    parser.add_argument("--inputs", required=True, help="问题")
    parser.add_argument("--max-new-tokens", type=int, default=500, help="默认 %(default)s")
    parser.add_argument("--temperature", type=float, default=0.35, help="默认 %(default)s")
    parser.add_argument("--top-p", type=float, default=0.85, help="默认 %(default)s")
    parser.add_argument("--timeout", type=float, default=600, help="最多等多少秒，默认 %(default)g")
    return parser


def ask(url: str, timeout: float, **body: object) -> str:
    """Post ``body`` and return the answer's text; UserError says what the server said. The key is FIREFLY_API_KEY's."""
    if not url.startswith(("http://", "https://")):
        raise UserError(f"--url {url}：应是 http://主机:端口/firefly 这样的地址，请修改。")
    headers = {"Content-Type": "application/json"}
    if key := os.environ.get("FIREFLY_API_KEY"):
        headers["Authorization"] = f"Bearer {key}"
    reach_here_directly()
    request = urllib.request.Request(url, json.dumps(body).encode(), headers)
    try:
        with urllib.request.urlopen(request, timeout=timeout) as answer:
            return json.load(answer)["output"]
    except urllib.error.HTTPError as error:
        text = error.read().decode("utf-8", "replace")
        try:
            text = json.loads(text)["error"]["message"]
        except (ValueError, KeyError, TypeError):
            text = text[:300]
        raise UserError(f"{url}：HTTP {error.code}：{text}") from None
    except (OSError, http.client.HTTPException) as error:
        raise UserError(f"{url}：连不上服务（{error}），请先启动 serve.py，并检查地址和端口。") from None
    except (KeyError, TypeError, ValueError):
        raise UserError(f"{url}：回答里没有 output，这不是 serve.py 的 /firefly，请检查地址。") from None


@exit_cleanly
def main(argv: list[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    answer = ask(
        args.url,
        args.timeout,
        inputs=args.inputs,
        max_new_tokens=args.max_new_tokens,
        do_sample=args.temperature > 0,
        temperature=args.temperature,
        top_p=args.top_p,
        repetition_penalty=1.0,
    )
    print(answer)
    return 0


if __name__ == "__main__":
    sys.exit(main())
