"""How far transformers itself comes from float32 when it computes in bfloat16: the yardstick for a GPU, whose
tests (tests/gpu/model_test.cc) may be off by a little more, since sums of another order round elsewhere."""

import copy

import torch


def yardstick(model, rows: list[dict]) -> dict:
    """`rows`: what `model`, in float32, made of their ids. Weights and activations in bfloat16, the logits'
    sums in float32, as Penstock has them; transformers would round the logits, too."""
    low = copy.deepcopy(model).to(torch.bfloat16)
    low.model.rotary_emb.inv_freq = model.model.rotary_emb.inv_freq  # never rounded
    head = low.lm_head.weight.float()
    differences, same = [], []
    for row in rows:
        hidden = low.model(torch.tensor([row["ids"]])).last_hidden_state[0, :-1]
        logprobs = (hidden.float() @ head.T).log_softmax(-1)
        actual = logprobs.gather(-1, torch.tensor(row["ids"][1:])[:, None])[:, 0]
        differences.append(actual - torch.tensor(row["logprob"]))
        same.append(logprobs.argmax(-1) == torch.tensor(row["top1_id"]))
    differences, same = torch.cat(differences), torch.cat(same).float()
    return {"rms": round(differences.square().mean().sqrt().item(), 5),
            "largest": round(differences.abs().max().item(), 5), "top1": round(same.mean().item(), 5)}
