"""The program that the embedded language model server runs: llama.cpp behind an OpenAI-style HTTP interface.

A process of its own, started by `pipelines.serve` on a leash. Same request, same bytes: one slot, no prompt cache (a
cached prefix is computed in other batches than a fresh one), a fixed number of threads.
"""

from __future__ import annotations

import argparse
import signal

import xllamacpp


def main() -> None:
    """Serves until a signal comes."""
    parser = argparse.ArgumentParser(description="Serve one GGUF model on 127.0.0.1.")
    parser.add_argument("--model", required=True, help="path of the .gguf file")
    parser.add_argument("--alias", required=True, help="name that requests call the model by")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--context-tokens", type=int, required=True)
    parser.add_argument("--threads", type=int, required=True)
    options = parser.parse_args()

    params = xllamacpp.CommonParams()
    params.model.path = options.model
    params.model_alias = {options.alias}
    params.hostnames = ["127.0.0.1"]
    params.port = options.port
    params.n_threads_http = 32  # a kept-alive connection holds one; the health check must always find one free
    params.ui = False
    params.n_ctx = options.context_tokens
    params.n_gpu_layers = 0
    params.n_parallel = 1
    params.cont_batching = False
    params.cache_prompt = False
    params.cache_ram_mib = 0
    params.cache_idle_slots = False
    params.n_ctx_checkpoints = 0
    params.sampling.seed = 0
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = options.threads
    params.cpuparams.poll = params.cpuparams_batch.poll = 0  # sleep between requests, do not spin
    server = xllamacpp.Server(params)
    print(f"serving {options.alias} on {server.listening_address}", flush=True)  # noqa: T201 - its log file
    signal.pause()


if __name__ == "__main__":
    main()
