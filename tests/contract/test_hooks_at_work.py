"""Hooks that no shipped method uses yet do what they are for, shown by the test-only methods."""

import numpy as np

from tests.contract import rig
from tests.contract.table import CASES


def test_leaves_made_by_start_are_moved_by_the_optimizer_of_their_role():
    run = rig.run((CASES["toy_lora"].line,))
    first, last = (state.methods["toy_lora"] for state in (run.states[0], run.last))
    for factors in (first.generator, first.discriminator):
        assert not factors["b"].any()
        assert factors["a"].any()
    assert last.generator["b"].any()
    assert last.discriminator["b"].any()
    frozen_d = rig.run_with_only("generator", (CASES["toy_lora"].line,)).methods["toy_lora"]
    rig.assert_same_bytes(frozen_d.discriminator, first.discriminator)
    assert frozen_d.generator["b"].any()


def test_added_weights_that_start_at_zero_leave_the_first_judgement_as_it_was():
    on, off = rig.run((CASES["toy_lora"].line,)), rig.run(())
    for name in ("logits/real", "logits/fake", "loss/discriminator"):
        np.testing.assert_allclose(on.states[1].tick[name], off.states[1].tick[name], rtol=1e-6)
    assert on.states[2].tick["loss/discriminator"][0] != off.states[2].tick["loss/discriminator"][0]


def test_optimizers_keep_moments_for_the_leaves_of_methods():
    on, off = (rig.named(rig.run(lines).last.optimizer_g) for lines in ((CASES["toy_miner"].line,), ()))
    assert len(on) > len(off)


def test_a_trained_latent_shift_moves_by_the_generators_loss_alone():
    run = rig.run((CASES["toy_miner"].line,))
    assert run.last.methods["toy_miner"].generator["shift"] != 0
    still = rig.run_with_only("discriminator", (CASES["toy_miner"].line,))
    assert still.methods["toy_miner"].generator["shift"] == 0


def test_a_carried_number_follows_the_sign_of_the_logits_of_reals_step_by_step():
    run = rig.run((CASES["toy_controller"].line,))
    numbers = [float(state.methods["toy_controller"].carried["p"]) for state in run.states]
    mean_logits = np.diff([float(state.tick["logits/real"][0]) for state in run.states])
    np.testing.assert_array_equal(np.diff(numbers), 0.5 * np.sign(mean_logits))


def test_a_carried_number_is_seen_by_the_next_view():
    on, off = rig.run((CASES["toy_controller"].line,)), rig.run(())
    np.testing.assert_allclose(on.states[1].tick["logits/real"], off.states[1].tick["logits/real"], rtol=1e-6)
    assert abs(on.states[2].tick["logits/real"][0] - off.states[2].tick["logits/real"][0]) > 1e-3


def test_a_lazy_term_is_logged_only_where_it_is_due_and_weighs_its_interval():
    run = rig.run((CASES["r1"].line,))
    counts = [float(state.tick["r1/penalty"][1]) for state in run.states]
    assert counts == [0, 1, 1, 2, 2]
    tick = run.states[1].tick
    adversarial = tick["loss/discriminator_real"][0] + tick["loss/discriminator_fake"][0]
    expected = adversarial + 2 * 300.0 * tick["r1/penalty"][0]
    np.testing.assert_allclose(tick["loss/discriminator"][0], expected, rtol=1e-5)


def test_held_leaves_have_no_moments_and_keep_their_bytes():
    run = rig.run((CASES["freeze_discriminator"].line,))
    assert "block_0" not in run.last.discriminator.trained
    assert not any("block_0" in path for path in rig.named(run.last.optimizer_d))
    assert "block_1" in run.last.discriminator.trained
