"""The commands as a user types them: real processes, real exit statuses."""

import contextlib
import errno
import io
import json
import math
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tinyvgg.cli import COMMANDS, main
from tinyvgg.completion import CONFIGS, SHELLS
from tinyvgg.endings import explain_error
from tinyvgg.errors import naming
from tinyvgg.model.summary import train_flop
from tinyvgg.shards.store import PackedDataset, open_dataset, write_manifest

REPOSITORY = Path(__file__).parents[1]
FLAG = re.compile(r"--[a-z][a-z0-9-]*")
# a step of it takes a CPU a fifth of one of recipe fast, which the quick start trains
SMALL = ["--arch", "vgg11", "--sizes", "32", "--size-shares", "1"]
SMALL += ["--optimizer", "sgd", "--learning-rate", "0.01"]


def type_command(*words: object, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run `tinyvgg …` in a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "tinyvgg.cli", *map(str, words)],
        capture_output=True,
        text=True,
        cwd=cwd,
        timeout=300,
    )


@pytest.fixture(scope="module")
def quick_start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The README's quick start on a few synthetic images, two steps long."""
    root = tmp_path_factory.mktemp("quick-start")
    for words in (
        ("synth", "images", "--train-per-class", "4", "--val-per-class", "3"),
        ("pack", "images", "packed"),
        ("train", "packed", "--out", "run", "--epochs", "1", "--batch-size", "20"),
        ("evaluate", "run/best.pt", "packed"),
    ):
        done = type_command(*words, cwd=root)
        assert done.returncode == 0, done.stderr
        (root / f"{words[0]}.stdout").write_text(done.stdout)
    return root


@pytest.mark.slow
def test_the_quick_start_leaves_a_run_with_all_its_files(quick_start: Path) -> None:
    names = {path.name for path in (quick_start / "run").iterdir()}

    assert names == {
        "config.json",
        "metrics.jsonl",
        "metrics.csv",
        "last.pt",
        "best.pt",
        "scored.json",
        "report.html",
        "train.log",
        "loss.png",
        "accuracy.png",
        "confusion.csv",
        "confusion.png",
    }


@pytest.mark.slow
def test_evaluate_prints_every_class_in_the_words_of_the_reference(quick_start: Path) -> None:
    lines = (quick_start / "evaluate.stdout").read_text().splitlines()

    per_class = [line for line in lines if line.startswith("Accuracy of ")]
    assert len(per_class) == 10
    assert all(line.endswith(" %") and " : " in line for line in per_class)
    averages = [line for line in lines if line.startswith("Accuracy average: ")]
    expected = json.loads((quick_start / "run" / "metrics.jsonl").read_text())["val_top1"]
    assert float(averages[0].split()[2]) == pytest.approx(100 * expected, abs=0.01)


@pytest.mark.slow
def test_evaluate_ends_with_status_1_under_the_asked_top1(quick_start: Path) -> None:
    done = type_command(
        "evaluate", "run/best.pt", "packed", "--min-top1", "1", "--json", cwd=quick_start
    )

    assert done.returncode == 1
    assert done.stderr.endswith("--min-top1 asks for 1.0000; train longer\n")
    document = json.loads(done.stdout)
    assert document["num_images"] == 30
    assert len(document["class_top1"]) == 10


@pytest.mark.slow
def test_predict_names_what_is_damaged_and_goes_on(quick_start: Path, tmp_path: Path) -> None:
    images = sorted((quick_start / "images" / "val").rglob("*.JPEG"))
    folder = tmp_path / "photos"
    folder.mkdir()
    for number, image in enumerate(images[:2]):
        (folder / f"{number}.jpg").write_bytes(image.read_bytes())
    (folder / "1.jpg").write_bytes(images[1].read_bytes()[:-300])
    (folder / "notes.csv").write_text("x")

    done = type_command(
        "predict", "run/best.pt", folder, images[2], "no.jpg", "--json", "--top-k", "2",
        cwd=quick_start,
    )  # fmt: skip

    assert done.returncode == 1
    document = json.loads(done.stdout)
    assert [found["image"] for found in document["predictions"]] == [
        f"{folder}/0.jpg", str(images[2])
    ]  # fmt: skip
    assert all(len(found["guesses"]) == 2 for found in document["predictions"])
    assert [found["image"] for found in document["damaged"]] == [f"{folder}/1.jpg", "no.jpg"]
    assert "1 files that are no images by their names" in done.stderr
    assert "images: 2 of 4 could not be read; the others are complete" in done.stderr


