#!/usr/bin/env bash
# The whole pipeline, stage by stage, each command echoed as you would type it:
#   generate -> prepare -> convert -> train stage 1 -> merge -> train stage 2 -> merge -> evaluate -> ask three questions
#
#   bash scripts/run_pipeline.sh                     # nothing configured: bundled samples, a tiny model made on the spot
#   OPENAI_API_KEY=... MODEL=openbmb/MiniCPM4-0.5B FIREFLY_JSON=data/raw/firefly/firefly_no_belle.json \
#     bash scripts/run_pipeline.sh
set -euo pipefail
cd "$(dirname "$0")/.."

usage() {
    cat <<'EOF'
用法: bash scripts/run_pipeline.sh [--from 阶段] [--fresh] [--help]

依次执行全部阶段；已完成的阶段不重复，改了设置的阶段及其后的阶段会重做（旧结果改名保留）。
  --from 阶段   从这个阶段起重做：generate prepare convert model train1 merge1 train2 merge2 evaluate ask
  --fresh       全部重做
环境变量（都可以不设；不设时用自带样例与现场生成的极小模型）：
  OPENAI_API_KEY   大模型密钥：用它生成数据（OPENAI_BASE_URL 选服务地址，GEN_MODEL 选模型，TOPICS 选主题文件）
  FIREFLY_JSON     开源数据文件，例如 data/raw/firefly/firefly_no_belle.json
  MODEL            底座模型：本地目录，或 openbmb/MiniCPM4-0.5B；USE_MODELSCOPE=1 从 ModelScope 下载
  TRAIN_MODE       qlora（默认）、lora 或 full；GPUS=N 用 deepspeed 在 N 张卡上训练
  TRAIN_ARGS       换用 Firefly/ 下的另一份训练参数，例如 train_args/sft/qlora/qwen3-0.6b-sft-qlora.json
  HIT_RATIO TOTAL  混合时 HIT 数据的占比（默认 0.4）与总条数（默认全部）
  RUN_DIR          结果目录（样例默认 work/sample，真实运行默认 work/run）
EOF
}

STAGES=(generate prepare convert model train1 merge1 train2 merge2 evaluate ask)
REDO_FROM=""
while [ $# -gt 0 ]; do
    case "$1" in
        --fresh) REDO_FROM=generate ;;
        --from) REDO_FROM="${2:-}"; shift ;;
        --help | -h) usage; exit 0 ;;
        *) echo "错误：不认识的参数 $1，请看 --help。" >&2; exit 2 ;;
    esac
    shift || true
done
if [ -n "$REDO_FROM" ] && [[ " ${STAGES[*]} " != *" $REDO_FROM "* ]]; then
    echo "错误：没有 $REDO_FROM 这个阶段，请用 ${STAGES[*]} 之一。" >&2
    exit 2
fi

source scripts/setup_env.sh requirements.txt ${GPUS:+requirements-deepspeed.txt}
export TOKENIZERS_PARALLELISM=true

REAL=""
[ -n "${MODEL:-}${OPENAI_API_KEY:-}${FIREFLY_JSON:-}" ] && REAL=1
RUN=${RUN_DIR:-$([ -n "$REAL" ] && echo work/run || echo work/sample)}
mkdir -p "$RUN/.done"
: > "$RUN/stages.tsv"
TEACHER_PID=""
trap '[ -n "$TEACHER_PID" ] && kill "$TEACHER_PID" 2>/dev/null; true' EXIT

CHAIN=""   # grows with every command: a stage whose settings, or those before it, changed is done again
redo=""
now() { local t=${EPOCHREALTIME:-$(date +%s)}; echo "${t/,/.}"; }
say() { printf '\n\033[1m%s\033[0m\n' "$*" >&2; }

# stage NAME INPUT RESULT : announce a stage; false when it is finished already. Call finish when it is done.
stage() {
    NAME=$1 INPUT=$2 RESULT=$3
    shift 3
    CHAIN=$(printf '%s\n%s' "$CHAIN" "$NAME $*" | cksum)
    [ "$NAME" = "$REDO_FROM" ] && redo=1
    local marker="$RUN/.done/$NAME"
    if [ -z "$redo" ] && [ -e "$RESULT" ] && [ "$(head -1 "$marker" 2>/dev/null)" = "$CHAIN" ]; then
        say "[$NAME] 已完成，跳过（重做请加 --from $NAME）"
        printf '%s\t%s\t%s\t%s\n' "$NAME" "$INPUT" "$RESULT" "$(sed -n 2p "$marker")" >> "$RUN/stages.tsv"
        return 1
    fi
    redo_this=$([ -n "$redo" ] || [ -e "$marker" ] && echo 1 || true)
    redo=1
    rm -f "$marker"
    say "[$NAME]"
    STARTED=$(now)
}
finish() {
    local seconds
    seconds=$(echo "$(now) $STARTED" | awk '{printf "%.1f", $1 - $2}')
    printf '%s\n%s\n' "$CHAIN" "$seconds" > "$RUN/.done/$NAME"
    printf '%s\t%s\t%s\t%s\n' "$NAME" "$INPUT" "$RESULT" "$seconds" >> "$RUN/stages.tsv"
}
# run COMMAND... : echo it as the user would type it, then run it
run() {
    echo "\$ ${*/#$PY/python}" >&2
    "$@"
}
# aside FOLDER : a result to be made again is renamed, not lost
aside() {
    if [ -e "$1" ] && [ -n "$redo_this" ]; then mv "$1" "$1.old-$(date +%Y%m%d-%H%M%S)"; fi
}

