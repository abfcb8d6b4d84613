"""vLLM on its end of the socket, ``python -m alp.rollout.vllm_server <trainer's pid> <socket> <memory>``.

A process of its own because vLLM sets global seeds, thread counts and signal handlers, and can crash. Nothing here
imports vLLM before ``main`` runs: the trainer imports this module to have its source in the code hash.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from alp.models import load_tokenizer
from alp.rollout import serving
from alp.rollout.readback import sampled_indices
from alp.rollout.serving import Refused
from alp.rollout.stops import Stops
from alp.rollout.transport import gpu
from alp.tasks.environment import Form


def main(arguments: list[str]) -> int:
    """Serve one trainer; its first message is that of ``VLLMEngine.start_message``."""
    return serving.main(arguments, Server)


def use_amx(namespace: Any = torch.cpu) -> str:
    """Ask Linux for the tiles of AMX, before vLLM looks for them; where they are refused, have vLLM take the CPU for
    one without.

    Linux gives them only to a process that asks; a kernel of vLLM that uses them unasked ends the process with SIGILL.
    Returns ``absent``, ``granted`` or ``refused``.
    """
    supported, ask = (getattr(namespace, name, None) for name in ("_is_amx_tile_supported", "_init_amx"))
    if supported is None or not supported():
        return "absent"
    if ask is not None and ask():
        return "granted"
    namespace._is_amx_tile_supported = lambda: False
    print("AMX: this CPU has it, the system does not grant it; vLLM runs without", flush=True)
    return "refused"


class Server:
    """The engine and what can be asked of it: ``sync``, ``readback``, ``generate``, ``describe``."""

    def __init__(self, settings: dict[str, Any]) -> None:
        use_amx()
        from vllm.engine.arg_utils import EngineArgs
        from vllm.platforms import current_platform
        from vllm.v1.engine.llm_engine import LLMEngine

        self._folder: str = settings["engine"]["model"]
        self._stops: Stops | None = None
        self._seeded: bool = settings["seeded"]
        self._sleep_level: int = settings["sleep_level"]
        self._asleep = False
        # Of a prompt that is cut in two, vLLM takes back the random number drawn too early: a generator on a CPU cannot
        # do that.
        whole: dict[str, Any] = {"enable_chunked_prefill": False} if self._seeded and current_platform.is_cpu() else {}
        self._engine = LLMEngine.from_engine_args(EngineArgs(**settings["engine"], **whole))
        alone = settings["engine"]["tensor_parallel_size"] == 1
        self.gpu = gpu(torch.device("cuda", 0)) if alone and current_platform.is_cuda() else None
        # The first batch loads what is loaded late: it belongs to the start, not to the time limit of a batch.
        self._batch([[0, 0]], [None], temperature=1.0, longest=[2], ends=[0], prompt_log_probs=True)

    def answer(
        self, operation: str, header: dict[str, Any], tensors: dict[str, Tensor]
    ) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Do one operation; returns the answer's header and tensors."""
        match operation:
            case "describe":
                return self.describe(), {}
            case "sync":
                self.sync(tensors)
                return {}, {}
            case "readback":
                return {}, self.readback()
            case "generate":
                sampled = self.generate(header, tensors)
                return {"dropped": self._asleep and self._sleep_level == 2}, sampled
        raise ValueError("unknown operation")

    def _worker(self, function: Any) -> list[Any]:
        answers: list[Any] = self._engine.collective_rpc(function)
        return answers

    def describe(self) -> dict[str, Any]:
        """What is really active, from the engine's own objects."""
        import vllm

        config = self._engine.vllm_config
        dtypes, quantised, widened = self._worker(inspect_layers)[0]
        return {
            "engine": "vllm",
            "vllm_version": vllm.__version__,
            "rollout_dtype": dtypes,
            "float32_biases": widened,
            "quantised_weights": quantised,
            "log_prob_mode": str(
                getattr(config.model_config.logprobs_mode, "value", config.model_config.logprobs_mode)
            ),
            "prefix_cache": bool(config.cache_config.enable_prefix_caching),
            "max_sequences": config.scheduler_config.max_num_seqs,
            "tensor_parallel": config.parallel_config.tensor_parallel_size,
            "sleep_level": self._sleep_level if config.model_config.enable_sleep_mode else 0,
            "rollout_device": str(config.device_config.device_type),
            "rollout_threads": torch.get_num_threads(),
            "seeded": self._seeded,
        }

    def sync(self, weights: dict[str, Tensor]) -> None:
        """Take new weights in place and forget every cached prefix computed with the old ones. The cache is given its
        memory after the weights have theirs: the trainer's copy of them is on the same GPU."""
        self._wake(["weights"])
        self._engine.collective_rpc("reload_weights", kwargs={"weights_iterator": iter(weights.items())})
        self._wake(["kv_cache"])
        self._forget()

    def readback(self) -> dict[str, Tensor]:
        """Samples of every parameter the engine holds, under the training model's names; none when it is spread over
        devices."""
        if self._engine.vllm_config.parallel_config.tensor_parallel_size > 1:
            return {}
        samples: dict[str, Tensor] = self._worker(_samples)[0]
        return samples

    def generate(self, header: dict[str, Any], tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Sample one response to each prompt.

        ``tensors``: ``ids`` all prompts end to end, ``lengths`` (prompts,). Header: ``seeds`` (None: unseeded),
        ``temperature``, ``max_new_tokens``, ``ends``, ``prompt_log_probs``. Answer: ``ids``, ``log_probs``, ``lengths``
        likewise, and ``prompt_log_probs`` (without each prompt's first token) when asked for. ``limits`` and ``forms``
        may end a turn sooner.
        """
        self._wake()
        self._forget()  # a batch depends on weights and requests alone, never on the batches before it
        prompts = [part.tolist() for part in tensors["ids"].split(tensors["lengths"].tolist())]
        collected = _collected(
            self._batch(
                prompts,
                header["seeds"] if self._seeded else [None] * len(prompts),
                temperature=header["temperature"],
                longest=header.get("limits") or [header["max_new_tokens"]] * len(prompts),
                ends=header["ends"],
                prompt_log_probs=header["prompt_log_probs"],
                stops=self._stops_of(header.get("forms")),
            )
        )
        if self._sleep_level and not header["prompt_log_probs"]:
            self._engine.sleep(self._sleep_level)
            self._asleep = True
        return collected

    def _batch(
        self,
        prompts: list[list[int]],
        seeds: list[int | None],
        *,
        temperature: float,
        longest: list[int],
        ends: list[int],
        prompt_log_probs: bool,
        stops: Stops | None = None,
    ) -> list[Any]:
        """vLLM's finished outputs, in the order of the prompts; of a turn that a form ends what it had then."""
        from vllm import SamplingParams, TokensPrompt
        from vllm.exceptions import VLLMClientError

        for number, (prompt, seed, most) in enumerate(zip(prompts, seeds, longest, strict=True)):
            parameters = SamplingParams(
                temperature=temperature,
                max_tokens=most,
                seed=seed,
                logprobs=0,  # the sampled token's alone
                prompt_logprobs=0 if prompt_log_probs else None,
                stop_token_ids=ends,
                ignore_eos=True,  # the engine's own idea of an end token: ours are in the line above
                detokenize=False,
            )
            try:
                self._engine.add_request(str(number), TokensPrompt(prompt_token_ids=prompt), parameters)
            except (
                VLLMClientError,
                ValueError,
                TypeError,
                NotImplementedError,
            ) as error:  # its words for what it cannot serve
                self._engine.abort_request([str(earlier) for earlier in range(number)])
                raise Refused(f"prompt {number} of {len(prompt)} tokens: {error}") from error
        finished = self._run_out(stops)
        if len(finished) != len(prompts):
            raise RuntimeError(f"{len(finished)} of {len(prompts)} requests were answered")
        return [finished[str(number)] for number in range(len(prompts))]

    def _run_out(self, stops: Stops | None) -> dict[str, Any]:
        """Every request's last output, by its id."""
        finished: dict[str, Any] = {}
        turns: dict[str, Turn] = {}
        while self._engine.has_unfinished_requests():
            closed = []
            for output in self._engine.step():
                if output.request_id in finished:
                    continue
                if output.finished:
                    finished[output.request_id] = output
                elif stops is not None and turns.setdefault(output.request_id, Turn(stops)).closed(output):
                    finished[output.request_id] = output
                    closed.append(output.request_id)
            if closed:
                self._engine.abort_request(closed)
        return finished

    def _stops_of(self, forms: list[list[Any]] | None) -> Stops | None:
        if forms is None:
            return None
        if self._stops is None or self._stops.plain() != forms:
            self._stops = Stops(load_tokenizer(Path(self._folder)), [Form(*form) for form in forms])
        return self._stops

    def _forget(self) -> None:
        if not self._engine.reset_prefix_cache():
            raise RuntimeError("the prefix cache could not be reset")

    def _wake(self, tags: list[str] | None = None) -> None:
        if self._asleep:
            self._engine.wake_up(tags)
            self._asleep = self._engine.is_sleeping()


class Turn:
    """A request's tokens, watched as they come."""

    def __init__(self, stops: Stops) -> None:
        self._watch, self._seen = stops.watch(), 0

    def closed(self, output: Any) -> bool:
        """Whether a form has closed in what the output has so far."""
        new = output.outputs[0].token_ids[self._seen :]
        self._seen += len(new)
        return any(self._watch.add(token) for token in new)


def _collected(outputs: list[Any]) -> dict[str, Tensor]:
    """Ids and log-probs of finished requests as flat tensors."""
    ids: list[int] = []
    log_probs: list[float] = []
    prompt_log_probs: list[float] = []
    lengths = []
    for output in outputs:
        completion = output.outputs[0]
        tokens = list(completion.token_ids)
        ids += tokens
        log_probs += [entry[token].logprob for token, entry in zip(tokens, completion.logprobs, strict=True)]
        lengths.append(len(tokens))
        if output.prompt_logprobs is not None:
            known = zip(output.prompt_token_ids[1:], output.prompt_logprobs[1:], strict=True)
            prompt_log_probs += [entry[token].logprob for token, entry in known]
    return {
        "ids": torch.tensor(ids, dtype=torch.int32),
        "log_probs": torch.tensor(log_probs, dtype=torch.float32),
        "lengths": torch.tensor(lengths, dtype=torch.int64),
        "prompt_log_probs": torch.tensor(prompt_log_probs, dtype=torch.float32),
    }


def inspect_layers(worker: Any) -> tuple[str, int, int]:
    """In the worker: the dtype the engine computes in (or all of them, joined), and the numbers of quantised layers and
    widened biases.

    That dtype is the configured one and that of every parameter, biases apart that are kept in float32 to be added to
    the sums of narrower products: so vLLM packs small layers on CPUs with AMX. It keeps an empty weight in such a
    layer's dtype.
    """
    model = worker.get_model()
    widened = {id(module.bias) for module in model.modules() if _widened(module)}
    dtypes = {value.dtype for value in model.parameters() if id(value) not in widened} | {worker.model_config.dtype}
    methods = [type(getattr(module, "quant_method", None)).__name__ for module in model.modules()]
    quantised = [name for name in methods if name != "NoneType" and not name.startswith("Unquantized")]
    return "+".join(sorted(str(dtype).removeprefix("torch.") for dtype in dtypes)), len(quantised), len(widened)


def _widened(module: torch.nn.Module) -> bool:
    """Whether a layer of 16-bit weights holds its bias in float32."""
    weight, bias = (getattr(module, name, None) for name in ("weight", "bias"))
    if weight is None or bias is None:
        return False
    return bool(bias.dtype == torch.float32 and weight.dtype in (torch.bfloat16, torch.float16))


@torch.no_grad()
def _samples(worker: Any) -> dict[str, Tensor]:
    """In the worker: samples of every parameter (see ``alp.rollout.readback``), fused projections taken apart."""
    from vllm.model_executor.layers.linear import LinearBase
    from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead, VocabParallelEmbedding

    model: Any = worker.get_model()
    parts: dict[str, list[str]] = getattr(model, "packed_modules_mapping", {})
    samples: dict[str, Tensor] = {}
    for prefix, module in model.named_modules():
        layer: Any = module  # narrowed by isinstance it would lose what vLLM does not annotate
        stem, _, last = prefix.rpartition(".")
        names = [f"{stem}.{part}" for part in parts.get(last, [last])]
        if isinstance(module, LinearBase):
            sizes = list(getattr(layer, "output_sizes", [layer.output_size]))
            columns = _columns(layer, layer.input_size)
            samples |= _split(names, "weight", columns, sizes)
            if getattr(layer, "bias", None) is not None:
                samples |= _split(names, "bias", layer.bias, sizes)
        elif isinstance(module, ParallelLMHead):
            samples[f"{prefix}.weight"] = _columns(layer, layer.embedding_dim)[: layer.org_vocab_size].clone()
        elif isinstance(module, VocabParallelEmbedding):
            rows = sampled_indices(layer.org_vocab_size).to(layer.weight.device)
            samples[f"{prefix}.weight"] = layer.weight[rows].clone()
        else:
            vectors = module.named_parameters(recurse=False)
            samples |= {f"{prefix}.{name}": value.clone() for name, value in vectors if value.dim() == 1}
    return {name: value.detach().cpu() for name, value in samples.items()}


def _columns(module: Any, width: int) -> Tensor:
    """Columns of a linear layer's weight as the layer itself multiplies them, (out, k)."""
    chosen = sampled_indices(width)
    first = next(module.parameters())
    unit = torch.zeros(len(chosen), width, dtype=first.dtype, device=first.device)
    unit[torch.arange(len(chosen)), chosen] = 1.0
    product: Tensor = module.quant_method.apply(module, unit, None)
    return product.t().contiguous()


def _split(names: list[str], kind: str, value: Tensor, sizes: list[int]) -> dict[str, Tensor]:
    """Rows of a fused projection under the names of its parts; nothing when they do not fit."""
    if len(names) != len(sizes) or sum(sizes) != value.shape[0]:
        return {}
    return {f"{name}.{kind}": part.clone() for name, part in zip(names, value.split(sizes), strict=True)}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