@pytest.mark.slow
def test_predict_and_evaluate_agree_from_a_checkpoint_and_from_what_is_exported_of_it(
    quick_start: Path, tmp_path: Path
) -> None:
    exported = tmp_path / "best.safetensors"
    done = type_command("export", "run/best.pt", exported, cwd=quick_start)
    assert done.returncode == 0, done.stderr
    again = type_command("export", "run/best.pt", exported, cwd=quick_start)
    assert (again.returncode, again.stdout) == (1, "")
    assert f"{exported}: there already; pass another name, or --overwrite" in again.stderr
    paths = sorted((quick_start / "images" / "val").rglob("*.JPEG"))

    found = [
        subprocess.run(
            [sys.executable, "-m", "tinyvgg.cli", "predict", network, "-", "--csv"],
            input="\n".join(map(str, paths)),
            capture_output=True,
            text=True,
            cwd=quick_start,
            check=True,
        ).stdout
        for network in ("run/best.pt", exported)
    ]
    evaluated = type_command("evaluate", exported, "packed", "--json", cwd=quick_start)

    assert found[0] == found[1]
    rows = [line.split(",") for line in found[0].splitlines()]
    best = {row[0]: row[3] for row in rows if row[1] == "1"}
    listed = (quick_start / "images" / "val" / "val_annotations.txt").read_text().splitlines()
    labels = dict(line.split("\t")[:2] for line in listed)
    hits = sum(best[str(path)] == labels[path.name] for path in paths)
    assert hits > 0
    assert json.loads(evaluated.stdout)["top1"] == pytest.approx(hits / len(paths))


def test_export_to_another_suffix_is_a_usage_error(tmp_path: Path) -> None:
    done = type_command("export", "best.pt", tmp_path / "x.pth")

    assert done.returncode == 2
    assert "out must end with one of .safetensors, .onnx" in " ".join(done.stderr.split())


