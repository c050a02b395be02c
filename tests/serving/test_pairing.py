"""The preflight: right pairs pass, wrong ones are refused with the reason, doubtful ones warned."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from autotune.core import BadInputError
from autotune.serving.pair.checkpoint import Checkpoint, load_checkpoint
from autotune.serving.pair.methods import resolve_method
from autotune.serving.pair.pairing import Pair, check_gamma, check_pair, load_pair
from autotune.util.finding import Finding, Severity
from tests.serving.tiny_models import TinyModels

Config = dict[str, Any]
Tokens = Callable[[dict[str, Any]], None]


def codes(findings: list[Finding]) -> set[str]:
    """Such as ``refuse hidden-size``."""
    return {f"{finding.severity} {finding.code}" for finding in findings}


class Zoo:
    """Copies of the tiny models without weights, each with one thing changed."""

    def __init__(self, tiny: TinyModels, root: Path) -> None:
        self.root = root
        self.qwen3, self.qwen3_moe = tiny.qwen3, tiny.qwen3_moe
        self.gemma4, self.gemma4_moe = tiny.gemma4, tiny.gemma4_moe
        self.assistant = tiny.gemma4_assistant
        self.noisy = tiny.noisy(tiny.qwen3, 0.05)

    def copy(
        self,
        model: Path,
        *,
        config: Config | None = None,
        text: Config | None = None,
        tokens: Tokens | None = None,
        drop: tuple[str, ...] = (),
        files: dict[str, str] | None = None,
        name: str = "",
    ) -> Path:
        folder = self.root / str(len(list(self.root.iterdir()))) / (name or model.name)
        shutil.copytree(model, folder, ignore=shutil.ignore_patterns("*.safetensors", *drop))
        path = folder / "config.json"
        written = json.loads(path.read_text()) | (config or {})
        if text:
            written["text_config"] |= text
        path.write_text(json.dumps(written))
        if tokens:
            path = folder / "tokenizer.json"
            raw = json.loads(path.read_text())
            tokens(raw)
            path.write_text(json.dumps(raw))
        for extra, content in (files or {}).items():
            (folder / extra).write_text(content)
        return folder

    def base(self, model: Path) -> Path:
        return self.copy(model, drop=("chat_template.jinja",))

    def eagle3(self, **config: Any) -> Path:
        head = {"architectures": ["LlamaForCausalLMEagle3"], "num_hidden_layers": 1}
        return self.copy(
            self.qwen3, config=head | config, drop=("token*", "chat*"), name="head-eagle3"
        )

    def deepseek(self, heads: int | None = 1) -> Path:
        return self.copy(
            self.qwen3, config={"model_type": "deepseek_v3", "num_nextn_predict_layers": heads}
        )


@pytest.fixture(scope="module")
def zoo(tiny_models: TinyModels, tmp_path_factory: pytest.TempPathFactory) -> Zoo:
    return Zoo(tiny_models, tmp_path_factory.mktemp("zoo"))


def swap_two(raw: dict[str, Any]) -> None:
    ids = raw["model"]["vocab"]
    ids["a"], ids["b"] = ids["b"], ids["a"]


def add_special(raw: dict[str, Any]) -> None:
    raw["added_tokens"].append(raw["added_tokens"][0] | {"content": "<|tool|>", "id": 384})


def add_plain(raw: dict[str, Any]) -> None:
    raw["model"]["vocab"]["zzz"] = 384


def make_plain(raw: dict[str, Any]) -> None:
    raw["added_tokens"][-1]["special"] = False


def card(*names: str) -> dict[str, str]:
    return {"README.md": "---\nlicense: x\nbase_model:\n- " + "\n- ".join(names) + "\n---\n# A\n"}


FP8 = {"quantization_config": {"quant_method": "fp8"}}
EXPERTS = {"num_experts": 8}
Case = Callable[[Zoo], tuple[Path, Path | str]]

TABLE: dict[str, tuple[Case, set[str]]] = {
    "a noisy copy": (lambda z: (z.qwen3, z.noisy), set()),
    "dense drafts for MoE": (lambda z: (z.qwen3_moe, z.qwen3), set()),
    "Gemma 4 and its assistant": (lambda z: (z.gemma4, z.assistant), set()),
    "Gemma 4 MoE and its assistant": (lambda z: (z.gemma4_moe, z.assistant), set()),
    "ngram": (lambda z: (z.qwen3, "ngram"), set()),
    "suffix": (lambda z: (z.qwen3, "suffix"), {"warn suffix-package"}),
    "ngram on a base model": (lambda z: (z.base(z.qwen3), "ngram"), {"note no-chat-template"}),
    "own MTP layers": (lambda z: (z.deepseek(), "mtp"), set()),
    "EAGLE-3": (lambda z: (z.qwen3, z.eagle3(draft_vocab_size=100)), set()),
    "EAGLE-3 of a wider model": (
        lambda z: (z.qwen3, z.eagle3(target_hidden_size=128)),
        {"refuse hidden-size"},
    ),
    "EAGLE-3, narrow itself": (
        lambda z: (z.qwen3, z.eagle3(target_hidden_size=64, hidden_size=32)),
        set(),
    ),
    "EAGLE-3 drafts more tokens than there are": (
        lambda z: (z.qwen3, z.eagle3(draft_vocab_size=385)),
        {"refuse vocabulary"},
    ),
    "mtp without MTP layers": (lambda z: (z.qwen3, "mtp"), {"refuse no-mtp-layers"}),
    "mtp with none left in": (lambda z: (z.deepseek(0), "mtp"), {"refuse no-mtp-layers"}),
    "Gemma 4 has no MTP layers of its own": (
        lambda z: (z.gemma4, "mtp"),
        {"refuse no-mtp-layers"},
    ),
    "eagle3 without a model": (lambda z: (z.qwen3, "eagle3"), {"refuse method-needs-model"}),
    "a folder called eagle3": (
        lambda z: (z.qwen3, z.copy(z.noisy, name="not-eagle3")),
        {"warn method-by-path"},
    ),
    "a model in a folder of eagles": (
        lambda z: (z.qwen3, z.copy(z.noisy, name="eagle3/noisy")),
        {"refuse method-by-path"},
    ),
    "another size of vocabulary": (
        lambda z: (z.qwen3, z.copy(z.noisy, config={"vocab_size": 512})),
        {"refuse vocabulary"},
    ),
    "two tokens swapped": (
        lambda z: (z.qwen3, z.copy(z.noisy, tokens=swap_two)),
        {"refuse tokenizer"},
    ),
    "a token more": (
        lambda z: (z.qwen3, z.copy(z.noisy, tokens=add_plain)),
        {"refuse tokenizer"},
    ),
    "a special token more": (
        lambda z: (z.qwen3, z.copy(z.noisy, tokens=add_special)),
        {"warn special-tokens"},
    ),
    "a special token that is plain": (
        lambda z: (z.qwen3, z.copy(z.noisy, tokens=make_plain)),
        {"warn special-tokens"},
    ),
    "the assistant has the target's tokenizer": (
        lambda z: (z.gemma4, z.copy(z.assistant, tokens=swap_two)),
        {"refuse tokenizer"},
    ),
    "no tokenizer to compare": (
        lambda z: (z.qwen3, z.copy(z.noisy, drop=("token*", "chat*"))),
        {"warn tokenizer"},
    ),
    "other end of text": (
        lambda z: (
            z.qwen3,
            z.copy(z.noisy, files={"generation_config.json": '{"eos_token_id": 5}'}),
        ),
        {"warn end-of-text"},
    ),
    "one end of text in common": (
        lambda z: (
            z.qwen3,
            z.copy(z.noisy, files={"generation_config.json": '{"eos_token_id": [5, 1]}'}),
        ),
        set(),
    ),
    "a base target for an instructed drafter": (
        lambda z: (z.base(z.qwen3), z.noisy),
        {"warn base-target"},
    ),
    "a base drafter": (lambda z: (z.qwen3, z.base(z.noisy)), {"warn base-drafter"}),
    "a base pair": (lambda z: (z.base(z.qwen3), z.base(z.noisy)), set()),
    "drafting for itself": (lambda z: (z.qwen3, z.qwen3), {"warn same-model"}),
    "the base Gemma 4": (lambda z: (z.base(z.gemma4), z.assistant), {"refuse base-target"}),
    "the base Gemma 4, by the card": (
        lambda z: (
            z.base(z.gemma4),
            z.copy(z.assistant, drop=("chat*",), files=card("google/gemma-4-26B-A4B-it")),
        ),
        {"refuse base-target", "note other-target"},
    ),
    "perhaps the base Gemma 4": (
        lambda z: (z.base(z.gemma4), z.copy(z.assistant, drop=("token*", "chat*"))),
        {"warn base-target"},
    ),
    "an assistant for a wider Gemma 4": (
        lambda z: (z.gemma4, z.copy(z.assistant, config={"backbone_hidden_size": 128})),
        {"refuse hidden-size"},
    ),
    "an assistant for another family": (
        lambda z: (z.qwen3, z.assistant),
        {"refuse other-family"},
    ),
    "an assistant with other KV heads": (
        lambda z: (z.gemma4, z.copy(z.assistant, text={"num_key_value_heads": 1})),
        {"refuse shared-cache"},
    ),
    "an assistant with other full layers": (
        lambda z: (
            z.gemma4,
            z.copy(z.assistant, text={"per_layer_config": {"1": {"head_dim": 128}}}),
        ),
        {"refuse shared-cache"},
    ),
    "an assistant with layers that the target lacks": (
        lambda z: (
            z.copy(z.gemma4, config={"layer_types": ["full_attention"], "per_layer_config": {}}),
            z.copy(z.assistant, text={"per_layer_config": {}}),
        ),
        {"refuse shared-cache"},
    ),
    "an assistant with another window": (
        lambda z: (z.gemma4, z.copy(z.assistant, text={"sliding_window": 64})),
        {"warn shared-cache"},
    ),
    "MTP layers of another model": (
        lambda z: (z.copy(z.qwen3, config={"hidden_size": 128}), z.deepseek()),
        {"refuse hidden-size"},
    ),
    "a short drafter": (
        lambda z: (z.qwen3, z.copy(z.noisy, config={"max_position_embeddings": 512})),
        {"warn length"},
    ),
    "experts beside a quantised target": (
        lambda z: (z.copy(z.qwen3, config=FP8), z.copy(z.noisy, config=EXPERTS)),
        {"warn moe-backend"},
    ),
    "quantised experts beside a quantised target": (
        lambda z: (z.copy(z.qwen3, config=FP8), z.copy(z.noisy, config=EXPERTS | FP8)),
        set(),
    ),
    "a quantised drafter": (
        lambda z: (z.qwen3, z.copy(z.noisy, config=FP8)),
        {"note quantisation"},
    ),
}


@pytest.mark.parametrize("name", TABLE)
def test_the_table(name: str, zoo: Zoo) -> None:
    case, expected = TABLE[name]
    target, drafter = case(zoo)
    findings = check_pair(load_pair(str(target), str(drafter)))
    assert codes(findings) == expected, [finding.message for finding in findings]
    assert all("\n" not in finding.message for finding in findings)


def test_the_token_that_differs_is_named(zoo: Zoo) -> None:
    for tokens, words in (
        (swap_two, "2 tokens have other ids: 'a' is"),
        (add_plain, "'zzz' of"),
        (add_special, "'<|tool|>' is in"),
        (make_plain, "'<|im_end|>' is special in one"),
    ):
        odd = zoo.copy(zoo.noisy, tokens=tokens)
        (found,) = check_pair(load_pair(str(zoo.qwen3), str(odd)))
        assert words in found.message


def test_the_worst_comes_first(zoo: Zoo) -> None:
    odd = zoo.copy(zoo.noisy, config={"vocab_size": 512, "max_position_embeddings": 512} | FP8)
    found = check_pair(load_pair(str(zoo.qwen3), str(odd)))
    assert [f.severity for f in found] == [Severity.REFUSE, Severity.WARN, Severity.NOTE]


@pytest.mark.parametrize(
    ("length", "expected"), [(512, set()), (2048, {"warn length"}), (4096, {"refuse length"})]
)
def test_the_length_that_is_served(length: int, expected: set[str], zoo: Zoo) -> None:
    short = zoo.copy(zoo.noisy, config={"max_position_embeddings": 512})
    found = check_pair(load_pair(str(zoo.qwen3), str(short)), max_model_len=length)
    assert codes(found) == expected | ({"warn length"} if length > 512 else set())


def test_a_target_cannot_serve_more_than_its_length(zoo: Zoo) -> None:
    found = check_pair(load_pair(str(zoo.qwen3), "ngram"), max_model_len=2049)
    assert codes(found) == {"refuse length"}


def test_stretched_models_serve_more_than_they_say(zoo: Zoo) -> None:
    rope = {"rope_parameters": {"rope_type": "yarn", "factor": 4.0, "rope_theta": 1e4}}
    long = zoo.copy(zoo.qwen3, config=rope)
    assert not check_pair(load_pair(str(long), "ngram"), max_model_len=8192)
    short = zoo.copy(zoo.noisy, config=rope | {"max_position_embeddings": 512})
    assert not check_pair(load_pair(str(zoo.qwen3), str(short)))


@pytest.mark.parametrize(
    ("heads", "gammas", "expected"),
    [
        (1, (0, 1), set()),
        (1, (3,), {"note gamma"}),
        (2, (0, 1, 2), set()),
        (2, (3,), {"refuse gamma"}),
        (2, (4,), {"note gamma"}),
        (2, (-1,), {"refuse gamma"}),
    ],
)
def test_gammas_of_mtp_layers(
    heads: int, gammas: tuple[int, ...], expected: set[str], zoo: Zoo
) -> None:
    pair = load_pair(str(zoo.deepseek(heads)), "mtp")
    assert codes([found for gamma in gammas for found in check_gamma(pair, gamma)]) == expected


@pytest.mark.parametrize("drafter", ["ngram", "noisy", "assistant"])
def test_other_drafters_take_any_gamma(drafter: str, zoo: Zoo) -> None:
    target = zoo.gemma4 if drafter == "assistant" else zoo.qwen3
    pair = load_pair(str(target), str(getattr(zoo, drafter, drafter)))
    assert not [f for gamma in range(9) for f in check_gamma(pair, gamma)]


def test_what_vllm_makes_of_a_drafter(zoo: Zoo) -> None:
    def method(path: Path) -> str:
        return resolve_method(load_checkpoint(str(path)))

    assert method(zoo.noisy) == "draft_model"
    assert method(zoo.assistant) == "mtp"
    assert method(zoo.deepseek()) == "mtp"
    assert method(zoo.eagle3()) == "eagle3"
    assert method(zoo.copy(zoo.noisy, config={"model_type": "medusa"})) == "medusa"
    assert method(zoo.copy(zoo.noisy, config={"model_type": "nemotron_h"})) == "draft_model"


@pytest.mark.parametrize(
    ("head", "expected"),
    [
        ("base_model: org/one", ("org/one",)),
        ("base_model: 'org/one'\nlicense: x", ("org/one",)),
        ("base_model:\n  - org/one\n  - org/two\ntags:\n  - a/b", ("org/one", "org/two")),
        ("base_model: [org/one, org/two]", ("org/one", "org/two")),
        ("license: org/one", ()),
    ],
)
def test_model_cards(head: str, expected: tuple[str, ...], zoo: Zoo) -> None:
    folder = zoo.copy(zoo.qwen3, files={"README.md": f"---\n{head}\n---\nbase_model: no/one\n"})
    assert load_checkpoint(str(folder)).base_models == expected


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"config.json": "{"}, "config.json: not JSON"),
        ({"config.json": "[1]"}, "config.json: expected an object, found list"),
        ({"tokenizer.json": "{}"}, "tokenizer.json: no vocabulary"),
        ({"config.json": '{"vocab_size": "many"}'}, "vocab_size: expected a whole number"),
        ({"config.json": '{"vocab_size": true}'}, "vocab_size: expected a whole number"),
    ],
)
def test_files_that_cannot_be_used(files: dict[str, str], message: str, zoo: Zoo) -> None:
    broken = zoo.copy(zoo.noisy, files=files)
    with pytest.raises(BadInputError, match=message):
        check_pair(load_pair(str(zoo.qwen3), str(broken)))


@pytest.mark.parametrize(
    ("target", "drafter", "message"),
    [
        ("./nowhere", "ngram", "--target ./nowhere: no such folder"),
        ("{qwen3}", "no such", "--drafter no such: no such folder"),
        ("{root}", "ngram", "there is no config.json"),
    ],
)
def test_bad_arguments(target: str, drafter: str, message: str, zoo: Zoo) -> None:
    words = {"qwen3": zoo.qwen3, "root": zoo.root}
    with pytest.raises(BadInputError, match=message):
        load_pair(target.format(**words), drafter.format(**words))


def test_a_pair_without_files_is_no_reason_to_fail() -> None:
    assert check_pair(Pair(Checkpoint("a/b", {}), "ngram")) == []
