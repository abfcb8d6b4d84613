"""`alp/policy` lifted into another project: the folder alone, torch alone."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import alp.policy

SCRIPT = """
import sys

# No package that torch does not ask for itself: what is None here is not there.
sys.modules |= dict.fromkeys(("alp", "transformers", "pydantic", "hydra", "omegaconf", "mlflow", "matplotlib"))
import torch
from torch import nn
from types import SimpleNamespace
from policy import LayerwisePerturbation, group_advantages, kl_penalty, log_ratio, mismatch_diagnostics, policy_loss
from policy import ratio_diagnostics, rollout_correction, sharpness

class Layer(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm, self.inner = nn.LayerNorm(16), nn.Linear(16, 16)
    def forward(self, hidden_states):
        return hidden_states + self.inner(self.norm(hidden_states))

class TinyForCausalLM(nn.Module):
    def __init__(self):
        super().__init__()
        self.config = SimpleNamespace(num_hidden_layers=3, is_encoder_decoder=False)
        self.config.get_text_config = lambda decoder: self.config
        self.embed, self.head = nn.Embedding(11, 16), nn.Linear(16, 11)
        self.layers = nn.ModuleList(Layer() for _ in range(3))
    def can_generate(self):
        return True
    def forward(self, ids):
        hidden = self.embed(ids)
        for layer in self.layers:
            hidden = layer(hidden)
        return self.head(hidden)

model, ids, mask = TinyForCausalLM(), torch.randint(11, (4, 6)), torch.ones(4, 6, dtype=torch.bool)
run = lambda: model(ids).log_softmax(-1).gather(-1, ids[..., None]).squeeze(-1)
with torch.no_grad():
    rollout = run()
noise = LayerwisePerturbation(model, std=0.1)
advantages = group_advantages(torch.tensor([0.0, 1.0, 0.0, 1.0]), torch.tensor([0, 0, 1, 1]))
with noise.active(update=0, sequence_ids=torch.arange(4)):
    current = run()
    ratio = log_ratio(current, rollout, mask, level="sequence")
    loss, _ = policy_loss(ratio, advantages, mask, clip_low=0.5, clip_high=3.0, dual_clip=10.0)
    (loss + kl_penalty(current, rollout, mask).mean()).backward()
assert all(parameter.grad.abs().sum() > 0 for parameter in noise.parameters())
assert noise.realised_rms.min() > 0.05
assert rollout_correction(rollout, rollout, mask, kind="truncate", level="token", upper=2.0)[0].eq(1).all()
assert mismatch_diagnostics(rollout, rollout, mask)["rollout_corr/kl"] == 0
assert ratio_diagnostics(current.detach() - rollout, mask)
assert sharpness(model, run, mask, sequence_ids=torch.arange(4), attention_mask=mask) > 0
assert not [name for name in sys.modules if name.split(".")[0] in ("alp", "transformers") and sys.modules[name]]
"""


def test_the_folder_alone_works_with_torch_alone(tmp_path: Path) -> None:
    """An import of anything else of ours, or of a library that torch does not bring."""
    shutil.copytree(Path(alp.policy.__file__).parent, tmp_path / "policy", ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "script.py").write_text(SCRIPT)
    done = subprocess.run([sys.executable, "script.py"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
