#!/usr/bin/env bash
# One large input over many jobs: prepare, N parts side by side, finish; no scheduler of our own.
#
#   workflows/batch/array.sh INPUT OUTPUT N [options of truescale upscale]
#   SBATCH_OPTIONS="--partition=long --account=x" workflows/batch/array.sh ...
#
# All jobs must see the folder of OUTPUT. A part that failed is submitted again by the same call; what is done stays.
set -euo pipefail
if [ $# -lt 3 ]; then
  sed -n '2,7p' "$0"
  exit 2
fi
input=$1 output=$2 parts=$3
shift 3
work="$output.work"
read -r -a common <<<"${SBATCH_OPTIONS:-}"
submit() { sbatch --parsable --requeue --open-mode=append --kill-on-invalid-dep=yes "${common[@]}" "$@"; }
quoted=$(printf ' %q' "$input" "$output" "$@")
folder=$(printf '%q' "$work")
prepare=$(submit --job-name=ts-prepare --output="$output.prepare.log" \
  --wrap "exec truescale prepare$quoted --overwrite --resume")
tiles=$(submit --job-name=ts-part --output="$output.part-%a.log" --array="1-$parts" --dependency="afterok:$prepare" \
  --signal=TERM@120 --wrap "exec truescale run $folder --part \$SLURM_ARRAY_TASK_ID/$parts")
finish=$(submit --job-name=ts-finish --output="$output.finish.log" --dependency="afterok:$tiles" \
  --wrap "exec truescale finish $folder")
echo "prepare $prepare, parts $tiles, finish $finish; logs beside $output"
