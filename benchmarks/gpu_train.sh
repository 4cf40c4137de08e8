#!/usr/bin/env bash
# Measure training on one GPU, offline, in one go; prints Markdown tables for docs/RESULTS.md.
#   bash benchmarks/gpu_train.sh                       # --parts check speed memory, --modes QLoRA LoRA full: only some
#   bash benchmarks/gpu_train.sh --tiny                # walks through on a CPU
#   WHEELS=folder bash benchmarks/gpu_train.sh ...     # first puts the wheels in folder on the path (peft, bitsandbytes)
# PYTHON picks the interpreter (default: .venv's where there is one, else python3); further flags go to gpu_train.py.
set -euo pipefail
cd "$(dirname "$0")/.."
python="${PYTHON:-}"
[ -n "$python" ] || { [ -x .venv/bin/python ] && python="$PWD/.venv/bin/python" || python=python3; }
export HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false PYTHONUNBUFFERED=1
if [ -n "${WHEELS:-}" ]; then
    site="$(mktemp -d)"
    trap 'rm -rf "$site"' EXIT
    "$python" -m pip install -q --no-index --no-deps --no-compile --target "$site" "$WHEELS"/*.whl
    export PYTHONPATH="$site${PYTHONPATH:+:$PYTHONPATH}"
fi
missing=$("$python" - <<'PY'
import importlib.util
needs = ("torch", "transformers", "accelerate", "peft", "bitsandbytes", "tokenizers")
print(" ".join(n for n in needs if importlib.util.find_spec(n) is None))
PY
)
if [ -n "$missing" ]; then
    echo "错误：$python 里没有 $missing，请先安装，或把轮子放进一个文件夹并设 WHEELS。" >&2
    exit 2
fi
"$python" benchmarks/gpu_train.py "$@"
