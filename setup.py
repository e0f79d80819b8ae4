"""Package metadata; exact tested versions live in tools/constraints.txt, the tool settings in
pyproject.toml."""

from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent
VERSION = (
    (ROOT / 'stratified3d' / '__init__.py').read_text().split("__version__ = '")[1].split("'")[0]
)

# mmcv 2.1 is missing on purpose: it has no wheels, and its sdist builds only as tools/setup.sh does
# it
DETECTION = [
    'mmengine>=0.10.7,<1',
    'mmdet>=3.3.0,<3.4',
    'mmdet3d>=1.4.0,<1.5',
    'nuscenes-devkit>=1.2.0',
    'numba>=0.60',
    'open3d>=0.19',
    'matplotlib',
    'tensorboard',
    'safetensors',
    'tqdm',
    'protobuf>=4.22',
    'scipy',
    'pyarrow>=16,<26',
    'psutil',
    # mmengine resolves `mmdet3d::` config bases through pkg_resources, which newer setuptools no
    # longer ships
    'setuptools<81',
]

setup(
    name='stratified3d',
    version=VERSION,
    description='Stratified attention for LiDAR detection: an mmdet3d plugin for CPUs and GPUs',
    long_description=(ROOT / 'README.md').read_text(encoding='utf-8'),
    long_description_content_type='text/markdown',
    license='Apache-2.0',
    python_requires='>=3.10',
    package_data={'stratified3d': ['py.typed']},
    packages=find_packages(include=['stratified3d', 'stratified3d.*']),
    install_requires=['torch>=2.6', 'numpy>=1.24'],
    extras_require={
        'detection': DETECTION,
        'cpu': ['spconv==2.3.8', 'triton==3.6.0'],
        'gpu': ['spconv-cu126==2.3.8', 'nvidia-cuda-runtime-cu12', 'nvidia-cuda-nvrtc-cu12'],
        'survey': ['laspy[lazrs]>=2.5'],  # .las and .laz files
        'deploy': ['onnx>=1.18', 'onnxscript>=0.5', 'onnxruntime>=1.20'],  # the dense half as ONNX
        'dev': [
            'pytest',
            'pytest-xdist',
            'hypothesis',
            'shapely',
            'ruff',
            'mypy',
            'types-tqdm',
            'pre-commit',
        ],
    },
    classifiers=[
        'License :: OSI Approved :: Apache Software License',
        'Programming Language :: Python :: 3.11',
        'Topic :: Scientific/Engineering :: Artificial Intelligence',
    ],
)
