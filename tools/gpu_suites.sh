#!/usr/bin/env bash
# The suites on a GPU host without network, each engine on one GPU, dp=N and tp=N: tables to read, baselines to commit.
#
#     tools/gpu_suites.sh OUT GPUS ENGINE:MODEL...     e.g. tools/gpu_suites.sh out 2 vllm:reference sglang:qwen2.5-7b
#
# VLLM_PYTHON and SGLANG_PYTHON name the interpreters of those engines; transformers runs in python3. A model other than the
# reference is a bundled shape with dummy weights. All are started at once: GPUs are shared out by the plugin itself. OUT gets what
# each printed, and the baselines of all in one archive. PASSES=2 judges against what the first pass recorded. Fails if any run did.
set -uo pipefail
out=$1 gpus=$2
shift 2
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1 HF_HUB_OFFLINE=1 COLUMNS=180 VLLM_USE_FLASHINFER_SAMPLER=0
nvidia-smi --query-gpu=name,memory.total,driver_version --format=csv,noheader
python3 -c "import pytest, torch, transformers; print('pytest', pytest.__version__, 'torch', torch.__version__, 'transformers', transformers.__version__)"

one() {
    local failed=0
    engine=${1%%:*} model=${1#*:} name=${1/:/-} arguments=()
    case $engine in
    transformers) where=transformers ;;
    vllm) where="vllm@$VLLM_PYTHON" ;;
    # The kernels that SGLang would choose by itself are compiled at their first use, which needs a network here.
    sglang) where="sglang@$SGLANG_PYTHON" arguments=(--engine-args '{"attention_backend": "triton", "sampling_backend": "pytorch"}') ;;
    esac
    [ "$model" = reference ] || arguments+=(--model="$model" --weights=dummy)
    for pass in $(seq "${PASSES:-1}"); do
        python3 -m pytest -p pytest_llminfer.plugin.hooks -p no:cacheprovider --import-mode=importlib suites/ --engine="$where" --gpus="$gpus" \
            --update-baselines=new --gsm8k-questions="${QUESTIONS:-300}" -rs \
            "${arguments[@]}" >"$out/$name-$pass.txt" 2>&1 || failed=1
    done
    return $failed
}

mkdir -p "$out"
pids=() status=0
for what in "$@"; do
    one "$what" &
    pids+=($!)
done
for pid in "${pids[@]}"; do wait "$pid" || status=1; done
for what in "$@"; do
    name=${what/:/-}
    for file in "$out/$name"-*.txt; do
        echo "== $file"
        grep -E "^(llminfer|cell|transformers|vllm|sglang|engine loads|    [a-z]+.* s \(|baselines|ERROR|FAILED|=+ .*(passed|failed|skipped|error))|─|INVALID|INCONCLUSIVE" "$file"
    done
done
tar cf "$out/baselines.tar" baselines
exit $status
