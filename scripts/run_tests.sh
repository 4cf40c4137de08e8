#!/usr/bin/env bash
# Set up an environment and run lint and tests:  bash scripts/run_tests.sh [pytest arguments]
# For example -m "not slow" leaves out the tests that train a model. CPU only; no network beyond package installation.
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/setup_env.sh requirements.txt requirements-deepspeed.txt requirements-ray.txt requirements-eval.txt requirements-dev.txt
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}" HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false CUDA_VISIBLE_DEVICES=""
"$PY" -m ruff check .
"$PY" -m ruff format --check .
workers=$(getconf _NPROCESSORS_ONLN 2>/dev/null || echo 2)  # nproc would count OMP_NUM_THREADS
"$PY" -m pytest -n "$((workers < 4 ? workers : 4))" --dist loadfile "$@"
