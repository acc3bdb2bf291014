"""Which backend runs, what each refuses and in which words, and that nothing is slow without being asked."""

import importlib
import inspect
import types
import warnings

import pytest
import torch
from torch.nn.attention.flex_attention import AuxRequest, create_block_mask

import maskloom as loom
from maskloom.attention import attend, resolve
from maskloom.attention.backends import choose, decode, flash, flash_limits, sdpa
from maskloom.attention.request import Attended, Request
from tests.evidence import gather

B, H, HKV, L, D = 3, 2, 1, 13, 64
LSE = AuxRequest(lse=True)


def inputs(*, dtype=torch.bfloat16, head_dim=D, value_dim=None, kv_len=L):
    generator = torch.Generator().manual_seed(3)
    shapes = [(B, H, L, head_dim), (B, HKV, kv_len, head_dim), (B, HKV, kv_len, value_dim or head_dim)]
    return [torch.randn(shape, generator=generator).to(dtype) for shape in shapes]


# -- on the CPU --------------------------------------------------------------------------------------------------------


NEED_A_GPU = {
    "decode": "it needs a GPU; the tensors are on cpu",
    "flash": "it needs a GPU; the tensors are on cpu",
    "varlen": "it needs a GPU; the tensors are on cpu",
    "triton": "it needs a GPU; the tensors are on the CPU (sdpa and reference run there)",
}


NOT_A_SUM = "score_mod is not known to only add to the score, by what does not depend on it"
IN_BANDS = "for some queries at a time, the keys before the first and after the last that one of them sees"


@pytest.mark.parametrize(
    ("options", "ruled_out"),
    [
        ({}, {}),
        ({"scale": 0.5, "clean_padding": True, "deterministic": True, "allow_slow": True}, {}),
        ({"kernel_options": {"BACKEND": "FLASH"}}, {}),
        ({"return_aux": AuxRequest()}, {}),
        ({"return_aux": LSE}, {"sdpa": "it gives no log-sum-exp, and so no sinks"}),
        ({"sinks": torch.zeros(H)}, {"sdpa": "it gives no log-sum-exp, and so no sinks"}),
        ({"score_mod": loom.scores.softcap(3.0)}, {"sdpa": NOT_A_SUM}),
    ],
)
def test_auto_on_the_cpu(options, ruled_out):
    mask = loom.causal & loom.lengths([5, 7, 11])
    found = loom.explain(*inputs(), mask, **options)
    assert (found.backend, found.ruled_out) == ("sliced" if ruled_out else "sdpa", NEED_A_GPU | ruled_out)
    assert found.skips == (IN_BANDS if ruled_out else "nothing, since the mask goes in as a table")
    assert (found.mask, found.skipped, found.partial, found.full) == (None, None, None, None)


def test_explain_reads_like_sentences():
    blocks = loom.block_mask(loom.causal, L, L, block_size=(4, 8))
    assert str(loom.explain(*inputs(), blocks, sinks=torch.zeros(H))) == (
        "backend: sliced (torch's own attention lacks this; hidden keys are skipped)\n"
        f"skips: {IN_BANDS}\n"
        "tiles of the block mask: 2 skipped, 5 partial, 1 full\n"
        "not decode: it needs a GPU; the tensors are on cpu\n"
        "not flash: it needs a GPU; the tensors are on cpu\n"
        "not sdpa: it gives no log-sum-exp, and so no sinks\n"
        "not varlen: it needs a GPU; the tensors are on cpu\n"
        "not triton: it needs a GPU; the tensors are on the CPU (sdpa and reference run there)"
    )
    assert str(loom.explain(*inputs(), backend="sdpa")) == (
        "backend: sdpa (asked for)\nskips: nothing, since the mask hides nothing"
    )
    assert loom.explain(*inputs(), loom.causal).skips == "what lies above the diagonal"


