#!/usr/bin/env bash
# Go on training a pipeline on faces of your own, seen by several cameras (docs/data.md has the format).
#
#     DATA=my-faces OUT=runs/mine examples/fine_tune.sh
#
# BASE is the pipeline to go on from, by default the packaged one. Further arguments go to the training script, for
# instance --max_train_steps 2000 or --learning_rate 2e-5. The pipeline is OUT/pipeline; its views are in OUT/views.
set -euo pipefail
: "${DATA:?give DATA, a set in the format of docs/data.md}" "${OUT:?give OUT, a new folder}"
here=$(cd "$(dirname "$0")/.." && pwd)
BASE=${BASE:-$(python -c "import nvb_diffusers; print(nvb_diffusers.DEFAULT_CHECKPOINT)")}
SIZE=$(python -c "import json, sys; print(json.load(open(sys.argv[1] + '/image_encoder/config.json'))['sample_size'])" "$BASE")

python "$here/training/train_novel_view.py" --pretrained_model_name_or_path "$BASE" --data_dir "$DATA" --output_dir "$OUT" \
    --resolution "$SIZE" --degradation mild medium severe --learning_rate 1e-4 --resume_from_checkpoint latest "$@"
nvb-face views "${PHOTO:-$here/examples/inputs/astronaut_small.jpg}" --checkpoint "$OUT/pipeline" --out "$OUT/views"
