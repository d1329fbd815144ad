#!/usr/bin/env bash
# The suites on a GPU host without network: the reference model in every format, then the Llama-3-8B shape with dummy weights.
#
#     tools/gpu_suites.sh OUT reference|llama-3-8b [PACKAGES]
#
# OUT gets what each run printed and the recorded baselines. PACKAGES: a folder of packages that the host's python3 lacks.
# Each set of cells is run twice: once to record what has no baseline yet, once to be judged.
set -uo pipefail
out=$1
export PYTHONPATH="$PWD${3:+:$PWD/$3}" PYTHONUNBUFFERED=1 HF_HUB_OFFLINE=1 COLUMNS=160
nvidia-smi --query-gpu=name,memory.total,driver_version --format=csv,noheader
python3 -c "import pytest, torch, transformers; print('pytest', pytest.__version__, 'torch', torch.__version__, 'transformers', transformers.__version__)"
python3 -c "from pytest_llminfer.hardware import detect; found = detect(); print(found.describe(), '->', found.key)"

suites() {
    name=$1
    shift
    python3 -m pytest -p pytest_llminfer.plugin -p no:cacheprovider --import-mode=importlib "$@" 2>&1 | tee "$out/$name.txt" |
        grep -E "^(llminfer|cell|transformers|engine loads|baselines|ERROR|FAILED|=+ .*(passed|failed|skipped|error))|─|INVALID|INCONCLUSIVE"
}

case $2 in
reference) cells=(--quantization=none,int8,nf4,fp4) ;;
llama-3-8b) cells=(--model=llama-3-8b --weights=dummy --quantization=none,int8,nf4) ;;
esac
suites "$2-record" suites/ "${cells[@]}" --update-baselines=new
suites "$2" suites/ "${cells[@]}"
tar cf "$out/baselines-$2.tar" baselines