@pytest.mark.parametrize("backend", ["decode", "flash", "varlen", "triton"])
def test_what_needs_a_gpu_says_so(backend):
    for call in (loom.attend, loom.explain):
        with pytest.raises(
            ValueError, match=f"'{backend}' cannot do this: it needs a GPU; the tensors are on (cpu|the CPU)"
        ):
            call(*inputs(), loom.documents(offsets=[0, L]), backend=backend)


def test_kernel_options_are_for_kernels():
    tensors = inputs(dtype=torch.float32)
    expected = loom.attend(*tensors, loom.causal)
    for options in ({}, {"BLOCK_M": 32}, {"BACKEND": "FLASH"}):
        assert torch.equal(loom.attend(*tensors, loom.causal, kernel_options=options), expected)
    for backend in ("sdpa", "reference"):
        assert loom.explain(*tensors, backend=backend, kernel_options={}).backend == backend
        refused = refusal(backend, tensors, kernel_options={"BLOCK_M": 32})
        assert refused == "it takes no kernel_options; flash and triton do"


@pytest.mark.parametrize("backend", ["sdpa", "reference"])
def test_deterministic(backend):
    mask = loom.causal & loom.lengths([5, 7, 11])

    def gradients(**how):
        leaves = [tensor.requires_grad_() for tensor in inputs()]
        return torch.autograd.grad(loom.attend(*leaves, mask, backend=backend, **how).square().sum(), leaves)

    first = gradients(deterministic=True)
    assert all(map(torch.equal, first, gradients(deterministic=True)))
    torch.use_deterministic_algorithms(True)
    try:
        assert all(map(torch.equal, first, gradients()))
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("learning", [[0], [1], [2], [0, 2], [1, 2]])
@pytest.mark.parametrize("backend", ["sdpa", "reference"])
def test_some_inputs_learn(backend, learning):
    tensors = inputs(dtype=torch.float64)
    mask = loom.causal & loom.lengths([5, 0, 11])

    def gradients(chosen):
        leaves = [tensor.clone().requires_grad_(place in chosen) for place, tensor in enumerate(tensors)]
        loom.attend(*leaves, mask, backend=backend).square().sum().backward()
        return [leaf.grad for leaf in leaves]

    for place, (some, every) in enumerate(zip(gradients(learning), gradients([0, 1, 2]), strict=True)):
        assert (some is not None) == (place in learning)
        if some is not None:
            torch.testing.assert_close(some, every)


# -- a kernel that is not compiled -------------------------------------------------------------------------------------


@pytest.fixture
def failing(monkeypatch):
    def fails(self, request):
        raise loom.FallbackError("the kernel was not compiled")

    monkeypatch.setattr(type(choose.BACKENDS["sdpa"]), "run", fails)
    monkeypatch.setattr(type(choose.BACKENDS["sdpa"]), "prepare", lambda self, request: None)
    monkeypatch.setattr(attend, "_warned", set())


def test_a_fallback_is_an_error(failing):
    with pytest.raises(loom.FallbackError, match="the kernel was not compiled"):
        loom.attend(*inputs(), loom.causal)


def test_a_fallback_may_be_allowed(failing):
    mask, tensors = loom.causal & loom.lengths([5, 0, 11]), inputs(dtype=torch.float32)
    with pytest.warns(
        RuntimeWarning, match="runs on the reference, which is slow: the kernel was not compiled"
    ) as seen:
        gather(
            lambda *qkv: loom.attend(*qkv, mask, allow_slow=True, clean_padding=True), *tensors, table=mask.dense(L, L)
        ).check()
    assert [warning.filename for warning in seen] == [__file__]
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # one cause is told once, wherever it is met again
        loom.attend(*tensors, mask, allow_slow=True)


def test_other_errors_are_not_swallowed(monkeypatch):
    def fails(self, request):
        raise RuntimeError("something else")

    monkeypatch.setattr(type(choose.BACKENDS["sdpa"]), "run", fails)
    monkeypatch.setattr(type(choose.BACKENDS["sdpa"]), "prepare", lambda self, request: None)
    with pytest.raises(RuntimeError, match="something else"):
        loom.attend(*inputs(), loom.causal, allow_slow=True)


