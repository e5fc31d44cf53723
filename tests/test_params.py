"The parameter files and the command line"
import sys
from pathlib import Path
import pytest
from steerlens import params
from conftest import ROOT, SUBJECT, sh

EXTRA = [str(p.relative_to(ROOT)) for p in sorted((ROOT/'params').glob('*.yaml'))]


def test_files_belong_to_phases():
    assert {p.stem for p in (ROOT/'params'/'phases').glob('*.yaml')} <= set(params.phases())


@pytest.mark.parametrize('subject', params.subjects())
@pytest.mark.parametrize('phase', params.phases())
def test_every_key_is_declared(phase, subject):
    for extra in ([], *([e] for e in EXTRA)):
        assert params.resolve(phase, subject, [], extra)['subject']==subject


HELP = """
import sys
from steerlens.cli import app
try: app(['--help'])
except SystemExit: pass
print('torch' in sys.modules)
"""


def test_help_is_quick_and_light():
    said = sh(sys.executable, '-c', HELP)
    assert said.out.splitlines()[-1]=='False'
    said = sh('steerlens', '--help')
    assert said.rc==0, said.err
    print(f'steerlens --help: {said.seconds:.2f} s')


MISTAKES = [
    (['9_none', SUBJECT], 'no phase'),
    (['1', 'no_such_subject'], 'no subject'),
    (['1', SUBJECT, 'no_such_key=1'], 'no parameter'),
    (['1', SUBJECT, 'subject=x'], 'second word'),
    (['1', SUBJECT, 'out'], 'expected key=value'),
    (['1', SUBJECT, '--params', 'params/none.yaml'], 'could not be read'),
]


@pytest.mark.parametrize('args,expected', MISTAKES, ids=lambda x: ' '.join(x) if isinstance(x, list) else '')
def test_mistakes_are_one_line(args, expected):
    said = sh('steerlens', 'run', *args)
    assert said.rc==1 and said.out=='' and said.err.count('\n')==1, said.out+said.err
    assert expected in said.err


@pytest.mark.parametrize('phase', params.phases())
def test_a_wrong_type_is_one_line(phase):
    "A text for every number, a number for every list: each refused before any work"
    for name,field in params.schema(phase).model_fields.items():
        if field.annotation is str or name=='own': continue # the subject's own are given by their names
        with pytest.raises(params.SteerlensError, match=f'command line: {name} = .*; expected') as e:
            params.resolve(phase, SUBJECT, [f'{name}="text"'])
        assert '\n' not in str(e.value)
