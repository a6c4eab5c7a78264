"""Who teaches: vision models, and simulators that know the truth.

interface.py    what a teacher is
vision.py       CLIP, DINOv2, ViT, SAM and Depth-Anything, from transformers
pusht.py        PushT: masks and signed distances
mujoco.py       MuJoCo: depth, segmentation, normals
"""