# -- what GPU backends refuse: rules only, nothing runs ----------------------------------------------------------------


@pytest.fixture
def gpu(monkeypatch):
    """Requests that say that they are on a Hopper GPU, with FlashAttention 4 installed."""
    properties = types.SimpleNamespace(major=9)
    monkeypatch.setattr(Request, "device", torch.device("cuda", 0))
    monkeypatch.setattr(flash, "_major_of", lambda device: properties.major)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Ampere GPU")
    monkeypatch.setattr(flash, "_HAS_FLASH", True)
    monkeypatch.setattr(decode, "has_triton", lambda: False)
    monkeypatch.setattr(flash_limits, "_TORCH", flash_limits.version("2.11.0"))
    monkeypatch.setattr(flash_limits, "_FLASH", flash_limits.version("4.0.0b36"))
    return properties


def refusal(backend, tensors, mask=loom.causal, **options):
    with pytest.raises(ValueError, match=f"backend '{backend}' cannot do this: ") as error:
        loom.explain(*tensors, mask, backend=backend, **options)
    return str(error.value).partition("this: ")[2]


def unfollowed(b, h, q_idx, kv_idx):
    least = q_idx - 1
    least.view(1).add_(1)  # into a tensor under another identity
    return least >= kv_idx


PACKED = loom.documents(offsets=[0, 5, L]) & loom.causal
CLOSURE = loom.as_mask(lambda b, h, q_idx, kv_idx: torch.div(q_idx, 3, rounding_mode="floor") >= kv_idx)


@pytest.mark.parametrize(
    ("shape", "mask", "by_flash"),
    [
        ((4, 16, 4096, 64), loom.causal & loom.lengths([4096] * 4), True),  # 2^36
        ((4, 16, 4096, 64), loom.window(back=100), True),
        ((4, 16, 4096, 32), loom.causal & loom.lengths([4096] * 4), False),
        ((16, 16, 2048, 64), loom.causal & loom.lengths([2048] * 16), False),  # 2^36 of short rows
        ((32, 16, 2048, 64), loom.causal & loom.lengths([2048] * 32), True),  # 2^37
        ((1, 16, 8192, 64), loom.causal & loom.documents(offsets=[0, 5000, 8192]), False),
        ((1, 16, 8192, 128), loom.causal & loom.documents(offsets=[0, 5000, 8192]), True),
    ],
)
def test_auto_takes_flash_where_there_is_much_to_do(gpu, shape, mask, by_flash):
    batch, heads, length, head_dim = shape
    tensors = [torch.zeros(1, dtype=torch.bfloat16).expand(batch, heads, length, head_dim)] * 3
    request = Request(*tensors, mask, None, None, False, False, None, None, None)
    assert (choose.choose(request, "auto").backend.name == "flash") == by_flash


def test_auto_on_a_gpu(gpu, monkeypatch):
    for module in (choose, flash, sdpa):
        monkeypatch.setattr(module, "SHORT", L - 1)
    monkeypatch.setattr(choose, "LITTLE", 0)
    assert loom.explain(*inputs(), PACKED).backend == "flash"
    assert loom.explain(*inputs(dtype=torch.float32), PACKED).backend == "triton"
    assert loom.explain(*inputs(dtype=torch.float64), PACKED).backend == "reference"
    assert loom.explain(*inputs(), PACKED, return_aux=LSE).backend == "triton"
    assert loom.explain(*inputs(), PACKED, score_mod=loom.scores.softcap(5.0)).backend == "flash"
    assert loom.explain(*inputs(), PACKED, score_mod=loom.scores.alibi(H)).backend == "triton"
    assert loom.explain(*inputs(), PACKED, deterministic=True).backend == "flash"  # no gradient is asked for
    learning = [tensor.requires_grad_() for tensor in inputs()]
    assert loom.explain(*learning, PACKED, deterministic=True).backend == "triton"
    with torch.no_grad():
        assert loom.explain(*learning, PACKED, deterministic=True).backend == "flash"
    monkeypatch.setattr(flash, "_HAS_FLASH", False)
    assert loom.explain(*inputs(), PACKED).backend == "varlen"
    for mask in (loom.causal, loom.everything, None):
        assert loom.explain(*inputs(), mask).backend == "sdpa"
    assert loom.explain(*inputs(dtype=torch.float32), loom.causal).backend == "triton"
    found = loom.explain(*inputs(), loom.causal & loom.lengths([13, 5, 2]))
    assert found.backend == "triton" and list(found.ruled_out) == ["decode", "flash", "sdpa", "varlen", "sliced"]
    assert found.ruled_out["sdpa"] == (
        f'"auto" takes it on a GPU for half types and more than {L - 1} queries, where the mask is `causal` or `everything`, '
        "without dropout"
    )


