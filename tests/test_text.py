"Killed while it writes token shards: nothing torn, and the bytes of a run that nobody killed"
import heapq, subprocess, sys, time
from pathlib import Path
from steerlens.core import read_json, sha256
from conftest import ROOT

TOKENIZE = """
import sys
from steerlens.subjects.text import tokenize
*paths,tokenizer,folder = sys.argv[1:]
tokenize(paths, tokenizer, folder, 'the standard library', 'PSF-2.0', per_shard=50_000)
"""


def a_tokenizer(folder):
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast
    t = Tokenizer(models.BPE())
    t.pre_tokenizer,t.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    special = dict(special_tokens=['<|endoftext|>'], initial_alphabet=alphabet)
    t.train([heapq.__file__], trainers.BpeTrainer(vocab_size=400, show_progress=False, **special))
    PreTrainedTokenizerFast(tokenizer_object=t, eos_token='<|endoftext|>').save_pretrained(folder)
    return str(folder)


def test_killed_tokenizing_goes_on_to_the_same_bytes(tmp_path):
    from steerlens.subjects.text import tokenize
    files = sorted(str(f) for f in Path(heapq.__file__).parent.glob('*.py'))[:100]
    tokenizer,killed = a_tokenizer(tmp_path/'tokenizer'), tmp_path/'killed'
    finish = lambda to: tokenize(files, tokenizer, to, 'the standard library', 'PSF-2.0', per_shard=50_000)
    shards = lambda: len(read_json(killed/'catalog.json')['shards']) if (killed/'catalog.json').exists() else 0
    whole = finish(tmp_path/'whole')
    command = [sys.executable, '-c', TOKENIZE, *files, tokenizer, str(killed)]
    p = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL)
    while p.poll() is None and shards() < 5: time.sleep(.002)
    p.kill()
    p.wait()
    assert p.returncode==-9 and 5 <= shards() < len(whole.catalog['shards'])
    finish(killed)
    assert sha256(killed)==sha256(tmp_path/'whole')
