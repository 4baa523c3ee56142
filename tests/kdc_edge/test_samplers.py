"""Oracles: diffusers' schedulers around the same network, and the closed-form solution for Gaussian data."""

import math
from dataclasses import replace

import numpy as np
import pytest

from kdc_edge.denoise import PREDICTIONS, from_network, guided
from kdc_edge.errors import UsageError
from kdc_edge.manifest import Betas
from kdc_edge.noise import gaussian
from kdc_edge.samplers import SAMPLERS, Plan, moved
from kdc_edge.schedule import Schedule

# diffusers reads tensors through numpy's old protocol
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

BETAS = Betas("scaled_linear", 0.00085, 0.012, 1000, "leading", 1, False)
SHAPE = (1, 4, 8, 8)
SPACINGS = ["leading", "trailing", "linspace"]
CLASSES = {
    "euler": "EulerDiscreteScheduler",
    "ddim": "DDIMScheduler",
    "dpmpp_2m": "DPMSolverMultistepScheduler",
    "pndm": "PNDMScheduler",
    "lcm": "LCMScheduler",
}
EXTRA = {"ddim": {"clip_sample": False}, "pndm": {"skip_prk_steps": True}}
ALPHA_TO_ONE = ("ddim", "pndm", "lcm")  # the schedulers that have the setting


def network(x, t):
    """Smooth, bounded, different in every element and at every timestep."""
    ramp = np.linspace(-1, 1, x.size, dtype=np.float32).reshape(x.shape)
    return np.tanh(0.7 * x + 0.3 * ramp + np.float32(math.sin(t / 150))).astype(np.float32)


def diffusers_scheduler(name, betas, prediction_type):
    import diffusers

    kwargs = {"set_alpha_to_one": betas.set_alpha_to_one} if name in ALPHA_TO_ONE else {}
    return getattr(diffusers, CLASSES[name])(
        num_train_timesteps=betas.train_steps,
        beta_start=betas.start,
        beta_end=betas.end,
        beta_schedule=betas.schedule,
        prediction_type=prediction_type,
        timestep_spacing=betas.spacing,
        steps_offset=betas.steps_offset,
        **kwargs,
        **EXTRA.get(name, {}),
    )


def as_epsilon(network, prediction_type, schedule):
    """The same network, its predictions turned to epsilon."""
    denoise = from_network(network, prediction_type, schedule)

    def epsilon(x, t):
        sigma = float(schedule.sigma(np.array(t)))
        x = x * math.hypot(1, sigma)
        return ((x - denoise(x, sigma)) / sigma).astype(np.float32)

    return epsilon


def diffusers_picture(name, betas, prediction_type, steps, noise, monkeypatch):
    """Unit-variance latents at the end, as StableDiffusionPipeline's loop has them."""
    import torch
    from diffusers.schedulers import scheduling_lcm

    monkeypatch.setattr(scheduling_lcm, "randn_tensor", lambda shape, **_: torch.from_numpy(noise(tuple(shape))))
    net = network
    if name == "pndm":  # mixes epsilons here whatever the network predicts
        net, prediction_type = as_epsilon(network, prediction_type, Schedule.of(betas)), "epsilon"
    scheduler = diffusers_scheduler(name, betas, prediction_type)
    scheduler.set_timesteps(steps)
    x = torch.from_numpy(noise(SHAPE)) * float(scheduler.init_noise_sigma)
    for t in scheduler.timesteps:
        seen = scheduler.scale_model_input(x, t)
        x = scheduler.step(torch.from_numpy(net(seen.numpy(), float(t))), t, x, return_dict=False)[0]
    return x.numpy()


def our_steps(name, betas, prediction_type, steps, noise):
    schedule, sampler = Schedule.of(betas), SAMPLERS[name]
    plan = sampler.plan(schedule, steps)
    denoise = from_network(network, prediction_type, schedule)
    return list(sampler.loop(denoise, noise(SHAPE) * plan.start, plan, noise))


def our_picture(name, betas, prediction_type, steps, noise):
    last = our_steps(name, betas, prediction_type, steps, noise)[-1]
    return last.x / math.hypot(1, last.sigma)


def relative(a, b):
    return float(np.abs(a - b).max() / np.abs(b).max())


@pytest.mark.parametrize("steps", [1, 2, 7, 20, 30])
@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("prediction_type", PREDICTIONS)
@pytest.mark.parametrize("name", SAMPLERS)
def test_as_diffusers(name, prediction_type, spacing, steps, monkeypatch):
    betas = replace(BETAS, spacing=spacing)
    theirs = diffusers_picture(name, betas, prediction_type, steps, gaussian(7), monkeypatch)
    ours = our_picture(name, betas, prediction_type, steps, gaussian(7))
    assert ours.dtype == np.float32 and relative(ours, theirs) <= 1e-4


@pytest.mark.parametrize("schedule", ["linear", "scaled_linear"])
@pytest.mark.parametrize("to_one", [True, False])
@pytest.mark.parametrize("offset", [0, 1])
@pytest.mark.parametrize("name", SAMPLERS)
def test_as_diffusers_in_the_other_settings(name, offset, to_one, schedule, monkeypatch):
    betas = replace(BETAS, steps_offset=offset, set_alpha_to_one=to_one, schedule=schedule)
    theirs = diffusers_picture(name, betas, "epsilon", 10, gaussian(3), monkeypatch)
    assert relative(our_picture(name, betas, "epsilon", 10, gaussian(3)), theirs) <= 1e-4


