"""Environment variables of vLLM that more than one part of the project knows."""

from __future__ import annotations

FOLDER = "VLLM_TUNED_CONFIG_FOLDER"
"""Where vLLM looks for fused-MoE files first."""
ROUTING = "VLLM_MOE_ROUTING_SIMULATION_STRATEGY"
"""How vLLM draws experts instead of asking the routers; not set or empty: it asks them."""
