"""The bare side of ``vllm_tax.py``: ``LLM.generate`` as a person would call it, in vLLM's own interpreter, without this package.

Its one argument is the JSON of the keyword arguments of ``LLM``.
"""

from __future__ import annotations

import json
import os
import sys
import time
from multiprocessing.connection import Client
from typing import Any


def resolved(config: Any) -> dict[str, Any]:
    """What decides the speed, as vLLM has chosen it."""
    scheduler, cache = config.scheduler_config, config.cache_config
    return {
        "max_num_seqs": scheduler.max_num_seqs,
        "max_num_batched_tokens": scheduler.max_num_batched_tokens,
        "enable_chunked_prefill": scheduler.enable_chunked_prefill,
        "async_scheduling": scheduler.async_scheduling,
        "block_size": cache.block_size,
        "num_gpu_blocks": cache.num_gpu_blocks,
        "enable_prefix_caching": cache.enable_prefix_caching,
        "max_model_len": config.model_config.max_model_len,
        "enforce_eager": config.model_config.enforce_eager,
    }


def main() -> None:
    """Load, then generate on request until None comes."""
    import vllm

    llm = vllm.LLM(**json.loads(sys.argv[1]))
    with Client(os.environ["HARNESS_TAX_SOCKET"]) as driver:
        driver.send({"resolved": resolved(llm.llm_engine.vllm_config)})
        while (request := driver.recv()) is not None:
            prompts: list[Any] = [{"prompt_token_ids": prompt} for prompt in request["prompts"]]
            # Without a tokenizer vLLM knows no end token of its own.
            params = vllm.SamplingParams(
                temperature=0.0, max_tokens=request["max_tokens"], stop_token_ids=list(request["ends"]), detokenize=False
            )
            start = time.perf_counter()
            outputs = llm.generate(prompts, params, use_tqdm=False)
            seconds = time.perf_counter() - start
            answers = {str(number): list(output.outputs[0].token_ids) for number, output in enumerate(outputs)}
            driver.send({"seconds": seconds, "answers": answers})


if __name__ == "__main__":
    main()
