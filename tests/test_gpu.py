"The kernels of the GPU step, without a GPU: right in Triton's interpreter, and accepted by its compiler"
import sys
import pytest
from conftest import sh
pytest.importorskip('triton', minversion='3.7') # the interpreter of earlier ones fails with NumPy 2.4

COMPILE = """
from steerlens.sae import gpu
gpu._compile()
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
types = dict(row='*i64', at='*i64', order='*i64', off='*i64', index='*i64', n='i32', D='i32')
types |= dict.fromkeys(('b1', 'b2', 'o1', 'o2', 'lr', 'c2', 'eps'), 'fp32')
sums = [(gpu._sums, dict(BY=by, J=8, BD=512)) for by in (-1, 0, 1)]
for fn,consts in ((gpu._dots, dict(E=8, BD=256)), *sums, (gpu._adam, dict(BLOCK=1024))):
    signature = {n: 'constexpr' if n in consts else types.get(n, '*fp32') for n in fn.arg_names}
    for capability in (80, 90):
        made = gpu.triton.compile(ASTSource(fn, signature, consts), target=GPUTarget('cuda', capability, 32))
        size,atomics = len(made.asm['cubin']), made.asm['ptx'].count('atom')
        print(fn.__name__, consts, capability, size, made.metadata.shared, atomics)
"""


def test_steps_in_the_interpreter():
    r = sh('nbdev_test', '--path', 'nbs/33_sae.gpu.ipynb', '--flags', 'gpu', TRITON_INTERPRET='1')
    assert r.rc==0, r.out+r.err


def test_kernels_compile_for_two_gpus_and_have_no_atomics(tmp_path):
    r = sh(sys.executable, '-c', COMPILE, TRITON_INTERPRET='0', TRITON_CACHE_DIR=str(tmp_path))
    assert r.rc==0, r.err
    lines = r.out.splitlines()
    assert len(lines)==10 and all(l.endswith(' 0') for l in lines), r.out
