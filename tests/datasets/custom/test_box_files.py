import json
import math

import pytest

from stratified3d.datasets.custom.box_files import read_box_table

HEADER = 'frame,name,x,y,z,dx,dy,dz,yaw'


def write(tmp_path, text, name='boxes.csv'):
    path = tmp_path / name
    path.write_text(text)
    return path


def test_csv_and_json_give_the_same(tmp_path):
    table = write(
        tmp_path,
        f'{HEADER},vx,vy,track\na,car,1,2,3,4,2,1,0.5,1,,7\na,bus,0,0,0,9,3,3,-3,,,8\n'
        'b, car ,1,2,3,4,2,1,0.5,,,9\n',
    )
    boxes = read_box_table(table)
    assert [box.name for box in boxes['a']] == ['car', 'bus'] and boxes['b'][0].name == 'car'
    numbers = boxes['a'][0].numbers
    assert numbers[:8] == (1, 2, 2.5, 4, 2, 1, 0.5, 1) and math.isnan(numbers[8])
    keys = HEADER.split(',')[1:]
    content = {
        'a': [
            dict(zip(keys, ('car', 1, 2, 3, 4, 2, 1, 0.5)), vx=1),
            dict(zip(keys, ('bus', 0, 0, 0, 9, 3, 3, -3))),
        ],
        'b': [dict(zip(keys, ('car', 1, 2, 3, 4, 2, 1, 0.5)))],
        'c': [],
    }
    read = read_box_table(write(tmp_path, json.dumps(content), 'boxes.json'))
    assert repr(read) == repr(boxes | {'c': []})


def test_origin_and_degrees_are_converted(tmp_path):
    path = write(tmp_path, f'{HEADER}\na,car,1,2,3,4,2,1,180\n')
    numbers = read_box_table(path, origin='bottom', use_degrees=True)['a'][0].numbers
    assert numbers[2] == 3 and numbers[6] == pytest.approx(math.pi)


@pytest.mark.parametrize(
    'text, message',
    [
        ('frame,name,x,y\na,car,1,2', 'z, dx, dy, dz, yaw missing, found frame, name, x, y'),
        ('', 'missing, found nothing'),
        (
            f'{HEADER}\na,car,1,2,3,4,2,1,0\na,car,1,2,3,4,0,1,0',
            r'boxes.csv, line 3: the size is 4 x 0 x 1 m',
        ),
        (f'{HEADER}\na,car,1,2,3,4,2,1,90', 'line 2: a yaw of 90 .*--degrees'),
        (f'{HEADER}\na,car,1,two,3,4,2,1,0', "line 2: y is 'two'"),
        (f'{HEADER}\na,car,1,2,3,4,2', 'line 2: dz is None'),
        (f'{HEADER}\na,car,1,nan,3,4,2,1,0', 'line 2: .* not finite'),
        (f'{HEADER}\na,,1,2,3,4,2,1,0', 'line 2: the box has no name'),
    ],
)
def test_bad_rows_of_a_table_are_named(tmp_path, text, message):
    with pytest.raises(ValueError, match=message):
        read_box_table(write(tmp_path, text))


@pytest.mark.parametrize(
    'text, message',
    [
        ('{"a": [', 'not valid JSON'),
        ('[1]', 'not of the form'),
        ('{"a": [3]}', 'frame a, box 0: 3'),
        ('{"a": [{"name": "car"}]}', 'frame a, box 0: x is None'),
    ],
)
def test_damaged_json_is_named(tmp_path, text, message):
    with pytest.raises(ValueError, match=message):
        read_box_table(write(tmp_path, text, 'boxes.json'))


def test_other_files_than_tables_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match='there is no box file'):
        read_box_table(tmp_path / 'none.csv')
    with pytest.raises(ValueError, match='read from .csv and .json'):
        read_box_table(write(tmp_path, '', 'boxes.txt'))
    with pytest.raises(ValueError, match="'center' or 'bottom', not 'top'"):
        read_box_table(write(tmp_path, HEADER), origin='top')
