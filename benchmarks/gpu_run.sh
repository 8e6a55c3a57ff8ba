#!/usr/bin/env bash
# All that can only be learnt on a GPU, in one unattended run without a network: OUT gets a log of each stage.
#
#     OUT=gpu-run MINUTES=10 benchmarks/gpu_run.sh
#
# Stages: the tests that need CUDA; the pipeline's speed and memory, of the default checkpoint and at the paper's size;
# speed and memory of both training steps at the paper's size; then the default from nothing for MINUTES, 0 for not at all.
# A stage that fails does not stop the next; the exit status is then 1, and the last line names it.
#
#     SIZE      "default" to leave the paper's size out, as on a machine without a GPU
#     LIMIT     seconds that each stage before the training may take
#     VIEWS     numbers of views
#     ROUNDS    turns that are timed
set -uo pipefail
OUT=${OUT:-gpu-run} MINUTES=${MINUTES:-0} SIZE=${SIZE:-paper} LIMIT=${LIMIT:-240} ROUNDS=${ROUNDS:-5}
VIEWS=${VIEWS:-1 2 4 8 16 32}
here=$(cd "$(dirname "$0")/.." && pwd)
mkdir -p "$OUT" && OUT=$(cd "$OUT" && pwd) && cd "$here" || exit 2
failed=()

# stage NAME SECONDS COMMAND...: its output in OUT/NAME.log
stage() {
    local name=$1 seconds=$2
    shift 2
    printf '%s %s\n' "$(date +%T)" "$name"
    timeout "$seconds" "$@" > "$OUT/$name.log" 2>&1 || failed+=("$name")
}
speed=(python -m benchmarks.pipeline_speed --rounds "$ROUNDS")
paper=("${speed[@]}" --paper_size --dtype bfloat16 --num_inference_steps "${STEPS:-10}")

stage machine 60 python -c "import torch; print(torch.__version__, torch.cuda.is_available() and torch.cuda.get_device_name())"
stage tests "$LIMIT" python -m pytest -q tests/test_cuda.py
stage default "$LIMIT" "${speed[@]}" --views $VIEWS
if [ "$SIZE" = paper ]; then
    stage paper "$LIMIT" "${paper[@]}" --views $VIEWS
    stage paper_in_parts "$LIMIT" "${paper[@]}" --views 8 16 32 --view_batch_size 4 --naive_views 0 --rounds 2
    stage paper_compiled "$LIMIT" "${paper[@]}" --views 1 8 --naive_views 0 --compile
    configs=$(mktemp -d)
    trap 'rm -rf "$configs"' EXIT
    python -c 'import json; from nvb_diffusers.models.unet import SD21_UNET_CONFIG as c; print(json.dumps(c))' > "$configs/unet.json"
    echo '{"sample_size": 512}' > "$configs/encoder.json"
    echo '{}' > "$configs/view_transformer.json"
    stage paper_training "$LIMIT" python -m benchmarks.training_speed --precisions bf16 --unet_training lora \
        --unet_config "$configs/unet.json" --encoder_config "$configs/encoder.json" \
        --view_transformer_config "$configs/view_transformer.json" --restoration_batch_size 8 \
        --novel_view_batch_size 1 --rounds "$ROUNDS"
fi
if [ "$MINUTES" != 0 ]; then
    stage training "$(awk "BEGIN { print int(60 * $MINUTES + 600) }")" \
        env MINUTES="$MINUTES" OUT="$OUT/runs" PACE="${PACE:-10}" training/recipes/default.sh
fi
[ ${#failed[@]} = 0 ] || { echo "failed: ${failed[*]}; see the logs in $OUT"; exit 1; }
