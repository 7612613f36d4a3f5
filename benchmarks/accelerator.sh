#!/usr/bin/env bash
# What one GPU shows of this library in N minutes; nine are enough.
#
#   benchmarks/accelerator.sh --minutes N --out DIR [--data FILE] [--rehearse]
#
# In this order: the tests marked gpu, launches and a profile, steps and epochs beside loops by hand
# and torchattacks (if it is installed), and in the last fifth of the time, or what is left over,
# training for the evidence on the pictures of FILE (or of $SPATLIB_PICTURES): a .npz file as
# spatlib.load_data takes it, or of JPEG pictures (benchmarks/accelerator.py); without one it is
# left out. Every part has a limit, and every result is in DIR as soon as it is there: what ends
# this early leaves the rest. DIR/parts.tsv has a line for each part: name, seconds, exit status
# (124: its limit). --rehearse does all of it on the CPU, in sizes that show that it runs.
set -u
minutes='' out='' data=${SPATLIB_PICTURES:-} rehearse=''
while [ $# -gt 0 ]; do
    case $1 in
        --minutes) minutes=${2:-} && shift ;;
        --out) out=${2:-} && shift ;;
        --data) data=${2:-} && shift ;;
        --rehearse) rehearse=yes ;;
        *) minutes='' && break ;;
    esac
    shift
done
if ! [[ $minutes =~ ^[1-9][0-9]*$ && $out ]]; then
    echo "usage: $0 --minutes N --out DIR [--data FILE] [--rehearse]" >&2
    exit 2
fi
mkdir -p "$out" && out=$(realpath "$out") && data=${data:+$(realpath "$data")}
cd "$(dirname "$0")/.." || exit
export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH} PYTHONUNBUFFERED=1
python=${PYTHON:-.venv/bin/python}
[ -x "$python" ] || python=python3
whole=$((60 * minutes)) failed=0 child='' decoder=''
end=$((whole * 4 / 5)) # of what is measured
[ "$data" ] || end=$((whole - 10))
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
stop() {
    trap '' TERM INT
    kill -TERM $child $decoder 2>/dev/null
    wait
    exit 143
}
trap stop TERM INT

# part NAME PERCENT COMMAND...: run it for at most so much of the whole time; LIMIT in the command
# is replaced by the seconds that it can count on.
part() {
    local name=$1 limit=$((whole * $2 / 100)) began=$SECONDS status
    shift 2
    ((limit > end - SECONDS)) && limit=$((end - SECONDS))
    if ((limit < 10)); then
        printf '%s\t0\tleft out: no time\n' "$name" | tee -a "$out/parts.tsv"
        return
    fi
    timeout --kill-after=8 "$limit" "${@//LIMIT/$((limit - limit / 5 - 1))}" >"$out/$name.log" 2>&1 &
    child=$!
    wait "$child"
    status=$?
    child=''
    ((status == 0 || status == 124)) || failed=1
    printf '%s\t%d\t%d\n' "$name" $((SECONDS - began)) "$status" | tee -a "$out/parts.tsv"
    tail -n 15 "$out/$name.log"
}

if [ "$rehearse" ]; then
    device=cpu small=2 large=4 sizes=(--model tiny --steps 1) rounds=(--seconds LIMIT --rounds 2)
    epoch=(--images 8) marks=(--rehearse tests/test_gpu_attacks.py tests/test_gpu_training.py)
    marks+=(-k 'pgd-Linf-min or recurrent or bfloat16 or middle or group')
else
    device=cuda small=128 large=512 sizes=() rounds=(--seconds LIMIT --rounds 10)
    epoch=(--compiled) marks=(-m gpu tests/test_gpu_{graphs,training,attacks}.py)
    "$python" -c 'import xdist' 2>/dev/null && marks+=(--numprocesses 4)
fi
r18=(--device "$device" --precision bfloat16 --out "$out" --model preact_resnet18)
wrn=("${r18[@]}" --model wrn34_10)
steps=("$python" -m benchmarks.step) epochs=("$python" -m benchmarks.accelerator epochs)
all=(--mask off rms classes4 min default "${sizes[@]}" "${rounds[@]}")
two=(--mask off rms "${rounds[@]}")
compiled=(--compiled --only 'ours, off' 'by hand, one' 'ours, rms' 'by hand, compiled, ' ours 'by hand, ch' torch)
# At its limit pytest stops as by Ctrl-C, and says what has failed so far.
tests="import signal, sys, pytest; signal.signal(signal.SIGTERM, signal.default_int_handler)
sys.exit(pytest.main(sys.argv[1:]))"

if [ "$data" ] && [ ! "$rehearse" ]; then # beside what is not timed
    "$python" -m benchmarks.accelerator pictures "$data" "$scratch" >"$out/pictures.log" 2>&1 &
    decoder=$!
fi
# Each of the workers would begin as many compilers as there are cores.
part marks 18 env TORCHINDUCTOR_COMPILE_THREADS=4 "$python" -c "$tests" -vv -p no:cacheprovider --durations=10 "${marks[@]}"
part launches 6 "$python" -m benchmarks.accelerator launches "${r18[@]}" --batch $small "${sizes[@]}"
part small_eager 6 "${steps[@]}" "${r18[@]}" --batch $small "${all[@]}"
[ "$rehearse" ] || {
    part small_compiled 16 "${steps[@]}" "${r18[@]}" --batch $small "${compiled[@]}" "${all[@]}"
    part large_compiled 14 "${steps[@]}" "${r18[@]}" --batch $large "${compiled[@]}" "${all[@]}"
}
part large_epoch 7 "${epochs[@]}" "${r18[@]}" --batch $large "${sizes[@]}" "${epoch[@]}"
[ "$rehearse" ] || {
    l2=("${steps[@]}" "${r18[@]}" --norm L2) wide=("${steps[@]}" "${wrn[@]}")
    part small_epoch 8 "${epochs[@]}" "${r18[@]}" --batch $small --compiled
    part small_L2 4 "${l2[@]}" --batch $small "${two[@]}"
    part wide 5 "${wide[@]}" --batch $small "${two[@]}"
    part large_eager 5 "${steps[@]}" "${r18[@]}" --batch $large "${all[@]}"
    part small_L2_compiled 10 "${l2[@]}" --batch $small "${compiled[@]}" "${two[@]}"
    part wide_compiled 8 "${wide[@]}" --batch $small "${compiled[@]}" "${two[@]}"
    part large_L2_compiled 7 "${l2[@]}" --batch $large "${compiled[@]}" "${two[@]}"
    part large_epoch_eager 5 "${epochs[@]}" "${r18[@]}" --batch $large
    part small_epoch_eager 10 "${epochs[@]}" "${r18[@]}" --batch $small
    part wide_large 8 "${wide[@]}" --batch $large "${compiled[@]}" "${two[@]}"
    part wide_epoch 25 "${epochs[@]}" "${wrn[@]}" --batch $large --compiled
}
end=$((whole - 10)) # the rest
if [ -z "$data" ] || [ "$rehearse" ]; then
    printf 'evidence\t0\tleft out: no data\n' | tee -a "$out/parts.tsv"
else
    wait "$decoder"
    left=$((end - SECONDS - 15))
    printf -v minutes '%d.%02d' $((left / 60)) $((left % 60 * 100 / 60))
    part evidence 100 "$python" -m benchmarks.evidence full --data "$scratch/pictures.npz" --device "$device" \
        --minutes "$minutes"
    # Rows, and what the next N minutes go on from, if it is laid there again.
    cp -r -t "$out" benchmarks/results/evidence_full*.csv runs/evidence/full
fi
exit $failed
