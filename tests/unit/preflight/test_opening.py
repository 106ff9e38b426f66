"""The opening lines of a run."""

from ds_stage2ab.preflight.opening import banner


def test_the_banner():
    text = banner("32 samples per step = 4 per rank x 2 ranks x 4 micro-steps", [("run", "runs/x"), ("steps", "300")])
    assert text == ("32 samples per step = 4 per rank x 2 ranks x 4 micro-steps\n  run    runs/x\n  steps  300")
