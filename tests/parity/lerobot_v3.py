"""A small dataset by LeRobot's own writer, beside this file: what `steerlens.subjects.lerobot` has to read.

Made by lerobot 0.6.1 in an environment of its own, with Python 3.12:

    pip install "lerobot[dataset]==0.6.1"
    python tests/parity/lerobot_v3.py
"""
from pathlib import Path
import shutil
import numpy as np
from lerobot.datasets.lerobot_dataset import LeRobotDataset

CAMERAS = 'observation.images.image', 'observation.images.image2'


def picture(episode, i, size=64):
    "As `toy_picture`: the step's bits along the top, the episode as a shade below"
    image = np.full((size, size, 3), 30+20*episode, np.uint8)
    for bit in range(8): image[:size//8, bit*size//8:(bit+1)*size//8] = 255*(i>>bit & 1)
    return image


def step(episode, i):
    return dict.fromkeys(CAMERAS, picture(episode, i)) | {'observation.state': np.full(8, episode, 'f4'),
            'action': np.full(7, i/10, 'f4'), 'task': f'task {episode % 2}'}


def main():
    root = Path(__file__).with_name('lerobot_v3')
    shutil.rmtree(root, ignore_errors=True)
    features = dict.fromkeys(CAMERAS, dict(dtype='video', shape=(64, 64, 3), names=['height', 'width', 'channel']))
    numbers = {'observation.state': (8,), 'action': (7,)}
    features |= {k: dict(dtype='float32', shape=shape, names=None) for k,shape in numbers.items()}
    made = LeRobotDataset.create('toy', fps=10, features=features, root=root, robot_type='panda')
    for episode,n in enumerate((3, 11, 6)):
        for i in range(n): made.add_frame(step(episode, i))
        made.save_episode()
    made.finalize()
    shutil.rmtree(root/'images', ignore_errors=True)


if __name__=='__main__': main()
