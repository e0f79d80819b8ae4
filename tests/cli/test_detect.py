"""`stratified3d detect` on several files: their pictures, and what is wrong with some of them."""

from pathlib import Path

from stratified3d.cli.drawing import name_pictures


def test_pictures_of_several_files_have_names_of_their_own():
    files = ['a/12.049.pcd', 'a/12.149.pcd', 'a/0.pcd.bin', 'b/0.bin', 'c/0.bin', 'd/0-2.bin']
    names = name_pictures([Path(file) for file in files])
    assert names == ['12.049', '12.149', '0', '0-2', '0-3', '0-2-2']
