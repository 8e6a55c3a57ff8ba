#!/usr/bin/env bash
# Show that the three scripts of the paper's system learn: four people stand both for training and for validation, so
# programs without a fault reproduce them almost perfectly. Run it again to go on after a stop.
#
#     MINUTES=30 OUT=runs/overfit training/recipes/overfit.sh
#
# MINUTES is the training time of all three together; two cores need about half an hour.
set -euo pipefail
MINUTES=${MINUTES:-30} OUT=${OUT:-runs/overfit}
source "$(dirname "$0")/stage.sh"
models=$models/overfit

[ -f "$OUT/heads/images/metadata.jsonl" ] ||
    nvb-heads --output_dir "$OUT/heads" --identities 4 --views 4 --size 64 --split_sizes 0 0
[ -d "$OUT/heads/images/again" ] || python - "$OUT/heads" <<'END'  # the same images under other names, for validation
import shutil, sys
from pathlib import Path
from nvb_diffusers.data.records import read_records, write_records

heads = Path(sys.argv[1])
records = read_records(heads)
shutil.copytree(heads / "images", heads / "again")
(heads / "again").rename(heads / "images/again")
names = [(f"again/{record['file_name']}", f"again-{record['identity']}") for record in records]
write_records(heads, records + [
    {**record, "file_name": name, "identity": identity, "split": "validation"}
    for record, (name, identity) in zip(records, names)
])
END

common=(--data_dir "$OUT/heads" --resolution 64 --lr_warmup_steps 50 --ema_decay 0.99 --validation_steps 1000000)
degraded=("${common[@]}" --degradation mild --learning_rate 1e-3)
train autoencoder/vae 1/3 train_autoencoder.py "${common[@]}" \
    --model_config "$models/autoencoder.json" --latent_noise 0 --learning_rate 2e-3
train restoration/pipeline 1/3 train_restoration.py "${degraded[@]}" \
    --vae_name_or_path "$OUT/autoencoder/vae" --unet_config "$models/unet.json" --unet_training full \
    --encoder_config "$models/image_encoder.json" --prediction_type v_prediction --zero_terminal_snr \
    --latent_loss_weight 0.5 --train_batch_size 16
train novel_view/pipeline 1/3 train_novel_view.py "${degraded[@]}" --num_target_views 3 \
    --pretrained_model_name_or_path "$OUT/restoration/pipeline" --view_transformer_config "$models/view_transformer.json"

for run in autoencoder restoration novel_view; do  # the last line of each curve: how near the images come, in dB
    printf '%s: %s\n' "$run" "$(tail -n 1 "$OUT/$run/curve.jsonl")"
done