def test_auto_in_short_rows_on_a_gpu(gpu):
    assert choose.SHORT >= L
    found = loom.explain(*inputs(), loom.causal)
    assert found.backend == "triton" and list(found.ruled_out) == ["decode", "flash", "sdpa", "varlen", "sliced"]
    assert found.ruled_out["flash"].startswith("triton is faster with up to 128 queries, and where batch x heads x")
    assert "more than 128 queries" in found.ruled_out["sdpa"]
    found = loom.explain(*inputs(), PACKED)
    assert found.backend == "varlen" and list(found.ruled_out) == ["decode", "flash", "sdpa", "sliced"]
    assert found.skips == "what documents, causal or a window hide"
    found = loom.explain(*inputs(dtype=torch.float32), loom.causal)
    assert found.ruled_out["flash"] == "it runs in bfloat16 and float16; the tensors are torch.float32"


def test_kernel_options_name_a_kernel(gpu):
    assert loom.explain(*inputs(), kernel_options={"BACKEND": "FLASH"}).backend == "flash"
    found = loom.explain(*inputs(), kernel_options={"BLOCK_M": 32})
    assert (found.backend, found.reason, found.ruled_out) == ("triton", "kernel_options are for it", {})
    for backend in ("sdpa", "reference", "varlen"):
        with pytest.raises(
            ValueError, match=f"'{backend}' cannot do this: it takes no kernel_options; flash and triton"
        ):
            loom.attend(*inputs(), PACKED, backend=backend, kernel_options={"BLOCK_M": 32})
    with pytest.raises(
        ValueError, match="'triton' cannot do this: kernel_options ask for FLASH, which is backend 'flash'"
    ):
        loom.explain(*inputs(), backend="triton", kernel_options={"BACKEND": "FLASH"})
    with pytest.raises(ValueError, match="'flash' cannot do this: it runs in bfloat16 and float16"):
        loom.explain(*inputs(dtype=torch.float32), kernel_options={"BACKEND": "FLASH"})


def test_explain_says_what_a_kernel_runs(gpu):
    band = loom.causal & loom.window(back=3)
    assert loom.explain(*inputs(), band).mask == "window(back=3, ahead=0)"
    assert "\nmask: run as window(back=3, ahead=0)\n" in str(loom.explain(*inputs(dtype=torch.float32), band))
    assert loom.explain(*inputs(), band, backend="reference").mask is None
    for mask in (None, loom.window(back=3), CLOSURE, lambda b, h, q_idx, kv_idx: q_idx >= kv_idx):
        assert loom.explain(*inputs(), mask, backend="triton").mask is None


def test_explain_says_which_mask_a_block_mask_holds(gpu):
    blocks = loom.block_mask(loom.causal & loom.lengths([5, 7, 11]), L, L)
    assert loom.explain(*inputs(), blocks).mask == "causal & (q_idx < lens[b])"
    assert loom.explain(*inputs(), loom.block_mask(loom.causal, L, L)).mask == "causal"
    plain = create_block_mask(lambda b, h, q_idx, kv_idx: q_idx >= kv_idx, None, None, L, L, device="cpu")
    assert loom.explain(*inputs(), plain).mask is None
    assert loom.explain(*inputs(), blocks, backend="reference").mask is None


