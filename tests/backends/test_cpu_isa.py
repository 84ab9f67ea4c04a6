"""With GATEDOPS_CPU each instruction set, in a process of its own, gives the same bits on any number of threads."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from python_process import last_line, run_python

from gatedops import _C, GateBits, backends, gate_overlap, npk_gram

# It prints digests of results that must not depend on the instruction set, then of results that must not depend on the
# threads alone. No size is a multiple of a tile, word or vector, one layer is in two pieces, and some neighbours tie.
SCRIPT = """
import hashlib, torch
import gatedops
from gatedops import GateBits, backends

def made(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))

def digest(*tensors):
    whole = hashlib.sha256()
    for t in tensors:
        whole.update(t.contiguous().view(torch.uint8).numpy().tobytes())
    return whole.hexdigest()[:16]

def layers(n, seed):
    shapes = [(n, 257), (n, 33, 3, 5), (n, 7, 65), (n, 9)]
    return [made(seed + i, *shape) for i, shape in enumerate(shapes)]

bits, y_bits = GateBits.pack(layers(333, 0)), GateBits.pack(layers(190, 10))
wide = GateBits.pack([made(20, 70, 33), made(21, 70, 16_500)])
x, y = made(30, 333, 20), made(31, 190, 20)
pixels = (made(32, 333, 50).abs() * 99).to(torch.uint8)
v, w = made(33, 333, 10), made(34, 190, 3)
slopes = (0.01, [-0.3, 0.0, 3.0, -1.0])

def exact():
    yield "words", digest(bits.words, y_bits.words, wide.words)
    yield "unpacked", digest(*bits.unpack())
    for name in ("gate_overlap", "gate_agreement", "gate_hamming"):
        count = getattr(gatedops, name)
        yield name, digest(count(bits), count(bits, y_bits), count(y_bits, bits), count(wide))
    for dtype in (torch.float32, torch.float64):
        lambdas = [gatedops.npk_gram(None, b, dtype=dtype) for b in (bits, wide)]
        yield f"Lambda {dtype}", digest(*lambdas, gatedops.npk_gram(None, bits, None, y_bits, dtype=dtype))
        sloped = [gatedops.npk_gram(None, bits, None, y, slope=a, dtype=dtype) for y in (None, y_bits) for a in slopes]
        yield f"Lambda with slopes {dtype}", digest(*sloped, gatedops.npk_gram(None, wide, slope=0.01, dtype=dtype))
        near = [gatedops.gate_neighbors(bits, 9, slope=a, dtype=dtype) for a in slopes]
        yield f"neighbors with slopes {dtype}", digest(*near[0], *near[1])
        diagonals = [gatedops.npk_diag(None, bits, slope=a, dtype=dtype) for a in (0.0, *slopes)]
        yield f"diagonal {dtype}", digest(*diagonals)
        yield f"uint8 {dtype}", digest(gatedops.npk_gram(pixels, bits, dtype=dtype))
        near = (*gatedops.gate_neighbors(bits, 9, dtype=dtype), *gatedops.gate_neighbors(bits, 9, y_bits, dtype=dtype))
        yield f"neighbors {dtype}", digest(*near)

def products():
    for dtype in (torch.float32, torch.float64):
        options = dict(dtype=dtype)
        yield f"gram {dtype}", digest(gatedops.npk_gram(x, bits, **options))
        yield f"matvec {dtype}", digest(gatedops.npk_matvec(x, bits, v, **options))
        yield f"matvec of y {dtype}", digest(gatedops.npk_matvec(x, bits, w, y, y_bits, **options))
        yield f"matvec with slopes {dtype}", digest(gatedops.npk_matvec(x, bits, v, slope=slopes[1], **options))
        yield f"matvec of gates {dtype}", digest(gatedops.npk_matvec(None, bits, v, **options))
        q = x.clone().requires_grad_()
        gatedops.npk_gram(q, bits, **options).square().sum().backward()
        yield f"gradient {dtype}", digest(q.grad)

print(backends.active_isa())
for threads in (1, 2, 3):
    torch.set_num_threads(threads)
    for name, found in (*exact(), *products()):
        print(threads, found, name)
