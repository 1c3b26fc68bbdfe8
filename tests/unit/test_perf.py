"""What measures, as far as no server is needed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from floor import layer_weights, step_seconds
from qwen3guard_apps.cli import perf_analyzer
from qwen3guard_apps.cli.main import main
from qwen3guard_contract import wire
from qwen3guard_contract.errors import PerfAnalyzerError
from qwen3guard_contract.manifest import Manifest
from qwen3guard_export.checkpoint.checkpoint import open_checkpoint


@pytest.mark.parametrize("option", ["--concurrency", "--rate", "--seconds", "--tokens"])
@pytest.mark.parametrize("value", ["0", "-1", "nan"])
def test_loads_of_nothing_are_refused(option: str, value: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["perf", f"{option}={value}"])
    assert option in capsys.readouterr().err


def test_the_floor_counts_the_layers_weights_and_the_slots_cells(repository: Path) -> None:
    """Of the demo, against its checkpoint's tensors and a slot's arrays."""
    manifest = Manifest.read(repository / "stream_guard" / "1")
    shapes = open_checkpoint("demo/stream").architecture.block_shapes(0)
    matrices = sum(int(np.prod(shape)) for shape in shapes.values() if len(shape) == 2)
    assert layer_weights(manifest) == manifest.layers * matrices
    cells = 2 * manifest.layers * 100 * manifest.kv_heads * manifest.head_dim * 4
    assert step_seconds(manifest, {"read_gb_s": 2.0}, 100) == pytest.approx((layer_weights(manifest) + cells) / 2e9)


@pytest.mark.parametrize("hangs", [1, 2])
def test_a_perf_analyzer_that_does_not_end_is_tried_once_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hangs: int
) -> None:
    program, tried = tmp_path / "perf_analyzer", tmp_path / "tried"
    program.write_text(
        "#!/bin/sh\n"
        'if [ "$1" = --version ]; then echo Perf Analyzer; exit; fi\n'
        f"echo >> {tried}; if [ $(wc -l < {tried}) -le {hangs} ]; then exec sleep 600; fi\n"
        "while [ $1 != --profile-export-file ]; do shift; done\n"
        """echo '{"experiments": [{"requests": [{"timestamp": 0, "response_timestamps": [5000000]}]}]}' > $2\n"""
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.setattr(perf_analyzer, "ENDS_S", 1.0)
    analyzer = perf_analyzer.Analyzer()

    def run() -> tuple[list[dict[str, object]], float]:
        return analyzer._run("127.0.0.1:1", wire.CLASSIFY, [], perf_analyzer.Load(concurrency=1), 0.1, call_s=0.1)

    if hangs == 1:
        requests, span_s = run()
        assert (len(requests), span_s) == (1, 0.005)
    else:
        with pytest.raises(PerfAnalyzerError, match="perf_analyzer did not end within 2 s"):
            run()
    assert tried.read_text() == "\n\n"
