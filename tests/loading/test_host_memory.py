"""What a process may use, from files as Linux 6 writes them."""

from pathlib import Path

import pytest

from tinyvgg.loading.host_memory import find_free_memory

GIB = 2**30
UNLIMITED_V1 = "9223372036854771712\n"


@pytest.fixture
def system(tmp_path: Path) -> Path:
    """A system with 3 GiB available, in no group."""
    (tmp_path / "proc" / "self").mkdir(parents=True)
    (tmp_path / "groups").mkdir()
    meminfo = f"MemTotal:       {8 * 2**20} kB\nMemAvailable:   {3 * 2**20} kB\n"
    (tmp_path / "proc" / "meminfo").write_text(meminfo)
    return tmp_path


def join(system: Path, line: str) -> None:
    with (system / "proc" / "self" / "cgroup").open("a") as file:
        file.write(line + "\n")


def limit_v1(
    system: Path, group: str, limit: str, rss: int = 0, controllers: str = "memory"
) -> None:
    folder = system / "groups" / controllers / group
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "memory.limit_in_bytes").write_text(limit)
    (folder / "memory.stat").write_text(f"cache 77\nrss 5\ntotal_cache 99\ntotal_rss {rss}\n")


def limit_v2(system: Path, group: str, limit: str, anon: int = 0) -> None:
    folder = system / "groups" / group
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "memory.max").write_text(limit)
    (folder / "memory.stat").write_text(f"anon {anon}\nfile 4096\nkernel 12\n")


def free_of(system: Path) -> int:
    return find_free_memory(system / "proc", system / "groups")


def test_without_a_group_it_is_what_the_machine_has_available(system: Path) -> None:
    assert free_of(system) == 3 * GIB


def test_the_limit_of_a_group_counts_less_what_its_processes_hold(system: Path) -> None:
    join(system, "0::/job")
    limit_v2(system, "job", f"{2 * GIB}\n", anon=GIB // 2)

    assert free_of(system) == 3 * GIB // 2


def test_a_group_above_counts_as_well(system: Path) -> None:
    join(system, "0::/slurm/job/step")
    limit_v2(system, "slurm", "max\n")
    limit_v2(system, "slurm/job", f"{GIB}\n")
    limit_v2(system, "slurm/job/step", f"{2 * GIB}\n")

    assert free_of(system) == GIB


def test_groups_of_version_1(system: Path) -> None:
    join(system, "4:cpu,cpuacct:/docker/abc")
    join(system, "3:memory:/docker/abc")
    join(system, "0::/")
    limit_v1(system, "", UNLIMITED_V1)
    limit_v1(system, "docker/abc", f"{2 * GIB}\n", rss=GIB)

    assert free_of(system) == GIB


def test_in_a_container_whose_path_is_the_hosts_the_top_is_its_own(system: Path) -> None:
    join(system, "3:memory:/docker/abc")
    limit_v1(system, "", f"{GIB}\n", rss=100)

    assert free_of(system) == GIB - 100


def test_a_limit_above_what_is_available_changes_nothing(system: Path) -> None:
    join(system, "3:memory:/")
    limit_v1(system, "", UNLIMITED_V1, rss=5)

    assert free_of(system) == 3 * GIB


def test_a_group_that_holds_more_than_its_limit_has_nothing_free(system: Path) -> None:
    join(system, "0::/job")
    limit_v2(system, "job", f"{GIB}\n", anon=2 * GIB)

    assert free_of(system) == 0


def test_shared_memory_is_held_too(system: Path) -> None:
    join(system, "0::/job")
    limit_v2(system, "job", f"{2 * GIB}\n", anon=GIB // 4)
    with (system / "groups" / "job" / "memory.stat").open("a") as file:
        file.write(f"shmem {GIB // 2}\n")

    assert free_of(system) == 5 * GIB // 4


def test_a_group_that_is_slowed_down_from_a_size_counts_as_limited_to_it(system: Path) -> None:
    join(system, "0::/job")
    limit_v2(system, "job", "max\n")
    (system / "groups" / "job" / "memory.high").write_text(f"{GIB}\n")

    assert free_of(system) == GIB


def test_controllers_that_are_mounted_together(system: Path) -> None:
    join(system, "3:cpu,memory:/job")
    limit_v1(system, "job", f"{GIB}\n", controllers="cpu,memory")

    assert free_of(system) == GIB


@pytest.mark.parametrize("line", ["", "3", "0::", "0::/a\u2028b", "0::/../..", "3:memory:/a\0b"])
def test_a_group_that_is_no_name_changes_nothing(system: Path, line: str) -> None:
    join(system, line)

    assert free_of(system) == 3 * GIB


def test_names_and_numbers_that_nobody_expects_change_nothing(system: Path) -> None:
    (system / "proc" / "self" / "cgroup").write_bytes(b"0::/\xff\n0::/job\n")
    limit_v2(system, "job", "\n\n")
    assert free_of(system) == 3 * GIB

    limit_v2(system, "job", f"{GIB}\n")
    (system / "groups" / "job" / "memory.stat").write_text("anon\n\nanon many\nshmem 12 13\n")
    assert free_of(system) == GIB - 12

    (system / "proc" / "meminfo").write_text("MemAvailable:\n")
    assert free_of(system) == GIB - 12


def test_this_machine_has_some_and_not_more_than_all() -> None:
    meminfo = Path("/proc/meminfo")
    if not meminfo.exists():
        pytest.skip("needs Linux")
    total = int(meminfo.read_text().split()[1]) * 2**10

    assert 0 < find_free_memory() <= total
