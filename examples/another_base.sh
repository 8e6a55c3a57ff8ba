#!/usr/bin/env bash
# Train both steps on another Stable Diffusion than the paper's: 1.5, 2.1 or one of your own, a folder or a Hub id.
#
#     BASE=user/my-diffusion FACES=ffhq HEADS=my-heads OUT=runs/my-base examples/another_base.sh
#
# The cross-attention is widened on the way where the base's is narrower than the encoder's features. Further arguments
# go to both training scripts; ENCODER and VIEW_TRANSFORMER, JSON files, are shapes of smaller models.
# OUT/restoration/adapter is what step 1 taught the base, for people who have it; OUT/novel_view/pipeline is the
# pipeline, whole.
set -euo pipefail
: "${BASE:?give BASE, a folder or Hub id}" "${FACES:?give FACES}" "${HEADS:?give HEADS}" "${OUT:?give OUT, a new folder}"
here=$(cd "$(dirname "$0")/.." && pwd)
LAUNCH=${LAUNCH:-python} FACES=$FACES HEADS=$HEADS OUT=$OUT BASE=$BASE "$here/training/recipes/paper_sd21.sh" "$@"
nvb-face views "${PHOTO:-$here/examples/inputs/astronaut_small.jpg}" --checkpoint "$OUT/novel_view/pipeline" --out "$OUT/views" \
    --steps "${STEPS:-20}"