@pytest.mark.slow
def test_train_resumes_with_the_settings_of_the_run(quick_start: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    first = ("train", quick_start / "packed", "--out", run, "--amp", "off", "--epochs", "2")
    options = ("--batch-size", "20", "--dropout", "0.25", "--limit-steps", "1", *SMALL)

    stopped = type_command(*first, *options)
    resumed = type_command("train", quick_start / "packed", "--out", run, "--resume", "--json")

    assert stopped.returncode == 0, stopped.stderr
    assert "stopped at step 1; --resume continues it" in stopped.stdout
    assert resumed.returncode == 0, resumed.stderr
    document = json.loads(resumed.stdout)
    assert document["step"] == 4
    assert [metrics["epoch"] for metrics in document["history"]] == [0, 1]


@pytest.mark.slow
def test_a_trace_of_the_steps_and_a_target(quick_start: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"

    done = type_command(
        "train", quick_start / "packed", "--out", run, "--amp", "off", "--batch-size", "8",
        "--epochs", "3", "--profile", "2", "--tensorboard", "--target-top1", "0", *SMALL,
    )  # fmt: skip

    assert done.returncode == 0, done.stderr
    assert sum("aten::" in line for line in done.stdout.splitlines()) > 10  # a line each
    events = json.loads((run / "trace.json").read_text())["traceEvents"]
    names = {event.get("name") for event in events}
    assert "aten::convolution_backward" in names
    assert "target reached: val top-1 " in done.stdout
    assert " in epoch 1 of 3, 0.00 % asked for" in done.stdout
    assert "--resume continues it" not in done.stdout
    assert f"next: tinyvgg evaluate {run}/best.pt " in (run / "train.log").read_text()
    assert len(list((run / "tensorboard").iterdir())) == 1


def test_summary_prints_layers_and_operations_and_makes_no_run(
    packed: PackedDataset, tmp_path: Path
) -> None:
    done = type_command(
        "train", packed.folder, "--out", tmp_path / "run", "--arch", "vgg16_bn", "--summary"
    )

    assert done.returncode == 0, done.stderr
    flop = train_flop("vgg16_bn", 3, 64, 64)
    assert f"{flop / 1e9:.3f} GFLOP to train on an image of 64x64" in done.stdout
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_sigterm_during_a_command_ends_with_its_status_and_a_checkpoint(
    quick_start: Path, tmp_path: Path
) -> None:
    words = ["train", str(quick_start / "packed"), "--out", str(tmp_path / "run"), "--amp", "off"]
    words += SMALL
    command = [sys.executable, "-m", "tinyvgg.cli", *words, "--batch-size", "8", "--log-every", "1"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        first = process.stdout.readline()  # of the first step
        process.send_signal(signal.SIGTERM)
        rest, _ = process.communicate(timeout=120)

    assert first.startswith("[1,     1] loss")
    assert process.returncode == 128 + signal.SIGTERM
    assert "--resume continues it" in rest
    assert torch.load(tmp_path / "run" / "last.pt", weights_only=True)["step"] >= 1


@pytest.mark.slow
def test_recipe_seed_prints_the_reference_line(quick_start: Path, tmp_path: Path) -> None:
    done = type_command(
        "train", quick_start / "packed", "--out", tmp_path / "run", "--recipe", "seed",
        "--batch-size", "8", "--epochs", "1", "--log-every", "2",
    )  # fmt: skip

    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stdout.splitlines() if line.startswith("[")]
    assert [line.split("]")[0] for line in lines] == ["[1,     2", "[1,     4"]
    found = re.fullmatch(r"\[1,     2\] loss: (\d\.\d{3}) accuracy: \d+\.\d+", lines[0])
    assert found is not None
    assert float(found[1]) == pytest.approx(math.log(10), abs=0.1)  # of ten classes, by guessing


@pytest.mark.slow
@pytest.mark.parametrize("compiled", ["off", pytest.param("on", marks=pytest.mark.long)])
def test_two_ranks_train_what_one_trains_compiled_or_not(
    quick_start: Path, tmp_path: Path, compiled: str
) -> None:
    words = ["train", str(quick_start / "packed"), "--epochs", "1", "--batch-size", "16"]
    words += ["--amp", "off", "--dropout", "0", "--device", "cpu", *SMALL]
    one = type_command(*words, "--out", tmp_path / "one")
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    launcher += ["--nproc-per-node", "2", "-m", "tinyvgg.cli"]
    ranks = subprocess.run(
        [*launcher, *words, "--compile", compiled, "--out", str(tmp_path / "two")],
        capture_output=True,
        text=True,
        timeout=600,
        env={**os.environ, "OMP_NUM_THREADS": "1", "TORCH_LOGS": "graph_breaks"},
    )

    assert one.returncode == 0, one.stderr
    assert ranks.returncode == 0, ranks.stderr
    assert "Graph break" not in ranks.stderr
    config = json.loads((tmp_path / "two" / "config.json").read_text())
    assert config["resolved"]["compiled"] is (compiled == "on")
    found, expected = (
        json.loads((tmp_path / name / "metrics.jsonl").read_text()) for name in ("two", "one")
    )
    for key in ("train_loss", "val_loss"):
        assert found[key] == pytest.approx(expected[key], rel=1e-3)


def test_verify_and_inspect_of_a_good_folder(packed: object) -> None:
    folder = packed.folder  # type: ignore[attr-defined]

    verified = type_command("verify", folder, "--json")
    inspected = type_command("inspect", folder, "--json")

    assert verified.returncode == 0
    assert json.loads(verified.stdout)["damages"] == []
    description = json.loads(inspected.stdout)
    assert description["splits"]["train"]["num_images"] == 33


def test_verify_of_a_damaged_folder_names_the_images_and_ends_with_status_1(
    packed: object,
) -> None:
    path = packed.folder / "train-00001.npy"  # type: ignore[attr-defined]
    data = bytearray(path.read_bytes())
    data[5000] ^= 1
    path.write_bytes(data)

    done = type_command("verify", path.parent)

    assert done.returncode == 1
    assert "train-00001.npy: images 10 to 19 of the split are damaged" in done.stdout


@pytest.mark.slow
def test_a_run_that_nobody_may_write_into_is_scored_all_the_same(
    quick_start: Path, tmp_path: Path
) -> None:
    (tmp_path / "confusion.csv").mkdir()  # as good as a read-only folder, for root too
    (tmp_path / "best.pt").symlink_to(quick_start / "run" / "best.pt")
    words = ("evaluate", tmp_path / "best.pt", quick_start / "packed")

    beside = type_command(*words)
    asked_for = type_command(*words, "--out", tmp_path, "--json")

    expected = (quick_start / "evaluate.stdout").read_text()
    assert (beside.returncode, beside.stdout) == (0, expected)
    warning = (
        "Is a directory; check free space and permissions, or pass --out (the results are complete)"
    )
    assert f"{tmp_path / 'confusion.csv'}: {warning}" in beside.stderr
    assert asked_for.returncode == 1  # --out was not obeyed
    assert json.loads(asked_for.stdout)["num_images"] == 30
    assert f"tinyvgg evaluate: {tmp_path / 'confusion.csv'}: Is a directory" in asked_for.stderr


@pytest.fixture
def odd_names(packed: PackedDataset) -> PackedDataset:
    """`packed`, its classes named with what a terminal, rich or matplotlib would take for more."""
    names = ("$a_{b$ \x1b[2J", "[red]\u732b :smile:", "long " * 30 + "end\u202e")
    classes = [
        record.model_copy(update={"folder": name, "words": name})
        for name, record in zip(names, packed.manifest.classes, strict=True)
    ]
    write_manifest(packed.folder, packed.manifest.model_copy(update={"classes": classes}))
    return open_dataset(packed.folder)


@pytest.mark.parametrize("encoding", ["utf-8", "ascii", "latin-1"])
def test_names_are_printed_as_text_in_any_encoding(
    odd_names: PackedDataset, tmp_path: Path, encoding: str
) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tinyvgg.cli", "inspect", str(odd_names.folder), "--grid", "g.png"],
        capture_output=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONIOENCODING": encoding},
    )

    assert done.returncode == 0, done.stderr
    text = done.stdout.decode(encoding)
    assert r"$a_{b$ \x1b[2J" in text
    cat = "\u732b" if encoding == "utf-8" else r"\u732b"
    assert f"[red]{cat} :smile:" in text
    assert text.count("long") == 60  # a long name is folded, not cut
    assert "\u202e" not in text
    assert (tmp_path / "g.png").stat().st_size > 1000


@pytest.mark.parametrize("words", [("inspect",), ("verify", "--json"), ("inspect", "--help"), ()])
def test_a_closed_pipe_ends_a_command_quietly(
    packed: PackedDataset, words: tuple[str, ...]
) -> None:
    folder = [str(packed.folder)] if words else ["--help"]
    reader, writer = os.pipe()
    os.close(reader)

    done = subprocess.run(
        [sys.executable, "-m", "tinyvgg.cli", *words[:1], *folder, *words[1:]],
        stdout=writer,
        stderr=subprocess.PIPE,
        text=True,
    )
    os.close(writer)

    assert done.returncode == 128 + signal.SIGPIPE
    assert [line for line in done.stderr.splitlines() if not line.startswith("verify")] == []


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="NOT RUN: there is no /dev/full")
@pytest.mark.parametrize("words", [("inspect", "--json"), ("inspect",), ("inspect", "--help")])
def test_a_full_disk_behind_stdout_is_named(packed: PackedDataset, words: tuple[str, ...]) -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "tinyvgg.cli", words[0], str(packed.folder), *words[1:]],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
        )

    assert done.returncode == 1
    message = "tinyvgg inspect: stdout: No space left on device; check free space and permissions\n"
    assert done.stderr == message


