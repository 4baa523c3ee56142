"""Text to picture with numpy and one runtime: tokenize, encode, denoise, decode.

    with Pipeline.open() as pipe:
        pipe.generate("red apple", seed=3).save("apple.png")

Pictures are made one at a time, so that a picture is the same whatever others are asked for with it, and memory is that
of one. The same bundle, runtime and machine, prompt, seed, steps, guidance and sampler give the same picture.
"""

# B batch (1, or 2 under guidance: unconditional, conditional), C H W latent, T tokens, D text width

import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import overload

import numpy as np
from PIL import Image

from kdc_edge.bundle import Bundle
from kdc_edge.denoise import from_network, guided
from kdc_edge.errors import BundleError, UsageError, choose
from kdc_edge.files import read_json
from kdc_edge.images import to_image
from kdc_edge.manifest import PipelineSpec
from kdc_edge.noise import SEEDS, gaussian
from kdc_edge.runtimes import AUTO, Options, Own, Runtime, open_all, own
from kdc_edge.runtimes.fastest import Choice, fastest, open_chosen
from kdc_edge.samplers import SAMPLERS, Denoise, Step
from kdc_edge.schedule import Schedule
from kdc_edge.timing import SYSTEM
from kdc_edge.tokenizer import Tokenizer

COMPONENTS = ("text_encoder", "unet", "vae_decoder")
DEFAULT_BUNDLE = Path(__file__).parent / "data" / "emoji-64"

log = logging.getLogger(__name__)


@dataclass
class Timings:
    """Wall seconds of every call, by component; `load` is all components'."""

    load: float = 0.0
    calls: dict[str, list[float]] = field(default_factory=dict)

    def totals(self) -> dict[str, float]:
        """Seconds by component, summed over the calls."""
        return {name: sum(seconds) for name, seconds in self.calls.items()}


@dataclass(frozen=True, eq=False)
class Frame:
    """After step `index` of `total`: unit-variance `latents` (1, C, H, W), and the `x0` the network saw before it."""

    index: int
    total: int
    sigma: float
    latents: np.ndarray
    x0: np.ndarray
    decode: Callable[[np.ndarray], Image.Image] = field(repr=False)

    def preview(self) -> Image.Image:
        """What the picture would be if sampling ended here; costs one run of the decoder."""
        return self.decode(self.x0)

    def image(self) -> Image.Image:
        """The latents decoded: after the last step, the picture."""
        return self.decode(self.latents)


