"""From a model on the meta device to one that is sharded over a mesh and filled.

The order is one of causes: tensor parallelism rewrites the layers, activation checkpointing wraps
them, compilation sees both, and FSDP shards what is left of each parameter.
"""

from functools import partial
from typing import Any

import torch
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    PrepareModuleInput,
    RowwiseParallel,
    SequenceParallel,
    parallelize_module,
)
from torch.utils.checkpoint import CheckpointPolicy, create_selective_checkpoint_contexts

from panthalassa.config import Parallel
from panthalassa.model.lora import adapted, freeze
from panthalassa.model.transformer import Transformer, initial_weight, parameters_by_name

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def parallelize(model: Transformer, mesh: DeviceMesh, config: Parallel) -> Transformer:
    """Shard `model` in place over a mesh of `build_mesh`; it stays on its device (meta)."""
    if mesh["tp"].size() > 1:
        _tensor_parallel(model, mesh["tp"])
    freeze(model)
    _checkpoint_activations(model, config.activation_checkpointing)
    if config.compile:
        # Torch 2.13 does not trace DTensors of a number of images that changes.
        for blocks in _stacks(model) if mesh["tp"].size() == 1 else [model.blocks]:
            for block in blocks:
                block.compile(fullgraph=True)
    replicated = "replicate" in (mesh.mesh_dim_names or ())
    _fully_shard(model, mesh["replicate", "shard"] if replicated else mesh["dp"], config)
    return model


def materialize(model: Transformer, device: torch.device, seed: int) -> None:
    """Give a meta model memory on `device` and its initial weights, the same for every mesh."""
    model.to_empty(device=device)
    with torch.no_grad():
        for name, parameter in parameters_by_name(model):
            whole = initial_weight(name, parameter.shape, model.config, seed, device)
            if isinstance(parameter, DTensor):
                # Every rank has the same `whole`: no communication.
                mesh, placements = parameter.device_mesh, parameter.placements
                parameter.copy_(distribute_tensor(whole, mesh, placements, src_data_rank=None))
            else:
                parameter.copy_(whole)


_SPLIT = PrepareModuleInput(
    input_layouts=Replicate(), desired_input_layouts=Shard(1), use_local_output=True
)


def _stacks(model: Transformer) -> list[nn.ModuleList]:
    """The blocks of the decoder, and those of the tower where there is one."""
    return [model.blocks, model.vision.blocks] if model.vision else [model.blocks]


def _tensor_parallel(model: Transformer, mesh: DeviceMesh) -> None:
    """Megatron-style tensor and sequence parallelism (Shoeybi et al. 2019; Korthikanti et al. 2022).

    Between the layers, activations are split along the sequence; the logits stay split along the
    vocabulary, and the loss is computed on them so.
    """
    to_whole = partial(PrepareModuleInput, desired_input_layouts=Replicate())
    block_plan: dict[str, Any] = {
        "attention_norm": SequenceParallel(),
        "attention": PrepareModuleInput(
            input_layouts=(Shard(1), None, None), desired_input_layouts=(Replicate(), None, None)
        ),
        "attention.q_proj": ColwiseParallel(),
        "attention.k_proj": ColwiseParallel(),
        "attention.v_proj": ColwiseParallel(),
        "attention.o_proj": RowwiseParallel(output_layouts=Shard(1)),
        "ffn_norm": SequenceParallel(),
        "ffn": to_whole(input_layouts=Shard(1)),
        "ffn.gate_proj": ColwiseParallel(),
        "ffn.up_proj": ColwiseParallel(),
        "ffn.down_proj": RowwiseParallel(output_layouts=Shard(1)),
    }
    model_plan: dict[str, Any] = {
        "embedding": RowwiseParallel(input_layouts=Replicate(), output_layouts=Shard(1)),
        "head.norm": SequenceParallel(),
        "head.gather": to_whole(input_layouts=Shard(1), use_local_output=True),
        "head.output": ColwiseParallel(output_layouts=Shard(-1), use_local_output=False),
    }
    if model.vision:
        model_plan |= {
            # Features take their places in whole sequences, which are split behind that.
            "embedding": RowwiseParallel(input_layouts=Replicate(), output_layouts=Replicate()),
            "split": _SPLIT,
            "vision.patches": ColwiseParallel(output_layouts=Replicate()),
            "vision.positions": ColwiseParallel(output_layouts=Replicate()),
            "vision.split": _SPLIT,
            "projector": to_whole(input_layouts=Shard(1)),
            "projector.in_proj": ColwiseParallel(),
            "projector.out_proj": RowwiseParallel(output_layouts=Replicate()),
        }
        tower_plan = {name: style for name, style in block_plan.items() if "gate" not in name}
        tower_plan["attention"] = to_whole(input_layouts=Shard(1))
        for block in model.vision.blocks:
            parallelize_module(block, mesh, tower_plan)
    parallelize_module(model, mesh, model_plan)
    for block in model.blocks:
        parallelize_module(block, mesh, block_plan)
    model.tie()  # parallelize_module makes a new parameter for each layer
    for layer in adapted(model):
        layer.split_as_weight(mesh)


def _checkpoint_activations(model: Transformer, mode: str) -> None:
    """Replace each block by one that keeps its inputs (full), or its costly results (selective)."""
    if mode == "none":
        return
    contexts: dict[str, Any] = {}
    if mode == "selective":
        contexts["context_fn"] = partial(create_selective_checkpoint_contexts, _keep_costly_results)
    for blocks in _stacks(model):
        for index, block in enumerate(blocks):
            blocks[index] = checkpoint_wrapper(block, preserve_rng_state=False, **contexts)


def _keep_costly_results(_context: object, operation: object, *_: object, **__: object) -> Any:
    keep = operation in _COSTLY
    return CheckpointPolicy.MUST_SAVE if keep else CheckpointPolicy.PREFER_RECOMPUTE


_aten = torch.ops.aten
_COSTLY = {
    _aten.mm.default,
    _aten.addmm.default,  # where there is a bias
    _aten._scaled_dot_product_efficient_attention.default,
    _aten._scaled_dot_product_flash_attention.default,
    _aten._scaled_dot_product_flash_attention_for_cpu.default,
    torch.ops._c10d_functional.reduce_scatter_tensor.default,
    torch.ops._c10d_functional.all_gather_into_tensor.default,
}


def _fully_shard(model: Transformer, mesh: DeviceMesh, config: Parallel) -> None:
    """FSDP2 (Zhao et al. 2023): block by block, then the head, then what is left.

    Weights that stay gathered save no memory by their order, so then all are one group: fewer points
    at which ranks wait for each other (12 % of a step of the laptop model on two ranks).

    Gradients are summed in fp32, not averaged: the loss is already divided by the tokens of the
    global batch, whatever the number of ranks.
    """
    policy = MixedPrecisionPolicy(
        param_dtype=DTYPES[config.precision],
        reduce_dtype=torch.float32,
        cast_forward_inputs=False,
    )
    reshard = False if config.keep_gathered else None
    groups: list[nn.Module] = []
    if not config.keep_gathered:
        groups += [block for blocks in _stacks(model) for block in blocks]
    if not (config.keep_gathered or model.config.tied_embeddings):
        groups.append(model.head)
    for module in [*groups, model]:
        fully_shard(module, mesh=mesh, mp_policy=policy, reshard_after_forward=reshard)
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.set_gradient_divide_factor(1.0)
            # gloo has no scaled sum; NCCL's plain sum serves as well
            module.set_force_sum_reduction_for_comms(True)