@pytest.mark.parametrize("name", SAMPLERS)
def test_every_step_is_yielded_and_the_caller_may_stop(name):
    steps = our_steps(name, BETAS, "epsilon", 5, gaussian(0))
    assert [step.index for step in steps] == list(range(steps[0].total))
    sampler, schedule = SAMPLERS[name], Schedule.of(BETAS)
    plan, calls = sampler.plan(schedule, 5), []

    def denoise(x, sigma):
        calls.append(sigma)
        return x * 0

    next(sampler.loop(denoise, np.ones(SHAPE, np.float32), plan, gaussian(0)))
    assert calls == [plan.sigmas[0]]


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_network_that_knows_the_picture_is_believed(name):
    picture = gaussian(5)(SHAPE)
    sampler = SAMPLERS[name]
    plan = sampler.plan(Schedule.of(replace(BETAS, set_alpha_to_one=True)), 8)
    *_, last = sampler.loop(lambda x, sigma: picture, gaussian(6)(SHAPE) * plan.start, plan, gaussian(7))
    assert last.sigma == 0 and np.allclose(last.x, picture, atol=2e-5 if name != "lcm" else 1e-3)


MEAN, DEVIATION = 0.3, 0.5


def ideal(x, sigma):
    """E[x0 | x] for x0 ~ N(MEAN, DEVIATION²)."""
    return (x * DEVIATION**2 + MEAN * sigma**2) / (DEVIATION**2 + sigma**2)


def exact(x, start, end):
    """The probability-flow ODE's solution for the same data."""
    return MEAN + (x - MEAN) * math.sqrt((DEVIATION**2 + end**2) / (DEVIATION**2 + start**2))


def hand_plan(name, sigmas):
    """Levels of our choice, none of them 0, with pndm's doubled second evaluation."""
    at, source, target = sigmas[:-1], sigmas[:-1], sigmas[1:]
    if name == "pndm":
        at = np.insert(at, 1, at[1])
        source, target = np.insert(source, 1, source[0]), np.insert(target, 1, target[0])
    return Plan(at * 0, at, source, target, 1.0)


def error_of(name, steps, spaced):
    sigmas = spaced(10.0, 0.5, steps + 1)
    x = np.array([[-12.0, 1.0, 9.0]])
    *_, last = SAMPLERS[name].loop(ideal, x, hand_plan(name, sigmas), gaussian(0))
    return float(np.abs(last.x - exact(x, 10.0, 0.5)).max())


@pytest.mark.parametrize(
    ("name", "order", "spaced"),
    [("euler", 1, np.linspace), ("ddim", 1, np.linspace), ("dpmpp_2m", 2, np.geomspace), ("pndm", 2, np.linspace)],
)
def test_order_on_gaussian_data(name, order, spaced):
    coarse, fine = error_of(name, 100, spaced), error_of(name, 200, spaced)
    assert math.log2(coarse / fine) > order - 0.15


def test_moving_keeps_the_unit_variance_form():
    x = gaussian(0)(SHAPE)
    assert np.allclose(moved(x, 3.0, 2.0) / math.hypot(1, 2), x / math.hypot(1, 3), atol=1e-6)
    assert moved(x, 3.0, 3.0) is x


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("steps", [0, -1, 1001])
def test_impossible_step_counts(name, steps):
    with pytest.raises(UsageError, match=f"steps is {steps}, must be between 1 and 1000"):
        SAMPLERS[name].plan(Schedule.of(BETAS), steps)


def test_lcm_has_its_own_limit():
    with pytest.raises(UsageError, match="at most 50"):
        SAMPLERS["lcm"].plan(Schedule.of(BETAS), 51)


def test_an_offset_past_the_schedule():
    with pytest.raises(UsageError, match="1000 steps with steps_offset 1 pass the schedule"):
        SAMPLERS["ddim"].plan(Schedule.of(BETAS), 1000)


def test_schedule_is_diffusers():
    import diffusers

    theirs = diffusers.DDIMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear").alphas_cumprod
    assert np.allclose(1 / (1 + Schedule.of(BETAS).sigmas ** 2), theirs.numpy(), rtol=2e-5)


def test_timestep_inverts_sigma():
    schedule = Schedule.of(BETAS)
    for t in (0.0, 1.0, 20.25, 500.0, 998.5, 999.0):
        assert schedule.timestep(float(schedule.sigma(np.array(t)))) == pytest.approx(t, abs=1e-9)


def test_guidance_is_linear_and_takes_twice_the_batch():
    def denoise(x, sigma):
        assert len(x) == 2
        return x * np.array([[1.0], [3.0]])

    x = np.array([[2.0]])
    assert guided(denoise, 0.0)(x, 1.0) == 2
    assert guided(denoise, 1.0)(x, 1.0) == 6
    assert guided(denoise, 5.0)(x, 1.0) == 2 + 5 * 4


@pytest.mark.parametrize("prediction_type", PREDICTIONS)
def test_a_perfect_prediction_gives_x0(prediction_type):
    schedule = Schedule.of(BETAS)
    x0, noise = gaussian(1)(SHAPE), gaussian(2)(SHAPE)
    for t in (1, 400, 999):
        sigma = float(schedule.sigma(np.array(t)))
        alpha = 1 / math.hypot(1, sigma)
        truth = {"epsilon": noise, "v_prediction": alpha * noise - alpha * sigma * x0, "sample": x0}[prediction_type]
        denoise = from_network(lambda x, at, truth=truth: truth, prediction_type, schedule)
        assert np.allclose(denoise(x0 + sigma * noise, sigma), x0, atol=1e-4)


def test_noise_is_numpys_and_frozen():
    draw = gaussian(0)
    assert np.allclose(draw((2,)), [1.7640524, 0.4001572]) and np.allclose(draw((1,)), [0.978738])
    assert draw((1, 2)).dtype == np.float32
    for seed in (-1, 2**32):
        with pytest.raises(UsageError, match="seed is"):
            gaussian(seed)
