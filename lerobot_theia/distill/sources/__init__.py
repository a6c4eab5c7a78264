"""Where images come from: one module per kind of place.

interface.py    what a source is
folder.py       image files, listed in a CSV file
webdataset.py   tar shards
video.py        video files, every n-th frame
lerobot.py      cameras of a LeRobotDataset
pusht.py        PushT, random states
mujoco.py       MuJoCo scenes: a picture with depth, segmentation and normals
scenes.py       simulators of several such scenes: starts of each, pictures of each start
metaworld.py    Meta-World, random tasks, states and cameras
aloha.py        ALOHA in simulation, random states and cameras
"""
