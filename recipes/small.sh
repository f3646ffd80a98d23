#!/usr/bin/env bash
# The whole table of docs/results.md at 256 x 256: base, stage 1, stage 2 and its variations, on one GPU.
#
#   recipes/small.sh base      # the base, from random weights
#   recipes/small.sh method    # stage 1, stage 2, variations, measurements; needs the base
#
# MGSD names the program (default: mgsd), RUNS the folder for everything (default: runs). More settings for a stage go
# into SET_BASE, SET_SFT and SET_OPCD, as `--set KEY=VALUE`. What can run side by side does.
set -euo pipefail
MGSD=${MGSD:-mgsd} RUNS=${RUNS:-runs}
recipes=$(dirname "$0")
boards=$RUNS/small-boards

make_boards() {
    [ -d "$boards" ] && return
    lake=(--frozen-probability 0.8 --random-start-goal)
    for task in "frozenlake 3,4,5,6,7,8 600" "maze 3,4,5,6 900" "minibehaviour 5,6 1800"; do
        read -r name levels count <<<"$task"
        "$MGSD" tasks generate --task "$name" --levels "$levels" --count "$count" --part held-out --split test \
            --seed 7 $([ "$name" = frozenlake ] && echo "${lake[@]}") --out "$boards.part"
    done
    mv "$boards.part" "$boards"
}

# measure NAME MODEL: plans from pictures and from text, and readings of pictures.
measure() {
    local ask=(--model "$2" --label "$1" --data "$boards" --prompts compact --max-new-tokens 224 --batch 256 --out "$RUNS/small-eval")
    "$MGSD" eval plan "${ask[@]}" --modality image
    "$MGSD" eval plan "${ask[@]}" --modality text
    "$MGSD" eval perception "${ask[@]}"
}

# opcd NAME [--set KEY=VALUE ...]
opcd() {
    local name=$1
    shift
    "$MGSD" train opcd "$recipes/small-opcd.toml" --set "model.base=\"$RUNS/small-sft/model\"" \
        --set "model.out=\"$RUNS/small-$name\"" --set "opcd.teacher_model=\"$RUNS/small-base/model\"" ${SET_OPCD:-} "$@"
    measure "$name" "$RUNS/small-$name/model"
}

case ${1:-} in
base)
    "$MGSD" train pretrain "$recipes/small-base.toml" --set "model.out=\"$RUNS/small-base\"" ${SET_BASE:-}
    ;;
method)
    make_boards
    "$MGSD" train sft "$recipes/small-sft.toml" --set "model.base=\"$RUNS/small-base/model\"" \
        --set "model.out=\"$RUNS/small-sft\"" ${SET_SFT:-}
    jobs=()
    opcd opcd & jobs+=($!)
    opcd no-cold-start --set "model.base=\"$RUNS/small-base/model\"" & jobs+=($!)
    opcd policy-gradient --set 'opcd.loss="policy-gradient"' --set optimiser.lr=3e-5 & jobs+=($!)
    opcd no-reference --set opcd.reference_plan=false & jobs+=($!)
    measure base "$RUNS/small-base/model"
    measure sft "$RUNS/small-sft/model"
    for job in "${jobs[@]}"; do wait "$job"; done
    "$MGSD" eval gap --runs "$RUNS/small-eval"
    ;;
*)
    sed -n '2,8s/^# \{0,1\}//p' "$0"
    exit 2
    ;;
esac
