# Sourced by the recipes: what they share.

here=$(dirname "${BASH_SOURCE[0]}")
models=${MODELS:-$here/models}

# calculate EXPRESSION: its value.
calculate() { awk "BEGIN { print $1 }"; }

# train RESULT SHARE SCRIPT OPTIONS...: one stage, unless its RESULT, a folder in $OUT that a finished run leaves, is
# there. It ends after its SHARE of the $MINUTES; after a stop it goes on from its last checkpoint.
train() {
    local result=$OUT/$1 share=$2 script=$3
    shift 3
    [ ! -d "$result" ] || return 0
    printf '\n== %s\n' "$result"
    ${LAUNCH:-python} "$here/../$script" --output_dir "$(dirname "$result")" --resume_from_checkpoint latest --checkpoints_total_limit 2 \
        --max_train_seconds "$(calculate "60 * $MINUTES * $share")" --report_to none "$@"
}