"""
PRODUCTS = ("gram", "matvec", "gradient")


@cache
def digests(isa: str) -> dict[int, dict[str, str]]:
    """Returns what the script prints under GATEDOPS_CPU=isa: a digest for each number of threads and each result."""
    done = run_python("-c", SCRIPT, GATEDOPS_CPU=isa)
    assert done.returncode == 0, done.stderr
    active, *lines = done.stdout.splitlines()
    assert active == isa
    found: dict[int, dict[str, str]] = {}
    for line in lines:
        threads, digest, name = line.split(maxsplit=2)
        found.setdefault(int(threads), {})[name] = digest
    return found


@pytest.mark.parametrize("isa", backends.available_isas())
def test_the_number_of_threads_changes_no_bit(isa):
    found = digests(isa)
    assert sorted(found) == [1, 2, 3]
    assert len(found[1]) > 20
    assert found[2] == found[1]
    assert found[3] == found[1]


@pytest.mark.parametrize("isa", backends.available_isas())
def test_counts_and_lambda_are_the_same_bits_for_every_instruction_set(isa):
    exact, serial = (
        {what: digest for what, digest in digests(name)[1].items() if not what.startswith(PRODUCTS)}
        for name in (isa, "serial")
    )
    assert exact == serial
    assert {"gate_overlap", "gate_agreement", "gate_hamming", "Lambda torch.float32"} <= exact.keys()


@pytest.mark.parametrize("isa", backends.available_isas())
def test_products_by_torch_are_the_same_bits_for_every_instruction_set(isa):
    """torch multiplies, and gets the same factors in the same pieces whatever the instruction set is."""
    assert digests(isa) == digests("serial")


@pytest.mark.parametrize("isa", sorted(backends.INSTRUCTION_SETS))
def test_every_known_instruction_set_runs_or_says_what_does(isa):
    if isa in backends.available_isas():
        done = run_python("-c", "import gatedops.backends as b; print(b.chosen_isa())", GATEDOPS_CPU=isa)
        assert done.stdout.strip() == f"('{isa}', 'GATEDOPS_CPU asks for it')", done.stderr
    else:
        line = last_line(run_python("-c", "import gatedops", GATEDOPS_CPU=isa))
        available = ", ".join(backends.available_isas())
        assert line == f"ValueError: GATEDOPS_CPU: got '{isa}', but this machine runs only: {available}"


@pytest.mark.parametrize("isa", ["AVX2", "avx", "avx-512", "avx512 ", "neon", "0", "serial,avx2", "\u00fcber"])
def test_an_unknown_instruction_set_is_one_sentence_that_lists_the_known(isa):
    line = last_line(run_python("-c", "import gatedops", GATEDOPS_CPU=isa))
    available = ", ".join(backends.available_isas())
    assert line == f"ValueError: GATEDOPS_CPU: got '{isa}', but this machine runs only: {available}"


def test_a_forced_instruction_set_ends_with_its_block():
    before = _C.forced_isa()
    with backends.force_cpu("serial"):
        with backends.force_cpu(backends.available_isas()[-1]):
            assert _C.forced_isa() == backends.active_isa() == backends.available_isas()[-1]
        assert _C.forced_isa() == backends.active_isa() == "serial"
    assert _C.forced_isa() == before


@pytest.mark.parametrize("width", [1, 63, 500, 513, 1024, 1025, 3000])
def test_what_is_chosen_for_a_width_is_what_the_slowest_gives(width):
    """If no set is forced, another instruction set may count narrow layers than wide ones."""
    gates = torch.rand(3, 97, width, generator=torch.Generator().manual_seed(width)) < 0.5
    bits = GateBits.pack(list(gates))
    with backends.force_cpu("serial"):
        expected = npk_gram(None, bits), gate_overlap(bits)
    assert npk_gram(None, bits).equal(expected[0])
    assert gate_overlap(bits).equal(expected[1])


def test_an_empty_choice_is_none():
    done = run_python("-c", "import gatedops.backends as b; print(b.active_isa())", GATEDOPS_CPU="")
    assert done.stdout.strip() == backends.available_isas()[-1], done.stderr


def test_the_report_names_the_forced_instruction_set():
    done = run_python("-m", "gatedops", GATEDOPS_CPU="serial")
    line = next(line for line in done.stdout.splitlines() if line.split()[:1] == ["serial"])
    assert "GATEDOPS_CPU asks for it" in line