@pytest.mark.parametrize("backend", ["flash", "triton"])
def test_few_tiles_are_all_visited_and_explain_says_so(gpu, backend):
    tensors = [torch.zeros(B, H, 300, D, dtype=torch.bfloat16) for _ in range(3)]
    found = loom.explain(*tensors, loom.causal & loom.lengths([150, 7, 300]), backend=backend)
    assert (found.skipped, found.partial, found.full) == (0, 27, 0)
    assert found.skips == "nothing: there are few tiles, and to find the hidden ones takes longer"
    assert loom.explain(*tensors, loom.causal, backend=backend).skips == "hidden tiles"  # without tensors: found once
    compiled = loom.explain(*tensors, loom.causal & loom.lengths([150, 7, 300]), backend=backend, compiled=True)
    assert (compiled.skips, compiled.skipped) == ("hidden tiles", 17)  # in a graph they are


@pytest.mark.parametrize("backend", ["flash", "triton"])
def test_tiles_of_a_mask_are_those_that_attend_builds_and_keeps(gpu, monkeypatch, backend):
    attending = importlib.import_module("maskloom.attention.attend")
    monkeypatch.setattr(attending, "visits_all", lambda *given: False)
    built = []
    real = resolve.build_block_mask
    monkeypatch.setattr(resolve, "build_block_mask", lambda *args, **how: built.append(real(*args, **how)) or built[-1])
    monkeypatch.setattr(type(choose.BACKENDS[backend]), "prepare", lambda self, request: None)
    monkeypatch.setattr(type(choose.BACKENDS[backend]), "run", lambda self, request: Attended(run_as(request), None))
    seen = []

    def run_as(request):
        seen.append(resolve.as_block_mask(request.query, request.key, request.mask))
        return request.query

    mask = loom.causal & loom.lengths([150, 7, 300])
    tensors = [torch.zeros(B, H, 300, D, dtype=torch.bfloat16) for _ in range(3)]
    found = loom.explain(*tensors, mask, backend=backend)
    assert (found.skipped, found.partial, found.full) == (17, 9, 1)
    assert "\ntiles: 17 skipped, 9 partial, 1 full" in str(found) and found.skips == "hidden tiles"
    loom.attend(*tensors, mask, backend=backend)
    assert loom.explain(*tensors, mask, backend=backend) == found
    assert len(built) == 1 and loom.explain(*tensors, seen[0], backend=backend).skipped == 17
    shared = loom.explain(*tensors, loom.causal, backend=backend)
    assert (shared.skipped, shared.partial, shared.full) == (3, 5, 1)
    everything = loom.explain(*tensors, backend=backend)
    assert (everything.skipped, everything.mask) == (0, None)
    for backend in ("sdpa", "reference"):
        found = loom.explain(*tensors, mask, backend=backend)
        assert (found.skipped, found.partial, found.full) == (None, None, None)


