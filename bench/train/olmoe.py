"""OLMoE in PyTorch, as transformers computes it, trained step by step: the other side of bench/train.ts.

Usage: python3 olmoe.py CONFIG.json MODEL.safetensors BATCH.json THREADS. Each line on standard input is a step to take;
for each a line of JSON is printed: its loss and how many milliseconds it took.
"""

import json
import struct
import sys
import time

import torch
import torch.nn.functional as F


def read_safetensors(path):
    with open(path, "rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(length))
        data = bytearray(file.read())
    tensors = {}
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        start, end = entry["data_offsets"]
        flat = torch.frombuffer(data[start:end], dtype=torch.float32)
        tensors[name] = flat.reshape(entry["shape"]).clone().requires_grad_()
    return tensors


def rms_norm(x, weight, epsilon):
    return weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + epsilon))


def rotate(x, cos, sin):
    half = x.shape[-1] // 2
    turned = torch.cat((-x[..., half:], x[..., :half]), dim=-1)
    return x * cos + turned * sin


def attend(x, p, at, c, cos, sin):
    batch, length, _ = x.shape
    heads, epsilon = c["num_attention_heads"], c["rms_norm_eps"]
    q = rms_norm(x @ p[at + "q_proj.weight"].T, p[at + "q_norm.weight"], epsilon)
    k = rms_norm(x @ p[at + "k_proj.weight"].T, p[at + "k_norm.weight"], epsilon)
    v = x @ p[at + "v_proj.weight"].T
    q, k, v = (t.view(batch, length, heads, -1).transpose(1, 2) for t in (q, k, v))
    q, k = rotate(q, cos, sin), rotate(k, cos, sin)
    y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
    return y.transpose(1, 2).reshape(batch, length, -1) @ p[at + "o_proj.weight"].T


def feed(x, p, at, c, routed):
    rows = x.reshape(-1, x.shape[-1])
    probabilities = F.softmax(rows @ p[at + "gate.weight"].T, dim=-1)
    weights, chosen = torch.topk(probabilities, c["num_experts_per_tok"], dim=-1)
    if c["norm_topk_prob"]:
        weights = weights / weights.sum(-1, keepdim=True)
    routed.append((probabilities, chosen))
    y = torch.zeros_like(rows)
    for e in range(c["num_experts"]):
        row, slot = torch.where(chosen == e)
        if len(row) == 0:
            continue
        own = rows[row]
        name = f"{at}experts.{e}."
        hidden = F.silu(own @ p[name + "gate_proj.weight"].T) * (
            own @ p[name + "up_proj.weight"].T
        )
        done = hidden @ p[name + "down_proj.weight"].T
        y.index_add_(0, row, done * weights[row, slot, None])
    return y.view_as(x)


def balance(routed, experts):
    """transformers' load_balancing_loss_func: all layers together."""
    probabilities = torch.cat([p for p, _ in routed])
    chosen = F.one_hot(torch.cat([i for _, i in routed]), experts).float()
    return experts * (chosen.mean(0) * probabilities.mean(0)).sum()


def loss_of(p, c, ids, labels):
    x = p["model.embed_tokens.weight"][ids]
    dim = c["hidden_size"] // c["num_attention_heads"]
    rates = c["rope_theta"] ** (-torch.arange(0, dim, 2).float() / dim)
    angles = torch.outer(torch.arange(ids.shape[1]).float(), rates)
    angles = torch.cat((angles, angles), dim=-1)
    cos, sin = angles.cos(), angles.sin()
    routed = []
    for layer in range(c["num_hidden_layers"]):
        at = f"model.layers.{layer}."
        epsilon = c["rms_norm_eps"]
        rows = rms_norm(x, p[at + "input_layernorm.weight"], epsilon)
        x = x + attend(rows, p, at + "self_attn.", c, cos, sin)
        rows = rms_norm(x, p[at + "post_attention_layernorm.weight"], epsilon)
        x = x + feed(rows, p, at + "mlp.", c, routed)
    x = rms_norm(x, p["model.norm.weight"], c["rms_norm_eps"])
    logits = x @ p["model.embed_tokens.weight"].T
    cross_entropy = F.cross_entropy(logits.flatten(0, 1), labels.flatten())
    return cross_entropy + c["router_aux_loss_coef"] * balance(
        routed, c["num_experts"]
    )


def main():
    config_file, weights_file, batch_file, threads = sys.argv[1:]
    torch.set_num_threads(int(threads))
    with open(config_file) as file:
        c = json.load(file)
    with open(batch_file) as file:
        batch = json.load(file)
    shape = (batch["batch"], batch["length"])
    ids = torch.tensor(batch["ids"]).view(shape)
    labels = torch.tensor(batch["labels"]).view(shape)
    parameters = read_safetensors(weights_file)
    optimizer = torch.optim.AdamW(
        parameters.values(),
        lr=batch["rate"],
        betas=(0.9, 0.95),
        eps=1e-8,
        weight_decay=0.1,
    )
    with open("/proc/self/maps") as file:
        blas = [part for part in file.read().split("/") if "blas" in part and ".so" in part]
    name = blas[0].split(".so")[0] if blas else "no shared BLAS"
    print(json.dumps({"version": torch.__version__, "blas": name}), flush=True)
    for _ in sys.stdin:
        start = time.perf_counter()
        optimizer.zero_grad()
        loss = loss_of(parameters, c, ids, labels)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(list(parameters.values()), 1.0)
        optimizer.step()
        value = loss.item()
        ms = (time.perf_counter() - start) * 1000
        print(json.dumps({"loss": value, "ms": ms}), flush=True)


main()
