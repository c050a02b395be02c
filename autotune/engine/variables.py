"""Environment variables of vLLM that more than one part of the project knows."""

from __future__ import annotations

FOLDER = "VLLM_TUNED_CONFIG_FOLDER"
"""Where vLLM looks for fused-MoE files first."""
STARTUP_PLAN = "VLLM_ENABLE_STARTUP_PLAN"
"""Whether a server stores the KV cache that it measured to fit, and later ones take it as it is."""
ROUTING = "VLLM_MOE_ROUTING_SIMULATION_STRATEGY"
"""How vLLM draws experts instead of asking the routers; not set or empty: it asks them."""
