"Demonstrations from files: another codec, a writer that died, a file that was replaced, the way to segments"
from pathlib import Path
import subprocess, sys
import numpy as np, pytest
from steerlens.core import SteerlensError
from steerlens.steer.segments import axis_of, read_manifest, segments_of, write_manifest
from steerlens.subjects.demos import toy_step
from steerlens.subjects.episodes import episodes, steps_of
from steerlens.subjects.lerobot import lerobot_demos, read_stats, toy_lerobot
from steerlens.subjects.libero import toy_libero

CAMERA = 'videos/observation.images.image/chunk-000/file-000.mp4'


def pictures(folder, e):
    demo = lerobot_demos(folder)[e]
    return [toy_step(demo.obs(i).images['agentview']) for i in range(demo.steps)]


def test_av1(tmp_path, monkeypatch):
    "LeRobot's default codec"
    monkeypatch.setenv('SVT_LOG', '1')
    made = toy_lerobot(tmp_path/'x', (3, 40), (0, 0), codec='libsvtav1')
    assert pictures(made, 1)==[(1, i) for i in range(40)]


def test_a_film_that_was_downloaded_again(tmp_path):
    "The short one isn't remembered"
    made,whole = toy_lerobot(tmp_path/'x', (3, 2), (0, 0)), toy_lerobot(tmp_path/'y', (3, 4), (0, 0))
    for f in ('data/chunk-000/file-000.parquet', 'meta/episodes/chunk-000/file-000.parquet'): (whole/f).replace(made/f)
    with pytest.raises(SteerlensError, match='file-000.mp4: 5 frames; expected 7 for episode_1'): episodes(made)
    for key in ('image', 'image2'):
        film = CAMERA.replace('image/', f'{key}/')
        (whole/film).replace(made/film)
    assert len(episodes(made))==2 and pictures(made, 1)==[(1, i) for i in range(4)]


def test_a_writer_that_died(tmp_path):
    "An HDF5 file that was never closed"
    code = 'import h5py, os, sys; f = h5py.File(sys.argv[1], "w"); f["data/demo_0/actions"] = [[0.]*7]*999; os._exit(9)'
    subprocess.run([sys.executable, '-c', code, tmp_path/'x.hdf5'], check=False)
    with pytest.raises(SteerlensError, match='x.hdf5: no') as e: episodes(tmp_path/'x.hdf5')
    assert len(str(e.value).splitlines())==1


@pytest.mark.parametrize('junk', [b'', b'\x89HDF\r\n\x1a\n', b'\x89HDF\r\n\x1a\n' + bytes(500)])
def test_junk(tmp_path, junk):
    (tmp_path/'x.hdf5').write_bytes(junk)
    with pytest.raises(SteerlensError, match='x.hdf5: n') as e: episodes(tmp_path)
    assert len(str(e.value).splitlines())==1


def test_many_files_one_bad(tmp_path):
    "All demonstrations are looked at, and the bad one can be left out by its label"
    import h5py
    for k in range(3): toy_libero(tmp_path/f'{k}.hdf5', (4, 5), f'KITCHEN_SCENE{k+1}_open_it')
    with h5py.File(tmp_path/'1.hdf5', 'r+') as f: f['data/demo_1/actions'][2] = np.nan
    with pytest.raises(SteerlensError, match=r"1.hdf5/demo_1: actions is nan at step 2.*skip=\['1.hdf5/demo_1'\]"):
        episodes(tmp_path)
    assert [d.label for d in episodes(tmp_path, skip=('1.hdf5/demo_1',))][:4]==['0.hdf5/demo_0', '0.hdf5/demo_1',
                                                                               '1.hdf5/demo_0', '2.hdf5/demo_0']


def test_segments_of_demonstrations(tmp_path):
    "From files to the published manifest"
    for k,task in enumerate(('KITCHEN_SCENE1_open_it', 'KITCHEN_SCENE4_close_it')):
        toy_libero(tmp_path/f'{k}.hdf5', (12, 15+5*k), task)
    segments = segments_of(steps_of(episodes(tmp_path)), 0)
    write_manifest(segments, axis_of(segments, 0), tmp_path/'manifest.json')
    again,axis = read_manifest(tmp_path/'manifest.json')
    assert again==segments and len(segments)==4 and set(axis.mean_delta_per_task)=={s.task for s in segments}
    assert [(s.demo, s.episode_index) for s in again]==[('demo_0', 0), ('demo_1', 1), ('demo_0', 2), ('demo_1', 3)]


def test_a_dataset_by_lerobot_itself():
    "Written by lerobot 0.6.1, see parity/lerobot_v3.py: AV1, three episodes in a film"
    demos = episodes(Path(__file__).parent/'parity/lerobot_v3')
    assert [(d.steps, d.language, d.hz) for d in demos]==[(3, 'task 0', 10), (11, 'task 1', 10), (6, 'task 0', 10)]
    for e,d in enumerate(demos):
        shown = [{toy_step(x) for x in d.obs(i).images.values()} for i in range(d.steps)]
        assert shown==[{(e, i)} for i in range(d.steps)]
        assert (d.states==e).all() and np.allclose(d.following(1, 9)[:,0], np.arange(1, d.steps)[:9]/10)
    assert {'q01', 'q99', 'mean', 'std'} <= set(read_stats(demos[0].file)['action'])
