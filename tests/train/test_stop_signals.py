"""Signals end a run after its step, with a checkpoint, and say so; first steps are logged."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
import torch

from nextstep.train.stop_signals import StopSignals
from nextstep.train.trainer import Trainer
from tests.train.test_trainer import trainer_of, weights
from tests.train.toy import events_of, figures_of


@pytest.mark.parametrize("name", ["SIGTERM", "SIGUSR1", "SIGINT"])
def test_signal_ends_a_run_after_its_step_and_the_run_goes_on(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], name: str
) -> None:
    before = signal.getsignal(signal.SIGTERM)

    def ask(trainer: Trainer) -> None:
        if trainer.step == 3:
            os.kill(os.getpid(), signal.Signals[name])

    stopped = trainer_of(tmp_path / "a", hooks={"on_sample": ask}, sample_every=3)
    assert not stopped.run()
    assert stopped.step == 4
    assert f"nextstep: {name}: stops after this step and saves" in capfd.readouterr().err
    assert [row["detail"] for row in events_of(tmp_path / "a")] == [f"by {name}"]
    assert signal.getsignal(signal.SIGTERM) is before

    again = trainer_of(tmp_path / "a")
    assert again.resume() and again.step == 4
    assert again.run()
    whole = trainer_of(tmp_path / "b")
    assert whole.run()
    for key, value in weights(whole.model).items():
        assert torch.equal(value, weights(again.model)[key]), key


def test_second_signal_does_what_it_did_before(
    capfd: pytest.CaptureFixture[str],
) -> None:
    # Programs that run in the background are begun with SIGINT ignored.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with StopSignals() as stop:
            os.kill(os.getpid(), signal.SIGINT)
            assert stop.asked == "SIGINT"
            with pytest.raises(KeyboardInterrupt):
                os.kill(os.getpid(), signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, before)
    assert capfd.readouterr().err.count("again stops at once") == 1


def test_first_steps_are_logged_however_rarely_others_are(tmp_path: Path) -> None:
    assert trainer_of(tmp_path, log_every=100).run()
    assert [row["step"] for row in figures_of(tmp_path)] == [1, 2, 5, 10, 12]
