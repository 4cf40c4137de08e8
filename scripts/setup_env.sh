#!/usr/bin/env bash
# Make (or reuse) the virtual environment .venv and install what the scripts need. Sourced by run_pipeline.sh and run_tests.sh:
#   source scripts/setup_env.sh [requirements-file ...]
# PYTHON picks the interpreter, VENV another folder, TORCH another torch (for example TORCH="torch==2.13.0").
VENV="${VENV:-.venv}"
PYTHON="${PYTHON:-python3}"
export PIP_DISABLE_PIP_VERSION_CHECK=1

if ! "$PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null; then
    echo "错误：需要 Python 3.10 或更高版本（现在是 $("$PYTHON" --version 2>&1)），请安装后用 PYTHON=python3.11 指定。" >&2
    exit 2
fi
if [ ! -x "$VENV/bin/python" ]; then
    echo "创建虚拟环境 $VENV ..." >&2
    "$PYTHON" -m venv "$VENV" || { echo "错误：无法创建虚拟环境，请先安装 python3-venv。" >&2; exit 2; }
fi
# A stamp of what was installed: a second run installs nothing and asks no server.
wanted=$(cat "$@" | cksum)
if [ "$(cat "$VENV/.installed" 2>/dev/null)" != "$wanted" ]; then
    echo "安装依赖（第一次需要几分钟；国内可先设 PIP_INDEX_URL 为镜像地址）..." >&2
    "$VENV/bin/python" -c 'import torch' 2>/dev/null || "$VENV/bin/python" -m pip install -q "${TORCH:-torch==2.13.0}" || exit 2
    for file in "$@"; do
        flags=()
        if [ "$file" = requirements-deepspeed.txt ]; then  # else pip fetches another torch to build it with
            "$VENV/bin/python" -m pip install -q wheel setuptools && flags=(--no-build-isolation)
        fi
        "$VENV/bin/python" -m pip install -q ${flags[@]+"${flags[@]}"} -r "$file" || {
            echo "错误：$file 安装失败，请看上面 pip 的提示，检查网络后重试。" >&2; exit 2; }
    done
    echo "$wanted" > "$VENV/.installed"
fi
PY="$VENV/bin/python"
