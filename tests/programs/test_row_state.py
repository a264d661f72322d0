"""Row tables: rows accessed, and recovery of a killed run."""

import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from ppl_lvm.core.errors import DamagedFileError
from ppl_lvm.programs.row_state import ProvideBatchRows, RowTable, RowTables, batch_rows


def _table(size: int) -> RowTable:
    table = RowTable(2)
    table.resize(size)
    return table


def _all(table: RowTable) -> Tensor:
    assert table.size is not None
    return table.read(torch.arange(table.size))


def test_row_table_is_zero_until_a_row_is_written() -> None:
    table, rows = _table(6), torch.tensor([4, 1])
    table.write(rows, torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
    expected = torch.zeros(6, 2)
    expected[4], expected[1] = torch.tensor([1.0, 2.0]), torch.tensor([3.0, 4.0])
    assert torch.equal(_all(table), expected)
    assert torch.equal(table.read(rows), expected[rows])


def test_row_table_reads_copies() -> None:
    table = _table(3)
    table.read(torch.tensor([0])).fill_(9.0)
    assert torch.equal(_all(table), torch.zeros(3, 2))


def test_row_table_of_ten_million_rows_costs_only_the_accessed_rows() -> None:
    table = RowTable(5, torch.float64)
    table.resize(10_000_000)  # 400 MB, none of which is there
    rows = torch.tensor([0, 1234567, 9999999])
    table.write(rows, torch.ones(3, 5))
    assert torch.equal(table.read(rows), torch.ones(3, 5).double())
    assert table.rows_accessed == 6


def test_copy_of_a_row_table_is_independent() -> None:
    table = _table(3)
    table.write(torch.tensor([1]), torch.ones(1, 2))
    other = copy.deepcopy(table)
    assert torch.equal(_all(other), _all(table))
    other.write(torch.tensor([2]), torch.ones(1, 2))
    assert not _all(table)[2].any()


def _step(table: RowTable, number: int) -> None:
    rows = torch.tensor([number % 7, (3 * number) % 11])
    table.write(rows, torch.full((2, 2), float(number)))


def test_row_table_killed_at_any_moment_is_restored_from_its_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.rows"
    path.write_bytes(b"left by an older run")
    table, checkpoint, before = _table(11), {}, torch.zeros(11, 2)
    for number in range(1, 13):
        _step(table, number)
        if number % 3:
            continue
        # Killed before the checkpoint: the last one counts.
        if checkpoint:
            again = RowTable(2)
            again.restore(path, checkpoint)
            assert torch.equal(_all(again), before)
        checkpoint, before = table.changes(), _all(table)
        # Killed when the checkpoint is written and the file is not yet.
        if number > 3:
            again = RowTable(2)
            again.restore(path, checkpoint)
            assert torch.equal(_all(again), before)
        table.commit(path, checkpoint)
        assert not table.changes()["rows"].numel()


def test_row_file_written_before_its_checkpoint_is_wrong(tmp_path: Path) -> None:
    """The wrong twin: safety depends on the order of the two files."""
    path, table = tmp_path / "checkpoint.rows", _table(11)
    _step(table, 1)
    first = table.changes()
    table.commit(path, first)
    _step(table, 2)
    table.commit(path, table.changes())  # killed here, the second checkpoint not written
    with pytest.raises(DamagedFileError, match="checksum"):
        RowTable(2).restore(path, first)


def test_restored_row_table_continues(tmp_path: Path) -> None:
    path, table = tmp_path / "checkpoint.rows", _table(11)
    _step(table, 1)
    first = table.changes()
    table.commit(path, first)
    again = RowTable(2)
    again.restore(path, first)
    for number in (2, 3):
        _step(table, number)
        _step(again, number)
        changes = again.changes()
        again.commit(path, changes)
    third = RowTable(2)
    third.restore(path, changes)
    assert torch.equal(_all(third), _all(table))


@pytest.mark.parametrize("rows", [11, 30_000])  # within a block of the checksum, and several
def test_damaged_row_file_is_refused_by_name_and_stays(tmp_path: Path, rows: int) -> None:
    path, table = tmp_path / "checkpoint.rows", _table(rows)
    for numbers in ([0, 5, rows - 2], [1, rows - 1]):
        table.write(torch.tensor(numbers), torch.randn(len(numbers), 2))
        changes = table.changes()
        table.commit(path, changes)
    content = path.read_bytes()
    damages = [b"", content[:40], content[: len(content) // 2], content[8:]]
    for position in (0, 7, 23, 47, len(content) // 2, len(content) - 9):  # of the older rows
        damages.append(
            content[:position] + bytes([content[position] ^ 128]) + content[position + 1 :]
        )
    for damage in damages:
        path.write_bytes(damage)
        with pytest.raises(DamagedFileError, match=r"checkpoint\.rows is damaged: "):
            RowTable(2).restore(path, changes)
        assert path.read_bytes() == damage
    path.unlink()
    with pytest.raises(DamagedFileError, match="it is missing"):
        RowTable(2).restore(path, changes)
    assert not path.exists()
    path.write_bytes(content)
    again = RowTable(2)
    again.restore(path, changes)
    assert torch.equal(_all(again), _all(table))


class _Keeps(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.row_table = RowTable(2)


def test_row_tables_include_those_of_submodules(tmp_path: Path) -> None:
    guide = nn.ModuleDict({"a": _Keeps(), "b": _Keeps()})
    tables = RowTables(guide, 5)
    guide["a"].row_table.resize(5)
    guide["a"].row_table.write(torch.tensor([2]), torch.ones(1, 2))
    changes = tables.changes()
    tables.commit(tmp_path / "checkpoint.safetensors", changes)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint.a.rows"]
    other = nn.ModuleDict({"a": _Keeps(), "b": _Keeps()})
    RowTables(other, 5).restore(tmp_path / "checkpoint.safetensors", changes)
    assert torch.equal(_all(other["a"].row_table), _all(guide["a"].row_table))
    assert other["b"].row_table.size is None
    assert not RowTables(nn.Linear(1, 1), 5)
    assert not RowTables(lambda x: None, 5)


def test_batch_rows_are_those_of_the_handler() -> None:
    assert batch_rows() is None
    rows = torch.tensor([3, 1])
    with ProvideBatchRows(rows, num_rows=7):
        assert batch_rows() == (rows, 7)
    with RowTables(_Keeps(), 3).shown(None):
        provided = batch_rows()
    assert provided is not None
    assert provided[0].tolist() == [0, 1, 2]
    assert provided[1] == 3
