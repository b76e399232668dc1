#!/usr/bin/env bash
# One large input over many jobs: prepare, N parts side by side, finish; no scheduler of our own.
#
#   workflows/batch/array.sh INPUT OUTPUT N [options of truescale upscale]
#   SBATCH_OPTIONS="--partition=long --time=12:00:00" workflows/batch/array.sh ...
#
# N: how many parts, or 100%8 for at most 8 of 100 at a time. Every job must see the folders of INPUT and OUTPUT.
# TRUESCALE names the program where it is not on the PATH. Called again it does what is missing: after a failed or
# cancelled part the rest, after all is done nothing.
#
#SBATCH --cpus-per-task=1
#SBATCH --mem=4G
#SBATCH --time=04:00:00
#SBATCH --signal=B:TERM@120
#SBATCH --requeue
#SBATCH --open-mode=append
set -euo pipefail
truescale=${TRUESCALE:-truescale}

# inside the jobs; exec: Slurm's signals reach the program, which ends its tile and leaves the rest for the next try
case "${1:-}" in
  --job) shift && exec "$truescale" "$@" ;;
  --part) exec "$truescale" run "$2" --part "$SLURM_ARRAY_TASK_ID/$3" ;;
esac

if [ $# -lt 3 ] || ! [[ $3 =~ ^[1-9][0-9]*(%[1-9][0-9]*)?$ ]]; then
  sed -n '2,9s/^# \{0,1\}//p' "$0" >&2
  exit 2
fi
input=$1 output=$2 array=$3
shift 3
for option in "$@"; do
  case $option in --work | --work=*) echo "array.sh: the work folder is '$output.work'; leave out --work." >&2 && exit 2 ;; esac
done

# reads no pixel: what cannot work is refused here, not in the queue
plan=$("$truescale" plan "$input" "$output" "$@" --overwrite --resume --json)
if [[ $plan == *'"done": true'* ]]; then
  echo "nothing to do: '$output' is there already"
  "$truescale" upscale "$input" "$output" "$@" --overwrite --resume --quiet # a killed job may have left its work folder
  exit 0
fi

# shellcheck disable=SC2086  # several options
submit() { # NAME LOG [OPTION...] SCRIPT ARGUMENT...; % in a path would be a pattern
  sbatch --parsable --job-name="truescale-$1" --output="${output//%/%%}.$2.log" --kill-on-invalid-dep=yes \
    ${SBATCH_OPTIONS:-} "${@:3}"
}
prepare=$(submit prepare prepare "$0" --job prepare "$input" "$output" "$@" --overwrite --resume)
parts=$(submit part part-%a --array="1-$array" --dependency="afterok:$prepare" "$0" --part "$output.work" "${array%%%*}")
finish=$(submit finish finish --dependency="afterok:$parts" "$0" --job finish "$output.work")
echo "prepare $prepare, parts $parts, finish $finish; logs: $output.*.log"