def test_what_flash_refuses(gpu, monkeypatch):
    def words(*args, **options):
        return refusal("flash", *args, **options)

    assert words(inputs(dtype=torch.float32)) == "it runs in bfloat16 and float16; the tensors are torch.float32"
    assert words(inputs(head_dim=96)) == "it has head dims 64, 128, the same for keys and values; got 96 and 96"
    assert words(inputs(value_dim=128)).endswith("got 64 and 128")
    one_table = loom.create_block_mask(loom.causal, None, None, L, L, separate_full_blocks=False)
    assert words(inputs(), one_table) == "it needs a block mask with full tables (separate_full_blocks=True)"
    small = loom.block_mask(loom.causal, L, L, block_size=(64, 128))
    assert words(inputs(), small) == "it needs block size (128, 128)"
    assert words(inputs(), score_mod=loom.scores.alibi(H)) == (
        "of score mods it has softcap: with others its gradients are wrong"
    )
    asked = words(inputs(), kernel_options={"BACKEND": "TRITON"})
    assert asked == "kernel_options ask for TRITON, which is not FLASH"
    assert loom.explain(*inputs(), score_mod=loom.scores.softcap(5.0), q_offset=torch.tensor(2), backend="flash")
    assert words(inputs(), CLOSURE).endswith("at indices; this has div")
    assert words(inputs(), unfollowed).endswith("has operations that cannot be followed, add_, view")
    assert words(inputs(), loom.masks.dilated(back=9, step=3)).endswith("this has remainder")
    assert words(inputs(), create_block_mask(CLOSURE, None, None, L, L, device="cpu")) == words(inputs(), CLOSURE)
    learning = [tensor.requires_grad_() for tensor in inputs()]
    assert words(learning, deterministic=True) == "its gradients are not the same at every run"
    gpu.major = 8
    assert words(inputs()) == "it needs a Hopper GPU or a newer one; this is a Ampere GPU"
    monkeypatch.setattr(flash, "_HAS_FLASH", False)
    assert words(inputs()) == "it needs FlashAttention 4: pip install flash-attn-4"


def test_what_varlen_refuses(gpu):
    def words(*args, **options):
        return refusal("varlen", *args, **options)

    needs = "it needs a mask that is documents(offsets=...), alone or joined with causal or a window by &"
    assert words(inputs()) == needs
    assert words(inputs(), loom.block_mask(PACKED, L, L)) == needs
    assert words(inputs(), PACKED, q_offset=torch.tensor(0)) == needs
    assert words(inputs(dtype=torch.float32), PACKED).startswith("it runs in bfloat16 and float16")
    for head_dim, value_dim in ((12, 12), (264, 264), (64, 32)):
        refused = words(inputs(head_dim=head_dim, value_dim=value_dim), PACKED)
        assert refused.endswith(f"multiples of 8, the same for keys and values; got {head_dim} and {value_dim}")
    assert words(inputs(kv_len=11), PACKED) == "it has as many queries as keys"
    assert words(inputs(), loom.documents(offsets=[0, 5, 11])) == (
        "the mask reads a table with 11 positions, and there are 13 queries"
    )
    assert words(inputs(), PACKED, score_mod=loom.scores.softcap(5.0)) == "it has no score_mod"
    assert words(inputs(), PACKED, sinks=torch.zeros(H)) == "it gives no log-sum-exp, and so no sinks"
    learning = [tensor.requires_grad_() for tensor in inputs()]
    assert words(learning, PACKED, deterministic=True) == "its gradients are not the same at every run"


def test_what_triton_and_sdpa_refuse(gpu):
    assert refusal("triton", inputs(dtype=torch.float64)).startswith(
        "it runs in float32, bfloat16 and float16; the tens"
    )
    bias = loom.scores.relative_bias(torch.zeros(H, 5, requires_grad=True))
    summed = "the gradient of a tensor that score_mod reads is summed in no fixed order"
    assert refusal("triton", inputs(), score_mod=bias, deterministic=True) == summed
    assert loom.explain(*inputs(), score_mod=bias, deterministic=True).backend == "reference"
    learning = [tensor.requires_grad_() for tensor in inputs()]
    assert refusal("sdpa", learning, deterministic=True) == "its gradients are not the same at every run"


def test_explain_has_the_signature_of_attend():
    theirs, ours = inspect.signature(loom.attend), inspect.signature(loom.explain)
    assert list(ours.parameters.values())[:-1] == list(theirs.parameters.values())
    assert list(ours.parameters)[-1] == "compiled"
    with pytest.raises(TypeError, match=r"^explain\(\) got an unexpected keyword argument 'mask_mod'"):
        loom.explain(*inputs(), mask_mod=loom.causal)
