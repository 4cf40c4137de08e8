#!/usr/bin/env bash
# Set up an environment and run lint and tests:  bash scripts/run_tests.sh [pytest arguments]
# For example -m "not slow" leaves out the tests that train a model. CPU only; no network beyond package installation.
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/setup_env.sh requirements.txt requirements-deepspeed.txt requirements-dev.txt
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-2}" HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false CUDA_VISIBLE_DEVICES=""
"$PY" -m ruff check .
"$PY" -m ruff format --check .
"$PY" -m pytest "$@"