class Pipeline:
    """The components of one model, loaded; `id` is its bundle's. `timings` collects as it is used.

    `choice` says why this runtime, where the choice was left to it. Heights and widths in pixels must be multiples of
    `multiple`; where it is None, the pictures have one size.
    """

    def __init__(
        self, spec: PipelineSpec, tokenizer: Tokenizer, components: Mapping[str, Runtime], id: str | None = None
    ) -> None:
        self.spec, self.tokenizer, self.components, self.id = spec, tokenizer, components, id
        self.schedule = Schedule.of(spec.betas)
        self.timings = Timings()
        self.choice: Choice | Own | None = None
        self.multiple: int | None = None

    @classmethod
    def open(
        cls, path: Path | str | Bundle | None = None, runtime: str | None = "ort", options: Options | None = None
    ) -> "Pipeline":
        """Verify a bundle and load its components; None is the default bundle that comes with this package.

        `runtime` auto is the fastest one here: measured when a bundle is first opened so, remembered afterwards; None the
        first one that reads the bundle and can be had.
        """
        start = SYSTEM.wall()
        bundle = path if isinstance(path, Bundle) else Bundle.open(_default() if path is None else path)
        verified = SYSTEM.wall() - start
        choice = _choice(bundle, runtime, options or Options())
        start = SYSTEM.wall()
        spec = bundle.manifest.pipeline
        tokenizer = Tokenizer.open(bundle.path / "tokenizer", spec.tokens)
        components, choice = _components(bundle, choice, options)
        pipeline = cls(spec, tokenizer, components, bundle.id)
        pipeline.multiple = _multiple(bundle)
        pipeline.choice = None if isinstance(choice, Own) and not choice.missing else choice
        pipeline.timings.load = verified + SYSTEM.wall() - start
        return pipeline

    def close(self) -> None:
        """Let the components go."""
        for component in self.components.values():
            component.close()

    def __enter__(self) -> "Pipeline":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @overload
    def generate(
        self, prompt: str, *, seed: int = ..., steps: int | None = ..., guidance: float | None = ...,
        sampler: str | None = ..., negative: str = ..., height: int | None = ..., width: int | None = ...,
    ) -> Image.Image: ...  # fmt: skip

    @overload
    def generate(
        self, prompt: list[str], *, seed: int = ..., steps: int | None = ..., guidance: float | None = ...,
        sampler: str | None = ..., negative: str = ..., height: int | None = ..., width: int | None = ...,
    ) -> list[Image.Image]: ...  # fmt: skip

    def generate(
        self,
        prompt: str | list[str],
        *,
        seed: int = 0,
        steps: int | None = None,
        guidance: float | None = None,
        sampler: str | None = None,
        negative: str = "",
        height: int | None = None,
        width: int | None = None,
    ) -> Image.Image | list[Image.Image]:
        """One picture per prompt, a list for a list; picture i has seed + i. None takes the bundle's own value.

        Raises UsageError for values that cannot be meant and GateError for a picture that is not finite.
        """
        prompts = [prompt] if isinstance(prompt, str) else prompt
        if not 0 <= seed <= SEEDS - max(1, len(prompts)):
            raise UsageError(
                f"seed is {seed}, must be between 0 and {SEEDS - len(prompts)} for {len(prompts)} pictures"
            )
        pictures = []
        for i, text in enumerate(prompts):
            for frame in self.stream(
                text,
                seed=seed + i,
                steps=steps,
                guidance=guidance,
                sampler=sampler,
                negative=negative,
                height=height,
                width=width,
            ):
                if frame.index == frame.total - 1:
                    pictures.append(frame.image())
        return pictures[0] if isinstance(prompt, str) else pictures

    def stream(
        self,
        prompt: str,
        *,
        seed: int = 0,
        steps: int | None = None,
        guidance: float | None = None,
        sampler: str | None = None,
        negative: str = "",
        height: int | None = None,
        width: int | None = None,
    ) -> Iterator[Frame]:
        """The steps of one picture, each as it is done; stop by leaving the loop. None takes the bundle's own value."""
        guidance = self.spec.guidance if guidance is None else guidance
        if not 0 <= guidance < math.inf:
            raise UsageError(f"guidance is {guidance}, must be 0 or more; 1 is none, 3 to 8 are usual")
        chosen = SAMPLERS[choose(self.spec.sampler if sampler is None else sampler, SAMPLERS, "sampler")]
        plan = chosen.plan(self.schedule, self.spec.steps if steps is None else steps)
        noise = gaussian(seed)
        x = noise((1, *self._latent(height, width))) * plan.start
        denoise = self.denoiser(self.encode(prompt, negative, guidance), guidance)
        return (self._frame(step) for step in chosen.loop(denoise, x, plan, noise))

    def encode(self, prompt: str | Sequence[str], negative: str, guidance: float) -> np.ndarray:
        """The text embedding (B, T, D), of several prompts at once if there are; guidance 1 needs no unconditional half."""
        prompts = [prompt] if isinstance(prompt, str) else list(prompt)
        texts = prompts if guidance == 1 else [negative] * len(prompts) + prompts
        encoded = self.tokenizer(texts)
        for text, dropped in zip(texts, encoded.dropped, strict=True):
            if dropped:
                log.warning("the prompt '%.30s…' is %d tokens too long; its end was dropped", text, dropped)
        return self._call("text_encoder", input_ids=encoded.ids)["last_hidden_state"]

    def denoiser(self, text: np.ndarray, guidance: float) -> Denoise:
        """`denoise(x, sigma)` under the prompt that `encode` made `text` of."""

        def network(sample: np.ndarray, timestep: float) -> np.ndarray:
            at = np.array(timestep, np.float32)
            return self._call("unet", sample=sample, timestep=at, encoder_hidden_states=text)["out_sample"]

        denoise = from_network(network, self.spec.prediction_type, self.schedule)
        return denoise if guidance == 1 else guided(denoise, guidance)

    def decode(self, latents: np.ndarray) -> Image.Image:
        """The picture in latents (1, C, H, W); GateError if it is not finite."""
        scaled = (latents * (1 / self.spec.latent_scaling)).astype(np.float32)
        return to_image(self._call("vae_decoder", latent_sample=scaled)["sample"][0])

    def _latent(self, height: int | None, width: int | None) -> tuple[int, ...]:
        """Of a picture of so many pixels; None is the bundle's own. Raises UsageError for what it cannot draw."""
        own, latent = self.spec.image_size, self.spec.latent
        wanted = (own[0] if height is None else height, own[1] if width is None else width)
        if wanted == own:
            return latent
        if self.multiple is None:
            raise UsageError(f"this bundle draws {own[1]}×{own[0]} only; convert with --any-size for other sizes")
        if any(side < 2 * self.multiple or side % self.multiple for side in wanted):
            raise UsageError(
                f"height and width are {wanted[0]} and {wanted[1]}, must be multiples of {self.multiple} and at least two"
            )
        return (latent[0], *(side * latent[1] // own[0] for side in wanted))

    def _frame(self, step: Step) -> Frame:
        latents = step.x * (1 / math.hypot(1, step.sigma))
        return Frame(step.index, step.total, step.sigma, latents, step.x0, self.decode)

    def _call(self, name: str, **inputs: np.ndarray) -> dict[str, np.ndarray]:
        start = SYSTEM.wall()
        outputs = self.components[name](**inputs)
        self.timings.calls.setdefault(name, []).append(SYSTEM.wall() - start)
        return outputs


def _choice(bundle: Bundle, runtime: str | None, options: Options) -> Choice | Own:
    if runtime == AUTO:
        return fastest(bundle, options)
    return own(bundle) if runtime is None else Own(runtime)


def _components(
    bundle: Bundle, choice: Choice | Own, options: Options | None
) -> tuple[dict[str, Runtime], Choice | Own]:
    if isinstance(choice, Choice):
        return open_chosen(bundle, COMPONENTS, choice, options)
    return open_all(bundle, COMPONENTS, choice.runtime, options), choice


def _multiple(bundle: Bundle) -> int | None:
    """Pixels that the U-Net halves to one, where its ports leave the size open."""
    unet, spec = bundle.manifest.components.get("unet"), bundle.manifest.pipeline
    if unet is None or not any("height" in port.shape for port in unet.inputs):
        return None
    halvings = len(read_json(bundle.path / "unet" / "config.json")["down_block_types"]) - 1
    return 2**halvings * spec.image_size[0] // spec.latent[1]


def _default() -> Path:
    if not DEFAULT_BUNDLE.is_dir():
        raise BundleError("this installation has no default bundle; pass the path of one, or install the wheel")
    return DEFAULT_BUNDLE