def test_a_full_disk_is_told_with_what_was_needed_and_what_is_free(tmp_path: Path) -> None:
    path = tmp_path / "no" / "such" / "last.pt"

    with pytest.raises(OSError, match="No space") as failed, naming(path, 1_234_567):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    status, text = explain_error(failed.value)
    assert status == 1
    pattern = r": No space left on device, 1,234,567 bytes needed, [\d,]+ bytes free; make room, or"
    assert re.match(re.escape(str(path)) + pattern, text)


@pytest.mark.parametrize(
    ("words", "status", "message"),
    [
        (["pack", "nowhere", "out"], 1, "tinyvgg pack: nowhere: no such folder or zip"),
        (["inspect", "nowhere"], 1, "tinyvgg inspect: nowhere: no such folder"),
        (["train", "nowhere", "--out", "run"], 1, "tinyvgg train: nowhere: no such folder"),
        (["train", "p", "--out", "nowhere", "--resume"], 1, "nowhere: no run to resume"),
        (["evaluate", "no.pt", "packed"], 1, "tinyvgg evaluate: no.pt: no such checkpoint"),
        (["train", "p", "--out", "r", "--epochs", "0"], 2, "epochs must be at least 1, got 0"),
        (["pack"], 2, "SOURCE"),
        (
            ["inspect", "no\x1b[2J\nw\u202ehere"],
            1,
            r"inspect: no\x1b[2J\nw\u202ehere: no such folder",
        ),
        (["pack", "no\x07where", "out"], 1, r"tinyvgg pack: no\x07where: no such folder or zip"),
        (["fly"], 2, "tinyvgg: command must be one of synth, download, pack"),
    ],
)
def test_bad_input_ends_with_its_status_and_no_traceback(
    words: list[str], status: int, message: str, tmp_path: Path
) -> None:
    done = type_command(*words, cwd=tmp_path)

    assert done.returncode == status
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_an_absent_device_is_refused_by_name(packed: object, tmp_path: Path) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("NOT RUN: this machine has CUDA")
    folder = packed.folder  # type: ignore[attr-defined]

    done = type_command("train", folder, "--out", tmp_path / "run", "--device", "cuda")

    assert done.returncode == 1
    assert "device 'cuda': this machine's accelerator is none" in done.stderr


