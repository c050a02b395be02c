#!/bin/sh
# best: gamma=2, 1.767× the baseline's tok/s (geomean), 95 % interval 1.629 to 1.909
# Found by: autotune spec --target tiny/qwen3 --drafter ngram --prompts p.jsonl --concurrency 1 --max-tokens 24 --waves 1 --repeats 6 --confirm-boots 1 --study s --gamma 0,2 --vllm '/opt/vllm/bin/python /opt/vllm/fake_serving.py' --server-arg=--kv-cache-memory-bytes=268435456
/opt/vllm/bin/python /opt/vllm/fake_serving.py serve /models/tiny/qwen3 --host 127.0.0.1 --port 8000 --speculative-config '{"method": "ngram", "num_speculative_tokens": 2}' --kv-cache-memory-bytes=268435456
