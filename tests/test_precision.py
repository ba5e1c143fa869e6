"""The precision each kind of device gets."""

from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file

from xb_lite.models import precision
from xb_lite.models.loading import precision_of
from xb_lite.models.precision import choose_precision


@pytest.fixture
def cuda(monkeypatch):
    def pretend(capability, gigabytes=80):
        properties = SimpleNamespace(total_memory=int(gigabytes * 10**9))
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _=None: properties)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _=None: capability)

    return pretend


def test_cpu_with_bf16_keeps_fp32_weights(monkeypatch):
    monkeypatch.setattr(precision, "_cpu_bf16_instruction", lambda: "avx512_bf16")
    chosen = choose_precision("cpu")
    assert (chosen.weights, chosen.products) == (torch.float32, torch.bfloat16)
    assert str(chosen) == "fp32 weights, matrix products in bf16 on cpu (this CPU has avx512_bf16)"
    with chosen.autocast():
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.bfloat16


def test_cpu_without_bf16_is_plain_fp32(monkeypatch):
    monkeypatch.setattr(precision, "_cpu_bf16_instruction", lambda: None)
    chosen = choose_precision("cpu")
    with chosen.autocast():
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.float32


def test_bf16_can_be_turned_off(monkeypatch):
    monkeypatch.setattr(precision, "_cpu_bf16_instruction", lambda: "avx512_bf16")
    monkeypatch.setenv("XB_BF16", "0")
    chosen = choose_precision("cpu")
    assert str(chosen) == "fp32 weights on cpu (XB_BF16 is 0)"
    assert chosen.products is None
    monkeypatch.setenv("XB_BF16", "1")
    assert choose_precision("cpu").products is torch.bfloat16
    monkeypatch.setenv("XB_BF16", "no")
    with pytest.raises(ValueError, match="XB_BF16 is 'no': set it to 0"):
        choose_precision("cpu")


@pytest.mark.parametrize(
    ("capability", "weights"), [((7, 5), torch.float16), ((8, 0), torch.bfloat16)]
)
def test_gpus(cuda, capability, weights):
    cuda(capability)
    chosen = choose_precision()
    assert (chosen.device, chosen.weights, chosen.products) == ("cuda", weights, None)


def test_missing_device_is_named(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match="'cuda:1' is not available"):
        choose_precision("cuda:1")


@pytest.mark.parametrize("device", ["cuda:7", "gpu", "mps"])
def test_what_is_no_device_here_is_named(cuda, monkeypatch, device):
    cuda((8, 0))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(ValueError, match=f"{device!r} is not available"):
        choose_precision(device)
    assert choose_precision("cuda:1").device == "cuda:1"


def test_exact_is_plain_fp32_on_a_cpu_that_has_bf16(monkeypatch):
    monkeypatch.setattr(precision, "_cpu_bf16_instruction", lambda: "avx512_bf16")
    chosen = choose_precision("cpu", exact=True)
    assert (chosen.weights, chosen.products) == (torch.float32, None)
    with chosen.autocast():
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.float32
    assert "so that a batch does not change a reply" in str(chosen)


def test_exact_changes_nothing_on_a_gpu(cuda):
    cuda((8, 0))
    assert choose_precision(exact=True) == choose_precision()


@pytest.mark.parametrize(
    ("gigabytes", "parameters", "small"), [(80, 2_500, True), (40, 2_500, False)]
)
def test_a_model_that_is_small_for_a_gpu_is_computed_in_as_on_a_cpu(
    cuda, gigabytes, parameters, small
):
    cuda((8, 0), gigabytes)
    parameters *= 10**6
    learned, said = (choose_precision(exact=e, parameters=parameters) for e in (False, True))
    wide = (torch.float32, torch.bfloat16) if small else (torch.bfloat16, None)
    assert (learned.weights, learned.products) == wide
    assert (said.weights, said.products) == ((torch.float32, None) if small else wide)


@pytest.mark.parametrize("exact", [False, True])
def test_a_gpu_without_bf16_computes_small_models_in_fp32(cuda, exact):
    cuda((7, 5), gigabytes=16)
    chosen = choose_precision(exact=exact, parameters=10**8)
    assert (chosen.weights, chosen.products) == (torch.float32, None)
    assert choose_precision(exact=exact, parameters=10**9).weights == torch.float16


def test_a_model_in_a_folder_is_as_small_as_the_same_one_by_name(cuda, tmp_path):
    cuda((8, 0))
    weights = {"a": torch.zeros(10**6).bfloat16(), "b": torch.zeros(10, 10).half()}
    save_file(weights, tmp_path / "1.safetensors")
    assert precision_of(tmp_path) == choose_precision(parameters=10**6 + 100)
    assert precision_of(tmp_path, exact=True) == precision_of(exact=True)
    cuda((8, 0), gigabytes=0.03)  # 4 MB of fp32 weights are more than an eighth of it
    assert precision_of(tmp_path, exact=True).weights == torch.bfloat16
    (tmp_path / "1.safetensors").write_bytes(b"half")
    for name in (tmp_path, "some/model"):
        assert precision_of(name, exact=True) == choose_precision()


def test_exact_does_not_make_a_missing_device_a_present_one(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match="'cuda:1' is not available"):
        choose_precision("cuda:1", exact=True)