def test_both_doors_print_the_same_help() -> None:
    tool = subprocess.run(
        [sys.executable, str(REPOSITORY / "tools" / "pack_dataset.py"), "--help"],
        capture_output=True,
        text=True,
    )

    assert tool.returncode == 0
    assert tool.stdout == type_command("pack", "--help").stdout


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_and_a_line_in_the_list(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main([command, "--help"])
    assert ended.value.code == 0
    assert f"usage: tinyvgg {command}" in capsys.readouterr().out

    assert main(["--help"]) == 0
    assert f"\n  {command} " in capsys.readouterr().out


@pytest.mark.parametrize("command", COMMANDS)
def test_help_fits_80_columns_and_names_no_flag_of_another_command(
    command: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")

    with pytest.raises(SystemExit):
        main([command, "--help"])

    lines = capsys.readouterr().out.partition("positional arguments")[2].splitlines()
    flags = [line for line in lines if re.match(r"  (?:-h, )?--", line)]
    assert len(flags) >= 2
    assert set(FLAG.findall("\n".join(lines))) == set(FLAG.findall("\n".join(flags)))
    assert max(map(len, lines)) == 80


WITHOUT_TORCH = """
import sys
class NoTorch:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "torch":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, NoTorch())
from tinyvgg.cli import main
raise SystemExit(main(sys.argv[1:]))
"""


def test_a_machine_without_torch_packs_and_says_what_training_needs(tmp_path: Path) -> None:
    def type_without_torch(*words: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", WITHOUT_TORCH, *words]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)

    for words in (
        ("synth", "images", "--train-per-class", "2", "--val-per-class", "1"),
        ("pack", "images", "packed"),
        ("verify", "packed"),
        ("inspect", "packed", "--grid", "grid.png"),
    ):
        done = type_without_torch(*words)
        assert done.returncode == 0, done.stderr
    for words in (
        ("train", "packed", "--out", "run"),
        ("evaluate", "run/best.pt", "packed"),
        ("bench", "packed"),
    ):
        done = type_without_torch(*words)
        assert done.returncode == 1
        message = f"tinyvgg {words[0]}: needs torch, which is not installed; run pip install torch"
        assert done.stderr.endswith(f"{message}\n")
        assert "Traceback" not in done.stderr


@pytest.mark.parametrize("shell", SHELLS)
def test_completion_knows_every_command_and_flag(
    shell: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--completion", shell]) == 0

    script = capsys.readouterr().out
    assert set(CONFIGS) == set(COMMANDS)
    for word in (*COMMANDS, "--val-share", "--checkpoint-minutes", "--min-top1"):
        assert word in script
    assert "--name" not in script


def test_bash_completes_a_command_a_flag_and_a_choice(tmp_path: Path) -> None:
    with contextlib.redirect_stdout(io.StringIO()) as script:
        main(["--completion", "bash"])
    (tmp_path / "completion.bash").write_text(script.getvalue())
    complete = (
        "source completion.bash; COMP_WORDS=({words}); COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1)); "
        '_tyro_tinyvgg; echo "${{COMPREPLY[@]}}"'
    )

    found = [
        subprocess.run(
            ["bash", "-c", complete.format(words=words)],
            cwd=tmp_path, capture_output=True, text=True, check=True,
        ).stdout.split()
        for words in ("tinyvgg eva", "tinyvgg pack --val", "tinyvgg train --optimizer mu")
    ]  # fmt: skip

    assert found == [["evaluate"], ["--val-share"], ["muon"]]


def test_completion_for_another_shell_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--completion", "ksh"]) == 2
    assert "completion must be for one of bash, zsh, fish, got 'ksh'" in capsys.readouterr().err


def test_a_mistyped_command_gets_a_suggestion(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["trian"]) == 2
    assert capsys.readouterr().err.endswith("got 'trian'; did you mean train?\n")


def test_help_of_train_is_in_groups(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["train", "--help"])

    titles = re.findall(r"^ (\w+) options ", capsys.readouterr().out, re.MULTILINE)
    assert titles == ["data", "network", "schedule", "optimizer", "speed", "run", "output"]


@pytest.mark.slow
def test_bench_names_a_rate_for_every_stage_and_the_bottleneck(
    quick_start: Path, tmp_path: Path
) -> None:
    done = type_command(
        "bench",
        quick_start / "packed",
        "--window-sec",
        "0.05",
        "--repeats",
        "2",
        "--json",
        "--out",
        tmp_path / "b.json",
    )

    assert done.returncode == 0, done.stderr
    document = json.loads((tmp_path / "b.json").read_text())
    assert json.loads(done.stdout) == document
    assert [stage["stage"] for stage in document["stages"]] == [
        "pack",
        "load, backend dali",
        "load, backend torch",
        "load, backend resident",
        "step",
        "train (load + step)",
    ]
    assert all(len(stage["windows"]) == 2 for stage in document["stages"])
    assert all(
        0 < stage["low"] <= stage["images_per_sec"] <= stage["high"] for stage in document["stages"]
    )
    assert document["bottleneck"].startswith("bottleneck: ")
