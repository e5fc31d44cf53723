"""Phases as jobs of a real Slurm of one node, which the test starts: it is skipped unless SLURM_TEST is set

Debian's `slurm-wlm` and `munge`, root, and no Slurm configured here already.
"""
import getpass, importlib.util, os, re, shutil, signal, socket, subprocess, sys, time
from pathlib import Path
import pytest
from steerlens.core import read_json
from steerlens.planning import job as wanted, read_plans
from conftest import BIN, ROOT, sh

CONF = Path('/etc/slurm/slurm.conf') # the only one that a job finds: Snakemake's plugin hides SLURM_CONF from it
PLUGIN = importlib.util.find_spec('snakemake_executor_plugin_slurm')
HERE = PLUGIN and all(map(shutil.which, ('slurmctld', 'slurmd', 'munged')))
WANTED = os.environ.get('SLURM_TEST') and HERE and getpass.getuser()=='root' and not CONF.exists()
REASON = 'needs SLURM_TEST=1, Slurm and munge, the slurm extra, root, and no slurm.conf'
pytestmark = [pytest.mark.slow, pytest.mark.skipif(not WANTED, reason=REASON)]
NODE = """
ClusterName=one
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort=16817
SlurmdPort=16818
AuthType=auth/munge
AuthInfo=socket={d}/munge.sock
SlurmUser=root
StateSaveLocation={d}/state
SlurmdSpoolDir={d}/spool
SlurmctldPidFile={d}/slurmctld.pid
SlurmdPidFile={d}/slurmd.pid
SlurmctldLogFile={d}/slurmctld.log
SlurmdLogFile={d}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
AccountingStorageType=accounting_storage/none
JobRequeue=1
MinJobAge=3600
KillWait=5
ReturnToService=2
MpiDefault=none
NodeName={host} NodeAddr=127.0.0.1 CPUs=2 RealMemory={mb} State=UNKNOWN
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


@pytest.fixture
def slurm(tmp_path):
    "A Slurm of one node"
    d = tmp_path/'slurm'
    for name in ('state', 'spool'): (d/name).mkdir(parents=True)
    (d/'munge.key').write_bytes(os.urandom(128))
    (d/'munge.key').chmod(0o600)
    mb = os.sysconf('SC_PAGE_SIZE')*os.sysconf('SC_PHYS_PAGES')//2**20*9//10
    (d/'slurm.conf').write_text(NODE.format(d=d, host=socket.gethostname(), mb=mb))
    names = {f'{k}-file': d/f'munge.{v}' for k,v in dict(key='key', pid='pid', log='log', seed='seed').items()}
    os.symlink(d/'slurm.conf', CONF)
    try:
        munged = ['munged', '--force', f'--socket={d}/munge.sock', *(f'--{k}={v}' for k,v in names.items())]
        for c in (munged, ['slurmctld'], ['slurmd']): assert sh(*c).rc==0, c
        for _ in range(60):
            if 'idle' in sh('sinfo', '-h').out: break
            time.sleep(.5)
        yield d
    finally:
        sh('scancel', '--user=root')
        sh('scontrol', 'shutdown')
        CONF.unlink()
        time.sleep(2)
        os.kill(int((d/'munge.pid').read_text()), signal.SIGTERM)


def jobs(states='R'):
    "Each job's number, rule, memory and time"
    found = sh('squeue', '-h', f'--states={states}', '--format=%i|%k|%m|%l').out
    return [line.split('|') for line in found.splitlines()]


def minutes(limit):
    "Of a time as squeue writes it: [days-][hours:]minutes:seconds"
    days,_,rest = limit.rpartition('-')
    h,m,_ = ([0]+[int(n) for n in rest.split(':')])[-3:]
    return int(days or 0)*1440+h*60+m


def megabytes(memory): return float(memory[:-1])*dict(M=1, G=1024)[memory[-1]]


def planned(params, file):
    "What phases 1 and 2 will take, from small runs of each"
    p = subprocess.run([BIN/'steerlens', 'plan', 'nano_vla', '1', '2', '--json', '--params', params], cwd=ROOT,
                       capture_output=True, text=True, check=True)
    file.write_text(p.stdout)
    return read_plans([file])


def started(out, params, plan, log):
    "Snakemake at work with the profile"
    at = dict(PATH=f'{BIN}{os.pathsep}{os.environ["PATH"]}', OMP_NUM_THREADS='1')
    quick = ['--nolock', '--slurm-status-command', 'squeue', '--slurm-init-seconds-before-status-checks', '5']
    config = ['subjects=nano_vla', 'phases=12', f'params={params}', f'out={out}', f'plan={plan}', 'ranks=2']
    command = [sys.executable, '-m', 'snakemake', '--profile', 'profiles/slurm', *quick, '--config', *config]
    return subprocess.Popen(command, cwd=ROOT, env=os.environ | at, stdout=log, stderr=log)


def test_planned_phases_run_as_jobs_and_a_requeued_one_goes_on(slurm, tmp_path):
    out,params = tmp_path/'out', tmp_path/'params.yaml'
    small = (ROOT/'params/smoke.yaml').read_text().replace('steps: 60,', 'steps: 3000, checkpoint: 100,')
    params.write_text(small)
    plans = planned(params, tmp_path/'plan.json')
    with open(tmp_path/'log', 'w') as log, started(out, params, tmp_path/'plan.json', log) as p:
        try:
            while p.poll() is None and not [*out.glob('sae/nano_vla/*/checkpoints/0000[3-9]00')]: time.sleep(1)
            (job, rule, *_), = jobs()
            assert rule.startswith('rule_phase_2_sae')
            assert sh('scontrol', 'requeue', job).rc==0
            time.sleep(10) # until it has ended; then now, and not after the two minutes that Slurm waits
            sh('scontrol', 'update', f'JobId={job}', 'StartTime=now')
            assert p.wait(900)==0, (tmp_path/'log').read_text()
        finally: p.kill()
    asked = {re.search(r'phase_[a-z0-9]+_[a-z]+|share', rule)[0]: (megabytes(memory), minutes(limit))
             for _,rule,memory,limit in jobs('all')}
    for name,phase in (('phase_1_residuals', '1_residuals'), ('share', '1_residuals'), ('phase_2_sae', '2_sae')):
        want = wanted(plans, phase, 'nano_vla')
        memory,limit = asked[name]
        assert limit==want['runtime'] and abs(memory-want['mem_mb'])<=2, (asked, want) # Slurm rounds it for each core
    cells = read_json(out/'reports/2_sae/nano_vla.ipynb')['cells']
    said = ''.join(''.join(o.get('text', '')) for c in cells for o in c.get('outputs', []))
    assert 'from update ' in said # where the first attempt had come to
    made = read_json(out/'reports/1_residuals/nano_vla/metrics.json')
    acts, = out.glob('acts/nano_vla/*')
    assert made['acts']==f'acts/nano_vla/{acts.name}' # the ranks' folder is the phase's
    assert not (acts/'parts').exists() or not [*(acts/'parts').iterdir()]
