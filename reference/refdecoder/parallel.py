"""Tensor parallel: each rank has some heads of every attention, some columns of every MLP, some ids of the vocabulary.

The cut is that of Megatron-LM (Shoeybi et al. 2019, arXiv:1909.08053, section 3), made by torch's DTensor:
``parallelize_module`` replaces a module's weights by this rank's share of them and puts hooks around the module, which
communicate. Between them the code of ``model.py`` runs on fewer heads, and does not know it.

Three products are sums over the ranks: the embedding (a rank has zeros for ids that are not its own), what attention
writes and what the MLP writes; their bias counts once. Logits are gathered. All else is the same on every rank.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_module, distribute_tensor
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    ParallelStyle,
    PrepareModuleOutput,
    RowwiseParallel,
    parallelize_module,
)

from .config import Config, GPT2Config
from .errors import CheckpointError
from .gpt2 import GPT2Attention
from .model import Attention, CausalLM

Plan = dict[str, ParallelStyle]


def check_ranks(config: Config, ranks: int) -> None:
    """Raise CheckpointError unless ``ranks`` ranks can each have the same share of such a model.

    Ids need not divide: the last rank may have fewer. KV heads that are fewer than ranks are copied.
    """
    kv_heads = config.num_key_value_heads
    for count, what in ((config.num_attention_heads, "query heads"), (config.intermediate_size, "columns of the MLP")):
        if count % ranks:
            raise CheckpointError(
                f"The {count} {what} cannot be divided among {ranks} ranks; choose a number that can."
            )
    if kv_heads % ranks and ranks % kv_heads:
        raise CheckpointError(
            f"The {kv_heads} KV heads cannot be divided among {ranks} ranks, nor the ranks among them; choose a number "
            "of ranks that divides them, or that they divide."
        )


def parallelize(model: CausalLM, mesh: DeviceMesh) -> CausalLM:
    """Cut a whole model down, in place, to this rank's share of it, and return it.

    Every rank calls this with a model of the same weights, and from then on makes the same calls: ``forward`` meets the
    other ranks, and returns all logits on each.

    Args:
        model: the model of a checkpoint; on the CPU, so that no accelerator ever holds all of it.
        mesh: the ranks in a row, such as ``init_device_mesh("cpu", (2,))``; the share goes to its device.

    Raises:
        CheckpointError: the ranks do not divide the model.
    """
    config, ranks = model.config, mesh.size()
    check_ranks(config, ranks)
    copies = max(1, ranks // config.num_key_value_heads)
    for module in model.modules():
        if isinstance(module, GPT2Attention):
            _order_by_rank(module.c_attn, ranks)
        elif isinstance(module, Attention) and copies > 1:
            _copy_heads(module.k_proj, config.head_dim, copies)
            _copy_heads(module.v_proj, config.head_dim, copies)
    plan = _gpt2_plan() if isinstance(config, GPT2Config) else _llama_plan(config.tie_word_embeddings)
    parallelize_module(model, mesh, plan, src_data_rank=None)  # None: each rank has read the weights, and none are sent
    model.kv_heads = config.num_key_value_heads * copies // ranks
    return model.to(mesh.device_type)


def _llama_plan(tied: bool) -> Plan:
    plan: Plan = {
        "embed_tokens": RowwiseParallel(input_layouts=Replicate()),
        "layers.*.self_attn.[qkv]_proj": ColwiseParallel(),
        "layers.*.self_attn.o_proj": RowwiseParallel(),
        "layers.*.mlp.gate_proj": ColwiseParallel(),
        "layers.*.mlp.up_proj": ColwiseParallel(),
        "layers.*.mlp.down_proj": RowwiseParallel(),
        **_head_plan("norm"),
    }
    return plan if tied else {**plan, "lm_head": ColwiseParallel()}


def _gpt2_plan() -> Plan:
    return {
        "wte": RowwiseParallel(input_layouts=Replicate()),
        "h.*.attn.c_attn": ProjectionParallel(by_columns=True),
        "h.*.attn.c_proj": ProjectionParallel(by_columns=False),
        "h.*.mlp.c_fc": ProjectionParallel(by_columns=True),
        "h.*.mlp.c_proj": ProjectionParallel(by_columns=False),
        **_head_plan("ln_f"),
    }


def _head_plan(norm: str) -> Plan:
    """The head's weight is a DTensor, so what the last norm returns is made one too; the model's output is gathered."""
    return {
        norm: PrepareModuleOutput(
            output_layouts=Replicate(), desired_output_layouts=Replicate(), use_local_output=False
        ),
        "": PrepareModuleOutput(output_layouts=Shard(-1), desired_output_layouts=Replicate()),
    }


class ProjectionParallel(ParallelStyle):
    """For gpt2's ``Projection``, whose weight is [in, out], what Colwise- and RowwiseParallel are for ``nn.Linear``."""

    def __init__(self, by_columns: bool) -> None:
        self.by_columns = by_columns

    def _apply(self, module: nn.Module, device_mesh: DeviceMesh) -> nn.Module:
        columns = self.by_columns
        inputs, outputs = (Replicate(), Shard(-1)) if columns else (Shard(-1), Replicate())
        placements = {"weight": Shard(1), "bias": Shard(0)} if columns else {"weight": Shard(0), "bias": Replicate()}

        def cut(name: str, projection: nn.Module, mesh: DeviceMesh) -> None:
            for part, placement in placements.items():
                whole = getattr(projection, part)
                share = distribute_tensor(whole, mesh, [placement], src_data_rank=self.src_data_rank)
                projection.register_parameter(part, nn.Parameter(share, requires_grad=False))

        def before(projection: nn.Module, given: tuple[Tensor], mesh: DeviceMesh) -> DTensor:
            return DTensor.from_local(given[0], mesh, [inputs], run_check=False)

        def after(projection: nn.Module, output: DTensor, mesh: DeviceMesh) -> Tensor:
            return output.redistribute(placements=[outputs]).to_local()

        return distribute_module(module, device_mesh, cut, before, after)  # type: ignore[arg-type]  # they do return


def _copy_heads(linear: nn.Linear, head_dim: int, copies: int) -> None:
    """Repeat each KV head for so many ranks, which have its query heads among them."""
    for name, whole in list(linear.named_parameters()):  # weight [H_kv * D, hidden_size], bias [H_kv * D]
        heads = whole.unflatten(0, (-1, head_dim)).repeat_interleave(copies, dim=0)  # [H_kv * copies, D, ...]
        linear.register_parameter(name, nn.Parameter(heads.flatten(0, 1), requires_grad=False))


def _order_by_rank(fused: nn.Module, ranks: int) -> None:
    """Order the columns of gpt2's q, k and v so that those of the first rank's heads come first, of all three."""
    for name, whole in list(fused.named_parameters()):  # weight [hidden_size, 3 * H * D], bias [3 * H * D]
        parts = whole.unflatten(-1, (3, ranks, -1)).transpose(-3, -2)  # [..., ranks, 3, H * D / ranks]
        fused.register_parameter(name, nn.Parameter(parts.flatten(-3), requires_grad=False))
