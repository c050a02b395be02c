"""``autotune files``: which tuned files vLLM will look for, and what reads them."""

from __future__ import annotations

from rich.markup import escape

from autotune.cli.common import print_json
from autotune.cli.consoles import out
from autotune.cli.requests import Files
from autotune.machine.devices import resolve_device
from autotune.machine.environment import visible_gpus


def files(request: Files) -> None:
    """Print each file with its backend, its place and the command that makes it."""
    from autotune.kernels.files import Service, files_for  # noqa: PLC0415 - keeps `--help` fast

    device = resolve_device(request.device, visible_gpus())
    service = Service(
        model=request.model,
        device=device,
        tp=request.tp,
        ep=request.ep,
        drafter=request.drafter,
        lora=request.lora,
        moe_backend=request.moe_backend,
        flashinfer=request.flashinfer,
        deep_gemm=request.deep_gemm,
    )
    found = files_for(service)
    if request.as_json:
        print_json({"device": device.name, "files": [file.as_json() for file in found]})
        return
    for file in found:
        out.print(f"[bold]{escape(file.name or 'no file')}[/bold]", soft_wrap=True)
        read = "reads it" if file.reads else "does not read it"
        if file.name is None:
            read = "reads no file"
        out.print(escape(f"  {file.where}"), soft_wrap=True)
        out.print(escape(f"  {file.backend} {read}: {file.why}"), soft_wrap=True)
        if file.found:
            made = f", made with Triton {file.triton}" if file.triton else ", Triton not recorded"
            out.print(escape(f"  there: {file.found}{made}"), soft_wrap=True)
        elif file.reads:
            how = file.command or "this tuner does not make it"
            out.print(escape(f"  missing; {how}"), soft_wrap=True)
    if not found:
        out.print("vLLM looks for no tuned file: no routed experts, no block fp8, no Mamba layers.")
