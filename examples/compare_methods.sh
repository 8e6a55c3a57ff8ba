#!/usr/bin/env bash
# Compare a pipeline with its two-stage rival, the input and the mean face, on heads that none of them has seen.
#
#     OUT=runs/comparison examples/compare_methods.sh
#
# The heads are rendered (IDENTITIES of them); COMPARISON is one of the packaged ones or a JSON file of your own, which may
# name folders with the results of any other method. OUT/comparison has the scores, their intervals and a report.
set -euo pipefail
: "${OUT:?give OUT, a new folder}"
[ -f "$OUT/heads/images/metadata.jsonl" ] ||
    nvb-heads --output_dir "$OUT/heads" --identities "${IDENTITIES:-20}" --views 5 --size "${SIZE:-256}" --seed 1 --split_sizes 0 1
nvb-face eval compare "${COMPARISON:-appearance}" "$OUT/heads" --out "$OUT/comparison" "$@"
