#!/usr/bin/env bash
# The default pipeline from nothing: renders synthetic heads and trains every part on them, without a GPU.
#
#     MINUTES=600 OUT=runs/default training/recipes/default.sh
#
# MINUTES is the training time of all stages together, of which each has its share. After a stop, run it again: what is
# done stays, and the stage that was stopped goes on. The pipeline is OUT/fuser/pipeline.
#
#     PACE         how many times as many steps two slow CPU cores make in the same time; the learning rate is down after
#                  so many steps, or the time ends before it is
#     IDENTITIES   heads to render, with VIEWS images of RENDERED pixels, which are resized to SIZE
#     MODELS       a folder with the shapes of the models
#     PRECISION    no, for CPUs without bf16 instructions, where bf16 is slow
#     LAUNCH       what starts a script, for instance "accelerate launch" with its options
set -euo pipefail
MINUTES=${MINUTES:-600} OUT=${OUT:-runs/default} PACE=${PACE:-1}
IDENTITIES=${IDENTITIES:-3000} VIEWS=${VIEWS:-8} RENDERED=${RENDERED:-256} SIZE=${SIZE:-128}
source "$(dirname "$0")/stage.sh"

# 1. Data
heads=$OUT/heads resized=$OUT/heads-$SIZE
[ -f "$heads/images/metadata.jsonl" ] ||
    nvb-heads --output_dir "$heads" --identities "$IDENTITIES" --views "$VIEWS" --size "$RENDERED"
[ -f "$resized/images/metadata.jsonl" ] ||
    python "$here/../prepare_resized.py" --data_dir "$heads" --output_dir "$resized" --size "$SIZE"

# steps SHARE RATE: the options for as many steps as fit into the share at RATE steps a minute, and a falling rate.
steps() {
    echo --max_train_steps "$(calculate "1 + int($MINUTES * $PACE * $1 * $2)")" --lr_scheduler cosine
}
all=(--mixed_precision "${PRECISION:-bf16}" --checkpointing_steps 100 --validation_steps 500)
common=("${all[@]}" --data_dir "$resized" --resolution "$SIZE" --lr_warmup_steps 50 --ema_decay 0.995)
degraded=("${common[@]}" --degradation mild medium severe)
cached=("${degraded[@]}" --latents_cache "$OUT/latents.npy")

# 2. The autoencoder
train autoencoder/vae 0.15 train_autoencoder.py "${common[@]}" $(steps 0.15 60) \
    --model_config "$models/autoencoder.json" --learning_rate 6e-4

# 3. Step 1: the image encoder and the UNet
train restoration/pipeline 0.2 train_restoration.py "${cached[@]}" $(steps 0.2 30) \
    --vae_name_or_path "$OUT/autoencoder/vae" --unet_config "$models/unet.json" --unet_training full \
    --encoder_config "$models/image_encoder.json" --prediction_type v_prediction --zero_terminal_snr \
    --latent_loss_weight 0.5 --train_batch_size 32 --learning_rate 4e-4

# 4. Step 2: the view transformer learns features and cameras alone, which costs less than half; then the UNet learns to
# paint from them
views=(--num_target_views 3 --train_batch_size 8 --use_muon --camera_loss_weight 1.0)
train features/pipeline 0.2 train_novel_view.py "${degraded[@]}" "${views[@]}" $(steps 0.2 40) \
    --pretrained_model_name_or_path "$OUT/restoration/pipeline" --num_diffusion_views 0 \
    --view_transformer_config "$models/view_transformer.json" --learning_rate 1e-3
train novel_view/pipeline 0.15 train_novel_view.py "${cached[@]}" "${views[@]}" $(steps 0.15 35) \
    --pretrained_model_name_or_path "$OUT/features/pipeline" --num_diffusion_views 1 --train_unet \
    --conditioning_dropout 0.1 --learning_rate 3e-4

# 5. The photo's own pixels, at the size of the heads: made clean, read, and fused with the views, first at a smaller side,
# which costs a quarter
photo=("${all[@]}" --data_dir "$heads")
train restorer/pipeline 0.06 train_appearance.py --train restorer "${photo[@]}" $(steps 0.06 110) \
    --pretrained_model_name_or_path "$OUT/novel_view/pipeline" --appearance_config "$models/appearance.json" \
    --train_batch_size 4
train reader/pipeline 0.1 train_appearance.py --train reader "${photo[@]}" $(steps 0.1 90) \
    --pretrained_model_name_or_path "$OUT/restorer/pipeline"
train fuser_small/pipeline 0.08 train_appearance.py --train fuser "${photo[@]}" $(steps 0.08 20) \
    --pretrained_model_name_or_path "$OUT/reader/pipeline" --resolution "$SIZE" --train_batch_size 6
train fuser/pipeline 0.06 train_appearance.py --train fuser "${photo[@]}" $(steps 0.06 10) \
    --pretrained_model_name_or_path "$OUT/fuser_small/pipeline" --learning_rate 3e-4 --train_batch_size 6

printf '\nThe pipeline: %s\n' "$OUT/fuser/pipeline"