# ---- what was named must be there, before anything is paid for or trained ------------------------------------------
if [ -n "${MODEL:-}" ]; then
    BASE=$MODEL MODE=${TRAIN_MODE:-qlora}
    ARGS_FILE=${TRAIN_ARGS:-train_args/sft/$MODE/minicpm4-0.5b-sft-$MODE.json}
else
    BASE=$RUN/tiny-minicpm MODE=${TRAIN_MODE:-lora}
    ARGS_FILE=train_args/sft/$MODE/tiny-minicpm-sft-$MODE.json
fi
if [ ! -f "Firefly/$ARGS_FILE" ]; then
    echo "错误：没有 Firefly/$ARGS_FILE，请检查 TRAIN_MODE（qlora、lora 或 full）或 TRAIN_ARGS。" >&2
    exit 2
fi
need() { # need VARIABLE PATH : an address or a pattern that matches something will do
    [[ $2 = *://* ]] || [ -e "$2" ] || compgen -G "$2" > /dev/null && return
    echo "错误：$1=$2：找不到这个文件或目录，请检查路径。" >&2
    exit 2
}
[ -z "${FIREFLY_JSON:-}" ] || need FIREFLY_JSON "$FIREFLY_JSON"
[ -z "${TOPICS:-}" ] || need TOPICS "$TOPICS"
hub='^[A-Za-z0-9][^/]*/[^/]+$' # owner/name
if [ -n "${MODEL:-}" ] && [[ ! $MODEL =~ $hub || $MODEL = models/* ]]; then need MODEL "$MODEL"; fi

# ---- data: generate, prepare, convert -------------------------------------------------------------------------------
TOPICS=${TOPICS:-$([ -n "${OPENAI_API_KEY:-}" ] && echo LLM_data_gen/topics.txt || echo data/samples/topics.txt)}
GENERAL=${FIREFLY_JSON:-data/samples/general_samples.json}
HIT=$RUN/hit/train.jsonl
GEN_ARGS=(--topics-file "$TOPICS" --out "$HIT" --n-per-topic 6 --max-concurrency 50)
if [ -n "${OPENAI_API_KEY:-}" ]; then GEN_ARGS+=(--model "${GEN_MODEL:-deepseek-chat}" --mode chat); fi
if stage generate "$TOPICS" "$HIT" "${GEN_ARGS[@]}" "${OPENAI_BASE_URL:-}"; then
    aside "$RUN/hit"
    mkdir -p "$RUN/hit"
    if [ -z "${OPENAI_API_KEY:-}" ]; then
        echo "没有设 OPENAI_API_KEY：由本机的样例教师重放 data/samples/ 里自带的回答，不是大模型现场生成。" >&2
        mkfifo "$RUN/.teacher" 2>/dev/null || true
        echo "\$ python scripts/sample_teacher.py --port 0 &" >&2
        "$PY" scripts/sample_teacher.py --port 0 > "$RUN/.teacher" &
        TEACHER_PID=$!
        read -r URL < "$RUN/.teacher"
        rm -f "$RUN/.teacher"
        # the bundled samples ask for the same few facts in many ways, so that the tiny model can learn them
        run "$PY" gen_SFT_data.py --base-url "$URL" --api-key sample --model sample-replay --keep-near-dup "${GEN_ARGS[@]}"
        kill "$TEACHER_PID"; TEACHER_PID=""
    else
        run "$PY" gen_SFT_data.py "${GEN_ARGS[@]}"
    fi
    finish
fi

MIX=$RUN/mix.jsonl
PREP_ARGS=(--firefly-json "$GENERAL" --hit-jsonl "$HIT" --out "$MIX" --min-chinese-ratio 0.65 --near-dup-threshold 3
    --drop-pii --hit-ratio "${HIT_RATIO:-0.4}" --eval-size 0.05 --seed 42 --overwrite)
if [ -n "${TOTAL:-}" ]; then PREP_ARGS+=(--total "$TOTAL"); fi
if stage prepare "$HIT,$GENERAL" "$MIX" "${PREP_ARGS[@]}"; then
    run "$PY" prep_sft_firefly_hit.py "${PREP_ARGS[@]}"
    finish
fi

GENERAL_CONVERSATION=$RUN/general_conversation.jsonl
S1=$RUN/stage1_conversation.jsonl S2=$RUN/stage2_conversation.jsonl EVAL=$RUN/eval_conversation.jsonl
if stage convert "$MIX" "$S1" convert; then
    run "$PY" chatml2conversation.py --in "$MIX" --out "$S1" --overwrite
    run "$PY" chatml2conversation.py --in "$MIX" --out "$S2" --only-source hit --overwrite
    run "$PY" chatml2conversation.py --in "$RUN/mix_eval.jsonl" --out "$EVAL" --overwrite
    finish
fi

# ---- model: the one that was named, or a tiny one made here ---------------------------------------------------------
if [ -z "${MODEL:-}" ]; then
    # The tokenizer may see every training text; the base learns its little Chinese from the general ones alone.
    TINY_ARGS=(--corpus "$GENERAL_CONVERSATION" --vocab-corpus "$S1" --pretrain-steps 150)
    if stage model "$GENERAL_CONVERSATION" "$BASE" "${TINY_ARGS[@]}"; then
        aside "$BASE"
        run "$PY" chatml2conversation.py --in "$MIX" --out "$GENERAL_CONVERSATION" --only-source firefly --overwrite
        run "$PY" scripts/make_tiny_model.py --out "$BASE" "${TINY_ARGS[@]}"
        finish
    fi
fi
if [ -d "$BASE" ]; then BASE=$(cd "$BASE" && pwd); fi
value_of() { sed -n "s/.*\"$1\": *\"\([^\"]*\)\".*/\1/p" "Firefly/$ARGS_FILE"; }
MODE=$(value_of train_mode) TEMPLATE=$(value_of template_name)
HERE=$(pwd)
FROM=$HERE/; [[ $RUN = /* ]] && FROM=""  # what turns a path of this run into one that holds in Firefly/ too

# train STAGE DATA BASE : one training stage, then its merge. A run that was cut goes on from its last checkpoint.
train_stage() {
    local n=$1 data=$2 base=$3 out=$RUN/stage$1
    local args=(--train_args_file "$ARGS_FILE" --model_name_or_path "$base" --train_file "$FROM$data"
        --eval_file "$FROM$EVAL" --output_dir "$FROM$out")
    # The tiny model, which knows nothing yet, needs to see the few HIT records more often than a real one would.
    if [ "$n" = 2 ] && [ -z "${MODEL:-}" ]; then args+=(--num_train_epochs 7); fi
    if stage "train$n" "$data" "$out/train_results.json" "${args[@]}" "$(cksum "Firefly/$ARGS_FILE")"; then
        aside "$out"
        if compgen -G "$out/checkpoint-*" > /dev/null; then args+=(--resume_from_checkpoint_path "$FROM$out"); fi
        echo "\$ cd Firefly" >&2
        if [ -n "${GPUS:-}" ]; then
            (cd Firefly && run "$HERE/$VENV/bin/deepspeed" --num_gpus="$GPUS" train.py "${args[@]}")
        else
            (cd Firefly && PY=$HERE/$PY && run "$PY" train.py "${args[@]}")
        fi
        finish
    fi
    if [ "$MODE" = full ]; then
        MERGED=$out # full fine-tuning trains the whole model: there is nothing to merge
        return
    fi
    MERGED=$RUN/stage$n-merged
    if stage "merge$n" "$out" "$MERGED" "$base"; then
        aside "$MERGED"
        run "$PY" Firefly/script/merge_lora.py --base "$base" --adapter "$out" --out "$MERGED"
        finish
    fi
}
train_stage 1 "$S1" "$BASE"
M1=$MERGED
train_stage 2 "$S2" "$FROM$M1"
M2=$MERGED

# ---- results: held-out loss, and three questions ---------------------------------------------------------------------
MODELS=("base=$BASE" "stage1=$M1" "stage2=$M2")
if stage evaluate "$EVAL" "$RUN/evaluate" "${MODELS[@]}"; then
    aside "$RUN/evaluate"
    run "$PY" Firefly/script/evaluate/evaluate.py --models "${MODELS[@]}" --eval-file "$EVAL" --template-name "$TEMPLATE" \
        --train-file "$S1" --generate 16 --out "$RUN/evaluate"
    finish
fi
QUESTIONS=data/samples/questions.jsonl
if stage ask "$QUESTIONS" "$RUN/answers_stage2.jsonl" "${MODELS[@]}"; then
    for model in "${MODELS[@]}"; do
        aside "$RUN/answers_${model%%=*}.jsonl"
        run "$PY" inference_with_transformers.py --model "${model#*=}" --input "$QUESTIONS" \
            --output "$RUN/answers_${model%%=*}.jsonl" --temperature 0 --max-new-tokens 128
    done
    finish
fi
"$PY" scripts/pipeline_summary.py --run-dir "$RUN"
