#!/usr/bin/env bash
# Try the chat page in a real headless Chromium: installs playwright, and its browser where the machine has none, then tests.
#     bash scripts/test_web_page.sh [pytest arguments]
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/setup_env.sh requirements.txt requirements-dev.txt
"$PY" -c "import playwright" 2>/dev/null || "$PY" -m pip install --quiet "playwright>=1.50,<2"
if ! command -v chromium chromium-browser google-chrome >/dev/null; then
    "$PY" -m playwright install chromium || {
        echo "错误：浏览器没有装上；可改用系统的：sudo apt-get install chromium，然后用同一条命令重试。" >&2; exit 2; }
fi
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-2}" HF_HUB_OFFLINE=1 CUDA_VISIBLE_DEVICES=""
exec "$PY" -m pytest tests/test_web_page.py --durations=5 "$@"
